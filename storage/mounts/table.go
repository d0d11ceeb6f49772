package mounts

import (
	"fmt"
	"os"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// entry is one line of the mount table (proc_pid_mountinfo(5)).
type entry struct {
	id     int
	point  string
	shared bool
}

func table() ([]entry, error) {
	data, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		return nil, fmt.Errorf("read mount table: %w", err)
	}
	return parseTable(string(data))
}

// Points are all mount points that this process can see, as the mount table has
// them: without symlinks, the oldest first, and hidden ones among them.
func Points() ([]string, error) {
	list, err := table()
	if err != nil {
		return nil, err
	}
	points := make([]string, len(list))
	for i, e := range list {
		points[i] = e.point
	}
	return points, nil
}

// parseTable reads lines such as
//
//	36 35 98:0 /root /mount\040point rw,noatime shared:1 master:2 - ext3 /dev/root rw
//
// oldest first. The optional fields end at the dash.
func parseTable(text string) ([]entry, error) {
	var list []entry
	for line := range strings.Lines(text) {
		f := strings.Fields(line)
		if len(f) < 7 {
			return nil, fmt.Errorf("read mount table: short line %q", line)
		}
		id, err := strconv.Atoi(f[0])
		if err != nil {
			return nil, fmt.Errorf("read mount table: %w", err)
		}
		e := entry{id: id, point: unescape(f[4])}
		for _, o := range f[6:] {
			if o == "-" {
				break
			}
			e.shared = e.shared || strings.HasPrefix(o, "shared:")
		}
		list = append(list, e)
	}
	return list, nil
}

// unescape undoes the kernel's octal escapes of space, tab, newline and
// backslash.
func unescape(s string) string {
	if !strings.Contains(s, `\`) {
		return s
	}
	b := make([]byte, 0, len(s))
	for i := 0; i < len(s); i++ {
		if s[i] == '\\' && i+3 < len(s) {
			if v, err := strconv.ParseUint(s[i+1:i+4], 8, 8); err == nil {
				b = append(b, byte(v))
				i += 3
				continue
			}
		}
		b = append(b, s[i])
	}
	return string(b)
}

// propagates reports whether what is mounted on at is seen in the namespace
// that ours was cloned from: whether at's mount is shared.
func propagates(at *os.File) (bool, error) {
	var st unix.Statx_t
	err := onFD(at, "look up mount", func(fd int) error {
		return unix.Statx(fd, "", unix.AT_EMPTY_PATH, unix.STATX_MNT_ID, &st)
	})
	if err != nil {
		return false, err
	}
	if st.Mask&unix.STATX_MNT_ID == 0 {
		return true, nil // before 5.8: taken on trust
	}
	list, err := table()
	if err != nil {
		return false, err
	}
	for _, e := range list {
		if uint64(e.id) == st.Mnt_id {
			return e.shared, nil
		}
	}
	return false, fmt.Errorf("mount %d of %s is not in the mount table", st.Mnt_id, at.Name())
}
