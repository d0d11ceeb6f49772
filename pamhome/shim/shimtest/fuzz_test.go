package shimtest

import (
	"encoding/binary"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"hearth/internal/testenv"
)

// A feeder is a login program that feeds its module what a helper might say;
// see testdata/fuzzhost.c. It lives for many inputs.
type feeder struct {
	dir    string
	cmd    *exec.Cmd
	in     io.WriteCloser
	out    io.Reader
	stderr strings.Builder
}

// newFeeder builds module and program with the sanitizers of addresses and of
// undefined behaviour.
func newFeeder(t testing.TB) *feeder {
	t.Helper()
	testenv.Need(t, "cc")
	dir, err := os.MkdirTemp(buildRoot, "fuzz")
	if err != nil {
		t.Fatal(err)
	}
	cc := func(args ...string) {
		t.Helper()
		args = append([]string{"-std=c11", "-D_GNU_SOURCE", "-g", "-O1", "-Wall", "-fsanitize=address,undefined", "-fno-sanitize-recover=all"}, args...)
		if out, err := exec.Command("cc", args...).CombinedOutput(); err != nil {
			if strings.Contains(string(out), "asan") {
				testenv.Need(t, "the libraries of gcc's sanitizers")
			}
			t.Fatalf("cc: %v\n%s", err, out)
		}
	}
	object := filepath.Join(dir, "capabilities.o")
	cc("-fPIC", "-c", "-o", object, "-Dsyscall=fuzz_syscall", "-Dprctl=fuzz_prctl",
		"-include", "sys/syscall.h", "-include", "sys/prctl.h", "-include", "unistd.h", "-include", "testdata/fuzzhost.h", "../capabilities.c")
	module := filepath.Join(dir, "pam_home.so")
	cc("-fPIC", "-shared", "-Dnice=fuzz_nice", "-include", "unistd.h", "-include", "testdata/fuzzhost.h", "-DFIRST_MS=200", "-DSILENCE_MS=100", "-DCALL_MS=400", "-o", module, "../pam_home.c", "../frame.c", "../data.c", object, "-lpam")
	cc("-rdynamic", "-o", filepath.Join(dir, "fuzzhost"), "testdata/fuzzhost.c", "-lpam")
	text := ""
	for _, kind := range []string{"auth", "account", "session", "password"} {
		text += fmt.Sprintf("%s required %s\n", kind, module)
	}
	if err := os.WriteFile(filepath.Join(dir, "svc"), []byte(text), 0o644); err != nil {
		t.Fatal(err)
	}
	return &feeder{dir: dir}
}

// feed plays one input; an error is the program's end.
func (f *feeder) feed(input []byte) (code byte, err error) {
	if f.cmd == nil {
		f.cmd = exec.Command(filepath.Join(f.dir, "fuzzhost"), f.dir)
		f.cmd.Env = []string{"ASAN_OPTIONS=detect_leaks=0", "PATH=/usr/bin:/bin"}
		f.stderr.Reset()
		f.cmd.Stderr = &f.stderr
		if f.in, err = f.cmd.StdinPipe(); err != nil {
			return 0, err
		}
		if f.out, err = f.cmd.StdoutPipe(); err != nil {
			return 0, err
		}
		if err := f.cmd.Start(); err != nil {
			return 0, err
		}
	}
	_, err = f.in.Write(append(binary.NativeEndian.AppendUint32(nil, uint32(len(input))), input...))
	var answer [1]byte
	if err == nil {
		_, err = io.ReadFull(f.out, answer[:])
	}
	if err != nil {
		end := f.cmd.Wait()
		f.cmd = nil
		return 0, fmt.Errorf("%w: %v\n%s", err, end, f.stderr.String())
	}
	return answer[0], nil
}

// said is a packet with a byte for the descriptors that go with it, and for a
// header that stays right whatever the fuzzer does to the rest.
func said(descriptors byte, p []byte) []byte {
	return append(binary.LittleEndian.AppendUint16([]byte{descriptors | 0x80}, uint16(len(p))), p...)
}

// FuzzShim: whatever a helper says, the module reads and writes no memory but
// its own, keeps no descriptor, and lets nobody in without a reference.
func FuzzShim(f *testing.F) {
	const record = "systemd-user-record-ann"
	ref := said(1, packet(23, text(1, refKey)))
	result := func(code int) []byte { return said(0, packet(29, field(1, code))) }
	ask := said(0, packet(16, field(1, byte(1)), text(2, "Password: ")))
	for phase := range byte(5) {
		for _, packets := range [][][]byte{
			{ask, ref, result(0)},
			{result(0)},
			{result(12)},
			{ref, said(0, packet(24, text(1, refKey))), result(0)},
			{said(0, packet(22, text(1, record), field(2, byte(1)), text(3, "{}"))), said(0, packet(21, text(1, record))), result(7)},
			{said(2, packet(22, text(1, record), field(2, byte(1)))), said(3, packet(22, text(1, record), field(2, byte(1)))), result(7)},
			{said(0, packet(18, field(1, byte(1)), text(2, "pw"))), said(0, packet(19, text(1, "ann2"))), said(0, packet(20, text(1, "XDG_AREA=x"))), result(7)},
			{said(0, packet(17, field(1, byte(1)), field(2, byte(0)))), said(0, packet(17, field(1, byte(1)), field(2, byte(1)), text(3, "new password: "))), result(0)},
			{said(0, packet(25, field(1, 0o22), field(2, 1), field(3, strings.Repeat("x", 20)), field(4, uint64(1)), field(5, uint64(1)))), said(0, packet(21, text(1, "hearth-tty-fd"))), said(6, packet(23, text(1, "hearth-tty-fd"))), said(0, packet(27, text(1, "root"))), result(0)},
			{said(0, packet(28, field(1, byte(6)), text(2, "line"))), said(4, packet(23, text(1, refKey))), result(0)},
			{said(5, packet(21, text(1, refKey))), result(0)},
		} {
			for _, conversation := range []byte{0, 1, 2, 4, 8} {
				input := []byte{phase, conversation}
				for _, p := range packets {
					input = append(input, p...)
				}
				f.Add(input)
			}
		}
	}
	feeder := newFeeder(f) // before the fuzzer's clock runs
	f.Fuzz(func(t *testing.T, input []byte) {
		if len(input) < 2 || len(input) > 200_000 {
			return
		}
		if _, err := feeder.feed(input); err != nil {
			t.Fatal(err)
		}
	})
}
