package main

import (
	"bufio"
	"bytes"
	"encoding/json"
	"os"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/creack/pty"

	"hearth/internal/secret"
)

// screen is a terminal with what was written to it.
type screen struct {
	t    *testing.T
	ptm  *os.File
	text bytes.Buffer
	more chan []byte
}

func newScreen(t *testing.T) (*screen, *os.File) {
	t.Helper()
	ptm, tty, err := pty.Open()
	if err != nil {
		t.Skip("no pseudo terminal here:", err)
	}
	t.Cleanup(func() { _ = ptm.Close(); _ = tty.Close() })
	s := &screen{t: t, ptm: ptm, more: make(chan []byte, 64)}
	go func() {
		for {
			buf := make([]byte, 4096)
			n, err := ptm.Read(buf)
			if err != nil {
				return
			}
			s.more <- buf[:n]
		}
	}()
	return s, tty
}

// until reads on until there is text that matches.
func (s *screen) until(re string) {
	s.t.Helper()
	end := time.After(10 * time.Second)
	for !regexp.MustCompile(re).Match(s.text.Bytes()) {
		select {
		case p := <-s.more:
			s.text.Write(p)
		case <-end:
			s.t.Fatalf("%q is not in %q", re, s.text.String())
		}
	}
}

// ask runs one question against keys typed at once. The test closes the answer.
func (s *screen) ask(tty *os.File, question, keys string, l look) (*secret.Bytes, error) {
	s.t.Helper()
	s.text.Reset()
	type answer struct {
		p   *secret.Bytes
		err error
	}
	done := make(chan answer, 1)
	go func() {
		p, err := readHidden(tty, question, l)
		done <- answer{p, err}
	}()
	s.until("no echo")
	if _, err := s.ptm.WriteString(keys); err != nil {
		s.t.Fatal(err)
	}
	s.until(`\r\n$`)
	a := <-done
	s.t.Cleanup(a.p.Close)
	return a.p, a.err
}

// TestPromptLooksAlike holds our prompt against recorded ones of systemd's
// homectl, byte by byte.
func TestPromptLooksAlike(t *testing.T) {
	f, err := os.Open("testdata/systemd-262/prompt.jsonl")
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	cases := 0
	for in := bufio.NewScanner(f); in.Scan(); {
		var c struct {
			ID, Term, TTY string
			Env           map[string]string
			Script        [][2]string
		}
		if err := json.Unmarshal(in.Bytes(), &c); err != nil {
			t.Fatal(err)
		}
		cases++
		t.Run(c.ID, func(t *testing.T) {
			env := map[string]string{"LANG": "C.UTF-8", "TERM": c.Term}
			for k, v := range c.Env {
				env[k] = v
			}
			s, tty := newScreen(t)
			// The recorded session may go on after the line.
			want, _, _ := strings.Cut(c.TTY, "\r\n")
			keys := c.Script[0][1]
			if !strings.HasSuffix(keys, "\n") && len(c.Script) > 1 {
				keys += c.Script[1][1]
			}
			p, err := s.ask(tty, "Please enter password for user tina:", keys, looks(c.Term != "dumb", func(k string) string { return env[k] }))
			if got := strings.TrimSuffix(s.text.String(), "\r\n"); got != want {
				t.Errorf("shown\n%q, recorded\n%q", got, want)
			}
			if keys == "\x04" {
				if err != errCancelled {
					t.Errorf("Ctrl-D gives %v", err)
				}
				return
			}
			if typed := strings.Trim(keys, "\t\x7f\n"); err != nil || !p.Equal(hide(t, typed)) {
				t.Errorf("%q was not read, error %v", typed, err)
			}
		})
	}
	if cases != 7 {
		t.Errorf("%d recorded prompts, want 7", cases)
	}
}

func hide(t *testing.T, text string) *secret.Bytes {
	t.Helper()
	p, err := secret.Copy([]byte(text))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { p.Close() })
	return p
}

func TestPromptKeys(t *testing.T) {
	plain := look{bullet: "."}
	gone := strings.Repeat("\b \b", len(hint))
	long := strings.Repeat("x", passwordLimit)
	for _, c := range []struct{ name, keys, want, shown string }{
		{"one bullet per character", "aüß\n", "aüß", "..."},
		{"backspace takes a character", "aü\x7fb\n", "ab", "..\b \b."},
		{"backspace takes half a character without its bullet", "a\xc3\x7fb\n", "ab", ".."},
		{"backspace on nothing", "a\x7f\x7fb\n", "b", ".\b \b."},
		{"Ctrl-U", "abc\x15d\n", "d", "...\b \b\b \b\b \b."},
		{"TAB hides what is shown", "ab\tcd\n", "abcd", "..\b \b\b \b(no echo) "},
		{"TAB twice", "\t\ta\n", "a", "(no echo) "},
		{"silent backspace", "\tab\x7f\n", "a", "(no echo) "},
		{"bytes that are no text", "a\xffb\n", "a\xffb", "..."},
		{"control characters", "a\x01b\n", "ab", ".\a."},
		{"empty", "\n", "", ""},
	} {
		t.Run(c.name, func(t *testing.T) {
			s, tty := newScreen(t)
			p, err := s.ask(tty, "?", c.keys, plain)
			if err != nil || !p.Equal(hide(t, c.want)) {
				t.Errorf("%q was not read, error %v", c.want, err)
			}
			if got, want := s.text.String(), "? "+hint+gone+c.shown+"\r\n"; got != want {
				t.Errorf("shown\n%q, want\n%q", got, want)
			}
		})
	}
	t.Run("the longest", func(t *testing.T) {
		s, tty := newScreen(t)
		p, err := s.ask(tty, "?", long+"yz\n", plain)
		if err != nil || !p.Equal(hide(t, long)) || !strings.HasSuffix(s.text.String(), ".\a\a\r\n") {
			t.Errorf("read %d bytes, error %v", p.Len(), err)
		}
	})
}
