package records

import (
	"crypto/rand"
	"reflect"
	"slices"
	"strings"
	"testing"

	"hearth/internal/fault"
)

// TestRewrittenIdentity: the copies of a record that lie in a home are their
// owner's to write. Whatever they put there, what counts afterwards says
// what the host's record said, or is refused. (CVE-2026-16742 was of this
// class.)
func TestRewrittenIdentity(t *testing.T) {
	m := machine(t)
	ours, keys := signer(t, fixtures, "keys/local.private"), keyring(t, true)
	sign := func(s *Signer, text string) string {
		v, err := s.Sign(mustParse(t, []byte(text), EmbeddedFile))
		if err != nil {
			t.Fatal(err)
		}
		return string(v.Record().Compact())
	}
	private, _, err := GenerateKey(rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	theirs, err := NewSigner(private)
	if err != nil {
		t.Fatal(err)
	}
	defer theirs.Close()

	const content = `{"userName":"ann","disposition":"regular","uid":60100,"memberOf":["a","b","c","d"],"shell":"/bin/sh","lastChangeUSec":100,` +
		`"privileged":{"hashedPassword":["$6$now"]},"perMachine":[{"matchMachineId":"0","shell":"/bin/false"}]}`
	good := sign(ours, content)
	old := sign(ours, strings.Replace(strings.Replace(content, `:100`, `:50`, 1), `"a",`, `"wheel",`, 1))
	bob := sign(ours, strings.Replace(strings.Replace(content, `"ann"`, `"bob"`, 1), `:100`, `:200`, 1))
	bound := Binding{Storage: "directory", UID: 60100, GID: 60100, HasUID: true}
	known, err := keys.Vouch(mustParse(t, []byte(good), HostFile))
	if err != nil {
		t.Fatal(err)
	}
	host := Bind(known, m.ID, bound)
	want := host.View(m)

	signatureOf := func(text string) string {
		_, s, _ := strings.Cut(text, `"signature":`)
		return strings.TrimSuffix(s, "}")
	}
	edit := func(from, to string) string {
		if !strings.Contains(good, from) {
			t.Fatalf("nothing to replace by %s", to)
		}
		return strings.Replace(good, from, to, 1)
	}
	// Each edit is tried as it is, with a newer timestamp, and with neither
	// signature nor that.
	edits := map[string]string{
		"as it is":             good,
		"wheel":                edit(`"memberOf":["a"`, `"memberOf":["wheel","a"`),
		"wheel for here":       edit(`"perMachine":[`, `"perMachine":[{"matchMachineId":"`+m.ID+`","memberOf":["wheel"]},`),
		"other condition":      edit(`"matchMachineId":"0"`, `"matchMachineId":"`+m.ID+`"`),
		"uid":                  edit(`"uid":60100`, `"uid":60200`),
		"no uid":               edit(`"uid":60100,`, ``),
		"uid as a real":        edit(`"uid":60100`, `"uid":60100.0`),
		"shell":                edit(`"/bin/sh"`, `"/bin/bash"`),
		"password":             edit(`$6$now`, `$6$other`),
		"no password":          edit(`"hashedPassword":["$6$now"]`, `"x":1`),
		"home directory":       edit(`"uid"`, `"homeDirectory":"/root","uid"`),
		"no limits":            edit(`"uid"`, `"rateLimitBurst":1000000,"uid"`),
		"policy":               edit(`"uid"`, `"enforcePasswordPolicy":false,"uid"`),
		"own rules":            edit(`"uid"`, `"selfModifiableFields":["memberOf"],"uid"`),
		"unlocked":             edit(`"uid"`, `"locked":false,"uid"`),
		"field nobody knows":   edit(`"uid"`, `"x":1,"uid"`),
		"other order":          edit(`["a","b","c","d"]`, `["c","d","a","b"]`),
		"replay":               old,
		"bob's":                bob,
		"bob's signature":      strings.Replace(good, signatureOf(good), signatureOf(bob), 1),
		"signed by them":       sign(theirs, strings.Replace(content, `"a"`, `"wheel"`, 1)),
		"theirs under our key": strings.Replace(sign(theirs, strings.Replace(content, `"a"`, `"wheel"`, 1)), `"key":"`, `"key":"`+strings.ReplaceAll(string(ours.PublicPEM()), "\n", `\n`)+`","x":"`, 1),
		"null for a signature": strings.Replace(good, signatureOf(good), `null`, 1),
		"empty signatures":     strings.Replace(good, signatureOf(good), `[]`, 1),
		"binding":              edit(`"uid"`, `"binding":{"`+m.ID+`":{"uid":0,"gid":0}},"uid"`),
		"status":               edit(`"uid"`, `"status":{"`+m.ID+`":{"useFallback":true,"aliases":["root"]}},"uid"`),
		"secret":               edit(`"uid"`, `"secret":{"password":["x"]},"uid"`),
		"a field twice":        edit(`"uid"`, `"uid":0,"uid"`),
		"signatures twice":     edit(`"uid"`, `"signature":[],"uid"`),
		"not an object":        `[` + good + `]`,
		"nothing":              ``,
	}
	unsigned := func(text string) string {
		before, _, _ := strings.Cut(text, `,"signature":[{`)
		return strings.TrimSuffix(before, "}") + "}"
	}
	newer := func(text string) string {
		return strings.NewReplacer(`"lastChangeUSec":100`, `"lastChangeUSec":900`, `"lastChangeUSec":50`, `"lastChangeUSec":900`).Replace(text)
	}
	// To a home that was only found every copy is newer.
	found := host.Record().FoundAs(m.ID)
	refused, kept := 0, 0
	for name, text := range edits {
		for how, text := range map[string]string{"": text, ", newer": newer(text), ", unsigned": unsigned(text), ", newer, unsigned": newer(unsigned(text)),
			", undated": strings.Replace(text, `"lastChangeUSec":100,`, ``, 1)} {
			written, err := Parse([]byte(text), EmbeddedFile)
			if err != nil {
				refused++
				continue
			}
			for _, mode := range []Mode{Any, NewerOrEqual, Newer} {
				sound := mustParse(t, []byte(good), EmbeddedFile)
				for where, copies := range map[string][2]*Record{"home": {nil, written}, "header": {written, sound}, "home behind a header": {sound, written}, "both": {written, written}} {
					for _, subject := range []Subject{host, found} {
						got, err := keys.Reconcile(subject, copies[0], copies[1], mode)
						if err != nil {
							refused++
							continue
						}
						kept++
						if v := got.Record.View(m); !reflect.DeepEqual(v, want) && !(subject == Subject(found) && name == "replay") {
							t.Errorf("%s%s in %s, mode %d, %T: gains %s", name, how, where, mode, subject, got.Record.Record().Compact())
						}
						if verdict, err := keys.Verify(got.Record.Record()); err != nil || verdict != SignedByUs {
							t.Errorf("%s%s in %s, mode %d, %T: %v rules", name, how, where, mode, subject, verdict)
						}
					}
				}
			}
		}
	}
	if refused < 100 || kept < 100 {
		t.Errorf("%d refused, %d without effect: the table does not reach both", refused, kept)
	}
	// A change that we signed does count, or all of this would prove nothing.
	signed := mustParse(t, []byte(sign(ours, newer(strings.Replace(content, `"a"`, `"wheel"`, 1)))), EmbeddedFile)
	got, err := keys.Reconcile(host, nil, signed, Any)
	if err != nil || !slices.Contains(got.Record.View(m).MemberOf, "wheel") || got.Record.Verdict() != SignedByUs {
		t.Errorf("%s, %v", got.Record.Record().Compact(), err)
	}
	if _, err := keys.Reconcile(host, nil, mustParse(t, []byte(bob), EmbeddedFile), Any); !fault.Is(err, fault.OtherUser) {
		t.Errorf("%v", err)
	}
}
