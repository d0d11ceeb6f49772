// Package managertest runs managers with many homes, for the tests and benchmarks
// of the manager and of what stands before it.
package managertest

import (
	"context"
	"crypto/rand"
	"fmt"
	"os"
	"path/filepath"
	"testing"

	"hearth/homed/config"
	"hearth/homed/manager"
	"hearth/records"
)

// Machine is where those homes are.
var Machine = records.Machine{ID: "1e36d111fc5f48a2b78ad6694f4b2b13", Hostname: "host"}

// Populate fills dir with n signed records as a daemon left them, of users that
// are called user0 and so on, whose homes are absent.
func Populate(t testing.TB, dir string, n int) config.Layout {
	t.Helper()
	l := config.Layout{
		RecordDir: dir + "/records", KeyDirs: []string{dir + "/records"}, NewKeyDir: dir + "/records",
		BlobDir: dir + "/blobs", RunDir: dir + "/run", HomeRoot: dir + "/home", Worker: "/bin/false",
	}
	for _, d := range []string{l.RecordDir, l.RunDir, l.HomeRoot} {
		if err := os.MkdirAll(d, 0o755); err != nil {
			t.Fatal(err)
		}
	}
	private, public, err := records.GenerateKey(rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	signer, err := records.NewSigner(private)
	if err != nil {
		t.Fatal(err)
	}
	defer signer.Close()
	write := func(name string, text []byte, mode os.FileMode) {
		if err := os.WriteFile(filepath.Join(l.RecordDir, name), text, mode); err != nil {
			t.Fatal(err)
		}
	}
	write("local.private", private, 0o400)
	write("local.public", public, 0o444)
	for i := range n {
		r, err := records.NewBuilder(fmt.Sprintf("user%d", i)).Set("disposition", "regular").Set("realm", "example.org").Set("storage", "luks").
			Set("uid", uint64(100000+i)).Set("aliases", []string{fmt.Sprintf("alias%d", i)}).Set("memberOf", []string{"audio", "video"}).
			Set("realName", "A Person of Some Name").Set("lastChangeUSec", uint64(1795334937838250)).
			SetPrivileged("hashedPassword", []string{"$y$j9T$F5Jx5fExrKuPp53xLKQ..1$tnSYvahCwPBHKZUspmcxMfb0.WiB9W.zEaKlOBL35rC"}).Record()
		if err != nil {
			t.Fatal(err)
		}
		v, err := signer.Sign(r)
		if err != nil {
			t.Fatal(err)
		}
		write(fmt.Sprintf("user%d.identity", i), v.Record().Pretty(), 0o600)
	}
	return l
}

// Serve runs a manager until stop is called.
func Serve(t testing.TB, l config.Layout, accounts manager.Accounts) (m *manager.Manager, stop func()) {
	t.Helper()
	m, err := manager.New(manager.Options{Layout: l, Machine: Machine, Accounts: accounts})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan error, 1)
	go func() { ended <- m.Run(ctx) }()
	<-m.Ready()
	return m, func() {
		cancel()
		if err := <-ended; err != nil {
			t.Error(err)
		}
	}
}
