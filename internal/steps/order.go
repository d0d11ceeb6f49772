package steps

import (
	"fmt"
	"path/filepath"
	"strings"
)

// An Order watches that files become others in the one way that a power cut
// cannot spoil: written under another name, flushed, renamed, and the folder
// flushed.
type Order struct {
	// Of says which names matter: those that a rename gives.
	Of func(path string) bool
	// Faults are what was not in order, Renames the names that were given.
	Faults, Renames []string

	inside map[string]bool // what this process made
	dirty  map[string]bool // of that, what is not on the disk as it is now
	named  map[string]bool // folders in which a name was given, not flushed since
}

// Step takes the next one. It returns true, for Follow.
func (o *Order) Step(s Step) bool {
	if o.dirty == nil {
		o.inside, o.dirty, o.named = map[string]bool{}, map[string]bool{}, map[string]bool{}
	}
	switch s.Name {
	case "create", "mkdir":
		if s.Name == "create" && o.Of(s.Path) {
			o.fault("%v under the name itself", s)
		}
		o.inside[s.Path], o.dirty[s.Path] = true, true
		o.spoil(filepath.Dir(s.Path))
	case "write", "copy", "truncate", "chown", "chmod", "setxattr", "removexattr":
		if s.Name == "write" && o.Of(s.Path) {
			o.fault("%v, which bears its name already", s)
		}
		o.spoil(s.Path)
	case "sync":
		delete(o.dirty, s.Path)
		delete(o.named, s.Path)
	case "syncfs":
		clear(o.dirty)
		clear(o.named)
	case "unlink":
		delete(o.inside, s.Path)
		delete(o.dirty, s.Path)
		o.spoil(filepath.Dir(s.Path))
	case "rename":
		if o.Of(s.To) {
			for path := range o.dirty {
				if path == s.Path || strings.HasPrefix(path, s.Path+"/") {
					o.fault("%v, while %s is not flushed", s, path)
				}
			}
			o.Renames = append(o.Renames, s.To)
			o.named[filepath.Dir(s.To)] = true
		}
		for _, set := range []map[string]bool{o.dirty, o.inside} {
			for path := range set {
				if rest, ok := strings.CutPrefix(path, s.Path); ok && (rest == "" || rest[0] == '/') {
					delete(set, path)
					set[s.To+rest] = true
				}
			}
		}
	}
	return true
}

// End says that the process has promised success: every name that was given is
// on the disk by now.
func (o *Order) End() {
	for _, name := range o.Renames {
		if o.named[filepath.Dir(name)] {
			o.fault("%s was renamed, and its folder not flushed", name)
		}
	}
}

// spoil says that what this process made is not on the disk as it is now.
func (o *Order) spoil(path string) {
	if o.inside[path] {
		o.dirty[path] = true
	}
}

func (o *Order) fault(format string, args ...any) {
	o.Faults = append(o.Faults, fmt.Sprintf(format, args...))
}
