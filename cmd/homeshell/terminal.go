package main

import (
	"fmt"
	"os"
	"os/signal"

	"golang.org/x/sys/unix"

	"hearth/internal/secret"
)

// terminal is the session's own.
type terminal struct{ fd int }

// maxAnswer is the length of a line that the kernel's line discipline holds.
const maxAnswer = 4096

// openTerminal wants a terminal on standard input: a session without one has
// nobody to ask.
func openTerminal() (*terminal, error) {
	t := &terminal{int(os.Stdin.Fd())}
	_, err := unix.IoctlGetTermios(t.fd, unix.TCGETS)
	return t, err
}

// notice is a failure as a sentence for the person in front of the terminal.
type notice string

func (n notice) Error() string { return string(n) }

func notify(format string, args ...any) error { return notice(fmt.Sprintf(format, args...)) }

// errCanceled is an end of file in place of an answer.
var errCanceled = notify("Operation canceled")

// ask reads one line without echo, straight into locked memory. Interrupt and
// quit keys end the process, as ever, and the terminal is as before: with su
// it is somebody's who goes on using it.
func (t *terminal) ask(prompt string) (*secret.Bytes, error) {
	old, err := unix.IoctlGetTermios(t.fd, unix.TCGETS)
	if err != nil {
		return nil, err
	}
	quiet := *old
	quiet.Lflag = quiet.Lflag&^unix.ECHO | unix.ICANON | unix.ISIG
	quiet.Iflag |= unix.ICRNL
	quiet.Cc[unix.VSUSP] = 0 // no key stops us while nothing is echoed
	if err := unix.IoctlSetTermios(t.fd, unix.TCSETSF, &quiet); err != nil {
		return nil, err
	}
	restore := func() { _ = unix.IoctlSetTermios(t.fd, unix.TCSETS, old) }
	defer restore()
	defer endWith(restore)()
	if _, err := os.Stderr.WriteString(prompt); err != nil {
		return nil, err
	}
	line, err := secret.New(maxAnswer)
	if err != nil {
		return nil, err
	}
	defer line.Close()
	var answer *secret.Bytes
	err = line.Use(func(p []byte) error {
		var n int
		for {
			var err error
			if n, err = unix.Read(t.fd, p); err == unix.EINTR {
				continue
			} else if err != nil {
				return err
			}
			break
		}
		fmt.Fprintln(os.Stderr)
		if n == 0 || p[n-1] != '\n' {
			return errCanceled
		}
		var err error
		answer, err = secret.Take(p[:n-1])
		return err
	})
	return answer, err
}

// endWith has the signals that end a program wait for f. The result takes that
// back.
func endWith(f func()) (stop func()) {
	signals, done := make(chan os.Signal, 1), make(chan struct{})
	signal.Notify(signals, unix.SIGINT, unix.SIGQUIT, unix.SIGTERM, unix.SIGHUP)
	go func() {
		select {
		case s := <-signals:
			f()
			if s == unix.SIGQUIT { // Go would print what all its parts are at
				s = unix.SIGTERM
			}
			signal.Reset(s)
			_ = unix.Kill(os.Getpid(), s.(unix.Signal))
		case <-done:
		}
	}()
	return func() {
		signal.Stop(signals)
		close(done)
	}
}
