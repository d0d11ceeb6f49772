package vmtest

import (
	"fmt"
	"os"
	"path/filepath"

	"github.com/creack/pty"

	"hearth/vmtest/wire"
)

// console is the terminal at the guest's first serial line. It exists before
// the guest's agent does, and sees the questions that are asked at boot.
type console struct {
	master, slave *os.File
	*Terminal
	log *os.File
}

func newConsole(dir string) (*console, error) {
	log, err := os.OpenFile(filepath.Join(dir, "console.log"), os.O_WRONLY|os.O_CREATE|os.O_APPEND, 0o644)
	if err != nil {
		return nil, err
	}
	m, s, err := pty.Open()
	if err != nil {
		log.Close()
		return nil, fmt.Errorf("open the console's terminal: %w", err)
	}
	c := &console{master: m, slave: s, log: log}
	c.Terminal = &Terminal{changed: make(chan struct{}), copyTo: log, hands: m, call: &call{done: make(chan struct{})}}
	go func() {
		buf := make([]byte, 4096)
		for {
			n, err := m.Read(buf)
			if n > 0 {
				c.show(wire.Stdout, buf[:n])
			}
			if err != nil {
				close(c.call.done)
				return
			}
		}
	}()
	return c, nil
}

func (c *console) close() {
	c.master.Close()
	<-c.call.done
	c.log.Close()
}
