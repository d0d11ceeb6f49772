// Command benchguest times a home service from inside a guest, as its clients
// see it, and prints what it saw: a line for each sample, with what was timed,
// the number and its unit. It knows the bus and the sockets; which service
// answers there, how often and in what order is its caller's matter.
package main

import (
	"context"
	"fmt"
	"os"
	"time"
)

func main() {
	if err := run(os.Args[1:]); err != nil {
		fmt.Fprintln(os.Stderr, "benchguest:", err)
		os.Exit(1)
	}
}

func run(args []string) error {
	ctx, cancel := context.WithTimeout(context.Background(), 20*time.Minute)
	defer cancel()
	if len(args) > 0 {
		switch args[0] {
		case "verbs":
			return verbs(ctx, args[1:])
		case "records":
			return makeRecords(args[1:])
		case "lookups":
			return lookups(ctx, args[1:])
		case "life":
			return life(args[1:])
		}
	}
	return fmt.Errorf("one of: verbs, records, lookups, life")
}

// sample prints one. The caller reads these lines and no others.
func sample(what string, value float64, unit string) {
	fmt.Printf("%s\t%.4g\t%s\n", what, value, unit)
}

func milliseconds(d time.Duration) float64 { return float64(d) / float64(time.Millisecond) }
