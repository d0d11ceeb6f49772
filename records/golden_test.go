package records

import (
	"bufio"
	"bytes"
	"crypto/rand"
	"encoding/json"
	"fmt"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	"hearth/internal/fault"
)

// TestReconcileAsObserved: the copies of the transcript, brought together, with
// the winners that systemd-homed named in its journal.
func TestReconcileAsObserved(t *testing.T) {
	ours, keys := signer(t, fixtures, "keys/local.private"), keyring(t, false)
	private, _, err := GenerateKey(rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	unknown, err := NewSigner(private)
	if err != nil {
		t.Fatal(err)
	}
	defer unknown.Close()
	type copied struct {
		change   uint64
		location string
	}
	sign := func(by *Signer, c copied) *Record {
		v, err := by.Sign(mustParse(t, fmt.Appendf(nil, `{"userName":"rc1","lastChangeUSec":%d,"location":%q}`, c.change, c.location), EmbeddedFile))
		if err != nil {
			t.Fatal(err)
		}
		return v.Record()
	}
	read2 := func(s string) (c copied) {
		fields := []any{&c.change, new(uint64), &c.location}
		if err := json.Unmarshal([]byte(s), &fields); err != nil {
			t.Fatalf("%s: %v", s, err)
		}
		return c
	}
	pair := regexp.MustCompile(`^host: (\[.*\])  embedded: (\[.*\])$`)
	won := regexp.MustCompile(`Reconciling embedded user identity completed \((.*)\)\.`)
	name, seen := "", map[string]int{}
	var host, embedded copied
	lines := bufio.NewScanner(bytes.NewReader(read(t, fixtures, "transcripts/reconcile.txt")))
	for lines.Scan() {
		line := lines.Text()
		if s, ok := strings.CutPrefix(line, "=== "); ok {
			name = s
		} else if m := pair.FindStringSubmatch(line); m != nil {
			host, embedded = read2(m[1]), read2(m[2])
		} else if m := won.FindStringSubmatch(line); m != nil && !strings.HasPrefix(name, "f") { // f: what was given is not there
			mode, mine, theirs, want := Any, host, sign(ours, embedded), fault.Kind("")
			switch name[:1] {
			case "e": // an update between both
				mode, mine.change = Newer, mine.change+1
			case "g": // adopted there, or not, after the home was open; refused by us before
				theirs, want = theirs.withSection("location", newText("other")), fault.BadSignature
			case "h":
				theirs, want = theirs.WithoutSignature(), fault.BadSignature
			case "i":
				theirs, want = sign(unknown, embedded), fault.BadSignature
			case "j":
				theirs = theirs.withSection("location", newText("other"))
			}
			known, err := keys.Vouch(sign(ours, mine))
			if err != nil {
				t.Fatal(err)
			}
			seen[name[:1]]++
			got, err := keys.Reconcile(known, nil, theirs, mode)
			if fault.KindOf(err) != want || err == nil && got.Embedded.String() != m[1] {
				t.Errorf("%s: %v, %v, systemd-homed: %s", name, got.Embedded, err, m[1])
			}
		}
	}
	if keys := slices.Sorted(func(yield func(string) bool) {
		for k := range seen {
			if !yield(k) {
				return
			}
		}
	}); strings.Join(keys, "") != "abcdeghij" {
		t.Errorf("cases %v of the transcript", keys)
	}
}

// TestVerdictsOfTheJournal: each line that systemd-homed wrote about a file at
// its start.
func TestVerdictsOfTheJournal(t *testing.T) {
	k, n := keyring(t, true), 0
	line := regexp.MustCompile(`(?m)^User record (\w+)\.identity is (.*)\.$`)
	for _, m := range line.FindAllStringSubmatch(string(read(t, fixtures, "transcripts/journal-after-restart.txt")), -1) {
		name, said := m[1], m[2]
		file := "host.identity"
		switch name {
		case "objarray":
			continue // by memory addresses
		case "tampered":
			file = "tampered.identity"
		}
		list, err := filepath.Glob(filepath.Join(fixtures, "records", name, file))
		if err != nil || len(list) != 1 {
			t.Logf("%s has no file (%v)", name, err)
			continue
		}
		want, ok := map[string]Verdict{
			"signed only by us, accepting":                    SignedByUs,
			"signed by us (and others), accepting":            SignedByUsToo,
			"signed by registered key from others, accepting": SignedByOther,
			"not signed at all, ignoring":                     Unsigned,
			"not signed by any accepted key, ignoring":        Foreign,
		}[said]
		if name == "sanat" {
			want = SignedByUs // in the form that systemd itself signs at times
		}
		v, err := k.Verify(mustParse(t, read(t, list[0]), HostFile))
		if !ok || err != nil || v != want {
			t.Errorf("%s: %v, %v, systemd-homed: %s", name, v, err, said)
		}
		n++
	}
	if n < 38 {
		t.Errorf("%d lines", n)
	}
}

// TestIgnoredAsObserved: the fields that systemd's tools warn of are those that
// do not count here, and no others.
func TestIgnoredAsObserved(t *testing.T) {
	quoted := regexp.MustCompile(`(?i)field '([^']+)'`)
	for _, name := range []string{"badfieldsu", "allfields", "canon", "pmnull"} {
		want := map[string]bool{}
		for line := range strings.Lines(string(read(t, fixtures, "records", name, "inspect.stderr"))) {
			switch m := quoted.FindStringSubmatch(line); {
			case m != nil:
				want[m[1]] = true
			case strings.Contains(line, "Rebalance weight"):
				want["rebalanceWeight"] = true
			case strings.Contains(line, "Resource limit"):
				want["resourceLimits"] = true
			default:
				t.Errorf("%s: %s", name, line)
			}
		}
		got := map[string]bool{}
		for _, s := range mustParse(t, read(t, fixtures, "records", name, "inspect-full.json"), ClientReply).Ignored(machine(t)) {
			field, _, _ := strings.Cut(s, ": ")
			got[field] = true
		}
		if fmt.Sprint(got) != fmt.Sprint(want) {
			t.Errorf("%s: %v are ignored, %v by systemd", name, got, want)
		}
	}
}

// TestRepliesOfTheUserDatabase: who asks over varlink, and what passwd(5), the
// groups and sshd get of the record.
func TestRepliesOfTheUserDatabase(t *testing.T) {
	of := func(file string) *Record {
		var reply struct{ Record json.RawMessage }
		if err := json.Unmarshal(read(t, fixtures, "records/dirfull", file), &reply); err != nil {
			t.Fatal(err)
		}
		return mustParse(t, reply.Record, ClientReply)
	}
	m := machine(t)
	root, others := of("varlink-user-root.json"), of("varlink-user-nobody.json")
	masked, incomplete := root.Mask(false)
	if !masked.WithStatusOf(others).Equal(others) || !incomplete {
		t.Errorf("others see %s", masked.Compact())
	}
	if whole, incomplete := root.Mask(true); !whole.Equal(root) || incomplete {
		t.Error("root does not see all")
	}
	if h := host(t, "dirfull"); !bytes.Equal(h.Signable().Pretty(), root.Signable().Pretty()) {
		t.Error("root sees something else than is stored")
	}
	v := root.View(m)
	a := v.Account()
	if got, want := fmt.Sprintf("%s:x:%d:%d:%s:%s:%s\n", a.Name, a.UID, a.GID, a.RealName, a.Directory, a.Shell), string(read(t, fixtures, "records/dirfull/userdbctl-classic.txt")); got != want {
		t.Errorf("passwd(5): %s, want %s", got, want)
	}
	if got, want := strings.Join(v.Login.SSHAuthorizedKeys, "\n")+"\n", string(read(t, fixtures, "records/dirfull/ssh-authorized-keys.txt")); got != want {
		t.Errorf("SSH keys: %s, want %s", got, want)
	}
	var groups strings.Builder
	for _, g := range append(slices.Clone(v.MemberOf), v.UserName) {
		fmt.Fprintf(&groups, "{\"userName\":%q,\"groupName\":%q}\n", v.UserName, g)
	}
	if want := string(read(t, fixtures, "records/dirfull/varlink-memberships.json")); groups.String() != strings.ReplaceAll(strings.TrimSpace(want)+"\n", "\x1e", "") {
		t.Errorf("groups: %s, want %s", groups.String(), want)
	}
	var group struct{ Record json.RawMessage }
	if err := json.Unmarshal(read(t, fixtures, "records/dirfull/varlink-group.json"), &group); err != nil {
		t.Fatal(err)
	}
	want, err := parseDocument(group.Record)
	if err != nil {
		t.Fatal(err)
	}
	known, err := keyring(t, true).Vouch(root)
	if err != nil {
		t.Fatal(err)
	}
	if got, err := parseDocument(Group(known, m)); err != nil || !equal(got, want) {
		t.Errorf("group: %s, %v", Group(known, m), err)
	}
}

// TestRecordsOf257: what systemd-homed 257 wrote is read, verified and stored
// as it was.
func TestRecordsOf257(t *testing.T) {
	const older = "../fixtures/systemd-257-images"
	list, err := filepath.Glob(filepath.Join(older, "*", "host.identity"))
	if err != nil || len(list) < 13 {
		t.Fatalf("%d records: %v", len(list), err)
	}
	tokens := 0
	for _, path := range list {
		// fscrypt-v1 is of another machine.
		of := older
		if own := filepath.Dir(path); filepath.Base(own) == "fscrypt-v1" {
			of = own
		}
		keys := &Keys{}
		if err := keys.Add(LocalKey, read(t, of, "local.public")); err != nil {
			t.Fatal(err)
		}
		s := signer(t, of, "local.private")
		m := Machine{ID: strings.TrimSpace(string(read(t, of, "machine-id"))), Hostname: "vm"}
		text := read(t, path)
		r := mustParse(t, text, HostFile)
		v, err := keys.Vouch(r)
		if err != nil || v.Verdict() != SignedByUs {
			t.Errorf("%s: %v, %v", path, v.Verdict(), err)
			continue
		}
		if !bytes.Equal(r.Pretty(), text) {
			t.Errorf("%s would be stored in another form", path)
		}
		again, err := s.Sign(r)
		if err != nil || !again.Record().Equal(r) {
			t.Errorf("%s would be signed differently: %v", path, err)
		}
		if bad := r.Ignored(m); len(bad) > 0 {
			t.Errorf("%s: %v", path, bad)
		}
		if err := r.Suitable(m); err != nil {
			t.Errorf("%s: %v", path, err)
		}
		list, err := filepath.Glob(filepath.Join(filepath.Dir(path), "token-record.json"))
		if err != nil {
			t.Fatal(err)
		}
		for _, token := range list {
			tokens++
			if got := mustParse(t, read(t, token), EmbeddedFile); !got.Equal(r.Embedded()) {
				t.Errorf("%s says something else than the host's", token)
			}
			if got, err := keys.Reconcile(v, mustParse(t, read(t, token), EmbeddedFile), r.Embedded(), Any); err != nil || got.Header != Identical || got.WriteHeader || got.WriteEmbedded {
				t.Errorf("%s: %v, %v", token, got, err)
			}
		}
	}
	if tokens < 9 {
		t.Errorf("%d records in headers", tokens)
	}
}
