// Package fsops makes, checks and recognizes file systems, and fills and owns
// the tree in one. It knows the tools, superblocks and mount options of ext4,
// btrfs and xfs; where a file system lies and who its user is, is its callers'.
package fsops

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"time"
	"unicode/utf8"

	"golang.org/x/sys/unix"

	"hearth/internal/fault"
	"hearth/internal/trace"
)

// toolPath is where tools are looked for, and what they find theirs by.
const toolPath = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"

// Limits of a tool's run.
const (
	outputKept = 8 << 10 // the last bytes of what a tool says
	killWait   = 5 * time.Second
)

// The sizes below which the file systems' tools or the kernel refuse, as
// systemd-homed has them, in bytes.
var minimum = map[string]int64{"ext4": 32 << 20, "btrfs": 256 << 20, "xfs": 300 << 20}

// MinimumSize returns the least size in bytes of a file system of the type; 0
// for a type that holds no homes.
func MinimumSize(fstype string) int64 { return minimum[fstype] }

// HasMkfs reports whether the tool that makes the type is installed.
func HasMkfs(fstype string) bool {
	_, err := tool("mkfs." + fstype)
	return err == nil
}

// MkfsOptions say what MakeFS makes.
type MkfsOptions struct {
	Type string // ext4, btrfs, xfs
	Node string // the block device
	// Label is cut to what the type holds, at a rune's boundary.
	Label   string
	UUID    string // dashed
	Discard bool   // discard the device first
	// Extra are further words for the tool, after the node.
	Extra []string
}

// MakeFS makes a file system on a device. Cancelling ctx kills the tool and
// leaves the device in any state.
//
// Faults: NotSupported if the type holds no homes or its tool is missing.
func MakeFS(ctx context.Context, o MkfsOptions) error {
	op := "make file system " + o.Type
	args, err := o.args()
	if err != nil {
		return err
	}
	path, err := tool("mkfs." + o.Type)
	if err != nil {
		e := fault.Newf(fault.NotSupported, op, "mkfs.%s is not installed.", o.Type)
		e.Err = err
		return e
	}
	if err := run(ctx, path, args...); err != nil {
		return fmt.Errorf("%s: %w", op, err)
	}
	return nil
}

// args are the words systemd-homed gives the tools, so that homes made by
// either look alike.
func (o MkfsOptions) args() ([]string, error) {
	var args []string
	switch o.Type {
	case "ext4":
		discard := "nodiscard"
		if o.Discard {
			discard = "discard"
		}
		args = []string{
			"-L", cut(o.Label, 16), "-U", o.UUID, "-I", "256", "-m", "0",
			"-E", discard + ",lazy_itable_init=1,hash_seed=" + o.UUID, "-b", "4096", "-T", "default", "-q",
		}
	case "btrfs":
		args = []string{"-L", o.Label, "-U", o.UUID}
		if !o.Discard {
			args = append(args, "--nodiscard")
		}
		args = append(args, "-q")
	case "xfs":
		args = []string{"-L", cut(o.Label, 12), "-m", "uuid=" + o.UUID, "-m", "reflink=1"}
		if !o.Discard {
			args = append(args, "-K")
		}
		args = append(args, "-q")
	default:
		return nil, fault.Newf(fault.NotSupported, "make file system", "File system %q cannot hold a home.", o.Type)
	}
	return append(append(args, o.Node), o.Extra...), nil
}

// cut returns the longest part of s from its start that has at most n bytes
// and no broken rune.
func cut(s string, n int) string {
	if len(s) <= n {
		return s
	}
	for n > 0 && !utf8.RuneStart(s[n]) {
		n--
	}
	return s[:n]
}

// Check repairs the unmounted file system on a device where that is safe
// without asking. An ext4 whose superblock says clean is left alone; btrfs and
// xfs are left to the kernel, whose log replay their fsck programs refer to. A
// tool that is missing or cannot do its work is no fault: mounting decides.
//
// Faults: IOError if the file system stays damaged.
func Check(ctx context.Context, fstype, node string) error {
	if fstype != "ext4" {
		return nil
	}
	op := "check file system on " + node
	f, err := os.Open(node)
	if err != nil {
		return fmt.Errorf("%s: %w", op, err)
	}
	clean, err := ext4Clean(f, time.Now())
	err = errors.Join(err, f.Close())
	if err != nil {
		return fmt.Errorf("%s: %w", op, err)
	}
	if clean {
		return nil
	}
	path, err := tool("fsck.ext4")
	if err != nil {
		return nil
	}
	err = run(ctx, path, "-a", node)
	var exit *exec.ExitError
	switch {
	case err == nil:
		return nil
	case ctx.Err() != nil:
		return fmt.Errorf("%s: %w", op, err)
	case !errors.As(err, &exit):
		return nil
	}
	// fsck(8): 1 repaired, 2 reboot, 4 errors left, above: not checked.
	if exit.ExitCode() > 0 && exit.ExitCode()&(2|4) != 0 && preen(ctx, node) != nil {
		return fault.New(fault.IOError, op, err)
	}
	return nil
}

// tool finds a program that does something: distributions disable one by
// linking it to true or /dev/null.
func tool(name string) (string, error) {
	for dir := range strings.SplitSeq(toolPath, ":") {
		path := filepath.Join(dir, name)
		if unix.Access(path, unix.X_OK) != nil {
			continue
		}
		real, err := filepath.EvalSymlinks(path)
		if err != nil || filepath.Base(real) == "true" || real == "/dev/null" {
			continue
		}
		return path, nil
	}
	return "", fmt.Errorf("%s: %w", name, exec.ErrNotFound)
}

// run runs a tool without input and with an environment of its own. What it
// said is part of the error.
func run(ctx context.Context, path string, args ...string) error {
	defer trace.From(ctx).Work(trace.Exec)()
	var said tail
	cmd := exec.CommandContext(ctx, path, args...)
	cmd.Env = []string{"PATH=" + toolPath, "LC_ALL=C.UTF-8"}
	cmd.Dir = "/"
	cmd.Stdout, cmd.Stderr = &said, &said
	// A group of its own, so that what it starts ends with it.
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	cmd.Cancel = func() error { return unix.Kill(-cmd.Process.Pid, unix.SIGKILL) }
	cmd.WaitDelay = killWait
	if err := cmd.Run(); err != nil {
		if ctx.Err() != nil {
			err = errors.Join(context.Cause(ctx), err)
		}
		return fmt.Errorf("%s: %w: %s", filepath.Base(path), err, said.text())
	}
	return nil
}

// tail keeps the last of what is written to it.
type tail struct{ kept []byte }

func (t *tail) Write(p []byte) (int, error) {
	t.kept = append(t.kept, p...)
	if over := len(t.kept) - outputKept; over > 0 {
		t.kept = append(t.kept[:0], t.kept[over:]...)
	}
	return len(p), nil
}

// text is one line, fit for an error.
func (t *tail) text() string {
	return strings.Join(strings.Fields(string(bytes.ToValidUTF8(t.kept, []byte("?")))), " ")
}
