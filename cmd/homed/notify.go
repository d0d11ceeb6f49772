package main

import (
	"log/slog"
	"net"
	"os"
	"strings"
)

// notifier tells the service manager how we are (sd_notify(3)).
type notifier struct{ address string }

// newNotifier takes the address out of the environment, so that no child talks
// in our name.
func newNotifier() notifier {
	n := notifier{os.Getenv("NOTIFY_SOCKET")}
	_ = os.Unsetenv("NOTIFY_SOCKET")
	return n
}

func (n notifier) send(state string) {
	if n.address == "" {
		return
	}
	// "@" stands for the NUL of an abstract address, here as in package net.
	if !strings.HasPrefix(n.address, "@") && !strings.HasPrefix(n.address, "/") {
		slog.Warn("cannot tell the service manager our state: its address is of no kind we know")
		return
	}
	c, err := net.DialUnix("unixgram", nil, &net.UnixAddr{Name: n.address, Net: "unixgram"})
	if err == nil {
		_, err = c.Write([]byte(state))
		_ = c.Close()
	}
	if err != nil {
		slog.Warn("cannot tell the service manager our state", "error", err)
	}
}
