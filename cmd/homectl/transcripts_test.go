package main

import (
	"bufio"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	"hearth/internal/secret"
)

// An invocation is one run of the real homectl as it was recorded.
type invocation struct {
	ID      string
	Kind    string
	Group   string
	Argv    []string
	Env     map[string]string
	Stdin   *string
	User    string
	TTY     bool `json:"tty_mode"`
	Stdout  string
	Stderr  string
	RC      int
	Defects []string
}

// TestTranscripts runs what systemd's homectl was recorded with, as far as that
// asks no daemon: the grammar of every option, and the record that create would
// send. testdata/transcripts/differs lists where we differ on purpose, and
// testdata/transcripts/daemon what a daemon takes part in; neither may list
// more than it has to.
func TestTranscripts(t *testing.T) {
	const fixture = "../../fixtures/systemd-262-homectl/transcripts.jsonl"
	f, err := os.Open(fixture)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	differs, daemon := rows(t, "differs"), rows(t, "daemon")
	dir := t.TempDir()
	t.Setenv("DBUS_SYSTEM_BUS_ADDRESS", "unix:path="+filepath.Join(dir, "none"))
	t.Setenv("TZ", "UTC")
	// The recorded machine had these.
	if err := os.MkdirAll(filepath.Join(dir, "tmp/blob/sub"), 0o755); err != nil {
		t.Fatal(err)
	}
	for name, text := range map[string]string{
		"bg.png": "png", "blob/avatar": "png", "blob/bad name": "", "keys": "# keys\nssh-ed25519 AAAA1 a@b\n\nssh-rsa BBBB b@c\n",
	} {
		if err := os.WriteFile(filepath.Join(dir, "tmp", name), []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	t.Chdir("/")
	compared := 0
	s := bufio.NewScanner(f)
	s.Buffer(nil, 1<<20)
	for s.Scan() {
		var i invocation
		if err := json.Unmarshal(s.Bytes(), &i); err != nil {
			t.Fatal(err)
		}
		if i.Kind != "invocation" || i.TTY || i.User != "root" || filepath.Base(i.Argv[0]) != "homectl" {
			continue
		}
		if !slices.Contains([]string{"parse", "optcreate", "optcreate2"}, i.Group) {
			continue
		}
		if _, ok := daemon[i.ID]; ok {
			delete(daemon, i.ID)
			continue
		}
		compared++
		got := replay(t, i, dir)
		why, allowed := differs[i.ID]
		delete(differs, i.ID)
		switch want := i.result(); {
		case got != want && (len(i.Defects) > 0 || slices.Contains(notBuilt, got)):
		case got == want && allowed:
			t.Errorf("%s is listed as different (%s) and is the same", i.ID, why)
		case got != want && !allowed:
			t.Errorf("%s: %q %v %s\n got %s\nwant %s", i.ID, i.Argv[1:], i.Env, deref(i.Stdin), got, want)
		}
	}
	for id := range differs {
		t.Errorf("%s is listed as different and was never run", id)
	}
	for id := range daemon {
		t.Errorf("%s is listed as asking a daemon and is not among the transcripts", id)
	}
	t.Logf("%d invocations compared", compared)
}

// notBuilt is what options say that wait for tokens and other machines
// (docs/status.md).
var notBuilt = func() (all []string) {
	for _, o := range []string{"introspect-cli", "host", "machine", "pkcs11-token-uri", "fido2-device", "fido2-credential-algorithm",
		"fido2-with-client-pin", "fido2-with-user-presence", "fido2-with-user-verification"} {
		all = append(all, outcome(1, "", "Option --"+o+" is not available yet.\n", false))
	}
	return all
}()

func deref(s *string) string {
	if s == nil {
		return ""
	}
	return "<" + *s
}

// rows reads lines of an id and a reason.
func rows(t *testing.T, name string) map[string]string {
	text, err := os.ReadFile(filepath.Join("testdata/transcripts", name))
	if err != nil {
		t.Fatal(err)
	}
	all := map[string]string{}
	for _, line := range strings.Split(string(text), "\n") {
		if line == "" || line[0] == '#' {
			continue
		}
		id, reason, ok := strings.Cut(line, " ")
		if !ok || all[id] != "" {
			t.Fatalf("%s: %q has no reason, or comes twice", name, line)
		}
		all[id] = reason
	}
	return all
}

const testMachine = "0123456789abcdef0123456789abcdef"

func (i invocation) dry() bool { return i.Env["SYSTEMD_HOME_DRY_RUN"] != "" }

func (i invocation) result() string { return outcome(i.RC, i.Stdout, i.Stderr, i.dry()) }

var (
	changing    = regexp.MustCompile(`"(lastChangeUSec|lastPasswordChangeUSec)":\d+`)
	yescrypt    = regexp.MustCompile(`\$y\$[^"]+`)
	machines    = regexp.MustCompile(`("match(?:Not)?MachineId":"?)[0-9a-f]{32}`)
	recoveryKey = regexp.MustCompile(`([cbdefghijklnrtuv]{8}-){7}[cbdefghijklnrtuv]{8}`)
	recorded    = regexp.MustCompile(`(/tmp/(blob|bg.png|keys))\b`)
	escapes     = regexp.MustCompile("\x1b\\[[0-9;:]*m")
)

// outcome is what must be equal: the status and, of a rehearsal, the record,
// whose members may stand in any order.
func outcome(rc int, stdout, stderr string, dry bool) string {
	stderr = escapes.ReplaceAllString(stderr, "")
	stdout, stderr = recoveryKey.ReplaceAllString(stdout, "key"), recoveryKey.ReplaceAllString(stderr, "key")
	if rest, advice, ok := strings.Cut(stderr, "A secret recovery key"); ok && advice != "" {
		stderr = rest // how it is to be kept, each says in their own words
	}
	if !dry || rc != 0 {
		return fmt.Sprintf("%d\n%s\n%s", rc, stdout, stderr)
	}
	var other []string
	var record any
	for _, line := range strings.SplitAfter(stderr, "\n") {
		if !strings.HasPrefix(line, "{") {
			other = append(other, line)
			continue
		}
		line = changing.ReplaceAllString(line, `"$1":1`)
		line = yescrypt.ReplaceAllString(line, "hash")
		line = machines.ReplaceAllString(line, "${1}machine")
		dec := json.NewDecoder(strings.NewReader(line))
		dec.UseNumber()
		if err := dec.Decode(&record); err != nil {
			return err.Error()
		}
	}
	text, err := json.Marshal(record)
	if err != nil {
		return err.Error()
	}
	return fmt.Sprintf("%d\n%s\n%s%s", rc, text, stdout, strings.Join(other, ""))
}

// replay runs our homectl with the same words.
func replay(t *testing.T, i invocation, dir string) string {
	machine := filepath.Join(dir, "machine-id")
	if err := os.WriteFile(machine, []byte(testMachine+"\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	file := func(name, text string) *os.File {
		path := filepath.Join(dir, name)
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		f, err := os.OpenFile(path, os.O_RDWR, 0)
		if err != nil {
			t.Fatal(err)
		}
		return f
	}
	c := &command{
		program: "homectl", assembly: newAssembly(), legend: true, ask: true, machine: machine,
		in: file("in", strings.TrimPrefix(deref(i.Stdin), "<")), out: file("out", ""), err: file("err", ""),
		hash: func(*secret.Bytes, io.Reader) (string, error) { return "$y$quick", nil },
	}
	defer c.in.Close()
	defer c.out.Close()
	defer c.err.Close()
	var rc int
	func() {
		for name, value := range i.Env {
			old, had := os.LookupEnv(name)
			os.Setenv(name, value)
			defer func() {
				os.Unsetenv(name)
				if had {
					os.Setenv(name, old)
				}
			}()
		}
		var args []string
		for _, a := range i.Argv[1:] {
			args = append(args, recorded.ReplaceAllString(a, dir+"$1"))
		}
		rc = c.run(context.Background(), args)
	}()
	read := func(f *os.File) string {
		if _, err := f.Seek(0, io.SeekStart); err != nil {
			t.Fatal(err)
		}
		text, err := io.ReadAll(f)
		if err != nil {
			t.Fatal(err)
		}
		return string(text)
	}
	there := func(s string) string { return strings.ReplaceAll(s, dir+"/tmp/", "/tmp/") }
	return outcome(rc, there(read(c.out)), there(read(c.err)), i.dry())
}
