package luks2

import (
	"bytes"
	"encoding/base64"
	"strings"
	"testing"

	"hearth/internal/fault"
)

// FuzzToken puts any text into the token that carries the record: as it is, as
// a stranger's image may have it, and sealed by us, which must give it back.
func FuzzToken(f *testing.F) {
	plain := sample(f)
	for _, cbc := range []bool{false, true} {
		f.Add([]byte(`{"userName":"ann"}`), []byte("0123456789abcdef"), cbc)
		f.Add(bytes.Repeat([]byte("ann"), 50), []byte("0123456789abcdef"), cbc)
		f.Add([]byte("short"), []byte("short"), cbc)
		f.Add([]byte(nil), []byte(nil), cbc)
	}
	f.Fuzz(func(t *testing.T, record, iv []byte, cbc bool) {
		if len(record) > 1<<16 || len(iv) > 1<<10 {
			return
		}
		text := plain
		if cbc {
			text = strings.ReplaceAll(text, "aes-xts-plain64", "aes-cbc-essiv:sha256")
		}
		m, err := parseMetadata([]byte(text), formatCopy)
		if err != nil {
			t.Fatal(err)
		}
		vk := keep(t, strings.Repeat("volume key bytes", 2))
		h := &Header{meta: m, size: formatCopy}
		token := object{
			{"type", quote(homedToken)}, {"keyslots", idList(nil)},
			{"record", quote(base64.StdEncoding.EncodeToString(record))}, {"iv", encoded(iv)},
		}
		if m, err = parseMetadata(m.doc.with("tokens", object{{"0", token.text()}}.text()).text(), formatCopy); err != nil {
			t.Fatal(err)
		}
		h.meta = m
		got, err := h.HomedToken(vk)
		switch {
		case err == nil && bytes.IndexByte(got, 0) >= 0:
			t.Errorf("a NUL in %q", got)
		case err != nil && !fault.Is(err, fault.Inconsistent):
			t.Errorf("no fit kind: %v", err)
		}
		if len(iv) != len(block{}) {
			return
		}
		var sealed, opened []byte
		err = vk.Use(func(key []byte) (err error) {
			if sealed, err = h.cryptRecord(key, block(iv), record, true); err != nil {
				return err
			}
			opened, err = h.cryptRecord(key, block(iv), sealed, false)
			return err
		})
		if err == nil && !bytes.Equal(opened, record) || err != nil && (cbc || len(record) >= 16) {
			t.Errorf("%q became %q, %v", record, opened, err)
		}
	})
}
