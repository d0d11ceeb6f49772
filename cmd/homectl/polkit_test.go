package main

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

func TestPolkitAgent(t *testing.T) {
	dir := t.TempDir()
	program, told := filepath.Join(dir, "pkttyagent"), filepath.Join(dir, "told")
	script := "#!/bin/sh\n{ echo \"$*\"; env; } >" + told + "\ntrap 'echo ended >>" + told + "; exit 0' TERM\nexec 3>&-\nwhile :; do sleep 0.05; done\n"
	if err := os.WriteFile(program, []byte(script), 0o755); err != nil {
		t.Fatal(err)
	}
	t.Setenv("PASSWORD", "hush")
	t.Setenv("LC_ALL", "C.UTF-8")
	begin := time.Now()
	stop := startAgent(program)
	if took := time.Since(begin); took >= agentWait {
		t.Errorf("waited %v for an agent that was ready", took)
	}
	stop()
	text, err := os.ReadFile(told)
	if err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{"--notify-fd 3 --fallback\n", "LC_ALL=C.UTF-8\n", "\nended\n"} {
		if !strings.Contains(string(text), want) {
			t.Errorf("no %q in\n%s", want, text)
		}
	}
	if strings.Contains(string(text), "hush") {
		t.Error("the agent was given a password")
	}
	// One that cannot be started, or ends at once, keeps nobody waiting.
	startAgent(filepath.Join(dir, "missing"))()
	startAgent("/bin/false")()
	if took := time.Since(begin); took >= agentWait {
		t.Errorf("waited %v", took)
	}
}

func TestAsksPolkit(t *testing.T) {
	known := map[string]bool{}
	for _, v := range verbs() {
		known[v.name] = true
	}
	for _, name := range asksPolkit {
		if !known[name] {
			t.Errorf("there is no verb %s", name)
		}
	}
}
