package luks2

import (
	"bytes"
	"crypto/aes"
	"crypto/cipher"
	"encoding/base64"
	"errors"
	"fmt"
	"io"
	"strings"

	"hearth/internal/fault"
	"hearth/internal/secret"
)

// homedToken is the type of the token that carries a user record, encrypted
// with the volume key by the cipher of the payload:
//
//	{"type":"systemd-homed","keyslots":[],"record":BASE64,"iv":BASE64}
//
// With XTS the whole text is one data unit and iv the tweak before encryption;
// with CBC it has PKCS#7 padding. What follows the chaining mode in the name of
// the mode (plain64, essiv) does not apply.
const homedToken = "systemd-homed"

// homedTokens returns the numbers of the tokens that carry a record. The walk
// ends at the first unused number, as that of every other reader.
func (h *Header) homedTokens() []int {
	var list []int
	for n := range maxID {
		t, ok := h.meta.tokens[n]
		if !ok {
			break
		}
		if t.kind == homedToken {
			list = append(list, n)
		}
	}
	return list
}

// HomedToken returns the user record that the header carries, as JSON text.
// What it says is not checked. Fault: Inconsistent if there is none, or none
// that volumeKey decrypts; NotSupported for a cipher that is not known here.
func (h *Header) HomedToken(volumeKey *secret.Bytes) (record []byte, err error) {
	const op = "read record in LUKS2 header"
	list := h.homedTokens()
	if len(list) == 0 {
		return nil, fault.New(fault.Inconsistent, op, errors.New("no token of type "+homedToken))
	}
	r := reader{o: h.meta.tokens[list[0]].body, what: fmt.Sprintf("token %d", list[0])}
	record, iv := r.bin("record"), r.bin("iv")
	if r.err != nil {
		return nil, fault.New(fault.Inconsistent, op, r.err)
	}
	if len(iv) != aes.BlockSize {
		return nil, fault.New(fault.Inconsistent, op, fmt.Errorf("%s: iv of %d bytes", r.what, len(iv)))
	}
	err = volumeKey.Use(func(key []byte) error {
		var err error
		record, err = h.cryptRecord(key, block(iv), record, false)
		return err
	})
	if err != nil {
		kind := fault.Inconsistent
		if errors.Is(err, errFeature) {
			kind = fault.NotSupported
		}
		return nil, fault.New(kind, op, err)
	}
	if bytes.IndexByte(record, 0) >= 0 {
		return nil, fault.New(fault.Inconsistent, op, errors.New("NUL in the record"))
	}
	return record, nil
}

// SetHomedToken puts record, a JSON text, into the header's token in place of
// the one there; further ones are dropped. Faults: NoDiskSpace if it does not
// fit, and those of CheckKey.
func (h *Header) SetHomedToken(d Device, volumeKey *secret.Bytes, record []byte) error {
	const op = "write record to LUKS2 header"
	if err := h.CheckKey(volumeKey); err != nil {
		return err
	}
	if bytes.IndexByte(record, 0) >= 0 {
		return fault.New(fault.InvalidArgs, op, errors.New("NUL in the record"))
	}
	var iv block
	if _, err := io.ReadFull(h.rand, iv[:]); err != nil {
		return fmt.Errorf("draw iv: %w", err)
	}
	var sealed []byte
	err := volumeKey.Use(func(key []byte) error {
		var err error
		sealed, err = h.cryptRecord(key, iv, record, true)
		return err
	})
	if err != nil {
		return fault.New(fault.NotSupported, op, err)
	}
	tokens, err := parseObject(h.meta.doc.get("tokens"))
	if err != nil {
		return err
	}
	list := h.homedTokens()
	if len(list) == 0 {
		n := 0
		for h.meta.tokens[n].kind != "" {
			n++
		}
		if n >= maxID {
			return fault.New(fault.NoDiskSpace, op, errors.New("all tokens are in use"))
		}
		list = []int{n}
	}
	for _, n := range list[1:] {
		tokens = tokens.without(slotName(n))
	}
	tokens = tokens.with(slotName(list[0]), object{
		{"type", quote(homedToken)},
		{"keyslots", idList(nil)},
		{"record", quote(base64.StdEncoding.EncodeToString(sealed))},
		{"iv", encoded(iv[:])},
	}.text())
	return h.rewrite(d, func() error { return h.commit(d, h.meta.doc.with("tokens", tokens.text())) })
}

var errPadding = errors.New("the record does not decrypt")

// cryptRecord returns a new slice.
func (h *Header) cryptRecord(key []byte, iv block, in []byte, encrypt bool) ([]byte, error) {
	name, mode, _ := h.Cipher()
	mode, _, _ = strings.Cut(mode, "-")
	if name != "aes" || mode != "xts" && mode != "cbc" {
		return nil, fmt.Errorf("record encrypted with %s-%s: %w", name, mode, errFeature)
	}
	if mode == "xts" {
		x, err := newXTS(key)
		if err != nil {
			return nil, err
		}
		if len(in) < aes.BlockSize {
			return nil, fmt.Errorf("record of %d bytes", len(in))
		}
		out := bytes.Clone(in)
		if encrypt {
			x.encrypt(iv, out)
		} else {
			x.decrypt(iv, out)
		}
		return out, nil
	}
	c, err := aes.NewCipher(key)
	if err != nil {
		return nil, fmt.Errorf("aes-cbc with %d bytes of key: %w", len(key), errFeature)
	}
	if encrypt {
		pad := aes.BlockSize - len(in)%aes.BlockSize
		out := append(bytes.Clone(in), bytes.Repeat([]byte{byte(pad)}, pad)...)
		cipher.NewCBCEncrypter(c, iv[:]).CryptBlocks(out, out)
		return out, nil
	}
	if len(in) == 0 || len(in)%aes.BlockSize != 0 {
		return nil, errPadding
	}
	out := bytes.Clone(in)
	cipher.NewCBCDecrypter(c, iv[:]).CryptBlocks(out, out)
	pad := int(out[len(out)-1])
	if pad < 1 || pad > aes.BlockSize || !bytes.HasSuffix(out, bytes.Repeat([]byte{byte(pad)}, pad)) {
		return nil, errPadding
	}
	return out[:len(out)-pad], nil
}
