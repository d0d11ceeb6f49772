package main

import (
	"os"
	"testing"
)

// TestChildOfWith: what happens in the child is told by its status, and keys
// that the terminal sends to all of its processes leave us alive to release
// the home.
func TestChildOfWith(t *testing.T) {
	t.Chdir(t.TempDir())
	null, err := os.OpenFile(os.DevNull, os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer null.Close()
	c := &command{in: null, out: null, err: null}
	for _, x := range []struct {
		name   string
		argv   []string
		status int
		said   bool
	}{
		{"success", []string{"true"}, 0, false},
		{"failure", []string{"sh", "-c", "exit 7"}, 7, false},
		{"keys", []string{"sh", "-c", "kill -INT $PPID; kill -QUIT $PPID; exit 3"}, 3, false},
		{"keys end the child", []string{"sh", "-c", "kill -INT $$; exit 3"}, 0, true},
		{"not there", []string{"/nonexistent"}, 255, false},
	} {
		t.Run(x.name, func(t *testing.T) {
			status, err := c.child("/", x.argv)
			if status != x.status || (err == errSaid) != x.said {
				t.Errorf("status %d, error %v; want %d, said %v", status, err, x.status, x.said)
			}
		})
	}
	if status, err := c.child("/nonexistent", []string{"true"}); status != 255 || err != nil {
		t.Errorf("a home that is not there: status %d, error %v", status, err)
	}
}
