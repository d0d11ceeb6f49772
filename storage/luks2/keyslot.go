package luks2

import (
	"crypto/subtle"
	"encoding/binary"
	"errors"
	"fmt"
	"hash"
	"io"
	"slices"
	"time"

	"hearth/internal/fault"
	"hearth/internal/secret"
	"hearth/internal/trace"
)

const afStripes = 4000

// materialSize is how many bytes of an area the split key of n bytes takes,
// whole sectors.
func materialSize(n int) int64 {
	return (int64(n)*afStripes + areaSector - 1) / areaSector * areaSector
}

// areaSize is the size of an area for a key of n bytes.
func areaSize(n int) int64 { return (int64(n)*afStripes + 4095) / 4096 * 4096 }

// diffuser spreads every bit of a stripe over all of it: each piece of the
// hash's length becomes the hash of its number and itself. (LUKS1 on-disk
// format specification, AF-splitter.)
type diffuser struct {
	h   hash.Hash
	sum []byte
	n   [4]byte // the number of a piece; a local one would be allocated each time
}

func newDiffuser(name string) (*diffuser, error) {
	f, err := hashByName(name)
	if err != nil {
		return nil, err
	}
	h := f()
	return &diffuser{h: h, sum: make([]byte, 0, h.Size())}, nil
}

func (d *diffuser) diffuse(b []byte) {
	for i := uint32(0); len(b) > 0; i++ {
		piece := b[:min(len(b), d.h.Size())]
		b = b[len(piece):]
		binary.BigEndian.PutUint32(d.n[:], i)
		d.h.Reset()
		d.h.Write(d.n[:])
		d.h.Write(piece)
		copy(piece, d.h.Sum(d.sum))
	}
}

func (d *diffuser) wipe() { clear(d.sum[:cap(d.sum)]) }

// split spreads key over the stripes in out, which has afStripes times its
// length and holds random bytes.
func split(hashName string, key, out []byte) error {
	d, err := newDiffuser(hashName)
	if err != nil {
		return err
	}
	defer d.wipe()
	n := len(key)
	acc := make([]byte, n)
	defer clear(acc)
	for i := range afStripes - 1 {
		subtle.XORBytes(acc, acc, out[i*n:][:n])
		d.diffuse(acc)
	}
	last := out[(afStripes-1)*n:][:n]
	copy(last, key)
	subtle.XORBytes(last, last, acc)
	return nil
}

// merge gathers the key that stripes were split from into key.
func merge(hashName string, stripes, key []byte) error {
	d, err := newDiffuser(hashName)
	if err != nil {
		return err
	}
	defer d.wipe()
	n := len(key)
	clear(key)
	for i := range afStripes - 1 {
		subtle.XORBytes(key, key, stripes[i*n:][:n])
		d.diffuse(key)
	}
	subtle.XORBytes(key, key, stripes[(afStripes-1)*n:][:n])
	return nil
}

// candidates returns the keyslots that can hold the volume key and are meant to
// be tried, in the order of trying.
func (h *Header) candidates() []*keyslot {
	var list []*keyslot
	for _, n := range h.meta.digest.keyslots {
		if k := h.meta.keyslots[n]; k.unusable == nil && k.priority > 0 && n < maxID {
			list = append(list, k)
		}
	}
	slices.SortStableFunc(list, func(a, b *keyslot) int { return b.priority - a.priority })
	return list
}

// Unlock tries each passphrase on each keyslot and returns the volume key, which
// the caller closes, and the number of the keyslot that gave it. The key has
// met the digest. Faults: BadPassword if no keyslot opens; NoMemory if none
// does and one was left out for the memory it asks for; NotSupported if there
// is no keyslot that this package could try; Timeout if it was stopped.
func (h *Header) Unlock(d io.ReaderAt, passphrases []*secret.Bytes) (volumeKey *secret.Bytes, slot int, err error) {
	const op = "open keyslot"
	slots := h.candidates()
	if len(slots) == 0 {
		return nil, -1, fault.New(fault.NotSupported, op, h.whyNoSlot())
	}
	if h.meta.digest.unusable != nil {
		return nil, -1, fault.New(fault.NotSupported, op, h.meta.digest.unusable)
	}
	var tooMuch, broken error
	for _, p := range passphrases {
		for _, k := range slots {
			if k.kdf.memory > h.limit() {
				tooMuch = fmt.Errorf("keyslot %d asks for %d KiB of memory, %d allowed", k.id, k.kdf.memory, h.limit())
				continue
			}
			key, err := h.open(d, k, p)
			switch {
			case err == nil:
				return key, k.id, nil
			case errors.Is(err, errWrongKey):
			case errors.Is(err, secret.ErrClosed), fault.Is(err, fault.IOError), fault.Is(err, fault.Timeout):
				return nil, -1, err
			default:
				// Another keyslot may still open.
				broken = errors.Join(broken, err)
			}
		}
	}
	if tooMuch != nil {
		e := fault.New(fault.NoMemory, op, tooMuch)
		e.Text = "The key derivation of the home needs more memory than this machine allows."
		return nil, -1, e
	}
	if broken != nil && errors.Is(broken, errFeature) {
		return nil, -1, fault.New(fault.NotSupported, op, broken)
	}
	return nil, -1, fault.New(fault.BadPassword, op, broken)
}

func (h *Header) whyNoSlot() error {
	err := errors.New("the container has no keyslot to try")
	for _, n := range h.meta.digest.keyslots {
		err = errors.Join(err, h.meta.keyslots[n].unusable)
	}
	return err
}

func (h *Header) open(d io.ReaderAt, k *keyslot, passphrase *secret.Bytes) (*secret.Bytes, error) {
	derived, err := h.derive(k, passphrase)
	if err != nil {
		return nil, err
	}
	defer clear(derived)
	c, err := newSectors(k.encryption, derived)
	if err != nil {
		return nil, fmt.Errorf("keyslot %d: %w", k.id, err)
	}
	material := make([]byte, materialSize(k.keySize))
	defer clear(material)
	release, err := lock(d, false)
	if err != nil {
		return nil, err
	}
	err = readFull(d, material, k.offset)
	release()
	if err != nil {
		return nil, fault.New(fault.IOError, fmt.Sprintf("read keyslot %d", k.id), err)
	}
	c.crypt(material, false)
	key, err := secret.New(k.keySize)
	if err != nil {
		return nil, err
	}
	err = key.Use(func(b []byte) error {
		if err := merge(k.afHash, material, b); err != nil {
			return err
		}
		ok, err := h.matches(b)
		if err == nil && !ok {
			return errWrongKey
		}
		if err == nil {
			h.verified = fingerprint(b)
		}
		return err
	})
	if err != nil {
		key.Close()
		return nil, err
	}
	return key, nil
}

// derive returns the key of the area of k, which the caller wipes. Where it is
// stopped the derivation goes on by itself, since nothing can interrupt it, with
// a copy of the passphrase of its own; both that and the key are wiped then.
func (h *Header) derive(k *keyslot, passphrase *secret.Bytes) ([]byte, error) {
	own, err := passphrase.Clone()
	if err != nil {
		return nil, err
	}
	var key []byte
	done := make(chan error, 1)
	ended := h.work(trace.KDF)
	go func() {
		defer ended()
		defer own.Close()
		done <- own.Use(func(p []byte) (err error) {
			key, err = k.kdf.derive(p, k.areaKey)
			return err
		})
	}()
	select {
	case err := <-done:
		return key, err
	case <-h.stop:
		go func() {
			<-done
			clear(key)
		}()
		return nil, fault.New(fault.Timeout, "derive key", errors.New("asked to stop"))
	}
}

// AddKeyslot makes passphrase open the container too and returns the number of
// its keyslot, the lowest that is free. A crash in between leaves the header as
// it was. Faults: BadPassword if volumeKey is not the container's, NoDiskSpace
// if no keyslot or no area is free, Timeout if it was stopped.
func (h *Header) AddKeyslot(d Device, volumeKey, passphrase *secret.Bytes, p PBKDF) (int, error) {
	op := "add keyslot"
	if err := h.CheckKey(volumeKey); err != nil {
		return -1, err
	}
	p = p.withDefaults()
	id := 0
	for h.meta.keyslots[id] != nil {
		id++
	}
	k := &keyslot{id: id, keySize: volumeKey.Len(), priority: 1, size: areaSize(volumeKey.Len()),
		encryption: h.meta.segment.encryption, areaKey: volumeKey.Len(), afHash: p.Hash}
	if id >= maxID || !h.place(k) {
		e := fault.New(fault.NoDiskSpace, op, nil)
		e.Text = "No keyslot is free in the header of the home."
		return -1, e
	}
	salt := make([]byte, saltSize)
	if _, err := io.ReadFull(h.rand, salt); err != nil {
		return -1, fmt.Errorf("draw salt: %w", err)
	}
	var err error
	if k.kdf, err = p.choose(k.areaKey, salt); err != nil {
		return -1, fault.New(fault.NotSupported, op, err)
	}
	begin := time.Now()
	material, err := h.seal(k, volumeKey, passphrase)
	if err != nil {
		return -1, err
	}
	if p.ForceIterations == 0 {
		p.Costs.check(p.question(k.areaKey), time.Since(begin))
	}
	doc, err := h.docWithKeyslot(k)
	if err != nil {
		return -1, err
	}
	err = h.rewrite(d, func() error {
		// The area before the metadata that refers to it: until that is written,
		// it is garbage in a free place.
		if err := writeSync(d, material, k.offset); err != nil {
			return fault.New(fault.IOError, fmt.Sprintf("write keyslot %d", id), err)
		}
		return h.commit(d, doc)
	})
	if err != nil {
		return -1, err
	}
	return id, nil
}

// seal returns the content of the area of k: volumeKey split and encrypted.
func (h *Header) seal(k *keyslot, volumeKey, passphrase *secret.Bytes) ([]byte, error) {
	derived, err := h.derive(k, passphrase)
	if err != nil {
		return nil, err
	}
	defer clear(derived)
	c, err := newSectors(k.encryption, derived)
	if err != nil {
		return nil, fault.New(fault.NotSupported, "add keyslot", err)
	}
	material := make([]byte, materialSize(k.keySize), k.size)
	stripes := material[:k.keySize*afStripes]
	if _, err := io.ReadFull(h.rand, stripes); err != nil {
		return nil, fmt.Errorf("draw stripes: %w", err)
	}
	err = volumeKey.Use(func(key []byte) error { return split(k.afHash, key, stripes) })
	if err != nil {
		clear(material)
		return nil, fault.New(fault.NotSupported, "add keyslot", err)
	}
	c.crypt(material, true)
	return material, nil
}

// place finds the first gap in the keyslots area for k.
func (h *Header) place(k *keyslot) bool {
	list := make([]*keyslot, 0, len(h.meta.keyslots))
	for _, o := range h.meta.keyslots {
		list = append(list, o)
	}
	slices.SortFunc(list, func(a, b *keyslot) int { return int(min(max(a.offset-b.offset, -1), 1)) })
	at := 2 * h.size
	for _, o := range list {
		if o.offset-at >= k.size {
			break
		}
		at = max(at, (o.offset+o.size+4095)/4096*4096)
	}
	k.offset = at
	return at+k.size <= 2*h.size+h.meta.areas
}

func (k *keyslot) object() object {
	return object{
		{"type", quote("luks2")},
		{"key_size", number(uint64(k.keySize))},
		{"af", object{
			{"type", quote("luks1")},
			{"stripes", number(afStripes)},
			{"hash", quote(k.afHash)},
		}.text()},
		{"area", object{
			{"type", quote("raw")},
			{"offset", numberString(uint64(k.offset))},
			{"size", numberString(uint64(k.size))},
			{"encryption", quote(k.encryption)},
			{"key_size", number(uint64(k.areaKey))},
		}.text()},
		{"kdf", k.kdf.object().text()},
	}
}

func (h *Header) docWithKeyslot(k *keyslot) (object, error) {
	slots, err := parseObject(h.meta.doc.get("keyslots"))
	if err != nil {
		return nil, err
	}
	doc := h.meta.doc.with("keyslots", slots.with(slotName(k.id), k.object().text()).text())
	ids := append(h.Keyslots(), k.id)
	slices.Sort(ids)
	return inner(doc, "digests", slotName(h.meta.digest.id), func(o object) object {
		return o.with("keyslots", idList(ids))
	})
}

// inner returns doc with the object doc.GROUP.NAME changed by f.
func inner(doc object, group, name string, f func(object) object) (object, error) {
	g, err := parseObject(doc.get(group))
	if err != nil {
		return nil, err
	}
	o, err := parseObject(g.get(name))
	if err != nil {
		return nil, err
	}
	return doc.with(group, g.with(name, f(o).text()).text()), nil
}

// RemoveKeyslot destroys the key material of keyslot n, then forgets the
// keyslot. A crash in between leaves a keyslot that opens nothing. It refuses
// to destroy the last way to the volume key (InvalidArgs).
func (h *Header) RemoveKeyslot(d Device, n int) error {
	op := fmt.Sprintf("remove keyslot %d", n)
	k := h.meta.keyslots[n]
	if k == nil {
		return fault.New(fault.InvalidArgs, op, errors.New("there is no such keyslot"))
	}
	left := h.Keyslots()
	left = slices.DeleteFunc(left, func(o int) bool { return o == n })
	if len(left) == 0 {
		return fault.New(fault.InvalidArgs, op, errors.New("no other keyslot holds the volume key"))
	}
	doc, err := h.docWithoutKeyslot(n)
	if err != nil {
		return err
	}
	return h.rewrite(d, func() error {
		noise := make([]byte, min(k.size, 1<<20))
		for at := int64(0); at < k.size; at += int64(len(noise)) {
			noise = noise[:min(int64(len(noise)), k.size-at)]
			if _, err := io.ReadFull(h.rand, noise); err != nil {
				return fmt.Errorf("draw random bytes: %w", err)
			}
			if _, err := d.WriteAt(noise, k.offset+at); err != nil {
				return fault.New(fault.IOError, op, err)
			}
		}
		if err := d.Sync(); err != nil {
			return fault.New(fault.IOError, op, err)
		}
		return h.commit(d, doc)
	})
}

// docWithoutKeyslot drops keyslot n and every mention of it. Every digest and
// token may mention it, whatever their types.
func (h *Header) docWithoutKeyslot(n int) (object, error) {
	slots, err := parseObject(h.meta.doc.get("keyslots"))
	if err != nil {
		return nil, err
	}
	doc := h.meta.doc.with("keyslots", slots.without(slotName(n)).text())
	for _, group := range []string{"digests", "tokens"} {
		g, err := parseObject(doc.get(group))
		if err != nil {
			return nil, err
		}
		for _, m := range slices.Clone(g) {
			o, err := parseObject(m.value)
			if err != nil {
				return nil, err
			}
			r := reader{o: o, what: group}
			ids := r.ids("keyslots")
			if r.err != nil {
				return nil, r.err
			}
			if i := slices.Index(ids, n); i >= 0 {
				g = g.with(m.name, o.with("keyslots", idList(slices.Delete(ids, i, i+1))).text())
			}
		}
		doc = doc.with(group, g.text())
	}
	return doc, nil
}
