package userdb_test

import (
	"bufio"
	"bytes"
	"context"
	"crypto/rand"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"hearth/homed/config"
	"hearth/homed/manager"
	"hearth/homed/userdb"
	"hearth/records"
)

// serve runs a manager with n homes that are elsewhere, and the front end before
// it, until the benchmark ends. It returns the socket.
func serve(b *testing.B, n int) string {
	b.Helper()
	dir := b.TempDir()
	l := config.Layout{
		RecordDir: dir + "/records", KeyDirs: []string{dir + "/records"}, NewKeyDir: dir + "/records",
		BlobDir: dir + "/blobs", RunDir: dir + "/run", HomeRoot: dir + "/home", Worker: "/bin/false",
	}
	for _, d := range []string{l.RecordDir, l.RunDir, l.HomeRoot} {
		if err := os.MkdirAll(d, 0o755); err != nil {
			b.Fatal(err)
		}
	}
	private, public, err := records.GenerateKey(rand.Reader)
	if err != nil {
		b.Fatal(err)
	}
	signer, err := records.NewSigner(private)
	if err != nil {
		b.Fatal(err)
	}
	defer signer.Close()
	write := func(name string, text []byte, mode os.FileMode) {
		if err := os.WriteFile(filepath.Join(l.RecordDir, name), text, mode); err != nil {
			b.Fatal(err)
		}
	}
	write("local.private", private, 0o400)
	write("local.public", public, 0o444)
	for i := range n {
		name := fmt.Sprintf("user%d", i)
		r, err := records.NewBuilder(name).Set("disposition", "regular").Set("storage", "luks").
			Set("uid", uint64(100000+i)).Set("imagePath", dir+"/elsewhere/"+name+".home").Set("homeDirectory", l.HomeRoot+"/"+name).
			Set("memberOf", []string{"audio", "video"}).Set("realName", "A Person of Some Name").Set("lastChangeUSec", uint64(1795334937838250)).
			SetPrivileged("hashedPassword", []string{"$y$j9T$F5Jx5fExrKuPp53xLKQ..1$tnSYvahCwPBHKZUspmcxMfb0.WiB9W.zEaKlOBL35rC"}).Record()
		if err != nil {
			b.Fatal(err)
		}
		v, err := signer.Sign(r)
		if err != nil {
			b.Fatal(err)
		}
		write(name+".identity", v.Record().Pretty(), 0o600)
	}
	machine := records.Machine{ID: "1e36d111fc5f48a2b78ad6694f4b2b13", Hostname: "host"}
	m, err := manager.New(manager.Options{Layout: l, Machine: machine})
	if err != nil {
		b.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan error, 2)
	socket := dir + "/io.systemd.Home"
	go func() { ended <- m.Run(ctx) }()
	go func() { ended <- userdb.Serve(ctx, userdb.Options{Manager: m, Socket: socket, Machine: machine}) }()
	b.Cleanup(func() {
		cancel()
		for range 2 {
			if err := <-ended; err != nil {
				b.Error(err)
			}
		}
	})
	<-m.Ready()
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
