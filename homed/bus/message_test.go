package bus

import (
	"bytes"
	"encoding/binary"
	"os"
	"reflect"
	"testing"

	"github.com/godbus/dbus/v5"
	"golang.org/x/sys/unix"

	"hearth/homed/home1"
	"hearth/internal/busconn"
)

// encode makes a message with godbus, the other implementation.
func encode(t testing.TB, order binary.ByteOrder, m *dbus.Message) []byte {
	t.Helper()
	var b bytes.Buffer
	if _, err := m.EncodeToWithFDs(&b, order); err != nil {
		t.Fatal(err)
	}
	buf := b.Bytes()
	order.PutUint32(buf[8:], 77)
	return buf
}

func aCall(member string, body ...any) *dbus.Message {
	return &dbus.Message{Type: dbus.TypeMethodCall, Body: body, Headers: headers(map[dbus.HeaderField]any{
		dbus.FieldPath:        dbus.ObjectPath(home1.ManagerPath),
		dbus.FieldInterface:   home1.ManagerInterface,
		dbus.FieldMember:      member,
		dbus.FieldDestination: home1.Name,
		dbus.FieldSender:      ":1.5",
	}, body)}
}

func TestParseReadsWhatGodbusWrites(t *testing.T) {
	for _, order := range []binary.ByteOrder{binary.LittleEndian, binary.BigEndian} {
		m, err := parse(encode(t, order, aCall("ResizeHome", "ann", uint64(1)<<40, `{"password":["ä"]}`)), nil)
		if err != nil {
			t.Fatal(err)
		}
		if m.path != home1.ManagerPath || m.iface != home1.ManagerInterface || m.member != "ResizeHome" || m.sender != ":1.5" || m.sig != "sts" || m.serial != 77 {
			t.Errorf("header is %+v", m)
		}
		args, err := m.arguments()
		if err != nil {
			t.Fatal(err)
		}
		if want := []any{[]byte("ann"), uint64(1) << 40, []byte(`{"password":["ä"]}`)}; !reflect.DeepEqual(args, want) {
			t.Errorf("arguments are %q", args)
		}
		// The arguments are the buffer, so wiping it wipes them.
		m.close()
		if !bytes.Equal(args[2].([]byte), make([]byte, 19)) {
			t.Error("a secret outlives its message")
		}
	}
}

func TestDescriptorsAreClosedUnlessClaimed(t *testing.T) {
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	call := aCall("CreateHomeEx", "{}", map[string]dbus.UnixFD{"avatar": 0}, uint64(0))
	call.Headers[dbus.FieldUnixFDs] = dbus.MakeVariant(uint32(1))
	buf := encode(t, binary.LittleEndian, call)
	if m, err := parse(bytes.Clone(buf), nil); err == nil {
		t.Error("a descriptor that was announced and did not come is not missed")
		m.close()
	}
	fd, err := dup(w)
	if err != nil {
		t.Fatal(err)
	}
	w.Close()
	m, err := parse(buf, []int{fd})
	if err != nil {
		t.Fatal(err)
	}
	args, err := m.arguments()
	if err != nil {
		t.Fatal(err)
	}
	if want := (blobs{"avatar": 0}); !reflect.DeepEqual(args[1], want) {
		t.Errorf("blobs are %v", args[1])
	}
	m.close()
	if n, err := r.Read(make([]byte, 1)); n != 0 || err == nil {
		t.Error("the descriptor is still open")
	}
}

func TestUnknownHeaderFieldsAreSkipped(t *testing.T) {
	// godbus refuses to write them, so an array of fields by hand.
	type field struct {
		Code byte
		V    dbus.Variant
	}
	odd := struct {
		A map[string]dbus.Variant
		B []uint16
		C byte
		D float64
	}{map[string]dbus.Variant{"x": dbus.MakeVariant([]string{"y", "z"})}, []uint16{1, 2, 3}, 4, 5}
	fields := []field{
		{200, dbus.MakeVariant(odd)},
		{1, dbus.MakeVariant(dbus.ObjectPath("/a"))},
		{250, dbus.MakeVariant(int64(-1))},
		{3, dbus.MakeVariant("Member")},
	}
	body := aCall("X", fields)
	text := encode(t, binary.LittleEndian, body)
	_, start, err := busconn.Frame(text)
	if err != nil {
		t.Fatal(err)
	}
	// The body is now an encoded array of fields: make it a header. In both
	// places it begins 4 before a multiple of 8 once the length is put first.
	array := text[start:]
	n := binary.LittleEndian.Uint32(array)
	head := append([]byte{'l', 1, 0, 1, 0, 0, 0, 0, 9, 0, 0, 0}, array[:4]...)
	head = append(head, array[8:8+n]...)
	for len(head)%8 != 0 {
		head = append(head, 0)
	}
	m, err := parse(head, nil)
	if err != nil {
		t.Fatal(err)
	}
	if m.path != "/a" || m.member != "Member" {
		t.Errorf("header is %+v", m)
	}
}

func TestTurns(t *testing.T) {
	turns := &turns{last: map[string]chan struct{}{}}
	waits := func(c <-chan struct{}) bool {
		if c == nil {
			return false
		}
		select {
		case <-c:
			return false
		default:
			return true
		}
	}
	a1, posted1 := turns.take(":1.1")
	a2, posted2 := turns.take(":1.1")
	b1, postedB := turns.take(":1.2")
	if waits(a1) || waits(b1) || !waits(a2) {
		t.Error("a first call waits, or a second does not")
	}
	posted1()
	posted1()
	if waits(a2) {
		t.Error("the second call waits for nobody")
	}
	posted2()
	postedB()
	if len(turns.last) != 0 {
		t.Errorf("senders are remembered: %v", turns.last)
	}
}

func TestBadBodies(t *testing.T) {
	good := encode(t, binary.LittleEndian, aCall("ActivateHome", "ann", "{}"))
	for what, change := range map[string]func([]byte) []byte{
		"NUL within a string": func(b []byte) []byte { b[len(b)-3] = 0; return b },
		"no UTF-8":            func(b []byte) []byte { b[len(b)-3] = 0xff; return b },
		"string without end":  func(b []byte) []byte { b[len(b)-1] = 'x'; return b },
		"bytes left over": func(b []byte) []byte {
			binary.LittleEndian.PutUint32(b[4:], binary.LittleEndian.Uint32(b[4:])+1)
			return append(b, 0)
		},
		"length beyond the end": func(b []byte) []byte {
			_, start, _ := busconn.Frame(b)
			binary.LittleEndian.PutUint32(b[start:], 1<<31)
			return b
		},
	} {
		m, err := parse(change(bytes.Clone(good)), nil)
		if err != nil {
			t.Errorf("%s: the header is refused: %v", what, err)
			continue
		}
		if _, err := m.arguments(); err == nil {
			t.Errorf("%s: accepted", what)
		}
	}
}

func TestValidPath(t *testing.T) {
	for p, want := range map[string]bool{"/": true, "/a/b_1": true, "": false, "a": false, "/a/": false, "//": false, "/a//b": false, "/a-b": false} {
		if validPath(p) != want {
			t.Errorf("validPath(%q) is %v", p, !want)
		}
	}
}

// FuzzMessage feeds what the bus would have to be broken to deliver. What is
// accepted must mean the same to godbus.
func FuzzMessage(f *testing.F) {
	f.Add(encode(f, binary.LittleEndian, aCall("ActivateHome", "ann", "{}")))
	f.Add(encode(f, binary.BigEndian, aCall("ResizeHome", "ann", uint64(7), "{}")))
	f.Add(encode(f, binary.LittleEndian, aCall("Set", "a", "b", dbus.MakeVariant("c"))))
	f.Add(encode(f, binary.LittleEndian, aCall("Set", "a", "b", dbus.MakeVariant([]any{int32(1), "x", map[string]uint16{"y": 2}}))))
	f.Add(encode(f, binary.LittleEndian, aCall("CreateHomeEx", "{}", map[string]dbus.UnixFD{"a": 0}, uint64(0))))
	f.Fuzz(func(t *testing.T, text []byte) {
		if len(text) >= busconn.PrefixLen {
			total, body, err := busconn.Frame(text)
			if err == nil && (body > total || body < busconn.PrefixLen) {
				t.Fatalf("frame: body at %d of %d", body, total)
			}
		}
		m, err := parse(bytes.Clone(text), nil)
		if err != nil {
			return
		}
		args, err := m.arguments()
		if err != nil {
			return
		}
		theirs, err := dbus.DecodeMessage(bytes.NewReader(text))
		if err != nil {
			return // names are held to their grammar by it, and by no need of ours
		}
		if len(args) != len(theirs.Body) {
			t.Fatalf("%d arguments, theirs are %d", len(args), len(theirs.Body))
		}
		for i, a := range args {
			switch v := a.(type) {
			case []byte:
				a = string(v)
			case string:
				a = dbus.ObjectPath(v)
			case variant, blobs:
				continue
			}
			if a != theirs.Body[i] {
				t.Errorf("argument %d: ours is %v, theirs %v", i, a, theirs.Body[i])
			}
		}
	})
}

func dup(f *os.File) (int, error) { return unix.FcntlInt(f.Fd(), unix.F_DUPFD_CLOEXEC, 3) }
