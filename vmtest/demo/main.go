// Command demo shows the main job in a throw-away guest: a home is made, opens
// when its owner logs in, and closes when she leaves. Every command that it
// shows is run, and what stands below it is its output. It knows the story
// alone; guests are vmtest's matter.
//
// On a terminal it ends in a shell in the guest; NONINTERACTIVE=1 leaves that
// out.
package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/signal"
	"path/filepath"
	"regexp"
	"strings"
	"syscall"
	"time"

	"golang.org/x/term"

	"hearth/vmtest"
)

const (
	tree     = "/opt/hearth" // what was built, in the guest
	password = "Corr3ct-Horse-9-Batt"
	wrong    = "let-me-in-please"
	secret   = "the cake is in the blue tin"
	patience = 60 * time.Second // for anything that ought to appear
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM, syscall.SIGHUP)
	defer stop()
	if err := show(ctx); err != nil {
		fmt.Fprintf(os.Stderr, "\ndemo: %v\n", err)
		os.Exit(1)
	}
}

// story is the demo under way.
type story struct {
	ctx context.Context
	m   *vmtest.Machine
	out io.Writer
}

func show(ctx context.Context) error {
	began := time.Now()
	items, err := built()
	if err != nil {
		return err
	}
	fmt.Println("Starting a throw-away guest ...")
	m, err := vmtest.Start(ctx, vmtest.Options{Payload: items, Log: os.Stdout})
	if err != nil {
		return err
	}
	defer m.Close()
	s := &story{ctx, m, os.Stdout}
	if err := s.tell(); err != nil {
		if text, jerr := m.Journal(context.WithoutCancel(ctx), "homed.service"); jerr == nil {
			fmt.Fprintf(os.Stderr, "\nthe daemon's journal:\n%s", text)
		}
		return err
	}
	fmt.Printf("\nThe whole story took %.0f s.\n", time.Since(began).Seconds())
	if os.Getenv("NONINTERACTIVE") == "1" || !term.IsTerminal(int(os.Stdin.Fd())) || !term.IsTerminal(int(os.Stdout.Fd())) {
		return nil
	}
	fmt.Printf(`
You are root in the guest now. Ann's password is %s; try
"login ann", "homectl inspect ann", "homectl create bob". The guest and all
that is in it are gone when you leave this shell.

`, password)
	_, err = m.Interactive(ctx, os.Stdin, os.Stdout, "bash", "--login")
	return err
}

// bashrc is for the shell at the end. login hangs up the terminal that it is
// on, and with it any shell that it was started from.
const bashrc = `PS1='root@guest:\w# '
login() { script --quiet --return --command "login $*" /dev/null; }
`

// built is what "make build" made and "make install" copies.
func built() ([]vmtest.Item, error) {
	if _, err := os.Stat("build/bin/homed"); err != nil {
		return nil, errors.New(`not built yet; run "make build", or "make demo", which does`)
	}
	items := []vmtest.Item{{Guest: "/root/.bashrc", Data: []byte(bashrc)}}
	for _, p := range []string{"build/bin", "build/pam_home.so", "build/prefix", "cmd/homed/system", "pamhome/shim/hearth.pam-config", "pamhome/shim/hearth-password.pam-config", "docs/man"} {
		if _, err := os.Stat(p); err == nil {
			items = append(items, vmtest.Item{Host: p, Guest: filepath.Join(tree, p)})
		}
	}
	return items, nil
}

// tell tells the story, step by step.
func (s *story) tell() error {
	version, err := s.m.SystemdVersion()
	if err != nil {
		return err
	}
	fmt.Fprintf(s.out, "It runs Debian %s with systemd %d, whose own systemd-homed we replace.\n", s.m.Suite(), version)

	s.title("Install, and take over from systemd-homed")
	prefix := strings.TrimSpace(readFile("build/prefix"))
	for _, c := range []string{
		"pam-auth-update --disable systemd-homed",
		"PREFIX=" + prefix + " " + tree + "/cmd/homed/system/install.sh install",
		"systemctl enable homed.service",
		"systemctl restart homed.service",
		"pam-auth-update --enable hearth hearth-password",
	} {
		if _, err := s.run(c); err != nil {
			return err
		}
	}

	s.title("Ann gets an encrypted home")
	if err := s.create(); err != nil {
		return err
	}
	if out, err := s.run("homectl list"); err != nil {
		return err
	} else if !strings.Contains(out, "inactive") {
		return errors.New("the home is not listed as inactive")
	}

	s.title("She logs in, and her password opens it")
	err = s.login([]line{
		{"findmnt --output TARGET,SOURCE,FSTYPE /home/ann", `/home/ann\s+/dev/\S+`},
		{"echo '" + secret + "' > note", ""},
		{"cat note", `[\r\n]` + secret},
	})
	if err != nil {
		return err
	}
	s.verdict("the home was open while she was there")

	s.title("She leaves, and it closes")
	if err := s.closed(); err != nil {
		return err
	}
	if _, err := s.run("homectl list"); err != nil {
		return err
	}
	if err := s.refused("findmnt /home/ann"); err != nil {
		return err
	}
	if err := s.refused("cat /home/ann/note"); err != nil {
		return err
	}
	if err := s.refused("ls /dev/mapper/home-ann"); err != nil {
		return err
	}
	s.verdict("the home is gone: no mount, no mapped device, no file, not even for root")
	if err := s.refused("grep --count --text '" + secret + "' /home/ann.home"); err != nil {
		return err
	}
	s.verdict("what she wrote is not to be found in the image")

	s.title("A wrong password is refused")
	if err := s.stranger(); err != nil {
		return err
	}

	s.title("Ann comes back")
	if err := s.login([]line{{"cat note", `[\r\n]` + secret}}); err != nil {
		return err
	}
	s.verdict("her file is there")
	return s.closed()
}

func readFile(path string) string {
	b, err := os.ReadFile(path)
	if err != nil {
		return "/usr/local"
	}
	return string(b)
}

func (s *story) title(text string) { fmt.Fprintf(s.out, "\n--- %s\n\n", text) }

func (s *story) verdict(text string) { fmt.Fprintf(s.out, "[ok] %s\n", text) }

// exec runs a command as root, shows both, and returns its output and status.
func (s *story) exec(command string) (string, int, error) {
	fmt.Fprintf(s.out, "# %s\n", command)
	var b bytes.Buffer
	w := io.MultiWriter(&b, s.out)
	r, err := s.m.Exec(s.ctx, vmtest.Command{
		Argv: []string{"bash", "-c", command}, Env: []string{"DEBIAN_FRONTEND=noninteractive"}, Stdout: w, Stderr: w,
	})
	return b.String(), r.Code, err
}

// run is for a command that must succeed.
func (s *story) run(command string) (string, error) {
	out, code, err := s.exec(command)
	if err == nil && code != 0 {
		err = fmt.Errorf("%s: exit status %d", command, code)
	}
	return out, err
}

// refused is for a command that must find nothing.
func (s *story) refused(command string) error {
	_, code, err := s.exec(command)
	if err == nil && code == 0 {
		err = fmt.Errorf("%s: found what ought not to be there", command)
	}
	return err
}

// terminal starts a command on a terminal, whose screen the reader sees.
func (s *story) terminal(argv ...string) (*vmtest.Terminal, error) {
	fmt.Fprintf(s.out, "# %s\n", strings.Join(argv, " "))
	t, err := s.m.Terminal(vmtest.DefaultSize, nil, argv...)
	if err != nil {
		return nil, err
	}
	t.Mirror(screen{s.out})
	return t, nil
}

// screen shows a terminal's text without its control sequences.
type screen struct{ w io.Writer }

func (c screen) Write(p []byte) (int, error) {
	_, err := c.w.Write(bytes.ReplaceAll(controls.ReplaceAll(p, nil), []byte("\r"), nil))
	return len(p), err
}

// answer waits for a prompt and types a password.
func (s *story) answer(t *vmtest.Terminal, prompt, text string) error {
	if _, err := t.Expect(prompt, patience); err != nil {
		return err
	}
	return t.Send(text + "\n")
}

// create makes Ann's home as an administrator at a terminal does.
func (s *story) create() error {
	t, err := s.terminal("homectl", "create", "ann", "--real-name=Ann", "--storage=luks", "--fs-type=ext4", "--disk-size=256M")
	if err != nil {
		return err
	}
	defer t.Close()
	for _, prompt := range []string{`new password for user ann:[^\r\n]*$`, `\(repeat\):[^\r\n]*$`} {
		if err := s.answer(t, prompt, password); err != nil {
			return err
		}
	}
	code, err := s.wait(t)
	if err == nil && code != 0 {
		err = fmt.Errorf("homectl create: exit status %d", code)
	}
	return err
}

func (s *story) wait(t *vmtest.Terminal) (int, error) {
	ctx, cancel := context.WithTimeout(s.ctx, patience)
	defer cancel()
	return t.Wait(ctx)
}

// line is something that Ann types, and what must be seen then.
type line struct{ text, want string }

const prompt = `ann@\S+ ?\$ $`

// login logs Ann in at a terminal, types her lines and leaves.
func (s *story) login(lines []line) error {
	t, err := s.terminal("login", "ann")
	if err != nil {
		return err
	}
	defer t.Close()
	if err := s.answer(t, `Password: ?$`, password); err != nil {
		return err
	}
	if _, err := t.Expect(prompt, patience); err != nil {
		return err
	}
	for _, l := range lines {
		if err := t.Send(l.text + "\n"); err != nil {
			return err
		}
		shown, err := t.Expect(prompt, patience)
		if err != nil {
			return err
		}
		if l.want != "" && !match(l.want, shown) {
			return fmt.Errorf("%s: %q was not shown", l.text, l.want)
		}
	}
	if err := t.Send("exit\n"); err != nil {
		return err
	}
	_, err = s.wait(t)
	fmt.Fprintln(s.out)
	return err
}

// stranger tries a wrong password.
func (s *story) stranger() error {
	t, err := s.terminal("login", "ann")
	if err != nil {
		return err
	}
	defer t.Close()
	if err := s.answer(t, `Password: ?$`, wrong); err != nil {
		return err
	}
	shown, err := t.Expect(`(?i)incorrect[^\r\n]*`+"|"+prompt, patience)
	if err != nil {
		return err
	}
	t.Close()
	fmt.Fprintln(s.out)
	if match(prompt, shown) {
		return errors.New("a wrong password opened the home")
	}
	if err := s.refused("findmnt /home/ann"); err != nil {
		return err
	}
	s.verdict("no password, no home")
	return nil
}

// closed waits until the home is: systemd stops a user's service manager, which
// holds the home too, ten seconds after her last session.
func (s *story) closed() error {
	fmt.Fprintln(s.out, "(her service manager ends ten seconds after her last session)")
	const script = `for i in $(seq 80); do
		state=$(homectl list --json=short | jq -r '.[] | select(.name == "ann").state')
		[ "$state" = inactive ] && exit 0
		sleep 0.5
	done
	echo "$state"; exit 1`
	r, err := s.m.Exec(s.ctx, vmtest.Command{Argv: []string{"bash", "-c", script}})
	if err == nil && r.Code != 0 {
		err = fmt.Errorf("the home is still %s", strings.TrimSpace(r.Stdout+r.Stderr))
	}
	return err
}

func match(re, text string) bool { return regexp.MustCompile(re).MatchString(text) }

// controls are a terminal's control sequences: those that end with a letter,
// and the titles and marks that end with a bell or a string terminator.
var controls = regexp.MustCompile("\x1b\\[[0-9;?!>]*[@-~]|\x1b[\\]P][^\x07\x1b]*(\x07|\x1b\\\\)|\x1b[=>()][A-Z0-9]?")
