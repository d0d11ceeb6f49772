package memory

import (
	"os"
	"regexp"
	"runtime"
	"runtime/debug"
	"slices"
	"strconv"
	"testing"
)

func TestTotal(t *testing.T) {
	text, err := os.ReadFile("/proc/meminfo")
	if err != nil {
		t.Skip(err)
	}
	want, err := strconv.ParseUint(string(regexp.MustCompile(`MemTotal: +(\d+) kB`).FindSubmatch(text)[1]), 10, 64)
	if err != nil {
		t.Fatal(err)
	}
	if got := Total(); got != want {
		t.Errorf("%d KiB, /proc/meminfo says %d", got, want)
	}
}

// TestPrepare: the next allocation of that size finds its pages there, and
// nothing is held for good.
func TestPrepare(t *testing.T) {
	if raced() {
		t.Skip("the race detector's own memory takes faults too")
	}
	const size = 32 << 20
	Prepare(size)
	faults := func() int64 {
		text, err := os.ReadFile("/proc/self/stat")
		if err != nil {
			t.Skip(err)
		}
		n, err := strconv.ParseInt(string(regexp.MustCompile(`\) . (?:-?\d+ ){6}(\d+)`).FindSubmatch(text)[1]), 10, 64)
		if err != nil {
			t.Fatal(err)
		}
		return n
	}
	before := faults()
	block := make([]byte, size)
	for i := 0; i < len(block); i += 4096 {
		block[i] = 1
	}
	runtime.KeepAlive(block)
	if n := faults() - before; n > size/4096/4 {
		t.Errorf("%d faults in %d pages", n, size/4096)
	}
	block = nil
	runtime.GC()
	var m runtime.MemStats
	if runtime.ReadMemStats(&m); m.HeapAlloc > size/2 {
		t.Errorf("%d bytes are still held", m.HeapAlloc)
	}
	Prepare(0)
	Prepare(most + 1)
}

func raced() bool {
	info, ok := debug.ReadBuildInfo()
	return ok && slices.Contains(info.Settings, debug.BuildSetting{Key: "-race", Value: "true"})
}
