package stories

import (
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

// signalFiles are the captures of signals and what was called meanwhile: the
// file of calls that TestCaptures makes again, and the homes it is about; or why
// that cannot be seen again.
var signalFiles = map[string]struct {
	calls string
	homes []string
	but   int // so many of the last
	why   string
}{
	"lifecycle-directory": {calls: "09-lifecycle-nospace", homes: []string{"lisa"}},
	// The last is of a service that was started anew after Q4 had ended it, and
	// the one before, no other than those before it, of rebalancing (Q3).
	"luks-refs-lock-linger": {calls: "02-luks-refs-lock-linger", homes: []string{"bob"}, but: 2},
	"home-interface-calls":  {calls: "06-worker-errors-homeiface-rebalance-devices", homes: []string{"alice"}},
	"gpt-partition-home":    {why: "a disk was partitioned, plugged in and pulled by hand; TestDevices does that, and TestBus and homed/bus look at such signals"},
	"image-discovery":       {why: "the images were put there by hand and none was called; TestSameScript puts some there"},
}

// signalLines are the signals about some homes, one in a line, in order. Of the
// service itself there is AutoLogin alone, which is told whenever it might have
// changed (bus.md 5.2).
func signalLines(text []byte, homes []string) (out []string, err error) {
	d := json.NewDecoder(strings.NewReader(string(text)))
	for d.More() {
		var s struct {
			Type, Path, Interface, Member string
			Payload                       struct {
				Type string
				Data []any
			}
		}
		if err := d.Decode(&s); err != nil {
			return nil, err
		}
		if s.Type != "" && s.Type != "signal" || s.Interface == "org.freedesktop.DBus" {
			continue
		}
		about := func(path string) bool {
			name, ok := strings.CutPrefix(path, "/org/freedesktop/home1/home/")
			return ok && slices.Contains(homes, name)
		}
		object := s.Path
		if s.Path == "/org/freedesktop/home1/home" && len(s.Payload.Data) > 0 {
			object, _ = s.Payload.Data[0].(string)
		}
		if !about(object) {
			continue
		}
		data, err := json.Marshal(settled("", unwrapped(s.Payload.Data)))
		if err != nil {
			return nil, err
		}
		out = append(out, fmt.Sprintf("%s %s %s %s", s.Path, s.Member, s.Payload.Type, data))
	}
	return out, nil
}

// unwrapped takes variants out of their wrapping in JSON.
func unwrapped(v any) any {
	switch v := v.(type) {
	case map[string]any:
		if kind, ok := v["type"].(string); ok && kind != "" && len(v) == 2 && v["data"] != nil {
			return unwrapped(v["data"])
		}
		out := map[string]any{}
		for k, e := range v {
			out[k] = unwrapped(e)
		}
		return out
	case []any:
		out := []any{}
		for _, e := range v {
			out = append(out, unwrapped(e))
		}
		return out
	}
	return v
}

// compareSignals demands the signals that were captured, one after the other,
// in what was told while a file of calls was made again.
func compareSignals(t *testing.T, calls string, told []byte) {
	t.Helper()
	for name, f := range signalFiles {
		if f.calls != calls {
			continue
		}
		text, err := os.ReadFile(filepath.Join(busFixtures, "signals", name+".jsonl"))
		if err != nil {
			t.Fatal(err)
		}
		want, err := signalLines(text, f.homes)
		if err != nil {
			t.Fatal(err)
		}
		want = want[:len(want)-f.but]
		got, err := signalLines(told, f.homes)
		if err != nil {
			t.Fatal(err)
		}
		found := false
		for i := 0; i+len(want) <= len(got) && !found; i++ {
			found = slices.Equal(got[i:i+len(want)], want)
		}
		if !found {
			t.Errorf("signals of %s, want:\n\t%s\nin\n\t%s", name, strings.Join(want, "\n\t"), strings.Join(got, "\n\t"))
		}
	}
}

// TestSignalFiles: of each capture of signals it is said what becomes of it.
func TestSignalFiles(t *testing.T) {
	list, err := filepath.Glob(filepath.Join(busFixtures, "signals", "*.jsonl"))
	if err != nil || len(list) != len(signalFiles) {
		t.Errorf("%d captures of signals, %d verdicts, %v", len(list), len(signalFiles), err)
	}
	for _, path := range list {
		name := strings.TrimSuffix(filepath.Base(path), ".jsonl")
		f, ok := signalFiles[name]
		if !ok || f.calls == "" && f.why == "" {
			t.Errorf("%s: no verdict", name)
			continue
		}
		text, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		if lines, err := signalLines(text, f.homes); err != nil || f.calls != "" && len(lines) == 0 {
			t.Errorf("%s: %d signals of %q, %v", name, len(lines), f.homes, err)
		}
	}
}
