package main

import (
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"hearth/homed/config"
)

func TestArguments(t *testing.T) {
	for _, c := range []struct {
		args     []string
		done     bool
		code     int
		out, err string
	}{
		{nil, false, 0, "", ""},
		{[]string{"--help"}, true, 0, "Usage: homed", ""},
		{[]string{"-h"}, true, 0, "Usage: homed", ""},
		{[]string{"--version"}, true, 0, "hearth homed", ""},
		{[]string{"now"}, true, 1, "", "takes no arguments"},
		{[]string{"--nope"}, true, 1, "", "nope"},
	} {
		var out, errOut strings.Builder
		done, code := arguments(c.args, &out, &errOut)
		if done != c.done || code != c.code || !strings.Contains(out.String(), c.out) || !strings.Contains(errOut.String(), c.err) {
			t.Errorf("%q: %v, %d, %q, %q", c.args, done, code, out.String(), errOut.String())
		}
	}
}

func TestNotify(t *testing.T) {
	path := filepath.Join(t.TempDir(), "notify")
	l, err := net.ListenUnixgram("unixgram", &net.UnixAddr{Name: path, Net: "unixgram"})
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = l.Close() }()
	t.Setenv("NOTIFY_SOCKET", path)
	n := newNotifier()
	if os.Getenv("NOTIFY_SOCKET") != "" {
		t.Error("children would inherit the socket")
	}
	n.send("READY=1")
	buf := make([]byte, 100)
	k, err := l.Read(buf)
	if err != nil || string(buf[:k]) != "READY=1" {
		t.Errorf("got %q, %v", buf[:k], err)
	}
}

func TestMachineID(t *testing.T) {
	path := filepath.Join(t.TempDir(), "machine-id")
	for text, good := range map[string]bool{
		"0123456789abcdef0123456789abcdef\n": true,
		"uninitialized\n":                    false,
		"":                                   false,
	} {
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		m, err := thisMachine(config.Layout{MachineID: path})
		if (err == nil) != good || good && m.ID != strings.TrimSpace(text) {
			t.Errorf("%q: %+v, %v", text, m, err)
		}
	}
}
