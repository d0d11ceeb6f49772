package askpassword

import (
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"hearth/internal/secret"
)

func texts(list []*secret.Bytes) string {
	var all []string
	for _, s := range list {
		all = append(all, text(s))
	}
	secret.CloseAll(list)
	return strings.Join(all, "|")
}

func TestCache(t *testing.T) {
	// A session keyring of this thread's own, with the user's in it, as a login
	// has it.
	runtime.LockOSThread()
	if _, err := unix.KeyctlJoinSessionKeyring("hearth-test"); err != nil {
		t.Skip("this kernel gives no keyring: ", err)
	}
	if _, err := unix.KeyctlInt(unix.KEYCTL_LINK, unix.KEY_SPEC_USER_KEYRING, unix.KEY_SPEC_SESSION_KEYRING, 0, 0); err != nil {
		t.Skip("this kernel gives no keyring: ", err)
	}
	name := fmt.Sprintf("hearth-test-%d", os.Getpid())
	defer func() {
		if id, err := unix.KeyctlSearch(unix.KEY_SPEC_SESSION_KEYRING, "user", name, 0); err == nil {
			_, _ = unix.KeyctlInt(unix.KEYCTL_UNLINK, id, unix.KEY_SPEC_USER_KEYRING, 0, 0)
		}
	}()
	list, err := Cached(name)
	if err != nil || list != nil {
		t.Errorf("before: %v, %v", list, err)
	}
	for _, s := range []string{"one", "two", "one"} {
		b, err := secret.Copy([]byte(s))
		if err != nil {
			t.Fatal(err)
		}
		if err := Remember(name, b, time.Minute); err != nil {
			t.Fatal(err)
		}
		b.Close()
	}
	if list, err = Cached(name); err != nil || texts(list) != "one|two" {
		t.Errorf("%v", err)
	}
}

func TestCredential(t *testing.T) {
	dir := t.TempDir()
	if err := os.WriteFile(filepath.Join(dir, "home.password"), []byte("a\x00b"), 0o400); err != nil {
		t.Fatal(err)
	}
	if list, err := Credential(dir, "home.password"); err != nil || texts(list) != "a|b" {
		t.Error(err)
	}
	for _, d := range []string{"", dir, dir + "/none"} {
		if list, err := Credential(d, "other"); err != nil || list != nil {
			t.Errorf("%q: %v, %v", d, list, err)
		}
	}
	if _, err := Credential("relative", "home.password"); err == nil {
		t.Error("took a directory that is not absolute")
	}
}
