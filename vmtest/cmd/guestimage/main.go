// Command guestimage builds the guest images of the suites named, or of all,
// where they are not cached. Tests find them ready then, and their time limits
// never meet a build.
package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"sync"

	"hearth/vmtest"
)

func main() {
	suites := vmtest.Suites
	if len(os.Args) > 1 {
		suites = nil
		for _, a := range os.Args[1:] {
			suites = append(suites, vmtest.Suite(a))
		}
	}
	var wg sync.WaitGroup
	errs := make([]error, len(suites))
	for i, s := range suites {
		wg.Go(func() { errs[i] = vmtest.Prepare(context.Background(), os.Stderr, s) })
	}
	wg.Wait()
	if err := errors.Join(errs...); err != nil {
		fmt.Fprintln(os.Stderr, "guestimage:", err)
		os.Exit(1)
	}
}
