package main

import (
	"runtime"
	"runtime/debug"
	"testing"
)

// TestRarelyCollect: a worker that reads a header, and more, never looks for
// garbage; one that takes much memory does, and does not keep it all.
func TestRarelyCollect(t *testing.T) {
	defer debug.SetMemoryLimit(debug.SetMemoryLimit(-1))
	defer debug.SetGCPercent(debug.SetGCPercent(100))
	rarelyCollect()
	var before, after runtime.MemStats
	allocate := func(mib int) uint32 {
		runtime.ReadMemStats(&before)
		for range mib {
			kept = make([]byte, 1<<20)
		}
		runtime.ReadMemStats(&after)
		return after.NumGC - before.NumGC
	}
	if n := allocate(20); n > 0 {
		t.Errorf("20 MiB: %d collections", n)
	}
	if n := allocate(1000); n == 0 || after.HeapSys > 3*collectFrom {
		t.Errorf("1000 MiB: %d collections, %d bytes taken", n, after.HeapSys)
	}
}

var kept []byte
