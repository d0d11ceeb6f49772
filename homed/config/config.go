// Package config reads the daemon's configuration: homed.conf and its
// drop-ins, by systemd's rules, and every path the daemon may touch. It decides
// nothing and looks at nothing else; the environment is handed to it.
package config

import (
	"bufio"
	"bytes"
	"errors"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"sort"
	"strconv"
	"strings"
	"time"
)

// Config is what an administrator may set. Its zero value is the documented
// default: both are then chosen by the worker.
type Config struct {
	DefaultStorage        string // luks, fscrypt, directory, subvolume, cifs; "" = automatic
	DefaultFileSystemType string // ext4, btrfs, xfs; "" = btrfs, or ext4 where mkfs.btrfs is missing
	// LingerPrompt is how long the boot waits for the passwords of lingering
	// users: 0 = unset, see LingerLimit; negative = nobody is asked.
	LingerPrompt time.Duration
}

// lingerMost is also the default: the unit that asks holds up all logins.
const lingerMost = time.Minute

// LingerLimit is for how long lingering users are asked for at boot, 0 if not.
func (c Config) LingerLimit() time.Duration {
	switch {
	case c.LingerPrompt == 0:
		return lingerMost
	case c.LingerPrompt < 0:
		return 0
	}
	return c.LingerPrompt
}

// Layout is every path and address that the daemon uses.
type Layout struct {
	RecordDir     string   // NAME.identity, keys
	KeyDirs       []string // where keys are looked for; the first file of a name wins
	NewKeyDir     string   // where keys are made
	BlobDir       string
	RunDir        string // FIFOs of references
	HomeRoot      string // scanned for images
	DeviceLinks   string // block devices by the UUIDs of their containers
	UserDBSocket  string
	BusName       string
	SystemBus     string // address; "" = the system's
	Worker        string // program
	FallbackShell string // shell of a home that is not active
	MachineID     string // file with the 32 hex digits
	ConfigDirs    []string
	PasswordRules string // pwquality.conf(5); what lies in this name with ".d" counts too
}

// DefaultLayout returns the paths of systemd-homed, which ours are, with the
// programs below libDir.
func DefaultLayout(libDir string) Layout {
	return Layout{
		RecordDir: "/var/lib/systemd/home",
		KeyDirs: []string{"/etc/systemd/home", "/run/systemd/home", "/var/lib/systemd/home",
			"/usr/local/lib/systemd/home", "/usr/lib/systemd/home"},
		NewKeyDir:     "/var/lib/systemd/home",
		BlobDir:       "/var/cache/systemd/home",
		RunDir:        "/run/systemd/home",
		HomeRoot:      "/home",
		DeviceLinks:   "/dev/disk/by-uuid",
		UserDBSocket:  "/run/systemd/userdb/io.systemd.Home",
		BusName:       "org.freedesktop.home1",
		Worker:        filepath.Join(libDir, "homework"),
		FallbackShell: filepath.Join(libDir, "homeshell"),
		MachineID:     "/etc/machine-id",
		ConfigDirs:    []string{"/etc/systemd", "/run/systemd", "/usr/local/lib/systemd", "/usr/lib/systemd"},
		PasswordRules: "/etc/security/pwquality.conf",
	}
}

// WithEnvironment applies the variables that systemd-homed knows. A path that
// is not absolute and clean is ignored with a warning.
func (l Layout) WithEnvironment(getenv func(string) string, log *slog.Logger) Layout {
	path := func(name string, to *string) {
		v := getenv(name)
		if v == "" {
			return
		}
		v = strings.TrimSuffix(v, "/")
		if !filepath.IsAbs(v) || filepath.Clean(v) != v {
			log.Warn("ignoring a path from the environment that is not absolute and normalised", "variable", name, "value", v)
			return
		}
		*to = v
	}
	path("SYSTEMD_HOME_ROOT", &l.HomeRoot)
	path("SYSTEMD_HOME_RECORD_DIR", &l.RecordDir)
	path("SYSTEMD_HOME_SYSTEM_BLOB_DIR", &l.BlobDir)
	path("SYSTEMD_HOMEWORK_PATH", &l.Worker)
	l.SystemBus = getenv("DBUS_SYSTEM_BUS_ADDRESS")
	if s := getenv("SYSTEMD_HOME_DEBUG_SUFFIX"); s != "" {
		l.BusName += "." + s
		l.UserDBSocket += "." + s
	}
	return l
}

// Load reads homed.conf and its drop-ins from the Layout's directories:
// the first homed.conf found, then homed.conf.d/*.conf of all directories by
// name, where a file hides those of its name in later directories and one that
// is empty or a link to /dev/null only hides. What is unknown or wrong is
// warned about and ignored.
func Load(l Layout, log *slog.Logger) (Config, error) {
	var c Config
	for _, dir := range l.ConfigDirs {
		text, err := os.ReadFile(filepath.Join(dir, "homed.conf"))
		if errors.Is(err, fs.ErrNotExist) {
			continue
		}
		if err != nil {
			return c, err
		}
		c.apply(filepath.Join(dir, "homed.conf"), text, log)
		break
	}
	files := map[string]string{}
	for _, dir := range l.ConfigDirs {
		entries, err := os.ReadDir(filepath.Join(dir, "homed.conf.d"))
		if err != nil {
			continue
		}
		for _, e := range entries {
			if _, hidden := files[e.Name()]; !hidden && strings.HasSuffix(e.Name(), ".conf") {
				files[e.Name()] = filepath.Join(dir, "homed.conf.d", e.Name())
			}
		}
	}
	names := make([]string, 0, len(files))
	for n := range files {
		names = append(names, n)
	}
	sort.Strings(names)
	for _, n := range names {
		text, err := os.ReadFile(files[n])
		if err != nil {
			return c, err
		}
		c.apply(files[n], text, log)
	}
	return c, nil
}

var (
	storages    = []string{"classic", "luks", "fscrypt", "directory", "subvolume", "cifs"}
	fileSystems = []string{"ext4", "btrfs", "xfs"}
)

func (c *Config) apply(file string, text []byte, log *slog.Logger) {
	section := ""
	for n, line := range lines(text) {
		log := log.With("file", file, "line", n)
		if line[0] == '[' {
			if line[len(line)-1] != ']' {
				log.Warn("ignoring a malformed section header")
				continue
			}
			if section = line[1 : len(line)-1]; section != "Home" && !strings.HasPrefix(section, "X-") {
				log.Warn("ignoring an unknown section", "section", section)
			}
			continue
		}
		key, value, ok := strings.Cut(line, "=")
		if !ok {
			log.Warn("ignoring a line without assignment")
			continue
		}
		key, value = strings.TrimSpace(key), strings.TrimSpace(value)
		switch {
		case section == "":
			log.Warn("ignoring an assignment outside a section", "key", key)
		case section != "Home":
		case key == "DefaultStorage":
			set(&c.DefaultStorage, key, value, storages, log)
		case key == "DefaultFileSystemType":
			set(&c.DefaultFileSystemType, key, value, fileSystems, log)
		case key == "LingerPromptSec":
			c.setLinger(value, log)
		case strings.HasPrefix(key, "X-"):
		default:
			log.Warn("ignoring an unknown setting", "key", key)
		}
	}
}

// set takes a value of the list; the empty value resets.
func set(to *string, key, value string, known []string, log *slog.Logger) {
	for _, k := range known {
		if value == k {
			*to = value
			return
		}
	}
	if value == "" {
		*to = ""
		return
	}
	log.Warn("ignoring an unknown value", "key", key, "value", value)
}

// setLinger takes seconds or a time with units, a minute at most; the empty
// value resets.
func (c *Config) setLinger(value string, log *slog.Logger) {
	span, err := time.ParseDuration(strings.ReplaceAll(strings.ReplaceAll(value, " ", ""), "min", "m"))
	if n, e := strconv.ParseUint(value, 10, 16); e == nil {
		span, err = time.Duration(n)*time.Second, nil
	}
	switch {
	case value == "":
		c.LingerPrompt = 0
	case err != nil || span < 0:
		log.Warn("ignoring an unknown value", "key", "LingerPromptSec", "value", value)
	case span == 0:
		c.LingerPrompt = -1
	case span > lingerMost:
		log.Warn("a longer wait would hold up all logins, taking one minute", "key", "LingerPromptSec", "value", value)
		c.LingerPrompt = lingerMost
	default:
		c.LingerPrompt = span
	}
}

// lines yields, by the number of its first line, each logical line that is
// neither empty nor a comment, trimmed. A backslash at the end of a line joins
// the next one with a space; comments in between are skipped.
func lines(text []byte) func(yield func(int, string) bool) {
	return func(yield func(int, string) bool) {
		text = bytes.TrimPrefix(text, []byte("\xef\xbb\xbf"))
		sc := bufio.NewScanner(bytes.NewReader(text))
		sc.Buffer(nil, len(text)+1)
		pending, first, open := "", 0, false
		emit := func() bool {
			l := strings.TrimSpace(pending)
			pending, open = "", false
			return l == "" || yield(first, l)
		}
		for n := 1; sc.Scan(); n++ {
			l := sc.Text()
			t := strings.TrimSpace(l)
			if t != "" && (t[0] == '#' || t[0] == ';') {
				continue
			}
			if !open {
				first = n
			}
			if rest, joins := strings.CutSuffix(l, `\`); joins {
				pending, open = pending+rest+" ", true
				continue
			}
			pending += l
			if !emit() {
				return
			}
		}
		if open {
			emit()
		}
	}
}
