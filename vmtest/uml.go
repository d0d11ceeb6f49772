package vmtest

import (
	"context"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// uml runs guests as ordinary processes, with User-Mode Linux.
type uml struct{}

func (uml) name() string { return "uml" }

func (uml) kernel(log io.Writer) (kernel, error) {
	if err := checkArch(runtime.GOARCH); err != nil {
		return kernel{}, err
	}
	return umlKernel(log)
}

func (u uml) available(ctx context.Context, log io.Writer) error {
	k, err := u.kernel(log)
	if err != nil {
		return err
	}
	// Containers may forbid ptrace, or give too little memory.
	return probed(ctx, "uml", k.key, 20*time.Second, func() *exec.Cmd {
		return exec.Command(filepath.Join(k.dir, "linux.uml"), "mem=64M", "umid=probe", "uml_dir=./uml/",
			"con=none", "con0=null,fd:1", "panic=-1")
	})
}

func (uml) start(b boot) (*process, error) {
	ours, theirs, err := socketPair()
	if err != nil {
		return nil, err
	}
	defer theirs.Close()
	cmd := exec.Command(filepath.Join(b.kernel.dir, "linux.uml"),
		// The memory of a guest is a file in TMPDIR, its other traces below uml_dir.
		"mem="+b.memory, "umid=guest", "uml_dir="+b.dir+"/uml/",
		"ubd0="+b.overlay+","+b.image, "ubd1r="+b.payload, "root=/dev/ubda", "rw",
		"con=none", "ssl=none", "ssl1=fd:3,fd:3")
	if b.console != nil { // the first serial line, as under QEMU
		cmd.Args = append(cmd.Args, "con0=none", "ssl0=fd:0,fd:1", "console=ttyS0")
		cmd.Stdin, cmd.Stdout, cmd.Stderr = b.console, b.console, b.console
	} else {
		cmd.Args = append(cmd.Args, "con0=null,fd:1")
		cmd.Stdout, cmd.Stderr = b.log, b.log
	}
	cmd.Args = append(cmd.Args, b.words...)
	cmd.ExtraFiles = []*os.File{theirs}
	cmd.Dir = b.dir
	cmd.Env = append(os.Environ(), "TMPDIR="+b.scratch)
	p, err := spawn(cmd, b.cpu)
	if err != nil {
		ours.Close()
		return nil, err
	}
	p.control = ours
	return p, nil
}

// socketPair returns a connection and the file that a child gets as the other
// end.
func socketPair() (net.Conn, *os.File, error) {
	fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return nil, nil, fmt.Errorf("make the control channel: %w", err)
	}
	f := os.NewFile(uintptr(fds[0]), "control")
	c, err := net.FileConn(f)
	f.Close()
	theirs := os.NewFile(uintptr(fds[1]), "control of the guest")
	if err != nil {
		theirs.Close()
		return nil, nil, err
	}
	return c, theirs, nil
}

// process is a guest as the host's kernel sees it.
type process struct {
	cmd     *exec.Cmd
	control net.Conn      // to its agent; nil for a probe
	done    chan struct{} // closed when it ended
}

// spawn starts a guest's process on the processor given. It dies with us: the
// kernel kills it when the thread that forked it ends, so that thread waits
// for it.
func spawn(cmd *exec.Cmd, cpu int) (*process, error) {
	cmd.SysProcAttr = &syscall.SysProcAttr{
		Pdeathsig: syscall.SIGKILL,
		Setpgid:   true, // an interrupt at the terminal is ours to handle
	}
	p := &process{cmd: cmd, done: make(chan struct{})}
	started := make(chan error)
	go func() {
		// Never unlocked: the thread's affinity, inherited by the child, is not
		// to reach another goroutine. It ends with this one.
		runtime.LockOSThread()
		if cpu >= 0 {
			var set unix.CPUSet
			set.Set(cpu)
			if err := unix.SchedSetaffinity(0, &set); err != nil {
				started <- fmt.Errorf("pin to processor %d: %w", cpu, err)
				return
			}
		}
		if err := cmd.Start(); err != nil {
			started <- err
			return
		}
		started <- nil
		cmd.Wait()
		close(p.done)
	}()
	if err := <-started; err != nil {
		return nil, err
	}
	return p, nil
}

// kill ends the process, and whatever it forked, at once.
func (p *process) kill() {
	unix.Kill(-p.cmd.Process.Pid, unix.SIGKILL)
	<-p.done
	if p.control != nil {
		p.control.Close()
	}
}
