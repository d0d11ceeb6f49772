// Package holders finds out which processes keep a home in use: by their
// working directory, program, open files and mappings, as /proc shows them. The
// service lacks the right to look into other users' processes, so a child that
// has become the home's user does it for its own processes; of all others it is
// only known that there must be some. What to do about them is the caller's.
package holders

import (
	"bufio"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"sort"
	"strconv"
	"strings"
	"syscall"
	"time"
	"unicode/utf8"

	"golang.org/x/sys/unix"
)

// Verb is the only argument that a program must pass on to Child.
const Verb = "holders"

const (
	atMost   = 2 * time.Second // for the child; nobody waits for the list alone
	maxList  = 64 << 10        // bytes that are read of it
	maxNamed = 5               // processes
	maxText  = 80              // runes of a command or path
)

// A Process keeps a home in use.
type Process struct {
	PID     int    `json:"pid"`
	Command string `json:"command"`
	Path    string `json:"path"` // the first that was found
}

// Of starts program as the home's user to look for that user's processes. The
// user may do with that child as with any of his own, so what it says is
// bounded, cleaned, and good for a text alone; a child that he stops is left
// to him.
func Of(program string, uid, gid uint32, dir string) ([]Process, error) {
	read, write, err := os.Pipe()
	if err != nil {
		return nil, fmt.Errorf("look for processes: %w", err)
	}
	defer func() { _ = read.Close() }()
	cmd := exec.Command(program, Verb)
	cmd.Dir, cmd.Env = "/", []string{}
	cmd.Stdin = strings.NewReader(dir)
	cmd.Stdout = write
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true, Credential: &syscall.Credential{Uid: uid, Gid: gid}}
	err = cmd.Start()
	_ = write.Close()
	if err != nil {
		return nil, fmt.Errorf("look for processes: %w", err)
	}
	go func() { _ = cmd.Wait() }()
	if err := read.SetReadDeadline(time.Now().Add(atMost)); err != nil {
		return nil, fmt.Errorf("look for processes: %w", err)
	}
	text, err := io.ReadAll(io.LimitReader(read, maxList))
	if err != nil {
		return nil, fmt.Errorf("look for processes: %w", err)
	}
	var list []Process
	if err := json.Unmarshal(text, &list); err != nil {
		return nil, fmt.Errorf("look for processes: %w", err)
	}
	return list, nil
}

// Child is the other half: what the program does that Of has started. It
// returns the exit status.
func Child(in io.Reader, out io.Writer) int {
	dir, err := io.ReadAll(io.LimitReader(in, unix.PathMax))
	if err != nil || !filepath.IsAbs(string(dir)) {
		return 1
	}
	list := Find("/proc", string(dir), os.Getpid())
	if json.NewEncoder(out).Encode(list) != nil {
		return 1
	}
	return 0
}

// Find returns the processes below proc, but for one, that use something in
// dir, and into which the caller may look.
func Find(proc, dir string, except int) []Process {
	found := []Process{}
	entries, err := os.ReadDir(proc)
	if err != nil {
		return found
	}
	for _, e := range entries {
		pid, err := strconv.Atoi(e.Name())
		if err != nil || pid == except {
			continue
		}
		at := filepath.Join(proc, e.Name())
		path := uses(at, dir)
		if path == "" {
			continue
		}
		command, err := os.ReadFile(filepath.Join(at, "comm"))
		if err != nil {
			continue // it ended meanwhile
		}
		found = append(found, Process{pid, clean(strings.TrimSuffix(string(command), "\n")), clean(path)})
	}
	sort.Slice(found, func(i, j int) bool { return found[i].PID < found[j].PID })
	return found
}

// uses returns the first thing in dir that the process below at uses, or "".
func uses(at, dir string) string {
	inside := func(path string) bool { return path == dir || strings.HasPrefix(path, dir+"/") }
	links := []string{"cwd", "root", "exe"}
	if fds, err := os.ReadDir(filepath.Join(at, "fd")); err == nil {
		for _, fd := range fds {
			links = append(links, "fd/"+fd.Name())
		}
	}
	for _, l := range links {
		if path, err := os.Readlink(filepath.Join(at, l)); err == nil && inside(path) {
			return path
		}
	}
	// Libraries and other mappings (proc_pid_maps(5): five fields, then the path).
	maps, err := os.Open(filepath.Join(at, "maps"))
	if err != nil {
		return ""
	}
	defer func() { _ = maps.Close() }()
	for lines := bufio.NewScanner(maps); lines.Scan(); {
		if _, path, ok := strings.Cut(lines.Text(), "/"); ok && inside("/"+path) {
			return "/" + path
		}
	}
	return ""
}

// clean makes text that a user chose fit for journal and terminal.
func clean(s string) string {
	s = strings.Map(func(r rune) rune {
		if r < ' ' || r >= 0x7f && r < 0xa0 || r == utf8.RuneError {
			return '?'
		}
		return r
	}, s)
	if utf8.RuneCountInString(s) > maxText {
		s = string([]rune(s)[:maxText]) + "…"
	}
	return s
}

// Phrase says who uses a home: "bash (812, in /home/ann), vim (813, in ...)",
// the first few of them; "other processes" when none could be seen.
func Phrase(list []Process) string {
	if len(list) == 0 {
		return "other processes"
	}
	var words []string
	for _, p := range list[:min(len(list), maxNamed)] {
		words = append(words, fmt.Sprintf("%s (%d, in %s)", clean(p.Command), p.PID, clean(p.Path)))
	}
	if more := len(list) - maxNamed; more > 0 {
		words = append(words, fmt.Sprintf("and %d more", more))
	}
	return strings.Join(words, ", ")
}

// Who is Of and Phrase in one. What went wrong comes with a phrase that is true
// all the same.
func Who(program string, uid, gid uint32, dir string) (string, error) {
	list, err := Of(program, uid, gid, dir)
	if errors.Is(err, os.ErrDeadlineExceeded) {
		err = fmt.Errorf("the user's processes did not answer in time: %w", err)
	}
	return Phrase(list), err
}
