package bus

import (
	"context"
	"fmt"
	"log/slog"
	"testing"
	"time"

	"github.com/godbus/dbus/v5"
	"golang.org/x/sys/unix"

	"hearth/homed/home1"
	"hearth/homed/manager/managertest"
	"hearth/internal/testenv"
)

// BenchmarkCalls asks over a bus of its own: what one answer costs this process
// in processor time, the asking included, which does not decode it.
func BenchmarkCalls(b *testing.B) {
	const n = 500
	m, stop := managertest.Serve(b, managertest.Populate(b, b.TempDir(), n), nil)
	b.Cleanup(stop)
	address := testenv.Bus(b)
	ctx, cancel := context.WithCancel(context.Background())
	ended, ready := make(chan error, 1), make(chan struct{})
	go func() {
		ended <- Serve(ctx, Options{Manager: m, Address: address, Machine: managertest.Machine, Log: slog.New(slog.DiscardHandler), Acquired: func() { close(ready) }})
	}()
	b.Cleanup(func() {
		cancel()
		if err := <-ended; err != nil {
			b.Error(err)
		}
	})
	<-ready
	c, err := connect(address)
	if err != nil {
		b.Fatal(err)
	}
	b.Cleanup(func() { _ = c.Close() })
	if _, err := c.callDriver("Hello"); err != nil {
		b.Fatal(err)
	}
	used := func() time.Duration {
		var u unix.Rusage
		if err := unix.Getrusage(unix.RUSAGE_SELF, &u); err != nil {
			b.Fatal(err)
		}
		return time.Duration(u.Utime.Nano() + u.Stime.Nano())
	}
	run := func(member string, args func(i int) []any) {
		b.Run(member, func(b *testing.B) {
			before, asked := used(), 0
			for b.Loop() {
				body := args(asked)
				serial, err := c.Send(&dbus.Message{Type: dbus.TypeMethodCall, Body: body, Headers: headers(map[dbus.HeaderField]any{
					dbus.FieldDestination: home1.Name,
					dbus.FieldPath:        dbus.ObjectPath(home1.ManagerPath),
					dbus.FieldInterface:   home1.ManagerInterface,
					dbus.FieldMember:      member,
				}, body)})
				if err != nil {
					b.Fatal(err)
				}
				for {
					m, err := c.read()
					if err != nil {
						b.Fatal(err)
					}
					if m.replySerial == serial {
						if m.typ != typeReply {
							b.Fatalf("%+v", m)
						}
						m.close()
						break
					}
					m.close()
				}
				asked++
			}
			b.ReportMetric(float64((used()-before).Nanoseconds())/1000/float64(asked), "cpu-µs/call")
		})
	}
	run("GetHomeByName", func(i int) []any { return []any{fmt.Sprintf("user%d", i%n)} })
	run("GetUserRecordByName", func(i int) []any { return []any{fmt.Sprintf("user%d", i%n)} })
	run("ListHomes", func(int) []any { return nil })
}
