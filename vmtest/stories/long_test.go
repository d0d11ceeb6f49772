package stories

import (
	"os"
	"testing"
)

// long: everything is told, not the sample that continuous integration has time
// for.
func long() bool { return os.Getenv("HEARTH_TEST_LONG") == "1" }

func needLong(t testing.TB) {
	t.Helper()
	if !long() {
		t.Skip("set HEARTH_TEST_LONG=1 or run make test-long")
	}
}
