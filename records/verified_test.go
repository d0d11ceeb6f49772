package records

import (
	"errors"
	"math"
	"reflect"
	"strings"
	"testing"

	"hearth/internal/fault"
)

// vouched takes a test's word for a record, where signatures are not what it
// is about.
func vouched(r *Record) Verified { return Verified{whole(r), SignedByUs} }

// TestVouch: which verdicts make a record count, and what is told of the rest.
func TestVouch(t *testing.T) {
	k := keyring(t, true)
	for name, c := range map[string]struct {
		want  Verdict
		local bool
	}{"dirmin": {SignedByUs, true}, "foreignu": {SignedByOther, false}, "dualu": {SignedByUsToo, false}} {
		v, err := k.Vouch(host(t, name))
		if err != nil || v.Verdict() != c.want || *v.SignedLocally() != c.local || !v.Record().Equal(host(t, name)) {
			t.Errorf("%s: %v, %v", name, v.Verdict(), err)
		}
	}
	for text, want := range map[string]string{
		`{"userName":"ann"}`:                               "User record ann is not signed at all, refusing.",
		`{"userName":"ann","signature":[]}`:                "User record ann is not signed at all, refusing.",
		`{"userName":"ann","signature":[{"data":"AAAA"}]}`: "User record ann is not signed by any known key, refusing.",
	} {
		v, err := k.Vouch(mustParse(t, []byte(text), HostFile))
		if !fault.Is(err, fault.BadSignature) || fault.Public(err) != want || v.vouched() == nil {
			t.Errorf("%s: %v", text, err)
		}
		if errors.Is(err, ErrUnsigned) != strings.Contains(want, "at all") {
			t.Errorf("%s: unsigned or not is told wrong: %v", text, err)
		}
	}
	if v, err := k.Vouch(mustParse(t, []byte(`{"userName":"ann","signature":null}`), HostFile)); !fault.Is(err, fault.Inconsistent) || v.vouched() == nil {
		t.Errorf("signature null: %v", err)
	}
	if v, err := keyring(t, false).Vouch(host(t, "foreignu")); !fault.Is(err, fault.BadSignature) || v.vouched() == nil {
		t.Errorf("a key that is not registered: %v", err)
	}
}

// TestZeroVerifiedGrantsNothing, nor does what is made of it.
func TestZeroVerifiedGrantsNothing(t *testing.T) {
	m := machine(t)
	var zero Verified
	k := keyring(t, true)
	sound := host(t, "dirmin").Embedded()
	for name, v := range map[string]Verified{
		"zero": zero, "bound": Bind(zero, m.ID, Binding{UID: 60100, GID: 60100, HasUID: true}), "counted": Count(zero, m.ID, Counters{Good: 1}),
		"with a binding": zero.WithBindingOf(vouched(host(t, "dirmin"))), "with a status": zero.WithStatusOf(vouched(host(t, "dirmin"))),
	} {
		if err := Authenticate(v, secretsOf(t, "x"), false, nil); !fault.Is(err, fault.BadSignature) {
			t.Errorf("%s authenticates: %v", name, err)
		}
		if err := RequirePlaintexts(v, secretsOf(t, "x")); !fault.Is(err, fault.BadSignature) {
			t.Errorf("%s has passwords: %v", name, err)
		}
		if _, err := v.EffectivePassphrases(secretsOf(t, "x")); !fault.Is(err, fault.BadSignature) {
			t.Errorf("%s has passphrases: %v", name, err)
		}
		if *v.SignedLocally() || v.Record().UserName() != "" || len(v.View(m).MemberOf) > 0 {
			t.Errorf("%s says %s", name, v.Record().Compact())
		}
		if v.Record().SameUser(sound) {
			t.Errorf("%s is somebody", name)
		}
		if _, err := k.Reconcile(v, nil, v.Record().Embedded(), Any); !fault.Is(err, fault.BadSignature) {
			t.Errorf("%s rules over its like: %v", name, err)
		}
	}
	if got := (Found{}).View(m); got.HasUID || got.UserName != "" {
		t.Errorf("a zero Found is %+v", got)
	}
}

// TestFound: of a record that nobody vouches for its name and this machine's
// binding are left.
func TestFound(t *testing.T) {
	m := machine(t)
	r := mustParse(t, []byte(`{"userName":"ann","realm":"example.org","memberOf":["wheel"],"uid":0,"shell":"/bin/sh","disposition":"system","rateLimitBurst":1000,
		"lastChangeUSec":9,"aliases":["root"],"privileged":{"hashedPassword":["x"]},"perMachine":[{"matchMachineId":"`+m.ID+`","uid":0}],
		"binding":{"`+m.ID+`":{"uid":60100,"gid":60100,"imagePath":"/home/ann.home","homeDirectory":"/home/ann","storage":"luks"},"other":{"uid":0}},
		"status":{"`+m.ID+`":{"rateLimitCount":7}}}`), HostFile)
	k := keyring(t, true)
	subject := k.Subject(r, m.ID)
	f, ok := subject.(Found)
	if !ok {
		t.Fatalf("an unsigned record is a %T", subject)
	}
	want := mustParse(t, []byte(`{"userName":"ann","realm":"example.org","disposition":"regular","binding":{"`+m.ID+
		`":{"uid":60100,"gid":60100,"imagePath":"/home/ann.home","homeDirectory":"/home/ann","storage":"luks"}}}`), HostFile)
	if !f.Record().Equal(want) || f.SignedLocally() != nil {
		t.Errorf("what is left is %s", f.Record().Compact())
	}
	if v := f.View(m); v.UID != 60100 || v.ImagePath != "/home/ann.home" || len(v.MemberOf)+len(v.HashedPasswords) > 0 {
		t.Errorf("it says %+v", v)
	}
	if got := Bind(f, m.ID, Binding{Storage: "directory"}); got.View(m).Storage != "directory" {
		t.Error("it cannot be bound")
	}
	if v, ok := k.Subject(host(t, "foreignu"), m.ID).(Verified); !ok || v.Verdict() != SignedByOther {
		t.Error("a signed record is not verified")
	}
}

// TestAttempt: limits and counters are of the same record, and the count goes
// back into it.
func TestAttempt(t *testing.T) {
	m := machine(t)
	v := Bind(vouched(mustParse(t, []byte(`{"userName":"ann","rateLimitBurst":2}`), HostFile)), m.ID, Binding{Storage: "luks"})
	for i, want := range []bool{true, true, false, false} {
		after, next, ok := Attempt(v, m, 1000+uint64(i))
		if ok != want || !ok && next != 1000+60e6 || after.Counters(m.ID).RateCount != uint64(min(i+1, 2)) {
			t.Errorf("attempt %d: %v, next %d, %+v", i, ok, next, after.Counters(m.ID))
		}
		v = after
	}
	var s Subject = v
	if again, _, ok := Attempt(s, m, math.MaxUint64); !ok || !reflect.DeepEqual(again.View(m).RateLimitBurst, uint64(2)) {
		t.Error("never again")
	}
}

// TestPack: what is kept in little memory is the same subject, whatever it holds,
// and takes less.
func TestPack(t *testing.T) {
	m := machine(t)
	for _, name := range []string{"dirmin", "foreignu"} {
		v := vouched(host(t, name))
		p := Pack(v)
		if p.record != nil || p.text == "" {
			t.Fatalf("%s is not packed", name)
		}
		if got, want := p.Record().Compact(), v.Record().Compact(); string(got) != string(want) {
			t.Errorf("%s is\n%s\nwant\n%s", name, got, want)
		}
		if !reflect.DeepEqual(p.View(m), v.View(m)) || p.Verdict() != v.Verdict() || p.vouched() != nil || p.Counters(m.ID) != v.Counters(m.ID) {
			t.Errorf("%s means something else", name)
		}
		if c := Count(p, m.ID, Counters{Good: 7}); c.Counters(m.ID).Good != 7 || p.Counters(m.ID) != v.Counters(m.ID) {
			t.Errorf("%s cannot be counted on", name)
		}
		if again := Pack(p); again != p {
			t.Errorf("%s is packed twice", name)
		}
	}
	if z := Pack(Verified{}); z.vouched() == nil || z.Record().UserName() != "" {
		t.Error("packing made somebody of nobody")
	}
	f := Pack(host(t, "dirmin").FoundAs(m.ID))
	if f.record != nil || f.Record().UserName() != "dirmin" || f.SignedLocally() != nil {
		t.Errorf("a packed Found is %s", f.Record().Compact())
	}
	// As large as a record may be, and one more by what this machine adds.
	many := make([]*value, maxValues-10)
	for i := range many {
		many[i] = valueNull
	}
	large := vouched(&Record{host(t, "dirmin").doc.with("many", newArray(many))})
	if p := Pack(large); !p.Record().Equal(large.Record()) {
		t.Error("a large record is lost")
	}
}
