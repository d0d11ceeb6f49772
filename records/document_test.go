package records

import (
	"bytes"
	"errors"
	"math"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"hearth/internal/fault"
)

const fixtures = "../fixtures/systemd-262"

// machine is where the fixtures come from.
func machine(t testing.TB) Machine {
	t.Helper()
	return Machine{ID: strings.TrimSpace(string(read(t, fixtures, "machine-id"))), Hostname: "vm"}
}

func read(t testing.TB, path ...string) []byte {
	t.Helper()
	b, err := os.ReadFile(filepath.Join(path...))
	if err != nil {
		t.Fatal(err)
	}
	return b
}

func mustParse(t testing.TB, text []byte, c Context) *Record {
	t.Helper()
	r, err := Parse(text, c)
	if err != nil {
		t.Fatalf("parse: %v", err)
	}
	return r
}

// fixtureFiles lists records/*/NAME.
func fixtureFiles(t testing.TB, names ...string) []string {
	t.Helper()
	var all []string
	for _, n := range names {
		list, err := filepath.Glob(filepath.Join(fixtures, "records", "*", n))
		if err != nil {
			t.Fatal(err)
		}
		all = append(all, list...)
	}
	if len(all) < 3 {
		t.Fatalf("only %d fixtures named %v", len(all), names)
	}
	return all
}

func owner(path string) string { return filepath.Base(filepath.Dir(path)) }

func TestParserAcceptsAndRefuses(t *testing.T) {
	for in, want := range map[string]string{
		`{"a":1}`:                          `{"a":1}`,
		" { \"a\" :\t[ 1 ,\r\n2 ] } ":      `{"a":[1,2]}`,
		`[-0,-1,18446744073709551615]`:     `[0,-1,18446744073709551615]`,
		`-9223372036854775808`:             `-9223372036854775808`,
		`18446744073709551616`:             `1.844674407370955161600e+19`,
		`[1.0,1e3,-2.5E-1]`:                `[1.000000000000000000000e+00,1.000000000000000000000e+03,-2.500000000000000000000e-01]`,
		`"\u00e9\ud83d\ude00\/\b\f\u001f"`: `"é😀/\b\f\u001f"`,
		`"<>& "`:                           `"<>& "`,
		`{"a":1,"a":2}`:                    `{"a":1,"a":2}`,
		`[[],{},null,true,false]`:          `[[],{},null,true,false]`,
	} {
		v, err := parseDocument([]byte(in))
		if err != nil {
			t.Errorf("%s: %v", in, err)
			continue
		}
		if got := string(appendCompact(nil, v)); got != want {
			t.Errorf("%s: got %s, want %s", in, got, want)
		}
	}
	for _, in := range []string{
		``, ` `, `{`, `[1,]`, `{"a":1,}`, `{"a"}`, `{a:1}`, `01`, `+1`, `1.`, `.5`, `1e`, `-`, `1 2`, `nul`, `'a'`, `[1 2]`, `//x`,
		`"` + "\x01" + `"`, `"` + "\x7f" + `"`, `"\u007f"`, `"\u0000"`, `"\ud800"`, `"\udc00"`, `"\ud800\u0041"`, `"\x"`, `"\u12"`, `"abc`, `"\`,
		"\"\xff\"", "\"\xed\xa0\x80\"", "\"\xc0\xaf\"", "\xef\xbb\xbf{}", `1e999`,
		strings.Repeat("[", maxDepth+1) + strings.Repeat("]", maxDepth+1),
	} {
		if _, err := parseDocument([]byte(in)); err == nil {
			t.Errorf("%.40q is accepted", in)
		}
		if err := (&scanner{in: []byte(in)}).skip(0); err == nil && !strings.Contains(in, `u007f`) && in != `1 2` {
			t.Errorf("%.40q is skipped without an error", in)
		}
	}
	deep := strings.Repeat("[", maxDepth) + strings.Repeat("]", maxDepth)
	if _, err := parseDocument([]byte(deep)); err != nil {
		t.Errorf("depth %d: %v", maxDepth, err)
	}
	var at *SyntaxError
	if _, err := parseDocument([]byte("{\n \"a\" 1}")); !errors.As(err, &at) || at.Line != 2 || at.Column != 6 {
		t.Errorf("wrong place: %v", err)
	}
}

func TestEqualComparesByValue(t *testing.T) {
	for _, c := range []struct {
		a, b string
		want bool
	}{
		{`{"a":1,"b":[2]}`, `{"b":[2.0],"a":1}`, true},
		{`[1,2]`, `[2,1]`, false},
		{`-1`, `18446744073709551615`, false},
		{`-1e0`, `-1`, true},
		{`"1"`, `1`, false},
		{`{"a":null}`, `{}`, false},
		{`9007199254740993`, `9007199254740992`, false},
		{`true`, `1`, false},
	} {
		a, _ := parseDocument([]byte(c.a))
		b, _ := parseDocument([]byte(c.b))
		if equal(a, b) != c.want || equal(b, a) != c.want {
			t.Errorf("%s and %s: want %v", c.a, c.b, c.want)
		}
	}
}

func TestNormaliseArrays(t *testing.T) {
	for in, want := range map[string]string{
		`["d","c","b","a"]`:                             `["b","a","d","c"]`,
		`["wheel","adm","audio","video","games"]`:       `["audio","video","wheel","adm","games"]`,
		`["b","a","c"]`:                                 `["b","a","c"]`,
		`[4,3,2,1]`:                                     `[4,3,2,1]`,
		`["z",1,{"b":0,"a":0},2]`:                       `["z",1,{"a":0,"b":0},2]`,
		`["b",1,"a",{"y":1,"x":2},"c"]`:                 `["a",{"x":2,"y":1},"b",1,"c"]`,
		`{"10":0,"9":0,"B":0,"_":0,"a":0,"aa":0,"é":0}`: `{"10":0,"9":0,"B":0,"_":0,"a":0,"aa":0,"é":0}`,
		`{"é":0,"aa":0,"a":0,"9":0,"10":0}`:             `{"10":0,"9":0,"a":0,"aa":0,"é":0}`,
	} {
		v, err := parseDocument([]byte(in))
		if err != nil {
			t.Fatal(err)
		}
		n, err := normalise(v, true)
		if err != nil {
			t.Fatal(err)
		}
		if got := string(appendCompact(nil, n)); got != want {
			t.Errorf("%s: got %s, want %s", in, got, want)
		}
	}
	for in, want := range map[string]error{`{"a":{"x":1,"x":1}}`: errDuplicate, `[0.5]`: errReal, `1e300`: errReal, `18446744073709551616`: errReal} {
		v, _ := parseDocument([]byte(in))
		if _, err := normalise(v, true); !errors.Is(err, want) {
			t.Errorf("%s: %v, want %v", in, err, want)
		}
	}
}

// TestNormalFormIsNotMadeAgain: what is in normal form costs no copy, and what
// is said to be in pairs already is just what sorting would leave alone.
func TestNormalFormIsNotMadeAgain(t *testing.T) {
	for _, c := range []struct {
		text          string
		same, inPairs bool
	}{
		{`{"a":[{"x":1,"y":2}],"b":["d","c","e","a"]}`, true, true},
		{`{"b":1,"a":2}`, false, true},
		{`{"a":[{"y":1,"x":2}]}`, false, true},
		{`{"a":["d","c","b","a"]}`, false, false},
		{`{"a":{"b":[[1,["d","c","b","a"]]]}}`, false, false},
		{`["b","x","b","a","c"]`, true, true},
		{`["b","x","b","a","a","z","0"]`, false, false},
		{`["b","x",1,"a","a","z"]`, true, true},
		{`["d","x","a"]`, true, true},
		{`[4,3,2,1]`, true, true},
	} {
		v, err := parseDocument([]byte(c.text))
		if err != nil {
			t.Fatal(err)
		}
		n, err := normalise(v, true)
		if err != nil || (n == v) != c.same || unpaired(v) == c.inPairs {
			t.Errorf("%s: %v, the same %v, unpaired %v", c.text, err, n == v, unpaired(v))
		}
		if again, err := normalise(n, true); err != nil || again != n {
			t.Errorf("%s: the normal form of a normal form is another, %v", c.text, err)
		}
		if after, _ := parseDocument([]byte(c.text)); !equal(after, v) {
			t.Errorf("%s: normalising changed it", c.text)
		}
	}
}

// TestFilesAreFixpoints: what the real daemon stored comes out as it was.
func TestFilesAreFixpoints(t *testing.T) {
	n := 0
	for _, path := range fixtureFiles(t, "host.identity", "embedded.identity", "signed.identity", "tampered.identity") {
		switch owner(path) {
		case "sapair", "sanat", "unsigned2":
			continue // written by hand, in no normal form
		}
		in := read(t, path)
		v, err := parseDocument(in)
		if err != nil {
			t.Fatalf("%s: %v", path, err)
		}
		norm, err := normalise(v, true)
		if err != nil {
			t.Fatalf("%s: %v", path, err)
		}
		if got := append(appendPretty(nil, norm, 0), '\n'); !bytes.Equal(got, in) {
			t.Errorf("%s changed", path)
		}
		n++
	}
	if n != 48 {
		t.Errorf("%d files seen, 48 expected", n)
	}
}

// TestNormaliseNaturalOrder starts from records in the order in which the
// daemon held them in memory.
func TestNormaliseNaturalOrder(t *testing.T) {
	n := 0
	for _, path := range fixtureFiles(t, "inspect-full.json") {
		if owner(path) == "objarray" {
			continue // its order depended on memory addresses
		}
		host := mustParse(t, read(t, filepath.Dir(path), "host.identity"), HostFile)
		full := mustParse(t, read(t, path), ClientReply)
		want := host.withSection("status", nil).Pretty()
		if got := full.withSection("status", nil).Pretty(); !bytes.Equal(got, want) {
			t.Errorf("%s: normal form differs from the host file", path)
		}
		if !bytes.Equal(full.PrettyAsIs(), read(t, path)) {
			t.Errorf("%s changed", path)
		}
		n++
	}
	if n != 39 {
		t.Errorf("%d records seen, 39 expected", n)
	}
}

func TestSignableAndEmbedded(t *testing.T) {
	n := 0
	for _, path := range fixtureFiles(t, "signable.txt") {
		dir := filepath.Dir(path)
		file := "host.identity"
		if owner(path) == "tampered" {
			file = "tampered.identity"
		}
		r := mustParse(t, read(t, dir, file), HostFile)
		if !bytes.Equal(r.signedBytes(true), read(t, path)) {
			t.Errorf("%s differs", path)
		}
		n++
		for name, part := range map[string]*Record{"inspect-E.json": r.Embedded(), "inspect-EE.json": r.Signable()} {
			want, err := os.ReadFile(filepath.Join(dir, name))
			if err != nil || owner(path) == "objarray" || owner(path) == "presorted" {
				continue
			}
			if got := mustParse(t, want, ClientReply); !bytes.Equal(got.Pretty(), part.Pretty()) {
				t.Errorf("%s/%s differs", dir, name)
			}
		}
	}
	if n != 44 {
		t.Errorf("%d signable texts seen, 44 expected", n)
	}
}

// TestDeepTextsFillNoDisk: tabs make of a nested text a thousand times as much
// in a file.
func TestDeepTextsFillNoDisk(t *testing.T) {
	nested := func(depth, numbers int) []byte {
		return []byte(`{"userName":"ann","location":` + strings.Repeat("[", depth) + strings.Repeat("0,", numbers) + "0" + strings.Repeat("]", depth) + "}")
	}
	for _, c := range []struct {
		depth, numbers int
		c              Context
		want           fault.Kind
	}{
		{2000, 1000, HostFile, ""},
		{2000, 1000, BusUpdate, ""},
		{2000, 5000, HostFile, ""},
		{2000, 5000, BusUpdate, fault.InvalidArgs},
		{2000, 100000, HostFile, fault.Inconsistent},
		{2000, 100000, EmbeddedFile, fault.Inconsistent},
		{2000, 100000, BusUpdate, fault.InvalidArgs},
		{2000, 100000, BusRegister, fault.InvalidArgs},
		{2000, 100000, BusCreate, fault.InvalidArgs},
		{1, 100000, BusUpdate, ""},
	} {
		r, err := Parse(nested(c.depth, c.numbers), c.c)
		if fault.KindOf(err) != c.want {
			t.Errorf("%d numbers %d deep, %d: %v", c.numbers, c.depth, c.c, err)
		}
		if err == nil {
			if got, want := len(r.Pretty()), fileSize(r.doc, 0)+1; got != want {
				t.Errorf("%d bytes in a file, %d were foreseen", got, want)
			}
		}
	}
	for _, path := range fixtureFiles(t, "host.identity", "realint.json", "input.json") {
		r := mustParse(t, read(t, path), HostFile)
		if got, want := len(r.Pretty()), fileSize(r.doc, 0)+1; got != want {
			t.Errorf("%s: %d bytes, %d were foreseen", path, got, want)
		}
	}
}

// TestLongTextsFillNoMemory: a text is looked at before it is parsed, and what
// it is parsed into has an end.
func TestLongTextsFillNoMemory(t *testing.T) {
	// The object, its name and the list are values too.
	numbers := func(n int) string { return `{"userName":"ann","x":[` + strings.Repeat("0,", n-4) + "0]}" }
	if _, err := Parse([]byte(numbers(maxValues)), BusUpdate); err != nil {
		t.Error(err)
	}
	if _, err := Parse([]byte(numbers(maxValues+1)), BusUpdate); !fault.Is(err, fault.InvalidArgs) || !strings.Contains(err.Error(), "too many values") {
		t.Errorf("one value more: %v", err)
	}
	padded := func(n int) []byte {
		const begin, end = `{"userName":"ann"`, `}`
		return []byte(begin + strings.Repeat(" ", n-len(begin)-len(end)) + end)
	}
	for _, c := range []struct {
		n    int
		c    Context
		want fault.Kind
	}{
		{MaxFile, HostFile, ""}, {MaxFile + 1, HostFile, fault.Inconsistent}, {MaxFile + 1, EmbeddedFile, fault.Inconsistent},
		{MaxFile / 2, BusUpdate, ""}, {MaxFile/2 + 1, BusUpdate, fault.InvalidArgs}, {MaxFile/2 + 1, BusCreate, fault.InvalidArgs}, {MaxFile/2 + 1, HostFile, ""},
	} {
		if _, err := Parse(padded(c.n), c.c); fault.KindOf(err) != c.want {
			t.Errorf("%d bytes, %d: %v", c.n, c.c, err)
		}
	}
}

func TestContexts(t *testing.T) {
	base := `{"userName":"ann"`
	for _, c := range []struct {
		c    Context
		text string
		want fault.Kind // "" for accepted
		out  string
	}{
		{HostFile, base + `,"binding":{},"status":{},"signature":[],"privileged":{},"perMachine":[],"x":1}`, "", ""},
		{HostFile, base + `,"secret":{}}`, fault.Inconsistent, ""},
		{BusCreate, base + `,"secret":{}}`, fault.InvalidArgs, ""},
		{BusCreate, base + `,"binding":{}}`, fault.InvalidArgs, ""},
		{BusCreate, base + `,"status":{}}`, fault.InvalidArgs, ""},
		{EmbeddedFile, base + `,"binding":{}}`, fault.Inconsistent, ""},
		{EmbeddedFile, base + `,"status":{}}`, fault.Inconsistent, ""},
		{EmbeddedFile, `[]`, fault.Inconsistent, ""},
		{EmbeddedFile, `not json`, fault.InvalidArgs, ""},
		{BusRegister, base + `,"binding":{},"status":{},"signature":[]}`, "", base + `,"signature":[]}`},
		{ClientCreate, base + `,"binding":{},"status":{},"signature":[]}`, "", base + `}`},
		{ClientKeep, base + `,"binding":{},"signature":[]}`, "", base + `,"signature":[]}`},
		{HostFile, `{"signature":[]}`, fault.Inconsistent, ""},
		{HostFile, `{}`, fault.Inconsistent, ""},
		{HostFile, `{"realName":"x"}`, fault.InvalidArgs, ""},
		{HostFile, `{"userName":"a/b"}`, fault.InvalidArgs, ""},
		{HostFile, `{"userName":7}`, fault.InvalidArgs, ""},
		{HostFile, base + `,"x":1,"x":1}`, fault.InvalidArgs, ""},
		{HostFile, base + `,"x":0.5}`, fault.WrongMedium, ""},
		{BusRegister, base + `,"niceLevel":99}`, "", base + `,"niceLevel":99}`},
		{BusCreate, base + `,"niceLevel":99}`, fault.InvalidArgs, ""},
		{BusCreate, base + `,"niceLevel":"5","diskSize":"12","umask":"0022","lastChangeUSec":null}`, "", ""},
		{BusCreate, base + `,"fooBar":1,"privileged":{"fooBar":1}}`, "", ""},
		{BusCreate, base + `,"privileged":{"hashedPassword":["a\"b"]}}`, fault.InvalidArgs, ""},
		{BusCreate, base + `,"privileged":{"recoveryKey":[{"type":"modhex64"}]}}`, fault.InvalidArgs, ""},
		{BusCreate, base + `,"privileged":[]}`, fault.InvalidArgs, ""},
		{BusCreate, base + `,"perMachine":{}}`, fault.InvalidArgs, ""},
		{BusCreate, base + `,"realName":null}`, fault.InvalidArgs, ""},
	} {
		r, err := Parse([]byte(c.text), c.c)
		if fault.KindOf(err) != c.want {
			t.Errorf("context %d, %s: %v, want kind %q", c.c, c.text, err, c.want)
		}
		if err == nil && c.out != "" && string(r.Compact()) != c.out {
			t.Errorf("context %d, %s: got %s", c.c, c.text, r.Compact())
		}
	}
}

func TestValidateLooksAtThisMachineOnly(t *testing.T) {
	m := Machine{ID: "0123456789abcdef0123456789abcdef", Hostname: "vm"}
	for text, ok := range map[string]bool{
		`{"userName":"ann","perMachine":[{"matchMachineId":"0123456789abcdef0123456789abcdef","fooBar":1}]}`:     false,
		`{"userName":"ann","perMachine":[{"matchMachineId":"0123456789abcdef0123456789abcdef","uid":"7"}]}`:      false,
		`{"userName":"ann","perMachine":[{"matchMachineId":"0123456789abcdef0123456789abcdef","userName":"b"}]}`: false,
		`{"userName":"ann","perMachine":[{"matchMachineId":"ffffffffffffffffffffffffffffffff","fooBar":1}]}`:     true,
		`{"userName":"ann","perMachine":[{"matchHostname":"vm","diskSize":null}]}`:                               true,
	} {
		if err := mustParse(t, []byte(text), BusCreate).Validate(m); (err == nil) != ok {
			t.Errorf("%s: %v", text, err)
		}
	}
}

func TestRefusedRecords(t *testing.T) {
	for name, want := range map[string]string{"del": "Failed to parse JSON", "dupkey": "Name not unique", "real-big": "Wrong medium", "real-frac": "Wrong medium"} {
		_, err := Parse(read(t, fixtures, "refused", name+".json"), BusRegister)
		if err == nil || !strings.HasPrefix(fault.Public(err), want) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func TestUnknownFieldsSurvive(t *testing.T) {
	text := `{"zeta":[{"b":1,"a":18446744073709551615}],"userName":"ann","privileged":{"future":[null]},"perMachine":[{"matchHostname":"x","y":-9223372036854775808}]}`
	r := mustParse(t, []byte(text), BusCreate)
	if string(r.Compact()) != text {
		t.Errorf("got %s", r.Compact())
	}
	again := mustParse(t, r.Pretty(), HostFile)
	if !r.Equal(again) || !r.SameContent(again) {
		t.Error("the stored form says something else")
	}
}

func FuzzParse(f *testing.F) {
	f.Add([]byte(`{"a":[1,-2,3.0,"x\u00e9\n",null,true,{"b":{}}]}`))
	f.Add([]byte(`["d","c","b","a","\ud83d\ude00"]`))
	f.Add([]byte(`[18446744073709551615,-9223372036854775808,1e400,-0,0.1]`))
	f.Add(read(f, fixtures, "records/canon/input.json"))
	f.Add(read(f, fixtures, "records/allfields/host.identity"))
	f.Fuzz(func(t *testing.T, in []byte) {
		v, err := parseDocument(in)
		if skip := (&scanner{in: in}); err == nil {
			skip.space()
			if err := skip.skip(0); err != nil {
				t.Fatalf("parsed, but not skipped: %v", err)
			}
		}
		if err != nil {
			return
		}
		compact := appendCompact(nil, v)
		again, err := parseDocument(compact)
		if err != nil {
			t.Fatalf("%s: %v", compact, err)
		}
		if twice := appendCompact(nil, again); !bytes.Equal(twice, compact) {
			t.Fatalf("no fixed point: %s and %s", compact, twice)
		}
		pretty, err := parseDocument(appendPretty(nil, v, 0))
		if err != nil || !bytes.Equal(appendCompact(nil, pretty), compact) {
			t.Fatalf("pretty form of %s: %v", compact, err)
		}
		n, err := normalise(v, true)
		if err != nil {
			return
		}
		if !equal(n, n) {
			t.Fatal("a normal form does not equal itself")
		}
		if _, err := normalise(n, true); err != nil {
			t.Fatal(err)
		}
		if v.kind == object && v.get("userName") != nil {
			if r, err := Parse(in, HostFile); err == nil {
				r.View(Machine{ID: "0123456789abcdef0123456789abcdef", Hostname: "vm"})
				r.Pretty()
			}
		}
	})
}

func TestRealDigits(t *testing.T) {
	if got := string(appendCompact(nil, newReal(math.Copysign(0, -1)))); got != "-0.000000000000000000000e+00" {
		t.Error(got)
	}
}
