// Command testsum runs "go test -json", shows what a person wants to see of
// it and keeps the events; of several such runs it then tells what passed,
// what failed, and what was skipped for which reason. It knows the events of
// test2json, and one name of ours: a test that the host skipped and that
// TestRooms ran in a guest is not a skipped test.
//
//	testsum run FILE go test -json ARGUMENTS
//	testsum report FILES
package main

import (
	"bufio"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
)

func main() {
	var err error
	switch {
	case len(os.Args) > 3 && os.Args[1] == "run":
		err = run(os.Args[2], os.Args[3:])
	case len(os.Args) > 2 && os.Args[1] == "report":
		err = report(os.Stdout, os.Args[2:])
	default:
		err = errors.New("usage: testsum run FILE COMMAND, or testsum report FILES")
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, "testsum:", err)
		os.Exit(1)
	}
}

// event is a line of test2json's, see "go doc test2json".
type event struct {
	Action     string
	Package    string
	ImportPath string
	Test       string
	Elapsed    float64
	Output     string
}

// run runs the command, keeps its events in file and shows failures whole, the
// rest by package.
func run(file string, argv []string) error {
	if err := os.MkdirAll(filepath.Dir(file), 0o755); err != nil {
		return err
	}
	f, err := os.Create(file)
	if err != nil {
		return err
	}
	defer f.Close()
	// An interrupt reaches the tests too; their end is ours.
	signal.Notify(make(chan os.Signal, 1), syscall.SIGINT)
	cmd := exec.Command(argv[0], argv[1:]...)
	cmd.Stderr = os.Stderr
	out, err := cmd.StdoutPipe()
	if err != nil {
		return err
	}
	if err := cmd.Start(); err != nil {
		return err
	}
	show(os.Stdout, io.TeeReader(out, f))
	return cmd.Wait()
}

func show(w io.Writer, r io.Reader) {
	output := map[string][]string{} // by package and test, until the test ends
	lines := bufio.NewReaderSize(r, 1<<20)
	for {
		line, err := lines.ReadBytes('\n')
		if len(line) > 0 {
			var e event
			if json.Unmarshal(line, &e) != nil {
				w.Write(line)
			} else {
				showEvent(w, e, output)
			}
		}
		if err != nil {
			return
		}
	}
}

func showEvent(w io.Writer, e event, output map[string][]string) {
	key := e.Package + e.ImportPath + "\t" + e.Test
	switch e.Action {
	case "output", "build-output":
		output[key] = append(output[key], e.Output)
	case "pass", "skip":
		if e.Test == "" {
			for _, l := range output[key] { // "ok  package time"
				if strings.HasPrefix(l, "ok ") {
					fmt.Fprint(w, l)
				}
			}
		} else if strings.Contains(e.Package, "/vmtest") && e.Elapsed >= 5 {
			fmt.Fprintf(w, "  %s %s (%.0f s)\n", e.Action, e.Test, e.Elapsed)
		}
		delete(output, key)
	case "fail", "build-fail":
		for _, l := range output[key] {
			fmt.Fprint(w, l)
		}
		delete(output, key)
	}
}

// outcome is what became of a test in all the runs.
type outcome struct {
	pkg, test string
	action    string // fail beats pass, pass beats skip
	reason    string
}

var rank = map[string]int{"skip": 1, "pass": 2, "fail": 3}

func report(w io.Writer, files []string) error {
	all := map[string]*outcome{}
	for _, f := range files {
		if err := read(f, all); err != nil {
			return err
		}
	}
	passed, failed, skipped := 0, []string(nil), map[string][]string{}
	n := 0
	for key, o := range all {
		if parent(all, key) { // its subtests count
			continue
		}
		if o.action == "skip" && inGuest(all, o) {
			continue
		}
		name := strings.TrimPrefix(o.pkg, "hearth/") + "." + o.test
		switch o.action {
		case "pass":
			passed++
		case "fail":
			failed = append(failed, name)
		case "skip":
			skipped[o.reason] = append(skipped[o.reason], name)
			n++
		}
	}
	fmt.Fprintln(w)
	for _, reason := range sortedKeys(skipped) {
		names := skipped[reason]
		slices.Sort(names)
		shown := names[:min(3, len(names))]
		more := ""
		if len(names) > len(shown) {
			more = fmt.Sprintf(" and %d more", len(names)-len(shown))
		}
		fmt.Fprintf(w, "skipped, %s: %s%s\n", reason, strings.Join(shown, ", "), more)
	}
	slices.Sort(failed)
	for _, name := range failed {
		fmt.Fprintf(w, "FAILED: %s\n", name)
	}
	fmt.Fprintf(w, "%d passed, %d failed, %d skipped\n", passed, len(failed), n)
	if len(failed) > 0 {
		return errors.New("tests failed")
	}
	if passed == 0 {
		return errors.New("no test ran")
	}
	return nil
}

func sortedKeys(m map[string][]string) []string {
	var keys []string
	for k := range m {
		keys = append(keys, k)
	}
	slices.Sort(keys)
	return keys
}

// parent says whether a test is only the sum of its subtests.
func parent(all map[string]*outcome, key string) bool {
	for k := range all {
		if strings.HasPrefix(k, key+"/") && all[key].action != "fail" {
			return true
		}
	}
	return false
}

// inGuest says whether a test that was skipped here ran in a guest.
func inGuest(all map[string]*outcome, o *outcome) bool {
	name, _, _ := strings.Cut(o.test, "/")
	g := all["hearth/vmtest\tTestRooms/"+strings.TrimPrefix(o.pkg, "hearth/")+"/"+name]
	return g != nil && g.action == "pass"
}

func read(file string, all map[string]*outcome) error {
	f, err := os.Open(file)
	if err != nil {
		return err
	}
	defer f.Close()
	lines := bufio.NewReaderSize(f, 1<<20)
	last := map[string]string{} // what a test said last: a skipped one's reason
	for {
		line, err := lines.ReadBytes('\n')
		var e event
		if len(line) > 0 && json.Unmarshal(line, &e) == nil {
			take(e, all, last)
		}
		if err == io.EOF {
			return nil
		}
		if err != nil {
			return err
		}
	}
}

func take(e event, all map[string]*outcome, last map[string]string) {
	key := e.Package + "\t" + e.Test
	switch e.Action {
	case "output":
		// "    file.go:12: reason"; the line "--- SKIP" comes after it.
		if s := strings.TrimSpace(e.Output); e.Test != "" && s != "" && !strings.HasPrefix(s, "---") && !strings.HasPrefix(s, "===") {
			if _, reason, ok := strings.Cut(s, ": "); ok && strings.Contains(s, ".go:") {
				s = reason
			}
			last[key] = s
		}
	case "pass", "skip", "fail":
		name := e.Test
		if name == "" {
			if e.Action != "fail" {
				return
			}
			name = "(package)"
			for k, o := range all { // the package failed with one of its tests
				if strings.HasPrefix(k, e.Package+"\t") && o.action == "fail" {
					return
				}
			}
		}
		o := all[e.Package+"\t"+name]
		if o == nil {
			o = &outcome{pkg: e.Package, test: name}
			all[e.Package+"\t"+name] = o
		}
		if rank[e.Action] > rank[o.action] {
			o.action, o.reason = e.Action, last[key]
		}
	}
}
