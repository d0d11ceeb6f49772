// Package memory asks the kernel about main memory: how much of it there is,
// and to have some at hand at once. What it is for is its callers' business.
package memory

import (
	"os"
	"runtime"
	"sync/atomic"
	"unsafe"

	"golang.org/x/sys/unix"
)

// Total returns the memory of this machine in KiB, 0 where that cannot be told.
func Total() uint64 {
	var info unix.Sysinfo_t
	if err := unix.Sysinfo(&info); err != nil {
		return 0
	}
	return uint64(info.Totalram) * uint64(info.Unit) >> 10
}

// most bounds Prepare, in bytes: beyond it a process that takes too much finds
// out page by page, and can be stopped.
const most = 1 << 30

// prepared says that Prepare was called before.
var prepared atomic.Bool

// Prepare has the kernel map n bytes of the heap at once, in huge pages where it
// has such, and frees them for the allocation of that size which follows. A
// process that lives for one key derivation otherwise takes two faults for each
// page of it, since Argon2 reads its pages before it writes them.
func Prepare(n uint64) {
	if n == 0 || n > most {
		return
	}
	if prepared.Swap(true) {
		// What an earlier derivation has left is as good as new.
		runtime.GC()
	}
	block := make([]byte, n)
	page := uintptr(os.Getpagesize())
	skip := int(-uintptr(unsafe.Pointer(unsafe.SliceData(block))) % page)
	if skip < len(block) {
		whole := block[skip : skip+(len(block)-skip)/int(page)*int(page)]
		// Both are advice; without them it is only slower.
		_ = unix.Madvise(whole, unix.MADV_HUGEPAGE)
		_ = unix.Madvise(whole, unix.MADV_POPULATE_WRITE)
	}
	runtime.KeepAlive(block)
	block = nil
	runtime.GC()
}
