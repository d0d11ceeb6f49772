package main

import (
	"os"
	"os/exec"
	"slices"
	"strings"
	"syscall"
	"time"
)

// asksPolkit are the verbs whose calls polkit guards, and which people use who
// are not root. "activate" is not among them: who is not allowed to open a home
// is better asked for its password alone.
var asksPolkit = []string{"create", "update", "passwd", "resize", "remove", "authenticate", "adopt", "register", "unregister",
	"add-signing-key", "remove-signing-key"}

// agentWait is for a bus that does not answer. A busy machine was seen to take
// more than five seconds to start the agent.
const agentWait = 25 * time.Second

// polkitAgent starts the program that asks on this terminal for the password
// that polkit wants, where no desktop does. The caller calls stop.
func (c *command) polkitAgent(verb string) (stop func()) {
	if !slices.Contains(asksPolkit, verb) || os.Geteuid() == 0 || !c.interactive() {
		return func() {}
	}
	program, err := exec.LookPath("pkttyagent")
	if err != nil {
		return func() {} // then polkit refuses, and says why
	}
	return startAgent(program)
}

// startAgent returns once the agent is registered for this process, or could
// not be. What it inherits of the environment holds no password.
func startAgent(program string) (stop func()) {
	read, write, err := os.Pipe()
	if err != nil {
		return func() {}
	}
	defer read.Close()
	cmd := exec.Command(program, "--notify-fd", "3", "--fallback")
	cmd.ExtraFiles = []*os.File{write}
	cmd.Env = []string{}
	for _, v := range os.Environ() {
		name, _, _ := strings.Cut(v, "=")
		if strings.HasPrefix(name, "LC_") || slices.Contains([]string{"PATH", "TERM", "LANG", "LANGUAGE", "DBUS_SYSTEM_BUS_ADDRESS"}, name) {
			cmd.Env = append(cmd.Env, v)
		}
	}
	err = cmd.Start()
	write.Close()
	if err != nil {
		return func() {}
	}
	// It closes its end when it is registered.
	_ = read.SetReadDeadline(time.Now().Add(agentWait))
	_, _ = read.Read(make([]byte, 1))
	return func() {
		_ = cmd.Process.Signal(syscall.SIGTERM)
		_ = cmd.Wait()
	}
}
