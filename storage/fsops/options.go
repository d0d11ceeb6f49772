package fsops

import (
	"strings"

	"golang.org/x/sys/unix"
)

// mountDefaults are systemd-homed's.
var mountDefaults = map[string]string{
	"ext4":  "noquota,user_xattr",
	"btrfs": "compress=zstd:1,noacl,user_subvol_rm_allowed",
	"xfs":   "noquota",
}

// flagWords are the option words that mean a flag of mount(2): set, then
// clear.
var flagWords = map[string][2]uintptr{
	"defaults":      {0, 0},
	"ro":            {unix.MS_RDONLY, 0},
	"rw":            {0, unix.MS_RDONLY},
	"nosuid":        {unix.MS_NOSUID, 0},
	"suid":          {0, unix.MS_NOSUID},
	"nodev":         {unix.MS_NODEV, 0},
	"dev":           {0, unix.MS_NODEV},
	"noexec":        {unix.MS_NOEXEC, 0},
	"exec":          {0, unix.MS_NOEXEC},
	"nosymfollow":   {unix.MS_NOSYMFOLLOW, 0},
	"symfollow":     {0, unix.MS_NOSYMFOLLOW},
	"sync":          {unix.MS_SYNCHRONOUS, 0},
	"async":         {0, unix.MS_SYNCHRONOUS},
	"dirsync":       {unix.MS_DIRSYNC, 0},
	"noatime":       {unix.MS_NOATIME, unix.MS_RELATIME | unix.MS_STRICTATIME},
	"atime":         {0, unix.MS_NOATIME},
	"relatime":      {unix.MS_RELATIME, unix.MS_NOATIME | unix.MS_STRICTATIME},
	"norelatime":    {0, unix.MS_RELATIME},
	"strictatime":   {unix.MS_STRICTATIME, unix.MS_NOATIME | unix.MS_RELATIME},
	"nostrictatime": {0, unix.MS_STRICTATIME},
	"nodiratime":    {unix.MS_NODIRATIME, 0},
	"diratime":      {0, unix.MS_NODIRATIME},
	"lazytime":      {unix.MS_LAZYTIME, 0},
	"nolazytime":    {0, unix.MS_LAZYTIME},
	"silent":        {unix.MS_SILENT, 0},
	"loud":          {0, unix.MS_SILENT},
	"iversion":      {unix.MS_I_VERSION, 0},
	"noiversion":    {0, unix.MS_I_VERSION},
}

// toolWords are for mount(8) and fstab, and mean nothing to the kernel.
var toolWords = map[string]bool{"auto": true, "noauto": true, "nofail": true, "user": true, "nouser": true, "users": true, "owner": true, "group": true, "_netdev": true}

// MountOptions returns how a home's file system is mounted: the data and the
// flags of mount(2). extra are option words of the record, separated by
// commas; they come last and so win. Words that are flags become flags; of the
// result, the caller adds the flags of the record itself, which no word here
// takes away.
func MountOptions(fstype string, discard bool, extra string) (data string, flags uintptr) {
	words := split(mountDefaults[fstype])
	if discard {
		words = append(words, "discard")
	} else {
		words = append(words, "nodiscard")
	}
	words = append(words, split(extra)...)
	flags = unix.MS_RELATIME
	var rest []string
	for _, w := range words {
		if f, ok := flagWords[w]; ok {
			flags = flags&^f[1] | f[0]
			continue
		}
		if toolWords[w] || strings.HasPrefix(w, "x-") || strings.HasPrefix(w, "X-") || strings.HasPrefix(w, "comment=") {
			continue
		}
		rest = append(rest, w)
	}
	return strings.Join(rest, ","), flags
}

// split cuts at commas outside of double quotes, which SELinux contexts hold.
func split(s string) []string {
	var list []string
	quoted, from := false, 0
	for i := 0; i <= len(s); i++ {
		if i < len(s) && s[i] == '"' {
			quoted = !quoted
		}
		if i == len(s) || s[i] == ',' && !quoted {
			if w := strings.TrimSpace(s[from:i]); w != "" {
				list = append(list, w)
			}
			from = i + 1
		}
	}
	return list
}
