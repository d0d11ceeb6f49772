package show_test

import (
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"

	"hearth/records"
	"hearth/records/show"
)

// What homectl 257 said of the moment: it is in no file of the fixture.
var ofTheMoment = regexp.MustCompile(`(?m)^ *(State|Directory|Shell|Disk (Size|Usage|Free|Floor|Ceiling)|File System|Access Mode|Good Auth\.|Last Good|Bad Auth\.|Last Bad|Next Try|GID|Service|Local Sig\.): .*\n`)

// What releases after 257 show beyond that.
var sinceThen = regexp.MustCompile(`(?m)^ *(Alias: .*|defaultArea)\n`)

// TestTextOf257: a record that systemd-homed 257 wrote reads as its homectl
// shows it, but for what was so at that moment.
func TestTextOf257(t *testing.T) {
	const older = "../../fixtures/systemd-257-images"
	mid, err := os.ReadFile(filepath.Join(older, "machine-id"))
	if err != nil {
		t.Fatal(err)
	}
	machine := records.Machine{ID: strings.TrimSpace(string(mid)), Hostname: "vm"}
	list, err := filepath.Glob(filepath.Join(older, "*", "inspect.txt"))
	if err != nil || len(list) < 12 {
		t.Fatalf("%d fixtures: %v", len(list), err)
	}
	for _, path := range list {
		want, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		in, err := os.ReadFile(filepath.Join(filepath.Dir(path), "host.identity"))
		if err != nil {
			t.Fatal(err)
		}
		r, err := records.Parse(in, records.HostFile)
		if err != nil {
			t.Fatal(err)
		}
		got := show.Text(r, show.Options{Machine: machine, Now: time.Date(2026, 11, 25, 8, 0, 0, 0, time.UTC), Zone: time.UTC,
			GroupName: func(uint32) (string, error) { return "", nil }})
		a, b := sinceThen.ReplaceAllString(ofTheMoment.ReplaceAllString(got, ""), ""), ofTheMoment.ReplaceAllString(string(want), "")
		if a != b || strings.Count(a, "\n") < 15 {
			t.Errorf("%s differs:\n%s", path, diff(a, b))
		}
	}
}
