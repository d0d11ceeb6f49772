package luks2

import (
	"crypto/pbkdf2"
	"crypto/subtle"
	"encoding/binary"
	"hash"
	"reflect"
	"unsafe"
)

// derivePBKDF2 is PBKDF2 of RFC 8018 with HMAC. The library's goes through an
// HMAC whose inner and outer state it parses anew for each of the iterations,
// which takes a sixth of the time; here both states are made once and copied.
// All states are wiped, too.
func derivePBKDF2(name string, passphrase, salt []byte, iterations uint64, n int) ([]byte, error) {
	f, err := hashByName(name)
	if err != nil {
		return nil, err
	}
	h := f()
	if !plain(reflect.TypeOf(h)) {
		// The library takes a string. A conversion would leave a copy of the
		// passphrase behind; the string below ends with the call.
		return pbkdf2.Key(f, unsafe.String(unsafe.SliceData(passphrase), len(passphrase)), salt, int(iterations), n)
	}
	inner, outer := f(), f()
	startHMAC(h, inner, outer, passphrase)
	work, in, out := reflect.ValueOf(h).Elem(), reflect.ValueOf(inner).Elem(), reflect.ValueOf(outer).Elem()
	size := h.Size()
	u := make([]byte, size)
	defer func() {
		work.SetZero()
		in.SetZero()
		out.SetZero()
		clear(u)
	}()
	key := make([]byte, (n+size-1)/size*size)
	for i := 0; i*size < n; i++ {
		work.Set(in)
		h.Write(salt)
		h.Write(binary.BigEndian.AppendUint32(nil, uint32(i+1)))
		h.Sum(u[:0])
		work.Set(out)
		h.Write(u)
		h.Sum(u[:0])
		t := key[i*size:][:size]
		copy(t, u)
		for range iterations - 1 {
			work.Set(in)
			h.Write(u)
			h.Sum(u[:0])
			work.Set(out)
			h.Write(u)
			h.Sum(u[:0])
			subtle.XORBytes(t, t, u)
		}
	}
	clear(key[n:])
	return key[:n], nil
}

// startHMAC brings inner and outer to where HMAC with key begins (RFC 2104). h
// is left as it was new.
func startHMAC(h, inner, outer hash.Hash, key []byte) {
	block := make([]byte, h.BlockSize())
	defer clear(block)
	if len(key) > len(block) {
		h.Write(key)
		h.Sum(block[:0])
		h.Reset()
	} else {
		copy(block, key)
	}
	for i := range block {
		block[i] ^= 0x36
	}
	inner.Write(block)
	for i := range block {
		block[i] ^= 0x36 ^ 0x5c
	}
	outer.Write(block)
}

// plain reports whether t points to a value that an assignment copies whole.
// That is so for the hashes of the standard library that are in use, and asked
// since nothing promises it.
func plain(t reflect.Type) bool {
	return t.Kind() == reflect.Pointer && flat(t.Elem())
}

func flat(t reflect.Type) bool {
	switch t.Kind() {
	case reflect.Struct:
		for i := range t.NumField() {
			if !flat(t.Field(i).Type) {
				return false
			}
		}
		return true
	case reflect.Array:
		return flat(t.Elem())
	case reflect.Bool, reflect.Int, reflect.Int8, reflect.Int16, reflect.Int32, reflect.Int64,
		reflect.Uint, reflect.Uint8, reflect.Uint16, reflect.Uint32, reflect.Uint64:
		return true
	}
	return false
}
