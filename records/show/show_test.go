package show_test

import (
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"

	"hearth/records"
	"hearth/records/show"
)

const fixtures = "../../fixtures/systemd-262"

// differs lists the fixtures whose text depends on the second it was taken in.
var countdown = regexp.MustCompile(`(?m)^    Next Try: in .*$`)

// TestTextAsTheRealTool renders every record of the fixtures and compares with
// what homectl 262 printed for it.
func TestTextAsTheRealTool(t *testing.T) {
	mid, err := os.ReadFile(filepath.Join(fixtures, "machine-id"))
	if err != nil {
		t.Fatal(err)
	}
	machine := records.Machine{ID: strings.TrimSpace(string(mid)), Hostname: "vm"}
	dirs, err := filepath.Glob(filepath.Join(fixtures, "records", "*", "inspect.txt"))
	if err != nil || len(dirs) < 30 {
		t.Fatalf("%d fixtures: %v", len(dirs), err)
	}
	for _, path := range dirs {
		t.Run(filepath.Base(filepath.Dir(path)), func(t *testing.T) {
			compare(t, machine, filepath.Join(filepath.Dir(path), "inspect-full.json"), path, nil)
		})
	}
	full := func(name string) string { return filepath.Join(fixtures, "records", "dirfull", name) }
	t.Run("as nobody", func(t *testing.T) {
		compare(t, machine, full("inspect-full-as-nobody.json"), full("inspect-as-nobody.txt"), func(o *show.Options) { o.Incomplete = true })
	})
	t.Run("by alias", func(t *testing.T) { compare(t, machine, full("inspect-full.json"), full("inspect-by-alias.txt"), nil) })
	t.Run("elsewhere, ASCII", func(t *testing.T) {
		zone, err := time.LoadLocation("America/New_York")
		if err != nil {
			t.Fatal(err)
		}
		compare(t, machine, full("inspect-full.json"), full("inspect-TZ-NewYork-LANG-C.txt"), func(o *show.Options) { o.Zone, o.ASCII = zone, true })
	})
	colours, err := filepath.Glob(filepath.Join(fixtures, "records", "*", "inspect-color16.txt"))
	if err != nil || len(colours) != 3 {
		t.Fatalf("%d in colour: %v", len(colours), err)
	}
	for _, path := range colours {
		t.Run("in colour, "+filepath.Base(filepath.Dir(path)), func(t *testing.T) {
			compare(t, machine, filepath.Join(filepath.Dir(path), "inspect-full.json"), path, func(o *show.Options) { o.Colour = true })
		})
	}
	users, err := filepath.Glob(filepath.Join(fixtures, "records", "*", "userdbctl-user.txt"))
	if err != nil || len(users) != 40 {
		t.Fatalf("%d of userdbctl: %v", len(users), err)
	}
	for _, path := range users {
		t.Run("as userdbctl, "+filepath.Base(filepath.Dir(path)), func(t *testing.T) {
			compare(t, machine, filepath.Join(filepath.Dir(path), "userdbctl-user.json"), path, nil)
		})
	}
}

// What a terminal got beside the text: links on names of blobs, which ours has
// not, warnings on standard error, and what happened between the captures.
var (
	link    = regexp.MustCompile("\x1b\\]8;;[^\x1b]*\x1b\\\\")
	warning = regexp.MustCompile("(?m)^\x1b\\[0;1;33m\\(string\\).*\n")
	later   = regexp.MustCompile("(?m)^ *(Good Auth.|Last Good|Next Try): .*\n")
)

func compare(t *testing.T, machine records.Machine, record, text string, change func(*show.Options)) {
	t.Helper()
	in, err := os.ReadFile(record)
	if err != nil {
		t.Fatal(err)
	}
	want, err := os.ReadFile(text)
	if err != nil {
		t.Fatal(err)
	}
	r, err := records.Parse(in, records.ClientReply)
	if err != nil {
		t.Fatal(err)
	}
	o := show.Options{
		Machine: machine,
		// All were taken within this hour; nothing but the countdown
		// depends on the exact moment.
		Now:       time.Date(2026, 11, 22, 8, 30, 0, 0, time.UTC),
		Zone:      time.UTC,
		GroupName: func(gid uint32) (string, error) { return fmt.Sprint(gid), nil },
	}
	if change != nil {
		change(&o)
	}
	got := show.Text(r, o)
	if o.Colour {
		want = later.ReplaceAll(warning.ReplaceAll(link.ReplaceAll(want, nil), nil), nil)
		got = later.ReplaceAllString(got, "")
	}
	a, b := countdown.ReplaceAllString(got, "    Next Try: in X"), countdown.ReplaceAllString(string(want), "    Next Try: in X")
	if a != b {
		t.Errorf("differs from homectl 262:\n%s", diff(a, b))
	}
	if !o.Colour && strings.ContainsRune(got, 0x1b) {
		t.Error("colours without being asked for")
	}
}

// TestJSONAsTheRealTool: whole, for the home and for a signature, masked for
// others, and as the bus has it.
func TestJSONAsTheRealTool(t *testing.T) {
	read := func(name, file string) []byte {
		text, err := os.ReadFile(filepath.Join(fixtures, "records", name, file))
		if err != nil {
			t.Fatal(err)
		}
		return text
	}
	dirs, err := filepath.Glob(filepath.Join(fixtures, "records", "*", "inspect-full.json"))
	if err != nil || len(dirs) != 40 {
		t.Fatalf("%d fixtures: %v", len(dirs), err)
	}
	parsed := func(text []byte) *records.Record {
		r, err := records.Parse(text, records.ClientReply)
		if err != nil {
			t.Fatal(err)
		}
		return r
	}
	for _, path := range dirs {
		name := filepath.Base(filepath.Dir(path))
		r := parsed(read(name, "inspect-full.json"))
		for file, got := range map[string]*records.Record{"inspect-full.json": r, "userdbctl-user.json": r, "inspect-E.json": r.Embedded(), "inspect-EE.json": r.Signable()} {
			if want := read(name, file); string(show.JSON(got)) != string(want) {
				t.Errorf("%s/%s: got\n%s", name, file, diff(string(show.JSON(got)), string(want)))
			}
		}
	}
	masked, incomplete := parsed(read("dirfull", "inspect-full-as-self.json")).Mask(false)
	if want := read("dirfull", "inspect-full-as-nobody.json"); string(show.JSON(masked)) != string(want) || !incomplete {
		t.Errorf("masked: %s", diff(string(show.JSON(masked)), string(want)))
	}
	var bus struct{ Data []any }
	if err := json.Unmarshal(read("dirfull", "dbus-GetUserRecordByName.json"), &bus); err != nil {
		t.Fatal(err)
	}
	short := bus.Data[0].(string)
	if got := string(parsed([]byte(short)).Compact()); got != short {
		t.Errorf("on the bus: %s", got)
	}
}

func diff(got, want string) string {
	g, w := strings.Split(got, "\n"), strings.Split(want, "\n")
	have := map[string]bool{}
	for _, l := range g {
		have[l] = true
	}
	wants := map[string]bool{}
	var out []string
	for _, l := range w {
		wants[l] = true
		if !have[l] {
			out = append(out, "want "+l)
		}
	}
	for _, l := range g {
		if !wants[l] {
			out = append(out, "got  "+l)
		}
	}
	if out == nil {
		return "the order of lines"
	}
	return strings.Join(out, "\n")
}

// TestNothingReachesTheTerminal takes a record whose texts try to.
func TestNothingReachesTheTerminal(t *testing.T) {
	r, err := records.Parse([]byte(`{"userName":"ann","realName":"\u001b[31mred\u0007","location":"\udbff\udfff[0;1;31m","timeZone":"a\nPassword OK: yes"}`), records.ClientReply)
	if err != nil {
		t.Fatal(err)
	}
	for _, colour := range []bool{false, true} {
		text := show.Text(r, show.Options{Now: time.Now(), Zone: time.UTC, Colour: colour})
		for _, bad := range []string{"\x1b[31m", "\a", "\x1b[0;1;31m[0;1;31m", "\nPassword OK: yes"} {
			if strings.Contains(text, bad) {
				t.Errorf("colour %v: %q comes through:\n%q", colour, bad, text)
			}
		}
	}
}

func TestUnits(t *testing.T) {
	for n, want := range map[uint64]string{0: "0B", 1023: "1023B", 1 << 20: "1M", 8350298112: "7.7G", 5497558138880: "5T", 1<<64 - 1: "15.9E"} {
		if got := show.Bytes(n); got != want {
			t.Errorf("Bytes(%d) = %s, want %s", n, got, want)
		}
	}
}
