package session

import (
	"bytes"
	"encoding/binary"
	"io"
	"os"
	"path/filepath"
	"strings"
)

// Zone reports whether a time zone exists on this machine.
func Zone(name string) bool {
	if !filepath.IsLocal(name) {
		return false
	}
	info, err := os.Stat(filepath.Join("/usr/share/zoneinfo", name))
	return err == nil && info.Mode().IsRegular()
}

// Locale reports whether the C library's programs find a locale on this
// machine.
func Locale(name string) bool { return localeBelow("/usr/lib/locale", name) }

// localeBelow looks where glibc does: for a directory of that name, or for an
// entry of the archive that localedef(1) keeps beside them.
func localeBelow(dir, name string) bool {
	if name == "C" || name == "POSIX" {
		return true
	}
	if name == "" || strings.ContainsAny(name, "/\x00") {
		return false
	}
	archived := archivedLocales(filepath.Join(dir, "locale-archive"))
	for _, n := range []string{name, normalLocale(name)} {
		if _, err := os.Stat(filepath.Join(dir, n, "LC_CTYPE")); err == nil {
			return true
		}
		if bytes.Contains(archived, []byte("\x00"+n+"\x00")) {
			return true
		}
	}
	return false
}

// normalLocale spells the character set as glibc stores it: letters and digits
// alone, in lower case, iso in front of mere digits.
func normalLocale(name string) string {
	lang, rest, ok := strings.Cut(name, ".")
	if !ok {
		return name
	}
	set, modifier, at := strings.Cut(rest, "@")
	digits := true
	set = strings.Map(func(r rune) rune {
		switch {
		case r >= 'A' && r <= 'Z':
			r += 'a' - 'A'
			digits = false
		case r >= 'a' && r <= 'z':
			digits = false
		case r < '0' || r > '9':
			return -1
		}
		return r
	}, set)
	if digits {
		set = "iso" + set
	}
	if at {
		modifier = "@" + modifier
	}
	return lang + "." + set + modifier
}

// archivedLocales returns the archive's names with a NUL before and after
// each, nil if there is no archive. Its header is fourteen numbers of 32 bits
// in the machine's order, of which the first is a magic number and the sixth
// and seventh are where the names are and how long (glibc, locarchive.h).
func archivedLocales(path string) []byte {
	const (
		magic = 0xde020109
		most  = 16 << 20
	)
	f, err := os.Open(path)
	if err != nil {
		return nil
	}
	defer f.Close()
	var head [14]uint32
	if binary.Read(f, binary.NativeEndian, &head) != nil || head[0] != magic || head[6] > most {
		return nil
	}
	names := make([]byte, head[6]+2)
	if _, err := io.ReadFull(io.NewSectionReader(f, int64(head[5]), int64(head[6])), names[1:len(names)-1]); err != nil {
		return nil
	}
	return names
}
