package userdb

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"testing"
	"time"

	"hearth/homed/manager"
	"hearth/internal/fault"
	"hearth/records"
)

const machine = "1e36d111fc5f48a2b78ad6694f4b2b13"

// shelf is a set of homes that only stand there.
type shelf []manager.Info

func (shelf) Ready() <-chan struct{} {
	c := make(chan struct{})
	close(c)
	return c
}

func (s shelf) List(context.Context) ([]manager.Info, error) { return slices.Clone(s), nil }

func (s shelf) Lookup(_ context.Context, k manager.Key) (manager.Info, error) {
	for _, h := range s {
		if k.ByUID && h.UID == k.UID || !k.ByUID && h.Subject.Record().Matches(k.Name) {
			return h, nil
		}
	}
	return manager.Info{}, fault.New(fault.NoSuchHome, "find home", nil)
}

type capture struct {
	Case      string            `json:"case"`
	CallerUID uint32            `json:"caller_uid"`
	Request   json.RawMessage   `json:"request"`
	Replies   []json.RawMessage `json:"replies"`
}

func captures(t testing.TB) []capture {
	t.Helper()
	text, err := os.ReadFile("../../fixtures/systemd-262-bus/varlink/calls.json")
	if err != nil {
		t.Fatal(err)
	}
	var out []capture
	if err := json.Unmarshal(text, &out); err != nil {
		t.Fatal(err)
	}
	return out
}

// homes puts the homes of the captures on a shelf, their records as root saw
// them.
func homes(t testing.TB, from []capture) shelf {
	t.Helper()
	var out shelf
	for _, c := range from {
		if c.Case != "enum-more" {
			continue
		}
		for _, r := range c.Replies {
			var reply struct {
				Parameters struct {
					Record json.RawMessage `json:"record"`
				} `json:"parameters"`
			}
			if err := json.Unmarshal(r, &reply); err != nil {
				t.Fatal(err)
			}
			rec, err := records.Parse(reply.Parameters.Record, records.ClientReply)
			if err != nil {
				t.Fatal(err)
			}
			b, ok := rec.Binding(machine)
			if !ok {
				t.Fatal("a record without binding")
			}
			var signed struct {
				Signature []struct{ Key string }
			}
			if err := json.Unmarshal(reply.Parameters.Record, &signed); err != nil || len(signed.Signature) == 0 {
				t.Fatalf("a record without signature: %v", err)
			}
			keys := new(records.Keys)
			if err := keys.Add("signer", []byte(signed.Signature[0].Key)); err != nil {
				t.Fatal(err)
			}
			v, err := keys.Vouch(rec)
			if err != nil {
				t.Fatal(err)
			}
			out = append(out, manager.Info{Name: rec.UserName(), UID: b.UID, GID: b.GID, Machine: records.Machine{ID: machine}, Subject: v})
		}
	}
	if len(out) != 3 {
		t.Fatalf("%d homes in the captures, want 3", len(out))
	}
	return out
}

// plainly decodes a reply so that it compares by meaning: status values that
// differ from run to run are dropped.
func plainly(t testing.TB, text []byte) any {
	t.Helper()
	d := json.NewDecoder(bytes.NewReader(text))
	d.UseNumber()
	var v map[string]any
	if err := d.Decode(&v); err != nil {
		t.Fatalf("%s: %v", text, err)
	}
	if p, ok := v["parameters"].(map[string]any); ok {
		if rec, ok := p["record"].(map[string]any); ok && rec["userName"] != nil {
			delete(rec, "status")
		}
	}
	return v
}

func write(b *bytes.Buffer, out []reply) error {
	w := &replyWriter{c: b}
	if err := w.write(out); err != nil {
		return err
	}
	return w.flush()
}

// TestFoundHomesHaveNoGroups: what a record claims that nobody vouches for makes
// nobody a member.
func TestFoundHomesHaveNoGroups(t *testing.T) {
	claims, err := records.Parse([]byte(`{"userName":"eve","memberOf":["wheel"],"binding":{"`+machine+`":{"uid":60100,"gid":60100}}}`), records.HostFile)
	if err != nil {
		t.Fatal(err)
	}
	s := &server{o: Options{Manager: shelf{{Name: "eve", UID: 60100, GID: 60100, Subject: claims.FoundAs(machine)}}, Machine: records.Machine{ID: machine}}, service: "io.systemd.Home"}
	for ask, want := range map[string]string{
		`{"service":"io.systemd.Home"}`:                                      `[{"userName":"eve","groupName":"eve"}]`,
		`{"service":"io.systemd.Home","userName":"eve"}`:                     `[{"userName":"eve","groupName":"eve"}]`,
		`{"service":"io.systemd.Home","groupName":"wheel"}`:                  errNoRecord,
		`{"service":"other"}`:                                                errBadService,
		`{"service":"io.systemd.Home","userName":"eve","groupName":"wheel"}`: errNoRecord,
	} {
		r, err := parseRequest([]byte(`{"method":"io.systemd.UserDatabase.GetMemberships","parameters":` + ask + `,"more":true}`))
		if err != nil {
			t.Fatal(err)
		}
		got := ""
		var list []any
		for _, a := range s.answer(t.Context(), 0, r) {
			got = a.Error
			list = append(list, a.Parameters)
		}
		if got == "" {
			text, err := json.Marshal(list)
			if err != nil {
				t.Fatal(err)
			}
			got = string(text)
		}
		if got != want {
			t.Errorf("%s: %s, want %s", ask, got, want)
		}
	}
}

// unwell is a manager that has ended.
type unwell struct{ shelf }

func (unwell) List(context.Context) ([]manager.Info, error) {
	return nil, fault.New(fault.ServiceUnknown, "list homes", nil)
}

// TestNobodyToAsk: that the homes are not known is told, not that there are none.
func TestNobodyToAsk(t *testing.T) {
	s := &server{o: Options{Manager: unwell{}, Machine: records.Machine{ID: machine}, Log: slog.New(slog.DiscardHandler)}, service: "io.systemd.Home"}
	for _, method := range []string{"GetUserRecord", "GetGroupRecord", "GetMemberships"} {
		r, err := parseRequest([]byte(`{"method":"io.systemd.UserDatabase.` + method + `","parameters":{"service":"io.systemd.Home"},"more":true}`))
		if err != nil {
			t.Fatal(err)
		}
		if a := s.answer(t.Context(), 0, r); len(a) != 1 || a[0].Error != errSystem {
			t.Errorf("%s: %+v", method, a)
		}
	}
}

// TestCapturesOfTheOriginal replays what systemd-homed 262 was asked and
// compares the answers.
func TestCapturesOfTheOriginal(t *testing.T) {
	all := captures(t)
	full := homes(t, all)
	var none shelf
	for _, c := range all {
		t.Run(c.Case, func(t *testing.T) {
			m := full
			if strings.HasPrefix(c.Case, "empty-") {
				m = none
			}
			s := &server{o: Options{Manager: m, Machine: records.Machine{ID: machine}, Level: levelInfo(), Environment: []string{"A=b"}}, service: "io.systemd.Home"}
			req, err := parseRequest(c.Request)
			if err != nil {
				t.Fatal(err)
			}
			var b bytes.Buffer
			if err := write(&b, s.answer(context.Background(), c.CallerUID, req)); err != nil {
				t.Fatal(err)
			}
			got := bytes.Split(bytes.TrimSuffix(b.Bytes(), []byte{0}), []byte{0})
			switch {
			case req.oneway:
				return
			case c.Case == "info" || c.Case == "getenv":
				return // a replacement names itself and shows its own
			case strings.HasSuffix(c.Case, "enum-more") || strings.HasPrefix(c.Case, "enum") || strings.HasPrefix(c.Case, "mem-all") || c.Case == "group-enum":
				compareUnordered(t, got, c.Replies, strings.HasSuffix(c.Case, "nomore"))
				return
			}
			if len(got) != len(c.Replies) {
				t.Fatalf("%d replies, want %d: %s", len(got), len(c.Replies), b.Bytes())
			}
			for i := range got {
				if !reflect.DeepEqual(plainly(t, got[i]), plainly(t, c.Replies[i])) {
					t.Errorf("reply %d is %s\nwant %s", i, got[i], c.Replies[i])
				}
			}
		})
	}
}

// compareUnordered compares enumerations, whose order is free; first says that
// one item of them was asked for.
func compareUnordered(t *testing.T, got [][]byte, want []json.RawMessage, first bool) {
	t.Helper()
	if len(got) != len(want) {
		t.Fatalf("%d replies, want %d", len(got), len(want))
	}
	for i := range got {
		if last := i == len(got)-1; bytes.Contains(got[i], []byte(`"continues":true`)) == last {
			t.Errorf("reply %d: continues is wrong", i)
		}
	}
	if first {
		return
	}
	left := map[string]bool{}
	key := func(text []byte) string {
		v := plainly(t, text).(map[string]any)
		delete(v, "continues")
		k, err := json.Marshal(v)
		if err != nil {
			t.Fatal(err)
		}
		return string(k)
	}
	for _, w := range want {
		left[key(w)] = true
	}
	for _, g := range got {
		if k := key(g); !left[k] {
			t.Errorf("not among the original's: %s", k)
		} else {
			delete(left, k)
		}
	}
}

func TestDescriptionsEqualTheOriginal(t *testing.T) {
	for name, text := range interfaces {
		want, err := os.ReadFile(filepath.Join("../../fixtures/systemd-262-bus/varlink", name+".varlink"))
		if err != nil {
			t.Fatal(err)
		}
		if strings.Join(strings.Fields(text), " ") != strings.Join(strings.Fields(string(want)), " ") {
			t.Errorf("%s differs", name)
		}
	}
}

func TestWhatIsNoRequest(t *testing.T) {
	for _, bad := range []string{"", "x", "[]", "{}", `{"method":5}`, `{"method":"a","foo":1}`, `{"method":"a","more":true,"oneway":true}`,
		`{"method":"a","more":"x"}`, `{"method":"a","parameters":5}`, `{"method":"a"}x`, `{"method":"a","method":"b"}`, `{"method":"a","upgrade":true,"more":true}`} {
		if _, err := parseRequest([]byte(bad)); err == nil {
			t.Errorf("%s was taken for a request", bad)
		}
	}
	if _, err := readFrame(bufio.NewReader(bytes.NewReader(make([]byte, 0)))); err == nil {
		t.Error("an empty stream gave a frame")
	}
	if _, err := readFrame(bufio.NewReader(strings.NewReader(strings.Repeat("x", maxRequest+1) + "\x00"))); err == nil {
		t.Error("a request without bound was read")
	}
}

// start serves the homes of the captures on a socket of the test's own.
func start(t *testing.T) (socket string) {
	t.Helper()
	dir, err := os.MkdirTemp("", "userdb")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.RemoveAll(dir) })
	socket = filepath.Join(dir, "io.systemd.Home")
	// What a daemon that was killed leaves behind.
	stale, err := net.ListenUnix("unix", &net.UnixAddr{Name: socket, Net: "unix"})
	if err != nil {
		t.Fatal(err)
	}
	stale.SetUnlinkOnClose(false)
	stale.Close()

	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() {
		done <- Serve(ctx, Options{Manager: homes(t, captures(t)), Socket: socket, Machine: records.Machine{ID: machine}})
	}()
	t.Cleanup(func() {
		cancel()
		select {
		case err := <-done:
			if err != nil {
				t.Errorf("Serve: %v", err)
			}
		case <-time.After(5 * time.Second):
			t.Error("Serve does not end")
		}
		if _, err := os.Lstat(socket); err == nil {
			t.Error("the socket is still there")
		}
	})
	for range 500 {
		if c, err := net.Dial("unix", socket); err == nil {
			c.Close()
			return socket
		}
		time.Sleep(10 * time.Millisecond)
	}
	t.Fatal("no socket")
	return ""
}

func TestOnTheSocket(t *testing.T) {
	socket := start(t)
	fi, err := os.Stat(socket)
	if err != nil {
		t.Fatal(err)
	}
	if fi.Mode().Perm() != 0o666 {
		t.Errorf("mode is %o", fi.Mode().Perm())
	}
	c, err := net.Dial("unix", socket)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	// A one-way call and two others in one go: two answers, in order.
	ask := `{"method":"io.systemd.service.Ping","oneway":true}` + "\x00" +
		`{"method":"io.systemd.UserDatabase.GetMemberships","parameters":{"service":"io.systemd.Home"},"more":true}` + "\x00" +
		`{"method":"io.systemd.service.Ping"}` + "\x00"
	if _, err := c.Write([]byte(ask)); err != nil {
		t.Fatal(err)
	}
	in := bufio.NewReader(c)
	var got []string
	for range 5 {
		text, err := in.ReadString(0)
		if err != nil {
			t.Fatalf("after %q: %v", got, err)
		}
		got = append(got, strings.TrimSuffix(text, "\x00"))
	}
	want := []string{
		`{"parameters":{"userName":"alice","groupName":"alice"},"continues":true}`,
		`{"parameters":{"userName":"alice","groupName":"grpx"},"continues":true}`,
		`{"parameters":{"userName":"carol-x","groupName":"carol-x"},"continues":true}`,
		`{"parameters":{"userName":"frank","groupName":"frank"}}`,
		`{}`,
	}
	if !slices.Equal(got, want) {
		t.Errorf("answers are %q", got)
	}
	if _, err := c.Write([]byte("{}\x00")); err != nil {
		t.Fatal(err)
	}
	if _, err := in.ReadByte(); err == nil {
		t.Error("what is no request was answered")
	}
}

// FuzzRequest feeds the wire from an untrusted peer: frames, requests, and the
// answers to them, which must be frames again.
func FuzzRequest(f *testing.F) {
	all := captures(f)
	for _, c := range all {
		f.Add(append(slices.Clone([]byte(c.Request)), 0))
	}
	s := &server{o: Options{Manager: homes(f, all), Machine: records.Machine{ID: machine}, Level: levelInfo()}, service: "io.systemd.Home"}
	f.Fuzz(func(t *testing.T, stream []byte) {
		in := bufio.NewReaderSize(bytes.NewReader(stream), 16)
		for {
			text, err := readFrame(in)
			if err != nil {
				return
			}
			req, err := parseRequest(text)
			if err != nil {
				return
			}
			out := s.answer(context.Background(), 1000, req)
			var b bytes.Buffer
			if err := write(&b, out); err != nil {
				t.Fatal(err)
			}
			if bytes.Count(b.Bytes(), []byte{0}) != len(out) || len(out) == 0 {
				t.Fatalf("%d answers in %q", len(out), b.Bytes())
			}
			if bytes.Contains(b.Bytes(), []byte("hashedPassword")) {
				t.Fatal("a hash went to a stranger")
			}
		}
	})
}

func levelInfo() *slog.LevelVar { return new(slog.LevelVar) }
