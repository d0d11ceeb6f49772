// Package vmtest runs throw-away guests for tests and for the demo: it builds
// and caches their disks, starts them by whatever runner works on this
// machine, and is hand and eye inside them. It knows nothing of homes; what a
// guest is for is its callers' matter.
//
// A [Machine] reports errors and knows no testing; a [Guest] is a Machine in
// the hands of a test.
package vmtest

import (
	"bytes"
	"context"
	"crypto/rand"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"hearth/vmtest/wire"
)

// Options says what guest is wanted. The zero value is a forky guest.
type Options struct {
	Suite     Suite
	MachineID string   // 32 hexadecimal digits; made up if empty
	Payload   []Item   // what the guest gets at its first boot
	Memory    string   // as the kernel writes it, "1G" if empty
	Disable   []string // units that must not start
	Kernel    []string // more words for the kernel command line
	Runner    string   // "uml", "kvm", "tcg"; $HEARTH_VM_RUNNER or the first that works if empty
	Console   bool     // a console on ttyS0 with a login prompt, see Machine.Console
	Log       io.Writer
}

const (
	// defaultLimit is for a command of which nobody said how long it may take.
	defaultLimit = 2 * time.Minute
	// grace is how long the agent may take to carry out a limit, a signal.
	grace = 15 * time.Second
)

// Machine is one guest. Its methods are safe for use by many goroutines,
// except those that start and stop it.
type Machine struct {
	o       Options
	runner  runner
	dir     string // all that is the guest's own; removed by Close
	scratch string // its memory file
	boot    boot
	locks   []*flock
	proc    *process
	conn    *conn
	console *console

	version     func() (int, error)
	bootSeconds float64
}

// boot is what a runner needs to start a guest.
type boot struct {
	dir, image, overlay, payload, scratch string
	memory                                string
	kernel                                kernel
	words                                 []string // kernel command line, all but root and console
	cpu                                   int      // -1 for none in particular
	log                                   *os.File // the kernel's messages
	console                               *os.File // the terminal for ttyS0, or nil
}

// runner is a way to run guests.
type runner interface {
	name() string
	// available says why this machine cannot run guests this way.
	available(context.Context, io.Writer) error
	kernel(log io.Writer) (kernel, error)
	start(boot) (*process, error)
}

// ErrNoRunner is returned where no runner works on this machine.
var ErrNoRunner = errors.New("no way to run a guest on this machine")

// Start builds what is missing and boots a guest. The Machine is the caller's
// to Close. ctx bounds the start only.
func Start(ctx context.Context, o Options) (m *Machine, err error) {
	if o.Suite == "" {
		o.Suite = Forky
	}
	if o.Memory == "" {
		o.Memory = "1G"
	}
	if o.Log == nil {
		o.Log = io.Discard
	}
	if o.MachineID == "" {
		var id [16]byte
		rand.Read(id[:])
		// A version 4 UUID, as systemd makes them.
		id[6], id[8] = id[6]&0x0f|0x40, id[8]&0x3f|0x80
		o.MachineID = hex.EncodeToString(id[:])
	}
	m = &Machine{o: o}
	m.version = sync.OnceValues(m.readVersion)
	defer func() {
		if err != nil {
			m.Close()
			m = nil
		}
	}()
	if m.runner, err = pick(ctx, o.Runner, o.Log); err != nil {
		return m, err
	}
	if m.boot.kernel, m.boot.image, err = prepare(o.Log, o.Suite, m.runner); err != nil {
		return m, err
	}
	if err = m.claim(); err != nil {
		return m, err
	}
	agent, err := agentBinary(m.dir)
	if err != nil {
		return m, err
	}
	m.boot.payload = filepath.Join(m.dir, "payload.tar")
	hash, err := writePayload(m.boot.payload, append([]Item{{Host: agent, Guest: agentPath}}, o.Payload...))
	if err != nil {
		return m, err
	}
	m.boot.memory = o.Memory
	m.boot.words = append([]string{
		"quiet", "systemd.show_status=0",
		"systemd.machine_id=" + o.MachineID, "hearth.payload=" + hash,
	}, o.Kernel...)
	if !o.Console {
		// Nothing that a test needs; it doubles the time to boot.
		m.boot.words = append(m.boot.words, "systemd.mask=systemd-udev-trigger.service")
	}
	for _, u := range o.Disable {
		m.boot.words = append(m.boot.words, "systemd.mask="+u)
	}
	return m, m.Restart(ctx)
}

// Prepare builds the suite's image and kernel where they are missing, so that
// no test's time limit meets the build.
func Prepare(ctx context.Context, log io.Writer, s Suite) error {
	r, err := pick(ctx, "", log)
	if err != nil {
		return err
	}
	_, _, err = prepare(log, s, r)
	return err
}

func prepare(log io.Writer, s Suite, r runner) (kernel, string, error) {
	k, err := r.kernel(log)
	if err != nil {
		return k, "", err
	}
	i, err := image(log, s, k)
	return k, i, err
}

// claim takes the guest's directory and its processor.
func (m *Machine) claim() error {
	cache, err := cacheDir()
	if err != nil {
		return err
	}
	guests := filepath.Join(cache, "guests")
	if err := os.MkdirAll(guests, 0o755); err != nil {
		return err
	}
	sweep(guests)
	if m.dir, err = os.MkdirTemp(guests, "guest-"); err != nil {
		return err
	}
	for _, path := range []string{m.dir, m.boot.image, m.boot.kernel.dir} {
		l, err := use(path)
		if err != nil {
			return err
		}
		m.locks = append(m.locks, l)
	}
	m.boot.dir = m.dir
	m.boot.overlay = filepath.Join(m.dir, "overlay")
	if m.scratch, err = scratchDir(m.dir); err != nil {
		return err
	}
	m.boot.scratch = m.scratch
	var l *flock
	if m.boot.cpu, l, err = takeCPU(cache); err != nil {
		return err
	}
	m.locks = append(m.locks, l)
	return nil
}

// sweep removes what guests left behind whose test was killed.
func sweep(guests string) {
	old, _ := filepath.Glob(filepath.Join(guests, "guest-*"))
	for _, o := range old {
		if strings.HasSuffix(o, ".use") {
			if !exists(strings.TrimSuffix(o, ".use")) {
				os.Remove(o)
			}
			continue
		}
		if st, err := os.Stat(o); err == nil && time.Since(st.ModTime()) > time.Minute { // a young one may not be locked yet
			removeUnused(o)
		}
	}
}

// scratchDir is where a guest's memory file goes: memory if there is enough of
// it, as containers often give 64 MiB, else the guest's own directory. The
// file has no name, so nothing is left of it.
func scratchDir(dir string) (string, error) {
	const shm, enough = "/dev/shm", 3 << 30
	var st unix.Statfs_t
	if unix.Statfs(shm, &st) == nil && st.Type == unix.TMPFS_MAGIC && int64(st.Bavail)*st.Bsize >= enough && unix.Access(shm, unix.W_OK) == nil {
		return shm, nil
	}
	return dir, nil
}

// takeCPU picks a processor that no other guest has, of this process or
// another; the first ones are shared when there are more guests than
// processors.
func takeCPU(cache string) (int, *flock, error) {
	var set unix.CPUSet
	if err := unix.SchedGetaffinity(0, &set); err != nil {
		return -1, nil, fmt.Errorf("list processors: %w", err)
	}
	var ours []int
	for n := range 1024 {
		if set.IsSet(n) {
			ours = append(ours, n)
		}
	}
	for round := range 64 {
		for _, n := range ours {
			l, err := lock(filepath.Join(cache, fmt.Sprintf("cpu-%d-%d.lock", n, round)), false, false)
			if err == nil {
				return n, l, nil
			}
			if err != errLocked {
				return -1, nil, err
			}
		}
	}
	return -1, nil, nil
}

// Restart boots the guest again on the disk as it is. One that runs loses its
// power first.
func (m *Machine) Restart(ctx context.Context) (err error) {
	m.Crash()
	began := time.Now()
	if m.boot.log, err = os.OpenFile(filepath.Join(m.dir, "console.log"), os.O_WRONLY|os.O_CREATE|os.O_APPEND, 0o644); err != nil {
		return err
	}
	defer m.boot.log.Close()
	if m.o.Console {
		if m.console, err = newConsole(m.dir); err != nil {
			return err
		}
		m.boot.console = m.console.slave
	}
	m.proc, err = m.runner.start(m.boot)
	if m.console != nil {
		m.console.slave.Close()
	}
	if err != nil {
		return fmt.Errorf("start %s: %w", m.runner.name(), err)
	}
	m.conn = newConn(m.proc.control)
	go func(p *process, c *conn) { // an exit shows on the channel, whatever holds its other end
		<-p.done
		p.control.Close()
	}(m.proc, m.conn)
	limit, cancel := context.WithTimeout(ctx, m.bootLimit())
	defer cancel()
	select {
	case <-m.conn.hello:
	case <-m.conn.done:
		return m.explain(fmt.Errorf("the %s guest ended before it was up", m.runner.name()))
	case <-limit.Done():
		err := m.explain(fmt.Errorf("the %s guest was not up within %.0f s: %w", m.runner.name(), time.Since(began).Seconds(), limit.Err()))
		m.Crash()
		return err
	}
	if !m.o.Console { // somebody may have a question to answer before the guest is up
		r, err := m.Exec(limit, Command{Argv: []string{"systemctl", "is-system-running", "--wait"}, Limit: m.bootLimit()})
		if err != nil {
			return err
		}
		switch state := strings.TrimSpace(r.Stdout); state {
		case "running":
		case "degraded": // the caller may have broken a unit on purpose
			fmt.Fprintf(m.o.Log, "guest %s: some units failed: %s\n", m.o.Suite, m.failed(limit))
		default:
			return m.explain(fmt.Errorf("the guest's state is %q: %s", state, r.Stderr))
		}
	}
	m.bootSeconds = time.Since(began).Seconds()
	fmt.Fprintf(m.o.Log, "guest %s: up after %.1f s (%s, processor %d)\n", m.o.Suite, m.bootSeconds, m.runner.name(), m.boot.cpu)
	return nil
}

func (m *Machine) failed(ctx context.Context) string {
	r, err := m.Exec(ctx, Command{Argv: []string{"systemctl", "list-units", "--failed", "--plain", "--no-legend"}})
	if err != nil {
		return err.Error()
	}
	var names []string
	for line := range strings.Lines(r.Stdout) {
		if f := strings.Fields(line); len(f) > 0 {
			names = append(names, f[0])
		}
	}
	return strings.Join(names, " ")
}

func (m *Machine) bootLimit() time.Duration {
	if m.runner.name() == "tcg" {
		return 6 * time.Minute
	}
	return 3 * time.Minute
}

// Crash cuts the guest's power: what it had not yet written is lost. The disk
// stays for Restart.
func (m *Machine) Crash() {
	if m.proc != nil {
		m.proc.kill()
		m.proc = nil
	}
	if m.console != nil {
		m.console.close()
		m.console = nil
	}
}

// Poweroff shuts the guest down in order and waits for its end.
func (m *Machine) Poweroff(ctx context.Context) error {
	if m.proc == nil {
		return nil
	}
	limit, cancel := context.WithTimeout(ctx, defaultLimit)
	defer cancel()
	if _, err := m.Exec(limit, Command{Argv: []string{"systemctl", "poweroff", "--no-block"}}); err != nil {
		return err
	}
	select {
	case <-m.proc.done:
		m.Crash()
		return nil
	case <-limit.Done():
		err := m.explain(fmt.Errorf("power off: %w", limit.Err()))
		m.Crash()
		return err
	}
}

// Close ends the guest and removes all that is its own. It may be called twice.
func (m *Machine) Close() {
	m.Crash()
	if m.dir != "" {
		os.RemoveAll(m.dir)
		os.Remove(m.dir + ".use")
		m.dir = ""
	}
	for _, l := range m.locks {
		l.release()
	}
	m.locks = nil
}

// explain adds the end of the kernel's messages to an error where the guest
// itself is in trouble.
func (m *Machine) explain(err error) error {
	if m.proc == nil {
		return fmt.Errorf("%w (the guest does not run)", err)
	}
	select {
	case <-m.conn.done:
	case <-m.proc.done:
	default:
		if !errors.Is(err, context.DeadlineExceeded) {
			return err
		}
	}
	return fmt.Errorf("%w; its console ends with:\n%s", err, m.ConsoleLog(2000))
}

// ConsoleLog is the end of the kernel's messages, n bytes at most. It lacks
// what escape sequences the firmware and systemd send.
func (m *Machine) ConsoleLog(n int) string {
	b, err := os.ReadFile(filepath.Join(m.dir, "console.log"))
	if err != nil {
		return err.Error()
	}
	b = bytes.Map(func(r rune) rune {
		if r == '\n' || r == '\t' || r >= ' ' && r != 0x7f {
			return r
		}
		return -1
	}, b)
	var keep [][]byte
	for line := range bytes.Lines(b) {
		if !bytes.HasPrefix(line, []byte("setup_one_line failed")) { // one for each console that is not there
			keep = append(keep, line)
		}
	}
	b = bytes.Join(keep, nil)
	return string(b[max(0, len(b)-n):])
}

// Console is the terminal at ttyS0, nil without Options.Console. It shows the
// boot too; a restart brings a new one.
func (m *Machine) Console() *Terminal {
	if m.console == nil {
		return nil
	}
	return m.console.Terminal
}

// Asleep reports whether the guest takes no processor time for that long.
func (m *Machine) Asleep(span time.Duration) (bool, error) {
	if m.proc == nil {
		return false, errors.New("the guest does not run")
	}
	var used [2]string
	for i := range used {
		if i > 0 {
			time.Sleep(span)
		}
		stat, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", m.proc.cmd.Process.Pid))
		if err != nil {
			return false, err
		}
		_, rest, _ := strings.Cut(string(stat), ") ")
		f := strings.Fields(rest)
		if len(f) < 13 {
			return false, fmt.Errorf("read the guest's use of the processor: %q", stat)
		}
		used[i] = f[11] + " " + f[12]
	}
	return used[0] == used[1], nil
}

// Wake ends the guest's sleep. A guest that does not sleep goes on as it is.
func (m *Machine) Wake() error {
	if m.proc == nil {
		return errors.New("the guest does not run")
	}
	if m.runner.name() != "uml" {
		return fmt.Errorf("no way to wake a guest of %s", m.runner.name())
	}
	return unix.Kill(m.proc.cmd.Process.Pid, unix.SIGUSR1)
}

// Suite is the guest's suite.
func (m *Machine) Suite() Suite { return m.o.Suite }

// Runner is the name of what runs the guest: "uml", "kvm" or "tcg".
func (m *Machine) Runner() string { return m.runner.name() }

// MachineID is the guest's machine id.
func (m *Machine) MachineID() string { return m.o.MachineID }

// BootSeconds is how long the last start took.
func (m *Machine) BootSeconds() float64 { return m.bootSeconds }

// Command is something to run in the guest.
type Command struct {
	Argv  []string
	Env   []string  // NAME=VALUE, on top of what root has after logging in
	Dir   string    // /root if empty
	Stdin io.Reader // nothing if nil
	// Stdout and Stderr get the output as it comes. Where they are nil it is
	// kept for the Result.
	Stdout, Stderr io.Writer
	Limit          time.Duration // the process group is killed then; two minutes if zero
}

// Result is what came of a command.
type Result struct {
	Code           int // exit status; 128 + signal where a signal ended it
	Stdout, Stderr string
	Expired        bool // its limit was reached
}

// Exec runs a command in the guest. A command that fails is a Result; an error
// means that it could not be run, or that the guest is gone.
func (m *Machine) Exec(ctx context.Context, c Command) (Result, error) {
	if c.Limit == 0 {
		c.Limit = defaultLimit
	}
	q := wire.Request{Op: wire.OpRun, Argv: c.Argv, Env: c.Env, Dir: c.Dir, Limit: c.Limit.Milliseconds()}
	return m.do(ctx, q, c)
}

// do carries out a request. The agent keeps the limit; should it fail to, we
// give up on the guest a moment later.
func (m *Machine) do(ctx context.Context, q wire.Request, c Command) (Result, error) {
	var out, errOut bytes.Buffer
	if c.Stdout == nil {
		c.Stdout = &out
	}
	if c.Stderr == nil {
		c.Stderr = &errOut
	}
	if m.proc == nil {
		return Result{}, errors.New("the guest does not run")
	}
	k, err := m.conn.start(q, func(kind wire.Kind, p []byte) {
		if kind == wire.Stderr {
			c.Stderr.Write(p)
		} else {
			c.Stdout.Write(p)
		}
	})
	if err != nil {
		return Result{}, m.explain(err)
	}
	if c.Stdin == nil {
		c.Stdin = strings.NewReader("")
	}
	go k.feed(c.Stdin) // fails with the channel, and then so does the wait
	limit, cancel := context.WithTimeout(ctx, c.Limit+grace)
	defer cancel()
	r, err := k.wait(limit)
	if err != nil && ctx.Err() != nil { // the caller left: take the command along
		k.signal(byte(unix.SIGKILL))
		after, cancel := context.WithTimeout(context.WithoutCancel(ctx), grace)
		defer cancel()
		if _, err := k.wait(after); errors.Is(err, context.DeadlineExceeded) {
			return Result{}, m.explain(err)
		}
		return Result{}, ctx.Err()
	}
	if err != nil {
		what := strings.Join(q.Argv, " ")
		if q.Op != wire.OpRun {
			what = q.Op + " " + q.Path
		}
		return Result{}, m.explain(fmt.Errorf("%s: %w", what, err))
	}
	return Result{Code: r.Code, Stdout: out.String(), Stderr: errOut.String(), Expired: r.Expired}, nil
}

// Put writes a file in the guest, in one step; missing directories are made.
func (m *Machine) Put(ctx context.Context, guestPath string, data io.Reader, mode os.FileMode) error {
	q := wire.Request{Op: wire.OpWrite, Path: guestPath, Mode: uint32(mode.Perm())}
	_, err := m.do(ctx, q, Command{Stdin: data, Limit: defaultLimit})
	return err
}

// Get copies a file out of the guest.
func (m *Machine) Get(ctx context.Context, guestPath string, to io.Writer) error {
	_, err := m.do(ctx, wire.Request{Op: wire.OpRead, Path: guestPath}, Command{Stdout: to, Limit: defaultLimit})
	return err
}

// Journal is what the guest's journal has of this boot; of the units given, or
// of all.
func (m *Machine) Journal(ctx context.Context, units ...string) (string, error) {
	argv := []string{"journalctl", "-b", "-o", "short-precise", "--no-pager"}
	for _, u := range units {
		argv = append(argv, "-u", u)
	}
	r, err := m.Exec(ctx, Command{Argv: argv, Limit: 30 * time.Second})
	return r.Stdout, err
}

// SystemdVersion is the guest's systemd's. forky moves: comparisons of exact
// text skip where it is not the version they know.
func (m *Machine) SystemdVersion() (int, error) { return m.version() }

func (m *Machine) readVersion() (int, error) {
	r, err := m.Exec(context.Background(), Command{Argv: []string{"systemctl", "--version"}})
	if err != nil {
		return 0, err
	}
	f := strings.Fields(r.Stdout)
	if len(f) < 2 {
		return 0, fmt.Errorf("systemctl --version says %q", r.Stdout)
	}
	return strconv.Atoi(f[1])
}
