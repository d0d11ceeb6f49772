package records

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"math/bits"

	"hearth/internal/fault"
)

// uidKey is the key under which user names are hashed to uids, so that a home
// gets the same uid on every machine where it is free.
var uidKey = [16]byte{0xa3, 0xb8, 0x82, 0x69, 0x9a, 0x71, 0xf7, 0xa9, 0xe0, 0x7c, 0xf6, 0xf1, 0x21, 0x69, 0xd2, 0x1e}

// HomeUID reports whether a uid is in the range that homes get.
func HomeUID(uid uint32) bool { return uid >= firstHome && uid <= lastHome }

// UIDForName returns a free uid for a home: the one that its name hashes to,
// else a random one of the range. taken asks about one uid. Fault:
// TooManyHomes when none was found.
func UIDForName(name string, taken func(uint32) bool, rand io.Reader) (uint32, error) {
	return AllocateUID(0, name, taken, rand)
}

// AllocateUID is UIDForName with a uid to try first, the owner of what is
// there already. A start outside the range is not tried.
func AllocateUID(start uint32, name string, taken func(uint32) bool, rand io.Reader) (uint32, error) {
	pick := func(n uint32) uint32 { return n%(lastHome-firstHome+1) + firstHome }
	for i := range 99 {
		uid := start
		switch i {
		case 0:
			if !HomeUID(start) {
				continue
			}
		case 1:
			uid = pick(uint32(sipHash(uidKey, []byte(name))))
		default:
			var b [4]byte
			if _, err := io.ReadFull(rand, b[:]); err != nil {
				return 0, fmt.Errorf("allocate uid: %w", err)
			}
			uid = pick(binary.LittleEndian.Uint32(b[:]))
		}
		if !taken(uid) {
			return uid, nil
		}
	}
	return 0, fault.New(fault.TooManyHomes, "allocate uid", errors.New("no free uid found"))
}

// sipHash is SipHash-2-4 (Aumasson, Bernstein 2012).
func sipHash(key [16]byte, in []byte) uint64 {
	k0, k1 := binary.LittleEndian.Uint64(key[:]), binary.LittleEndian.Uint64(key[8:])
	v0, v1, v2, v3 := k0^0x736f6d6570736575, k1^0x646f72616e646f6d, k0^0x6c7967656e657261, k1^0x7465646279746573
	round := func() {
		v0 += v1
		v1 = bits.RotateLeft64(v1, 13) ^ v0
		v0 = bits.RotateLeft64(v0, 32)
		v2 += v3
		v3 = bits.RotateLeft64(v3, 16) ^ v2
		v0 += v3
		v3 = bits.RotateLeft64(v3, 21) ^ v0
		v2 += v1
		v1 = bits.RotateLeft64(v1, 17) ^ v2
		v2 = bits.RotateLeft64(v2, 32)
	}
	last := uint64(len(in)) << 56
	for len(in) >= 8 {
		m := binary.LittleEndian.Uint64(in)
		v3 ^= m
		round()
		round()
		v0 ^= m
		in = in[8:]
	}
	for i, c := range in {
		last |= uint64(c) << (8 * i)
	}
	v3 ^= last
	round()
	round()
	v0 ^= last
	v2 ^= 0xff
	for range 4 {
		round()
	}
	return v0 ^ v1 ^ v2 ^ v3
}
