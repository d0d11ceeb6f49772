package manager

import (
	"cmp"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"

	"hearth/homed/home"
	"hearth/records"
	"hearth/storage/presence"
)

// look says what a home's storage looks like from outside.
func look(v *face) home.Presence { return lookBy(presence.Look, v) }

// lookBy has an area looked at by presence.Look, or one that has seen others.
func lookBy(look func(presence.Area) (presence.State, error), v *face) home.Presence {
	s, err := look(presence.Area{Storage: v.Storage, ImagePath: v.ImagePath, HomeDirectory: v.HomeDirectory})
	switch {
	case err == nil && s == presence.Active:
		return home.SeenMounted
	case v.Storage == "":
		// None chosen yet: the home directory is all there could be.
		if _, err := os.Lstat(v.HomeDirectory); errors.Is(err, fs.ErrNotExist) {
			return home.SeenAbsent
		}
		return home.SeenUnclear
	case v.Storage == "cifs":
		// It shows only when it is mounted.
		return home.SeenUnclear
	case err == nil && s == presence.Unclear:
		return home.SeenUnclear
	case err != nil:
		return home.SeenInactive
	case s == presence.Absent:
		return home.SeenAbsent
	case s == presence.Dirty:
		return home.SeenDirty
	}
	return home.SeenInactive
}

func (m *Manager) look(e *entry) home.Presence { return look(e.face) }

// imageThere reports whether a home's storage can be seen at all; what cannot
// be looked at counts as there, but for a home without record, which is then
// not worth keeping.
func (m *Manager) imageThere(e *entry) bool {
	if e.Storage == "cifs" {
		return true
	}
	_, err := os.Stat(e.ImagePath)
	if e.home.Stored == home.Unfixated {
		return err == nil
	}
	return !errors.Is(err, fs.ErrNotExist)
}

// info makes of a snapshot what front ends get.
func (s snapshot) info(m *Manager) Info {
	i := Info{
		Machine: m.Machine,
		Name:    s.UserName, Realm: s.Realm, State: string(s.state),
		RealName:      cmp.Or(s.RealName, s.UserName),
		HomeDirectory: s.HomeDirectory, Shell: s.Shell,
		UID: s.UID, GID: s.GID,
		Subject: s.subject, Signed: s.subject.SignedLocally(), Unfixated: s.state == home.Unfixated,
		face: s.face, state: s.state, absent: s.absent, fallbackShell: m.Layout.FallbackShell, texts: &m.texts,
	}
	if s.state != home.Absent {
		i.Seat = s.seat
	}
	return i
}

// live measures disks, so it is called outside of the loop where it can be.
func (i Info) live() records.LiveStatus {
	live := records.LiveStatus{
		State: string(i.state), Active: i.state.IsActive(),
		FallbackShell: i.fallbackShell, SignedLocally: i.Subject.SignedLocally(),
	}
	if i.face != nil {
		measure(i.face, &live, i.absent)
	}
	return live
}

// Record returns the home's record with the status of the moment, unmasked (Mask
// it for who asks) and without secret.
func (i Info) Record() *records.Record {
	return i.Subject.Record().Augment(i.Machine.ID, i.live())
}

// Text returns the text of the record with the status of the moment, as Mask
// has it for who asks. It belongs to others as well and is not to be changed.
func (i Info) Text(trusted bool) (text []byte, incomplete bool) {
	live := i.live()
	if t := i.texts.find(i.Name, trusted, i.Subject, live); t != nil {
		return t.text, t.incomplete
	}
	masked, incomplete := i.Subject.Record().Augment(i.Machine.ID, live).Mask(trusted)
	t := &answerText{subject: i.Subject, live: live, text: masked.Compact(), incomplete: incomplete}
	i.texts.keep(i.Name, trusted, t)
	return t.text, t.incomplete
}

// The smallest size of each file system, bytes.
var smallest = map[string]uint64{"ext4": 32 << 20, "btrfs": 256 << 20, "xfs": 300 << 20}

func amount(n uint64) *uint64 { return &n }

// measure fills in the sizes that can be had without touching a home that is
// not active: a suspended one would not answer. Of an area that is absent none
// are looked for.
func measure(v *face, s *records.LiveStatus, absent bool) {
	var home unix.Statfs_t
	up := s.Active && unix.Statfs(v.HomeDirectory, &home) == nil
	if up {
		s.FileSystemType = fsName(home.Type)
	}
	if v.Storage == "luks" {
		measureLUKS(v, s, absent, up, &home)
		return
	}
	if !up && (absent || v.Storage == "cifs" || unix.Statfs(v.ImagePath, &home) != nil) {
		return
	}
	s.FileSystemType = fsName(home.Type)
	s.DiskSize = amount(home.Blocks * uint64(home.Bsize))
	s.DiskFree = amount(home.Bavail * uint64(home.Bsize))
	measureQuota(v, s)
}

// measureQuota narrows the sizes of the whole file system down to the share
// that a home in a directory has of it.
func measureQuota(v *face, s *records.LiveStatus) {
	if v.Storage != "directory" && v.Storage != "subvolume" && v.Storage != "fscrypt" {
		return
	}
	used, limit, ok, err := presence.Quota(v.ImagePath, v.UID)
	if errors.Is(err, presence.ErrNoEntry) {
		s.DiskUsage = amount(0) // the word of systemd-homed for it
	}
	if err != nil || !ok {
		return
	}
	size, free := *s.DiskSize, *s.DiskFree
	s.DiskUsage = amount(used)
	s.DiskCeiling = amount(min(used+free, size))
	if limit > 0 && limit < size {
		size = limit
		free = min(free, size-min(size, used))
	}
	s.DiskSize, s.DiskFree = amount(size), amount(free)
}

func measureLUKS(v *face, s *records.LiveStatus, absent, up bool, home *unix.Statfs_t) {
	var used *uint64
	var st unix.Stat_t
	switch {
	case absent, unix.Stat(v.ImagePath, &st) != nil:
	case st.Mode&unix.S_IFMT == unix.S_IFREG:
		s.DiskSize = amount(uint64(st.Size))
		used = amount(uint64(st.Blocks) * 512)
		if free := freeBelow(filepath.Dir(v.ImagePath)); free > 0 {
			s.DiskCeiling = amount(*used + free)
		}
	case st.Mode&unix.S_IFMT == unix.S_IFBLK:
		s.DiskSize = deviceSize(st.Rdev)
	}
	kind := v.FileSystemType
	if up && s.FileSystemType != "" {
		kind = s.FileSystemType
	}
	if n, ok := smallest[kind]; ok {
		s.DiskFloor = amount(n)
	}
	if !up {
		return
	}
	free := home.Bavail * uint64(home.Bsize)
	s.DiskFree = amount(free)
	if info, err := os.Lstat(v.HomeDirectory); err == nil {
		var at unix.Stat_t
		if unix.Lstat(v.HomeDirectory, &at) == nil && info.IsDir() {
			mode := at.Mode & 0o7777
			s.AccessMode = &mode
		}
	}
	if s.DiskSize == nil {
		return
	}
	size, fs := *s.DiskSize, home.Blocks*uint64(home.Bsize)
	switch {
	case size > free && used != nil:
		s.DiskUsage = amount(min(size-free, *used))
	case size > free:
		s.DiskUsage = amount(size - free)
	default:
		s.DiskUsage = used
	}
	if s.DiskFloor != nil && size > fs {
		s.DiskFloor = amount(*s.DiskFloor + size - fs)
	}
}

// freeBelow is what a directory's file system has left, in bytes.
func freeBelow(path string) uint64 {
	var fs unix.Statfs_t
	if unix.Statfs(path, &fs) != nil {
		return 0
	}
	return fs.Bavail * uint64(fs.Bsize)
}

// deviceSize asks sysfs, which needs no open device.
func deviceSize(dev uint64) *uint64 {
	text, err := os.ReadFile(filepath.Join("/sys/dev/block", majorMinor(dev), "size"))
	if err != nil {
		return nil
	}
	n, ok := decimal(strings.TrimSpace(string(text)))
	if !ok {
		return nil
	}
	return amount(n * 512)
}

func fsName(magic int64) string {
	switch uint32(magic) {
	case unix.EXT4_SUPER_MAGIC:
		return "ext4"
	case unix.BTRFS_SUPER_MAGIC:
		return "btrfs"
	case unix.XFS_SUPER_MAGIC:
		return "xfs"
	}
	return ""
}

func ownerOf(info os.FileInfo) uint32 {
	if st, ok := info.Sys().(*syscall.Stat_t); ok {
		return st.Uid
	}
	return 0
}
