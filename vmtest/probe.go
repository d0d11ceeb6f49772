package vmtest

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// reached is what a kernel says that came as far as looking for a root file
// system, and was given none.
var reached = []byte("Unable to mount root fs")

// probed tells whether a kernel boots this way on this machine, by its own
// words: it is started without a disk and has to come as far as looking for
// one. The answer, yes or why not, is kept for as long as machine and kernel
// stay the same.
func probed(ctx context.Context, name, key string, limit time.Duration, command func() *exec.Cmd) error {
	cache, err := cacheDir()
	if err != nil {
		return err
	}
	var u unix.Utsname
	if err := unix.Uname(&u); err != nil {
		return err
	}
	cpu, _ := os.ReadFile("/proc/cpuinfo")
	cpu, _, _ = bytes.Cut(cpu, []byte("flags"))
	file := filepath.Join(cache, "probe-"+name+"-"+recipe(key, unix.ByteSliceToString(u.Release[:]), unix.ByteSliceToString(u.Version[:]), model(cpu)))
	const yes = "works"
	if answer, err := os.ReadFile(file); err == nil {
		if string(answer) == yes {
			return nil
		}
		return errors.New(string(answer))
	}
	answer := yes
	if why := probe(ctx, limit, command()); why != "" {
		answer = why
	}
	if ctx.Err() != nil {
		return ctx.Err()
	}
	if err := os.WriteFile(file+".new", []byte(answer), 0o644); err != nil {
		return err
	}
	if err := os.Rename(file+".new", file); err != nil {
		return err
	}
	if answer != yes {
		return errors.New(answer)
	}
	return nil
}

// model is the part of /proc/cpuinfo that names the processor; the rest has
// its clock.
func model(cpu []byte) string {
	for line := range strings.Lines(string(cpu)) {
		if strings.HasPrefix(line, "model name") {
			return line
		}
	}
	return ""
}

func probe(ctx context.Context, limit time.Duration, cmd *exec.Cmd) string {
	dir, err := os.MkdirTemp("", "hearth-probe-")
	if err != nil {
		return err.Error()
	}
	defer os.RemoveAll(dir)
	log, err := os.Create(filepath.Join(dir, "log"))
	if err != nil {
		return err.Error()
	}
	defer log.Close()
	cmd.Stdout, cmd.Stderr = log, log
	cmd.Env = append(os.Environ(), "TMPDIR="+dir)
	cmd.Dir = dir
	p, err := spawn(cmd, -1)
	if err != nil {
		return err.Error()
	}
	t := time.NewTimer(limit)
	defer t.Stop()
	timedOut := false
	select {
	case <-p.done:
	case <-t.C:
		timedOut = true
		p.kill()
	case <-ctx.Done():
		p.kill()
	}
	text, err := os.ReadFile(log.Name())
	if err != nil {
		return err.Error()
	}
	if bytes.Contains(text, reached) {
		return ""
	}
	how := "ended"
	if timedOut {
		how = fmt.Sprintf("was stuck for %v", limit)
	}
	return fmt.Sprintf("a probe boot %s; its last words: %s", how, lastWords(text))
}

func lastWords(text []byte) string {
	last := "none"
	for line := range strings.Lines(string(text)) {
		line = strings.Map(func(r rune) rune {
			if r < ' ' || r == 0x7f {
				return -1
			}
			return r
		}, line)
		if line != "" {
			last = line
		}
	}
	return last
}
