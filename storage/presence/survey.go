package presence

import (
	"errors"
	"io"
	"io/fs"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"

	"hearth/storage/mounts"
)

// A Survey looks at many areas, and says of each what Look does. What they have
// in common it looks at once: the table of mounts, and which names there are in
// the directories that images are in. It is of one moment, and serves one
// goroutine. The zero value is ready.
type Survey struct {
	// Most is how many names a directory may have to be listed, 0 for any: for a
	// few areas it takes longer than to look at each.
	Most int

	asked     bool
	mounted   map[string]bool            // nil: nobody knows
	parents   map[string]string          // a directory's path without symlinks, "" where that cannot be told
	directory map[string]map[string]bool // the names in a directory; nil: nobody knows

	looks, lists int // how many areas were looked at alone, and directories listed, for tests
}

// Look returns the state of an area, as the function Look.
func (s *Survey) Look(a Area) (State, error) {
	if !s.asked {
		s.ask()
	}
	if a.HomeDirectory != "" && s.mayBeMounted(a.HomeDirectory) || a.Storage == "cifs" || filepath.Clean(a.ImagePath) != a.ImagePath {
		s.looks++
		return Look(a)
	}
	names := s.names(filepath.Dir(a.ImagePath))
	if names != nil && !names[filepath.Base(a.ImagePath)] {
		return Absent, nil
	}
	a.HomeDirectory = ""
	s.looks++
	return Look(a)
}

func (s *Survey) ask() {
	s.asked = true
	s.parents, s.directory = map[string]string{}, map[string]map[string]bool{}
	points, err := mounts.Points()
	if err != nil {
		return
	}
	s.mounted = make(map[string]bool, len(points))
	for _, p := range points {
		s.mounted[p] = true
	}
}

// mayBeMounted says no only where nothing can be mounted. The table has the
// paths of mounts without symlinks, and those that are hidden by others as well.
func (s *Survey) mayBeMounted(path string) bool {
	if s.mounted == nil || filepath.Clean(path) != path {
		return true
	}
	dir := filepath.Dir(path)
	real, known := s.parents[dir]
	if !known {
		var err error
		if real, err = filepath.EvalSymlinks(dir); errors.Is(err, fs.ErrNotExist) {
			real = dir // nothing is there
		} else if err != nil {
			real = ""
		}
		s.parents[dir] = real
	}
	return real == "" || s.mounted[filepath.Join(real, filepath.Base(path))]
}

// names are those in a directory, if its list tells all that a look at each
// would: file systems of the network, and those that mount what is asked for,
// know names that they do not list.
func (s *Survey) names(dir string) map[string]bool {
	if names, known := s.directory[dir]; known {
		return names
	}
	var names map[string]bool
	s.lists++
	if list, err := s.list(dir); errors.Is(err, fs.ErrNotExist) {
		names = map[string]bool{}
	} else if err == nil {
		names = make(map[string]bool, len(list))
		for _, name := range list {
			names[name] = true
		}
	}
	s.directory[dir] = names
	return names
}

var errUntold = errors.New("the list of names may not be whole")

func (s *Survey) list(path string) ([]string, error) {
	dir, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer func() { _ = dir.Close() }()
	var st unix.Statfs_t
	if err := unix.Fstatfs(int(dir.Fd()), &st); err != nil {
		return nil, err
	}
	if !ofMachine(uint32(st.Type)) {
		return nil, errUntold
	}
	if s.Most == 0 {
		return dir.Readdirnames(-1)
	}
	names, err := dir.Readdirnames(s.Most + 1)
	switch {
	case errors.Is(err, io.EOF):
		return names, nil
	case err == nil && len(names) <= s.Most:
		// One call need not be all; another one tells.
		if more, err := dir.Readdirnames(1); len(more) > 0 || !errors.Is(err, io.EOF) {
			return nil, errUntold
		}
	case err == nil:
		return nil, errUntold
	}
	return names, err
}
