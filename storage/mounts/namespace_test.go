package mounts

import (
	"runtime"
	"testing"

	"golang.org/x/sys/unix"
)

// TestNewNamespaceOnFirstThreadOnly: what /proc/self says would not be true of
// another.
func TestNewNamespaceOnFirstThreadOnly(t *testing.T) {
	failed := make(chan error)
	for range 2 {
		// Two goroutines at once that keep their threads: one is not the first.
		go func() {
			runtime.LockOSThread()
			if unix.Gettid() == unix.Getpid() {
				failed <- nil
				return
			}
			failed <- NewNamespace() // the thread ends with the goroutine
		}()
	}
	seen := 0
	for range 2 {
		if err := <-failed; err != nil {
			seen++
		}
	}
	if seen == 0 {
		t.Error("no thread was refused")
	}
}
