package quota

import (
	"encoding/binary"
	"errors"
	"os"
	"testing"

	"hearth/internal/testenv"
)

// item is one of a search's result.
func item(id uint64, kind uint32, values ...uint64) []byte {
	le := binary.LittleEndian
	b := le.AppendUint64(nil, 7)
	b = le.AppendUint64(b, 0)
	b = le.AppendUint64(b, id)
	b = le.AppendUint32(b, kind)
	b = le.AppendUint32(b, uint32(8*len(values)))
	for _, v := range values {
		b = le.AppendUint64(b, v)
	}
	return b
}

func TestGroupOf(t *testing.T) {
	info, limit := item(258, keyInfo, 9, 4096, 4096, 0, 0), item(258, keyLimit, maxReferenced, 65536, 0, 0, 0)
	other := item(257, keyInfo, 9, 1, 1, 0, 0)
	for _, c := range []struct {
		name string
		b    [][]byte
		want Figures
		none bool
	}{
		{"both", [][]byte{info, limit}, Figures{4096, 65536}, false},
		{"no limit", [][]byte{info}, Figures{4096, 0}, false},
		{"a limit of another kind", [][]byte{info, item(258, keyLimit, 2, 0, 65536, 0, 0)}, Figures{4096, 0}, false},
		{"among others", [][]byte{other, info, other, limit}, Figures{4096, 65536}, false},
		{"nothing", nil, Figures{}, true},
		{"another's", [][]byte{other}, Figures{}, true},
		{"limit alone", [][]byte{limit}, Figures{}, true},
		{"cut short", [][]byte{info[:40]}, Figures{}, true},
	} {
		var b []byte
		for _, i := range c.b {
			b = append(b, i...)
		}
		got, err := groupOf(b, uint32(len(c.b)), 258)
		if got != c.want || (err != nil) != c.none || c.none && !errors.Is(err, ErrNone) {
			t.Errorf("%s: %+v, %v", c.name, got, err)
		}
	}
}

func TestNone(t *testing.T) {
	testenv.Need(t, "root")
	dir, err := os.Open("/proc")
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = dir.Close() }()
	if _, err := Read(dir, 1000); !errors.Is(err, ErrNone) {
		t.Errorf("read: %v", err)
	}
	if err := Limit(dir, 1000, 1<<20); !errors.Is(err, ErrNone) {
		t.Errorf("limit: %v", err)
	}
}
