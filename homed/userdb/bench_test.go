package userdb_test

import (
	"bufio"
	"bytes"
	"context"
	"fmt"
	"net"
	"os"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"hearth/homed/manager/managertest"
	"hearth/homed/userdb"
)

// serve runs a manager with n homes that are elsewhere, and the front end before
// it, until the benchmark ends. It returns the socket.
func serve(b *testing.B, n int) string {
	b.Helper()
	dir := b.TempDir()
	m, stop := managertest.Serve(b, managertest.Populate(b, dir, n), nil)
	b.Cleanup(stop)
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan error, 1)
	socket := dir + "/io.systemd.Home"
	go func() {
		ended <- userdb.Serve(ctx, userdb.Options{Manager: m, Socket: socket, Machine: managertest.Machine})
	}()
	b.Cleanup(func() {
		cancel()
		if err := <-ended; err != nil {
			b.Error(err)
		}
	})
	for range 1000 {
		if _, err := os.Stat(socket); err == nil {
			break
		}
		time.Sleep(time.Millisecond)
	}
	return socket
}

func used(b *testing.B) time.Duration {
	var u unix.Rusage
	if err := unix.Getrusage(unix.RUSAGE_SELF, &u); err != nil {
		b.Fatal(err)
	}
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
}

// BenchmarkLookUps asks over the socket, as the name service does: what one
// answer costs this process in processor time, the asking included.
func BenchmarkLookUps(b *testing.B) {
	const n = 500
	socket := serve(b, n)
	ask := func(parameters, more string) []byte {
		return []byte(`{"method":"io.systemd.UserDatabase.GetUserRecord","parameters":{` + parameters + `"service":"io.systemd.Home"}` + more + "}\x00")
	}
	run := func(name string, calls func(i int) []byte, answers int, holds string) {
		b.Run(name, func(b *testing.B) {
			c, err := net.Dial("unix", socket)
			if err != nil {
				b.Fatal(err)
			}
			defer func() { _ = c.Close() }()
			in := bufio.NewReaderSize(c, 1<<16)
			before, asked := used(b), 0
			for b.Loop() {
				if _, err := c.Write(calls(asked)); err != nil {
					b.Fatal(err)
				}
				for range answers {
					text, err := in.ReadSlice(0)
					if err != nil || !bytes.Contains(text, []byte(holds)) {
						b.Fatalf("%s, %v", text, err)
					}
				}
				asked++
			}
			b.ReportMetric(float64((used(b)-before).Nanoseconds())/1000/float64(asked*answers), "cpu-µs/answer")
		})
	}
	name := func(i int) string { return fmt.Sprintf(`"userName":"user%d",`, i%n) }
	run("name", func(i int) []byte { return ask(name(i), "") }, 1, `"userName":"user`)
	run("unknown", func(i int) []byte { return ask(`"userName":"nobody",`, "") }, 1, "NoRecordFound")
	run("pipelined", func(i int) (all []byte) {
		for j := range 32 {
			all = append(all, ask(name(32*i+j), "")...)
		}
		return all
	}, 32, `"userName":"user`)
	run("enumerate", func(int) []byte { return ask("", `,"more":true`) }, n, `"userName":"user`)
}
