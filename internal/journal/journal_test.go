package journal_test

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"testing/slogtest"

	"golang.org/x/sys/unix"

	"hearth/internal/journal"
	"hearth/internal/secret"
)

// fake is a journal: it takes datagrams and opens memfds.
type fake struct {
	t    *testing.T
	path string
	conn *net.UnixConn
}

func newFake(t *testing.T) *fake {
	path := filepath.Join(t.TempDir(), "socket")
	conn, err := net.ListenUnixgram("unixgram", &net.UnixAddr{Name: path, Net: "unixgram"})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = conn.Close() })
	return &fake{t, path, conn}
}

// entry reads one entry as the document says a reader does.
func (f *fake) entry() map[string]string {
	f.t.Helper()
	buf, oob := make([]byte, 1<<20), make([]byte, 1024)
	n, oobn, _, _, err := f.conn.ReadMsgUnix(buf, oob)
	if err != nil {
		f.t.Fatal(err)
	}
	data := buf[:n]
	if oobn > 0 {
		msgs, err := unix.ParseSocketControlMessage(oob[:oobn])
		if err != nil {
			f.t.Fatal(err)
		}
		fds, err := unix.ParseUnixRights(&msgs[0])
		if err != nil {
			f.t.Fatal(err)
		}
		file := os.NewFile(uintptr(fds[0]), "entry")
		defer func() { _ = file.Close() }()
		seals, err := unix.FcntlInt(file.Fd(), unix.F_GET_SEALS, 0)
		if err != nil || seals&unix.F_SEAL_WRITE == 0 {
			f.t.Errorf("entry is not sealed: %x, %v", seals, err)
		}
		st, err := file.Stat()
		if err != nil {
			f.t.Fatal(err)
		}
		data = make([]byte, st.Size())
		if _, err := file.ReadAt(data, 0); err != nil {
			f.t.Fatal(err)
		}
	}
	got := map[string]string{}
	for len(data) > 0 {
		line, rest, ok := bytes.Cut(data, []byte("\n"))
		if !ok {
			f.t.Fatalf("no newline after %q", data)
		}
		if key, value, ok := bytes.Cut(line, []byte("=")); ok {
			got[string(key)] = string(value)
			data = rest
			continue
		}
		size := binary.LittleEndian.Uint64(rest)
		got[string(line)] = string(rest[8 : 8+size])
		if rest[8+size] != '\n' {
			f.t.Fatal("no newline after a counted value")
		}
		data = rest[9+size:]
	}
	return got
}

func TestNativeProtocol(t *testing.T) {
	f := newFake(t)
	var stderr bytes.Buffer
	log := slog.New(journal.NewHandler(journal.Options{Ident: "homed", Socket: f.path, Stderr: &stderr}))
	log = log.With("HOME_USER", "ann")

	log.Warn("activation failed", "HOME_VERB", "activate", "error", fmt.Errorf("mount: %w", unix.EIO))
	want := map[string]string{
		"MESSAGE":   `activation failed error="mount: input/output error"`,
		"PRIORITY":  "4",
		"HOME_USER": "ann", "HOME_VERB": "activate", "ERRNO": "5", "SYSLOG_IDENTIFIER": "homed",
	}
	got := f.entry()
	if len(got) != len(want) {
		t.Errorf("entry %q, want %q", got, want)
	}
	for k, v := range want {
		if got[k] != v {
			t.Errorf("%s=%q, want %q", k, got[k], v)
		}
	}

	log.Error("two\nlines", "n", 1, slog.Group("g", "x", "a b"), "HOME_USER", "eve", "ERRNO", unix.ENOENT)
	got = f.entry()
	if got["MESSAGE"] != "two\nlines n=1 g.x=\"a b\"" || got["PRIORITY"] != "3" || got["HOME_USER"] != "eve" || got["ERRNO"] != "2" {
		t.Errorf("entry %q", got)
	}

	large := strings.Repeat("0123456789abcdef", 1<<15)
	log.Info(large)
	if got := f.entry(); got["MESSAGE"] != large {
		t.Errorf("large message came back with %d bytes", len(got["MESSAGE"]))
	}

	log.Debug("not wanted")
	log.Info("last")
	if got := f.entry(); got["MESSAGE"] != "last" {
		t.Errorf("level is not respected: %q", got)
	}
	if stderr.Len() != 0 {
		t.Errorf("also on stderr: %q", stderr.String())
	}
}

func TestTextWithoutJournal(t *testing.T) {
	var stderr bytes.Buffer
	log := slog.New(journal.NewHandler(journal.Options{
		Ident: "homed", Socket: filepath.Join(t.TempDir(), "none"), Stderr: &stderr, Level: slog.LevelDebug,
	}))
	s, err := secret.Copy([]byte("hunter2"))
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	log.Debug("a\nb", "pw", s, "HOME_USER", "ann", "error", errors.New("x=y"))
	got := stderr.String()
	if !strings.HasSuffix(got, "homed: debug: a\\nb pw=[secret] error=\"x=y\" HOME_USER=ann\n") {
		t.Errorf("line is %q", got)
	}
	if strings.Contains(got, "hunter2") {
		t.Error("a secret was printed")
	}
}

func TestHandlerRules(t *testing.T) {
	var out bytes.Buffer
	h := journal.NewHandler(journal.Options{Ident: "x", Socket: filepath.Join(t.TempDir(), "none"), Stderr: &out})
	err := slogtest.TestHandler(h, func() []map[string]any {
		var list []map[string]any
		for line := range strings.Lines(out.String()) {
			_, msg, _ := strings.Cut(line, "x: info: ")
			m := map[string]any{slog.MessageKey: strings.Fields(msg)[0], slog.LevelKey: slog.LevelInfo}
			if line[2] == ':' {
				m[slog.TimeKey] = line[:12]
			}
			for word := range strings.FieldsSeq(line) {
				key, value, ok := strings.Cut(word, "=")
				if !ok {
					continue
				}
				at := m
				path := strings.Split(key, ".")
				for _, g := range path[:len(path)-1] {
					if at[g] == nil {
						at[g] = map[string]any{}
					}
					at = at[g].(map[string]any)
				}
				at[path[len(path)-1]] = value
			}
			list = append(list, m)
		}
		return list
	})
	if err != nil {
		t.Error(err)
	}
}
