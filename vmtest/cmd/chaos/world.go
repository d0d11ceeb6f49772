package main

import (
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"
)

const (
	unit = "homed.service"
	// recovery is for how long after a kill an answer may be missed, though
	// others were there: calls wait for up to 25 s.
	recovery = 30 * time.Second
	// maxMemory bounds the service's own memory. It has some 15 MiB at rest.
	maxMemory = 128 << 20
)

// stats is what the service holds.
type stats struct {
	pid, files, threads int
	memory              int64
}

func (s stats) String() string {
	return fmt.Sprintf("pid %d, %d files, %d threads, %d MiB", s.pid, s.files, s.threads, s.memory>>20)
}

func (s *stats) highest(o stats) {
	s.pid, s.files, s.threads, s.memory = o.pid, max(s.files, o.files), max(s.threads, o.threads), max(s.memory, o.memory)
}

// world is what else there is to leave behind, by name.
type world struct {
	stats
	things map[string][]string
}

// members returns the processes of the service's control group with that name.
func members(name string) (pids []int) {
	text, _ := os.ReadFile("/sys/fs/cgroup/system.slice/" + unit + "/cgroup.procs")
	for _, f := range strings.Fields(string(text)) {
		comm, _ := os.ReadFile("/proc/" + f + "/comm")
		if pid, err := strconv.Atoi(f); err == nil && strings.TrimSpace(string(comm)) == name {
			pids = append(pids, pid)
		}
	}
	return pids
}

func measureDaemon() (stats, error) {
	pids := members("homed")
	if len(pids) == 0 {
		return stats{}, fmt.Errorf("the service does not run")
	}
	s := stats{pid: slices.Min(pids)}
	dir := fmt.Sprintf("/proc/%d", s.pid)
	files, err := os.ReadDir(dir + "/fd")
	if err != nil {
		return s, err
	}
	s.files = len(files)
	status, err := os.ReadFile(dir + "/status")
	if err != nil {
		return s, err
	}
	for line := range strings.Lines(string(status)) {
		key, value, _ := strings.Cut(line, ":")
		n, _ := strconv.ParseInt(strings.Fields(value + " 0")[0], 10, 64)
		switch key {
		case "Threads":
			s.threads = int(n)
		case "VmRSS":
			s.memory = n << 10
		}
	}
	return s, nil
}

func measure() (world, error) {
	s, err := measureDaemon()
	if err != nil {
		return world{}, err
	}
	w := world{s, map[string][]string{}}
	names := func(what, pattern string, read bool) {
		list, _ := filepath.Glob(pattern)
		for _, path := range list {
			name := path
			if read {
				text, err := os.ReadFile(path)
				if err != nil {
					continue
				}
				name = strings.TrimSpace(string(text))
			}
			w.things[what] = append(w.things[what], name)
		}
	}
	names("loop devices", "/sys/block/loop*/loop/backing_file", true)
	names("mapped devices", "/sys/block/dm-*/dm/name", true)
	// A FIFO is kept for as long as its home.
	names("notes of references", "/run/systemd/home/*.referenced", false)
	for _, dir := range []string{"/var/lib/systemd/home", "/var/cache/systemd/home", "/home", "/run/systemd/userdb"} {
		names("files in "+dir, dir+"/*", false)
		names("files in "+dir, dir+"/.[!.]*", false)
	}
	mounts, _ := os.ReadFile("/proc/self/mountinfo")
	for line := range strings.Lines(string(mounts)) {
		if f := strings.Fields(line); len(f) > 4 && (strings.HasPrefix(f[4], "/home/") || strings.HasPrefix(f[4], "/run/systemd/user-home-mount")) {
			w.things["mounts"] = append(w.things["mounts"], "mount on "+f[4])
		}
	}
	keys, _ := os.ReadFile("/proc/keys")
	for line := range strings.Lines(string(keys)) {
		if f := strings.Fields(line); len(f) > 8 && (f[7] == "logon" || f[7] == "user") {
			w.things["keys"] = append(w.things["keys"], f[7]+" "+f[8])
		}
	}
	// One may wait for the next operation, whichever it is.
	if pids := members("homework"); len(pids) > 1 {
		w.things["workers"] = append(w.things["workers"], fmt.Sprintf("%d of %v", len(pids)-1, pids))
	}
	return w, nil
}

// kill ends the service at once, as a crash would.
func (r *run) kill() {
	pid := int(r.expected.Load())
	if pid <= 0 {
		return // it has not come back yet
	}
	r.up.Store(false)
	r.killed.Store(time.Now().UnixNano())
	r.kills.Add(1)
	r.expected.Store(int64(-pid))
	if err := syscall.Kill(pid, syscall.SIGKILL); err != nil {
		r.wrongly("the service ended by itself: %v", err)
	}
}

// watch notes a service that was started anew though nobody killed it.
func (r *run) watch(pid int) {
	switch now := int(r.expected.Load()); {
	case now == -pid: // it is about to go
	case now < 0:
		r.expected.Store(int64(pid))
	case now != pid:
		r.wrongly("the service ended by itself: process %d became %d", now, pid)
		r.expected.Store(int64(pid))
	}
}

// answers reports whether the process that has to be there answers.
func (r *run) answers() bool {
	if r.expected.Load() <= 0 {
		return false
	}
	v, err := dial(false)
	if err != nil {
		return false
	}
	defer v.c.Close()
	_, err = v.call("GetUserRecord", `,"userName":"root"`, false)
	return err == nil
}

// excuse takes a lost answer, if the service was killed lately or has not come
// back yet.
func (r *run) excuse(what string, err error) {
	r.lost.Add(1)
	if r.up.Load() && time.Since(time.Unix(0, r.killed.Load())) > recovery {
		r.wrongly("%s is not answered though the service lives: %v", what, err)
	}
}

// compare waits until all is as it was before.
func (r *run) compare(before world, most stats) {
	if most.memory > maxMemory {
		r.wrongly("the service had %d MiB", most.memory>>20)
	}
	var left, mountPoints []string
	for _, t := range r.targets {
		mountPoints = append(mountPoints, "/home/"+t.name)
	}
	for end := time.Now().Add(settled); ; time.Sleep(500 * time.Millisecond) {
		after, err := measure()
		if err != nil {
			left = []string{err.Error()}
		} else if left = after.beyond(before, mountPoints); len(left) == 0 {
			fmt.Printf("after: %s\n", after)
			return
		}
		if time.Now().After(end) {
			break
		}
	}
	for _, l := range left {
		r.wrongly("left behind: %s", l)
	}
}

// beyond says what there is more of than before.
func (w world) beyond(before world, mountPoints []string) (more []string) {
	// One life may have a few connections and poller files that another has not
	// yet; a leak is one for every call.
	if w.files > before.files+8 {
		more = append(more, fmt.Sprintf("%d open files, %d before", w.files, before.files))
	}
	if w.threads > before.threads+24 {
		more = append(more, fmt.Sprintf("%d threads, %d before", w.threads, before.threads))
	}
	for what, now := range w.things {
		for _, name := range now {
			// The empty directory that a home is mounted on stays.
			if !slices.Contains(before.things[what], name) && !slices.Contains(mountPoints, name) {
				more = append(more, what+": "+name)
			}
		}
	}
	for what, then := range before.things {
		for _, name := range then {
			if !slices.Contains(w.things[what], name) && strings.HasPrefix(what, "files") {
				more = append(more, what+" lost: "+name)
			}
		}
	}
	slices.Sort(more)
	return more
}
