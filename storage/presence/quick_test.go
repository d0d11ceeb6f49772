package presence

import (
	"fmt"
	"os"
	"path/filepath"
	"testing"
)

// TestLocal: what is not there is where it would be; /proc is not a disk. What is
// known is asked again after a while, and does not grow without end.
func TestLocal(t *testing.T) {
	dir := t.TempDir()
	if !isLocal(dir) { // in a container it need not be
		shm, err := os.MkdirTemp("/dev/shm", "local")
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = os.RemoveAll(shm) })
		dir = shm
	}
	if !isLocal(dir) {
		t.Fatalf("%s is no disk of this machine", dir)
	}
	locales.Clear()
	localesIn.Store(0)
	for path, want := range map[string]bool{dir: true, filepath.Join(dir, "not/there"): true, "/proc": false, "/proc/not/there": false, "/sys": false} {
		if got := local(path); got != want {
			t.Errorf("%s: %v", path, got)
		}
		first, _ := locales.Load(path)
		for range lookAgain - 1 {
			if local(path) != want {
				t.Errorf("%s has changed", path)
			}
			if now, _ := locales.Load(path); now != first {
				t.Errorf("%s was asked again before its time", path)
			}
		}
		local(path)
		if now, _ := locales.Load(path); now == first {
			t.Errorf("%s was not asked again", path)
		}
	}
	for i := range 3 * maxLocales {
		local(filepath.Join(dir, fmt.Sprint(i)))
	}
	n := 0
	locales.Range(func(any, any) bool { n++; return true })
	if n > maxLocales+1 {
		t.Errorf("%d directories are remembered", n)
	}
}
