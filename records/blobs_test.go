package records

import (
	"errors"
	"fmt"
	"math"
	"strings"
	"testing"
	"testing/iotest"

	"hearth/internal/fault"
)

func TestBlobNames(t *testing.T) {
	for name, want := range map[string]bool{
		"avatar": true, "login-background": true, "a.b~c_D-9": true, "~": true, "-": true, strings.Repeat("a", 255): true,
		"": false, ".a": false, ".": false, "..": false, "a/b": false, "a b": false, "ä": false, "a\n": false, strings.Repeat("a", 256): false,
	} {
		if ValidBlobName(name) != want {
			t.Errorf("%q", name)
		}
	}
}

func TestManifest(t *testing.T) {
	m := machine(t)
	real, ok := host(t, "dirfull").Manifest(m)
	if !ok || len(real) != 3 {
		t.Fatalf("dirfull: %v, %v", real, ok)
	}
	if _, ok := host(t, "dirmin").Manifest(m); ok {
		t.Error("dirmin has no manifest")
	}
	const empty = "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"
	hash, n, err := HashBlob("x", strings.NewReader(""), 0)
	if err != nil || n != 0 || hash != empty {
		t.Errorf("%s, %d, %v", hash, n, err)
	}
	r := host(t, "dirmin").WithManifest(Manifest{"x": empty, "avatar": hash})
	if !strings.Contains(string(r.Compact()), `"blobManifest":{"avatar":"`+empty+`","x":"`+empty+`"}`) {
		t.Errorf("%s", r.Compact())
	}
	x, _ := mustParse(t, []byte(`{"userName":"a","blobManifest":{"x":"`+strings.ToUpper(empty)+`"}}`), HostFile).Manifest(m)
	for _, c := range []struct {
		name, hash string
		want       bool
	}{{"x", empty, true}, {"y", empty, false}, {"x", "0" + empty[1:], false}, {"x", "", false}} {
		if x.Fits(c.name, c.hash) != c.want {
			t.Errorf("%+v", c)
		}
	}
	if (Manifest{".hidden": empty}).Fits(".hidden", empty) {
		t.Error("a hidden file fits")
	}
	for names, want := range map[string]fault.Kind{"x": "", "": fault.InvalidArgs, "x x": fault.InvalidArgs, "x y": fault.InvalidArgs, "y": fault.InvalidArgs} {
		if err := x.CheckNames(strings.Fields(names)); fault.KindOf(err) != want {
			t.Errorf("%q: %v", names, err)
		}
	}
	if none, ok := r.WithManifest(nil).Manifest(m); !ok || none.CheckNames(nil) != nil {
		t.Error("an empty manifest is none")
	}
	for text, want := range map[string]fault.Kind{"1234": "", "12345": fault.InvalidArgs} {
		if _, _, err := HashBlob("x", strings.NewReader(text), 4); fault.KindOf(err) != want {
			t.Errorf("%s: %v", text, err)
		}
	}
	broken := errors.New("broken")
	if _, _, err := HashBlob("x", iotest.ErrReader(broken), 4); !errors.Is(err, broken) {
		t.Errorf("%v", err)
	}
}

func TestShareLimits(t *testing.T) {
	m := machine(t)
	const no, all = math.MaxUint64, math.MaxUint32
	for _, c := range []struct {
		fields, here string
		want         ShareLimit
	}{
		{`"x":1`, `"x":1`, ShareLimit{no, 3435973836, false}},
		{`"disposition":"system"`, `"x":1`, ShareLimit{no, all, false}},
		{`"tmpLimit":5`, `"x":1`, ShareLimit{5, all, true}},
		{`"tmpLimitScale":7`, `"x":1`, ShareLimit{no, 7, true}},
		{`"tmpLimit":"0x10","tmpLimitScale":7`, `"x":1`, ShareLimit{16, 7, true}},
		{`"tmpLimit":5`, `"tmpLimitScale":7`, ShareLimit{5, 7, true}},
		{`"tmpLimit":5,"tmpLimitScale":7`, `"tmpLimit":6`, ShareLimit{6, 7, true}},
		{`"tmpLimit":5,"tmpLimitScale":7`, `"tmpLimit":null`, ShareLimit{no, 3435973836, false}},
		{`"tmpLimit":5,"tmpLimitScale":7`, `"tmpLimitScale":null`, ShareLimit{no, 3435973836, false}},
		{`"tmpLimit":5,"tmpLimitScale":7`, `"tmpLimitScale":null,"tmpLimit":6`, ShareLimit{6, all, true}},
		{`"tmpLimit":true,"tmpLimitScale":4294967296`, `"x":1`, ShareLimit{no, 3435973836, false}},
		{`"devShmLimit":5`, `"x":1`, ShareLimit{no, 3435973836, false}},
	} {
		text := fmt.Sprintf(`{"userName":"ann","uid":60100,%s,"perMachine":[{"matchMachineId":%q,%s}]}`, c.fields, m.ID, c.here)
		v := mustParse(t, []byte(text), HostFile).View(m).Login
		if v.TmpLimit != c.want {
			t.Errorf("%s: %+v", text, v.TmpLimit)
		}
		text = strings.ReplaceAll(strings.ReplaceAll(text, "devShm", "old"), "tmpLimit", "devShmLimit")
		v = mustParse(t, []byte(text), HostFile).View(m).Login
		if v.DevShmLimit != c.want {
			t.Errorf("%s: %+v", text, v.DevShmLimit)
		}
	}
}
