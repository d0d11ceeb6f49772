package main

import (
	"bufio"
	"context"
	"encoding/json"
	"flag"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"

	"hearth/homed/home1"
	"hearth/records"
)

const (
	recordDir = "/var/lib/systemd/home"
	socket    = "/run/systemd/userdb/io.systemd.Home"
)

// user is the name of the i-th of many.
func user(i int) string { return "many" + strconv.Itoa(i) }

// makeRecords writes signed records of homes that are elsewhere, as many as
// asked for, and takes those away that are too many.
func makeRecords(args []string) error {
	f := flag.NewFlagSet("records", flag.ContinueOnError)
	n := f.Int("n", 500, "how many")
	if err := f.Parse(args); err != nil {
		return err
	}
	old, err := filepath.Glob(recordDir + "/many*.identity")
	if err != nil {
		return err
	}
	for _, p := range old {
		if err := os.Remove(p); err != nil {
			return err
		}
	}
	key, err := os.ReadFile(recordDir + "/local.private")
	if err != nil {
		return err
	}
	signer, err := records.NewSigner(key)
	if err != nil {
		return err
	}
	defer signer.Close()
	for i := range *n {
		r, err := records.NewBuilder(user(i)).Set("disposition", "regular").Set("storage", "luks").
			Set("uid", uint64(100000+i)).Set("imagePath", "/home/elsewhere/"+user(i)+".home").
			Set("homeDirectory", "/home/"+user(i)).Set("memberOf", []string{"audio", "video"}).
			Set("realName", "A Person of Some Name").Set("lastChangeUSec", uint64(1795334937838250)).
			SetPrivileged("hashedPassword", []string{cheapHash}).Record()
		if err != nil {
			return err
		}
		v, err := signer.Sign(r)
		if err != nil {
			return err
		}
		if err := os.WriteFile(recordDir+"/"+user(i)+".identity", v.Record().Pretty(), 0o600); err != nil {
			return err
		}
	}
	return nil
}

// line is a connection to the service's user database.
type line struct {
	io.ReadWriteCloser
	r *bufio.Reader
}

func newLine(c io.ReadWriteCloser) *line { return &line{c, bufio.NewReaderSize(c, 1<<16)} }

func dialUsers() (*line, error) {
	c, err := net.Dial("unix", socket)
	if err != nil {
		return nil, err
	}
	return newLine(c), nil
}

// bare is a socket that is read and written as a program in C would. On one
// processor what Go does around a call that blocks takes as long as the answer,
// and with that hides half of the difference between two services.
type bare int

func dialBare() (*line, error) {
	fd, err := unix.Socket(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return nil, err
	}
	if err := unix.Connect(fd, &unix.SockaddrUnix{Name: socket}); err != nil {
		_ = unix.Close(fd)
		return nil, err
	}
	return newLine(bare(fd)), nil
}

func (b bare) call(number uintptr, p []byte) (int, error) {
	for {
		n, _, e := unix.RawSyscall(number, uintptr(b), uintptr(unsafe.Pointer(unsafe.SliceData(p))), uintptr(len(p)))
		switch {
		case e == unix.EINTR:
		case e != 0:
			return 0, e
		default:
			return int(n), nil
		}
	}
}

func (b bare) Read(p []byte) (int, error) {
	n, err := b.call(unix.SYS_READ, p)
	if n == 0 && err == nil {
		err = io.EOF
	}
	return n, err
}

func (b bare) Write(p []byte) (done int, err error) {
	for done < len(p) && err == nil {
		var n int
		n, err = b.call(unix.SYS_WRITE, p[done:])
		done += n
	}
	return done, err
}

func (b bare) Close() error { return unix.Close(int(b)) }

// request is a call as the wire has it.
func request(method string, parameters map[string]any, more bool) []byte {
	call := map[string]any{"method": method, "parameters": parameters}
	if more {
		call["more"] = true
	}
	text, err := json.Marshal(call)
	if err != nil {
		panic(err) // of nothing but texts and numbers
	}
	return append(text, 0)
}

func byName(name string) []byte {
	return request("io.systemd.UserDatabase.GetUserRecord", map[string]any{"userName": name, "service": "io.systemd.Home"}, false)
}

// answers reads n answers and returns the last one.
func (l *line) answers(n int) (last []byte, err error) {
	for range n {
		if last, err = l.r.ReadBytes(0); err != nil {
			return nil, err
		}
	}
	return last, nil
}

func (l *line) ask(call []byte) ([]byte, error) {
	if _, err := l.Write(call); err != nil {
		return nil, err
	}
	return l.answers(1)
}

// expect has the answer hold a text, so that no error is timed.
func expect(answer []byte, err error, holds string) error {
	if err == nil && !strings.Contains(string(answer), holds) {
		err = fmt.Errorf("answer %.200q", answer)
	}
	return err
}

// each times n calls one by one and tells the median and, of all of them, what
// processor time the service took for one.
func each(what string, n int, call func(i int) error) error {
	took := make([]time.Duration, n)
	before := cpu()
	for i := range took {
		start := time.Now()
		if err := call(i); err != nil {
			return fmt.Errorf("%s: %w", what, err)
		}
		took[i] = time.Since(start)
	}
	after := cpu()
	slices.Sort(took)
	sample(what, float64(took[n/2].Nanoseconds())/1000, "µs")
	used := after["homed"] + after["ours"] - before["homed"] - before["ours"]
	sample(what+", service's processor time", used*1000/float64(n), "µs")
	return nil
}

// lookups times the user database and the bus of a service with n users.
func lookups(ctx context.Context, args []string) error {
	f := flag.NewFlagSet("lookups", flag.ContinueOnError)
	n := f.Int("n", 500, "how many users there are")
	times := f.Int("times", 2000, "how often a short call is made")
	homectl := f.String("homectl", "homectl", "the client")
	if err := f.Parse(args); err != nil {
		return err
	}
	l, err := dialBare()
	if err != nil {
		return err
	}
	defer func() { _ = l.Close() }()
	known := func(i int) ([]byte, string) {
		name := user(i % *n)
		return byName(name), `"` + name + `"`
	}
	err = each("by name", *times, func(i int) error {
		call, name := known(i)
		answer, err := l.ask(call)
		return expect(answer, err, name)
	})
	if err != nil {
		return err
	}
	err = each("unknown name", *times, func(i int) error {
		answer, err := l.ask(byName("nobodyknows" + strconv.Itoa(i)))
		return expect(answer, err, "NoRecordFound")
	})
	if err != nil {
		return err
	}
	err = each("new connection, by name", *times/2, func(i int) error {
		l, err := dialBare()
		if err != nil {
			return err
		}
		defer func() { _ = l.Close() }()
		call, name := known(i)
		answer, err := l.ask(call)
		return expect(answer, err, name)
	})
	if err != nil {
		return err
	}
	if err := pipelined(l, *times, known); err != nil {
		return err
	}
	if err := parallel(*times, known); err != nil {
		return err
	}
	for range 3 {
		if err := enumerate(l, *n); err != nil {
			return err
		}
	}
	if err := overBus(ctx, *times/4, *n, known); err != nil {
		return err
	}
	return clients(*homectl, *n)
}

// pipelined sends 32 calls at once, again and again.
func pipelined(l *line, times int, known func(int) ([]byte, string)) error {
	const depth = 32
	start := time.Now()
	for round := range times / depth {
		var calls []byte
		name := ""
		for i := range depth {
			var call []byte
			call, name = known(round*depth + i)
			calls = append(calls, call...)
		}
		if _, err := l.Write(calls); err != nil {
			return err
		}
		answer, err := l.answers(depth)
		if err := expect(answer, err, name); err != nil {
			return err
		}
	}
	sample("32 pipelined, each", float64(time.Since(start).Nanoseconds())/1000/float64(times/depth*depth), "µs")
	return nil
}

// parallel has 16 connections ask at once.
func parallel(times int, known func(int) ([]byte, string)) error {
	const width = 16
	var wg sync.WaitGroup
	errs := make([]error, width)
	start := time.Now()
	for w := range width {
		wg.Go(func() {
			l, err := dialUsers()
			if err != nil {
				errs[w] = err
				return
			}
			defer func() { _ = l.Close() }()
			for i := range times / width {
				call, name := known(i*width + w)
				answer, err := l.ask(call)
				if errs[w] = expect(answer, err, name); errs[w] != nil {
					return
				}
			}
		})
	}
	wg.Wait()
	for _, err := range errs {
		if err != nil {
			return fmt.Errorf("16 at once: %w", err)
		}
	}
	sample("16 connections at once, each", float64(time.Since(start).Nanoseconds())/1000/float64(times/width*width), "µs")
	return nil
}

func enumerate(l *line, n int) error {
	start := time.Now()
	if _, err := l.Write(request("io.systemd.UserDatabase.GetUserRecord", map[string]any{"service": "io.systemd.Home"}, true)); err != nil {
		return err
	}
	for seen := 1; ; seen++ {
		answer, err := l.answers(1)
		if err := expect(answer, err, `"userName"`); err != nil {
			return err
		}
		if !strings.Contains(string(answer), `"continues":true`) {
			if seen < n {
				return fmt.Errorf("%d users enumerated of %d", seen, n)
			}
			break
		}
	}
	sample("enumerate", milliseconds(time.Since(start)), "ms")
	return nil
}

func overBus(ctx context.Context, times, n int, known func(int) ([]byte, string)) error {
	client, err := home1.Dial(ctx)
	if err != nil {
		return err
	}
	defer func() { _ = client.Close() }()
	err = each("bus: GetHomeByName", times, func(i int) error {
		_, err := client.GetHomeByName(ctx, user(i%n))
		return err
	})
	if err != nil {
		return err
	}
	err = each("bus: GetUserRecordByName", times, func(i int) error {
		_, _, err := client.GetUserRecordByName(ctx, user(i%n))
		return err
	})
	if err != nil {
		return err
	}
	for range 3 {
		start := time.Now()
		list, err := client.ListHomes(ctx)
		if err == nil && len(list) < n {
			err = fmt.Errorf("%d homes listed of %d", len(list), n)
		}
		if err != nil {
			return err
		}
		sample("bus: ListHomes", milliseconds(time.Since(start)), "ms")
	}
	return nil
}

// clients times whole programs.
func clients(homectl string, n int) error {
	for _, c := range []struct {
		what  string
		times int
		argv  []string
	}{
		{"getent passwd, one", 10, []string{"getent", "passwd", user(n / 2)}},
		{"getent passwd, all", 3, []string{"getent", "-s", "systemd", "passwd"}},
		{"homectl inspect", 5, []string{homectl, "inspect", user(n / 2)}},
		{"homectl list", 5, []string{homectl, "list"}},
	} {
		for range c.times {
			cmd := exec.Command(c.argv[0], c.argv[1:]...)
			start := time.Now()
			out, err := cmd.Output()
			took := time.Since(start)
			if err == nil && !strings.Contains(string(out), user(n/2)) {
				err = fmt.Errorf("it shows %.100q", out)
			}
			if err != nil {
				return fmt.Errorf("%s: %w", c.what, err)
			}
			sample(c.what, milliseconds(took), "ms")
		}
	}
	return nil
}

// life times start and stop of a service's unit, and looks at its memory.
func life(args []string) error {
	f := flag.NewFlagSet("life", flag.ContinueOnError)
	unit := f.String("unit", "homed.service", "whose")
	what := f.String("what", "", "what the samples' names end with")
	if err := f.Parse(args); err != nil {
		return err
	}
	timed := func(verb string) error {
		start := time.Now()
		if text, err := exec.Command("systemctl", verb, *unit).CombinedOutput(); err != nil {
			return fmt.Errorf("%s %s: %w: %s", verb, *unit, err, text)
		}
		sample(verb+*what, milliseconds(time.Since(start)), "ms")
		return nil
	}
	// Or the manager takes it for a service that keeps failing. It complains of
	// a unit that it has forgotten meanwhile, which has nothing to be reset.
	_ = exec.Command("systemctl", "reset-failed", *unit).Run()
	if err := timed("start"); err != nil {
		return err
	}
	// Ready is when it answers: the unit of one may say so earlier than that of
	// the other.
	start := time.Now()
	l, err := dialUsers()
	if err != nil {
		return err
	}
	answer, err := l.ask(byName("nobodyknows"))
	_ = l.Close()
	if err := expect(answer, err, "NoRecordFound"); err != nil {
		return err
	}
	sample("first answer after it"+*what, milliseconds(time.Since(start)), "ms")
	if err := memory(*unit, *what); err != nil {
		return err
	}
	return timed("stop")
}

func memory(unit, what string) error {
	out, err := exec.Command("systemctl", "show", "-P", "MainPID", unit).Output()
	if err != nil {
		return err
	}
	text, err := os.ReadFile("/proc/" + strings.TrimSpace(string(out)) + "/smaps_rollup")
	if err != nil {
		return err
	}
	for line := range strings.Lines(string(text)) {
		for _, name := range []string{"Rss", "Pss", "Anonymous"} {
			if rest, ok := strings.CutPrefix(line, name+":"); ok {
				kib, err := strconv.ParseFloat(strings.Fields(rest)[0], 64)
				if err != nil {
					return err
				}
				sample(strings.ToUpper(name)+what, kib/1024, "MiB")
			}
		}
	}
	return nil
}
