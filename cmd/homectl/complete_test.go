package main

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

// asProgram makes the test's binary homectl itself.
const asProgram = "HEARTH_TEST_AS_HOMECTL"

func TestMain(m *testing.M) {
	if os.Getenv(asProgram) != "" {
		main()
	}
	os.Exit(m.Run())
}

func TestSplitLine(t *testing.T) {
	for line, want := range map[string]string{
		"homectl ":               "homectl|",
		"homectl cre":            "homectl|cre",
		`homectl "a b" c\ d'e f`: "?",
		`homectl "a b" c\ d`:     "homectl|a b|c d",
		`homectl '' `:            "homectl||",
		`homectl x\`:             "?",
	} {
		words, ok := splitLine(line)
		got := strings.Join(words, "|")
		if !ok {
			got = "?"
		}
		if got != want {
			t.Errorf("%s: %s, want %s", line, got, want)
		}
	}
}

// TestCompletion has bash complete lines, with the file that install puts in
// place, our program, and no daemon.
func TestCompletion(t *testing.T) {
	bash, err := exec.LookPath("bash")
	if err != nil {
		t.Skip("bash is not installed")
	}
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	script, err := filepath.Abs("../homed/system/homectl.bash")
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	wrapper := fmt.Sprintf("#!/bin/sh\n%s=1 exec '%s' \"$@\"\n", asProgram, self)
	if err := os.WriteFile(filepath.Join(dir, "homectl"), []byte(wrapper), 0o755); err != nil {
		t.Fatal(err)
	}
	// In a completion bash would call the function with these; compopt outside
	// of one is an error, so here it tells that it was called.
	const ask = `
		source "$1"
		compopt() { echo "$*"; }
		COMP_LINE=$2 COMP_POINT=${#2}
		_homectl homectl "$3" ""
		printf '%s\n' "${COMPREPLY[@]}"
	`
	complete := func(line, word string) []string {
		cmd := exec.Command(bash, "--norc", "-c", ask, "bash", script, line, word)
		cmd.Env = []string{"PATH=" + dir + ":" + os.Getenv("PATH"), "DBUS_SYSTEM_BUS_ADDRESS=unix:path=" + filepath.Join(dir, "none")}
		out, err := cmd.Output()
		if err != nil {
			t.Fatalf("%s: %v", line, err)
		}
		return strings.Split(strings.TrimSpace(string(out)), "\n")
	}
	for _, c := range []struct{ line, word, want string }{
		{"homectl act", "act", "activate"},
		{"homectl list-", "list-", "list-signing-keys"},
		{"homectl --real", "--real", "--real-name= --realm="},
		{"homectl --real-", "--real-", "-o nospace --real-name="},
		{"homectl create zoe --json=p", "p", "pretty"},
		{"homectl create zoe --json=", "", "off pretty short"},
		{"homectl create zoe --json p", "p", "pretty"},
		{"homectl create zoe --auto-resize-mode=shr", "shr", "shrink-and-grow"},
		{"homectl create zoe --locked=", "", "no yes"},
		{"homectl create zoe --rlimit=NO", "NO", "-o nospace NOFILE="},
		{"homectl create zoe --rlimit=NOFILE=", "", ""},
		{"homectl create zoe '--capability-bounding-set=cap_kill cap_net_b", "", ""}, // in a quote bash asks otherwise
		{`homectl create zoe --capability-bounding-set=cap_kill\ cap_net_b`, `cap_kill cap_net_b`, "cap_kill cap_net_bind_service cap_kill cap_net_broadcast"},
		{"homectl create zoe --capability-bounding-set=~cap_kil", "~cap_kil", "~cap_kill"},
		{"homectl resize zoe m", "m", "max min"},
		{"homectl resize zoe min ", "", ""},
		{"homectl --offline --identity x.json upd", "upd", "update"},
		{"homectl create ", "", ""},
		{"homectl activate zo", "zo", ""}, // no daemon, no names
		{"homectl adopt /ho", "/ho", ""},  // a file
		{"homectl with zoe -- l", "l", ""},
	} {
		got := complete(c.line, c.word)
		if len(got) > 1 && got[0] != "-o nospace" {
			slices.Sort(got)
		}
		if g := strings.Join(got, " "); g != c.want {
			t.Errorf("%s: %q, want %q", c.line, g, c.want)
		}
	}
	if all := complete("homectl ", ""); len(all) < 20 || slices.Contains(all, "complete") {
		t.Errorf("the verbs are %q", all)
	}
	if all := complete("homectl --", "--"); len(all) < 60 {
		t.Errorf("the options are %q", all)
	}
}

func TestInStateNamesVerbs(t *testing.T) {
	for name := range inState {
		if !slices.ContainsFunc(verbs(), func(v verb) bool { return v.name == name }) {
			t.Errorf("%s is no verb", name)
		}
	}
	for name := range fixedValues {
		if !slices.ContainsFunc(allOptions(), func(o option) bool { return o.name == name }) {
			t.Errorf("--%s is no option", name)
		}
	}
}
