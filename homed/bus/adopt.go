package bus

import (
	"context"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"

	"hearth/internal/fault"
)

// adopt takes a home in that lies outside of the home root. Bad arguments are
// told to everybody, before polkit is asked.
func (s *server) adopt(ctx context.Context, c *call) error {
	path := string(c.args[0].([]byte))
	if !usablePath(path) {
		return fault.Newf(fault.InvalidArgs, "read path", "Specified path is not absolute or not valid: %s", path)
	}
	if c.args[1].(uint64) != 0 {
		return fault.Newf(fault.InvalidArgs, "read flags", "Flags field must be zero.")
	}
	if err := s.access.allowed(ctx, c, c.method.Action, nil, c.posted); err != nil {
		return err
	}
	return s.o.Manager.Adopt(ctx, path)
}

// usablePath reports whether a path is absolute, leads nowhere by way of its
// parents, and is one that the kernel can follow.
func usablePath(path string) bool {
	if !filepath.IsAbs(path) || len(path) >= unix.PathMax {
		return false
	}
	for part := range strings.SplitSeq(path, "/") {
		if part == ".." || len(part) > unix.NAME_MAX {
			return false
		}
	}
	return true
}
