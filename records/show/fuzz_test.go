package show_test

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"hearth/records"
	"hearth/records/show"
)

// FuzzShow: no record stops the text, or reaches the terminal by it.
func FuzzShow(f *testing.F) {
	files, err := filepath.Glob(filepath.Join(fixtures, "records", "*", "inspect-full.json"))
	if err != nil || len(files) < 30 {
		f.Fatal(len(files), err)
	}
	for i, path := range files {
		text, err := os.ReadFile(path)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(text, int64(i), uint8(i))
	}
	f.Fuzz(func(t *testing.T, in []byte, at int64, how uint8) {
		r, err := records.Parse(in, records.ClientReply)
		if err != nil {
			return
		}
		o := show.Options{
			Machine: records.Machine{ID: "c01d74261ba94128b41cf8eb6c7d90e7", Hostname: "vm"},
			Now:     time.UnixMicro(at), Zone: time.UTC, Colour: how&1 != 0, ASCII: how&2 != 0, Incomplete: how&4 != 0,
		}
		if how&8 != 0 {
			o.GroupName = func(uint32) (string, error) { return "group\x1b[0m", nil }
		}
		text := show.Text(r, o)
		for _, line := range strings.Split(strings.TrimSuffix(text, "\n"), "\n") {
			if !o.Colour && strings.ContainsFunc(line, func(r rune) bool { return r < ' ' || r >= 0x7f && r < 0xa0 }) {
				t.Fatalf("control characters in %q", line)
			}
			for _, c := range strings.Split(line, "\x1b")[1:] {
				if !strings.HasPrefix(c, "[0m") && !strings.HasPrefix(c, "[0;1;3") && !strings.HasPrefix(c, "[0;90m") {
					t.Fatalf("not a colour of ours: %q", line)
				}
			}
			if len(line) < 14 {
				t.Fatalf("a line without label and value: %q", line)
			}
		}
		if again, err := records.Parse(show.JSON(r), records.ClientReply); err != nil || !again.Equal(r) {
			t.Fatalf("the JSON says something else: %v", err)
		}
	})
}
