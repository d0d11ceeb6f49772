package dm

import (
	"bytes"
	"encoding/binary"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

// TestRequestLayout holds the buffer against the offsets of linux/dm-ioctl.h.
func TestRequestLayout(t *testing.T) {
	target := encodeTarget(2048, "crypt", "aes-xts-plain64 :32:logon:x 0 7:0 32768")
	b := request{name: "home-ann", uuid: "CRYPT-LUKS2-x", flags: unix.DM_SECURE_DATA_FLAG, targets: 1, data: target}.encode()
	u32 := func(at int) uint32 { return binary.NativeEndian.Uint32(b[at:]) }
	if len(b) != 312+len(target) || len(target)%8 != 0 {
		t.Fatalf("buffer of %d bytes, target of %d", len(b), len(target))
	}
	for _, c := range []struct {
		what string
		at   int
		want uint32
	}{
		{"major version", 0, 4}, {"minor version", 4, 0}, {"patch level", 8, 0},
		{"size", 12, uint32(len(b))}, {"start", 16, 312}, {"targets", 20, 1}, {"flags", 28, 1 << 15}, {"event number", 32, 0},
		{"low half of first sector", 312, 0}, {"low half of length", 320, 2048}, {"next", 332, uint32(len(target))},
	} {
		if got := u32(c.at); got != c.want {
			t.Errorf("%s is %d, want %d", c.what, got, c.want)
		}
	}
	for at, want := range map[int]string{48: "home-ann\x00", 176: "CRYPT-LUKS2-x\x00", 336: "crypt\x00", 352: "aes-xts-plain64 :32:logon:x 0 7:0 32768\x00"} {
		if !bytes.HasPrefix(b[at:], []byte(want)) {
			t.Errorf("at %d: %q, want %q", at, b[at:at+len(want)], want)
		}
	}
	sectors, kind, params, err := decodeTarget(target)
	if err != nil || sectors != 2048 || kind != "crypt" || !strings.HasSuffix(params, " 32768") {
		t.Errorf("read back %d %q %q, %v", sectors, kind, params, err)
	}
}

func TestOverlongNamesStayTerminated(t *testing.T) {
	long := strings.Repeat("x", 500)
	b := request{name: long, uuid: long}.encode()
	if b[48+127] != 0 || b[176+128] != 0 {
		t.Error("name or uuid is not terminated")
	}
	if got := encodeTarget(1, long, "")[39]; got != 0 {
		t.Error("target type is not terminated")
	}
}

func TestMessageLayout(t *testing.T) {
	if got := encodeMessage("key wipe"); !bytes.Equal(got, []byte("\x00\x00\x00\x00\x00\x00\x00\x00key wipe\x00")) {
		t.Errorf("message %q", got)
	}
}

func TestShortAnswers(t *testing.T) {
	if _, _, _, err := decodeTarget(make([]byte, 39)); err == nil {
		t.Error("a short table was read")
	}
	two := make([]byte, 24)
	binary.NativeEndian.PutUint32(two, 2)
	for _, b := range [][]byte{nil, make([]byte, 8), two} {
		if _, err := decodeDeps(b); err == nil {
			t.Errorf("%d bytes were read", len(b))
		}
	}
}
