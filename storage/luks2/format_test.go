package luks2

import (
	"bytes"
	"encoding/hex"
	"errors"
	"fmt"
	"math/rand/v2"
	"strings"
	"testing"
	"time"

	"crypto/aes"

	xxts "golang.org/x/crypto/xts"

	"hearth/internal/fault"
	"hearth/internal/fixture"
	"hearth/internal/secret"
)

func unhex(t *testing.T, s string) []byte {
	t.Helper()
	b, err := hex.DecodeString(s)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

// TestXTSVectors: vectors 1 and 15 to 18 of IEEE 1619-2007, annex B. The last
// four steal ciphertext.
func TestXTSVectors(t *testing.T) {
	const key15 = "fffefdfcfbfaf9f8f7f6f5f4f3f2f1f0bfbebdbcbbbab9b8b7b6b5b4b3b2b1b0"
	for _, c := range []struct{ key, iv, plain, cipher string }{
		{strings.Repeat("00", 32), "", strings.Repeat("00", 32), "917cf69ebd68b2ec9b9fe9a3eadda692cd43d2f59598ed858c02c2652fbf922e"},
		{key15, "9a78563412", "000102030405060708090a0b0c0d0e0f10", "6c1625db4671522d3d7599601de7ca09ed"},
		{key15, "9a78563412", "000102030405060708090a0b0c0d0e0f1011", "d069444b7a7e0cab09e24447d24deb1fedbf"},
		{key15, "9a78563412", "000102030405060708090a0b0c0d0e0f101112", "e5df1351c0544ba1350b3363cd8ef4beedbf9d"},
		{key15, "9a78563412", "000102030405060708090a0b0c0d0e0f10111213", "9d84c813f719aa2c7be3f66171c7c5c2edbf9dac"},
	} {
		x, err := newXTS(unhex(t, c.key))
		if err != nil {
			t.Fatal(err)
		}
		var iv block
		copy(iv[:], unhex(t, c.iv))
		b := unhex(t, c.plain)
		x.encrypt(iv, b)
		if got := hex.EncodeToString(b); got != c.cipher {
			t.Errorf("%s encrypts to %s, want %s", c.plain, got, c.cipher)
		}
		x.decrypt(iv, b)
		if got := hex.EncodeToString(b); got != c.plain {
			t.Errorf("%s decrypts to %s, want %s", c.cipher, got, c.plain)
		}
	}
}

// TestXTSSectors compares with another implementation where that can follow:
// whole blocks and sector numbers.
func TestXTSSectors(t *testing.T) {
	rng := rand.NewChaCha8([32]byte{})
	for _, n := range []int{32, 64} {
		key, data := make([]byte, n), make([]byte, 20*areaSector)
		_, _ = rng.Read(key)
		_, _ = rng.Read(data)
		other, err := xxts.NewCipher(aes.NewCipher, key)
		if err != nil {
			t.Fatal(err)
		}
		s, err := newSectors("aes-xts-plain64", key)
		if err != nil {
			t.Fatal(err)
		}
		got := bytes.Clone(data)
		s.crypt(got, true)
		for i := range 20 {
			want := make([]byte, areaSector)
			other.Encrypt(want, data[i*areaSector:][:areaSector], uint64(i))
			if !bytes.Equal(got[i*areaSector:][:areaSector], want) {
				t.Errorf("sector %d differs", i)
			}
		}
		s.crypt(got, false)
		if !bytes.Equal(got, data) {
			t.Error("does not decrypt to what it was")
		}
	}
}

// sample is the JSON text of a small container.
func sample(t testing.TB) string {
	t.Helper()
	_, h, _ := formatted(t, Params{}, cheap, `{"userName":"ann"}`, "pw")
	return string(h.meta.doc.text())
}

// TestStrictness holds the reader against the table of what cryptsetup takes
// and refuses.
func TestStrictness(t *testing.T) {
	text := sample(t)
	const ok, invalid, unsupported, unusable = "ok", "invalid", "unsupported", "unusable"
	for _, c := range []struct{ name, old, new, want string }{
		{"as written", "", "", ok},
		{"unknown top level object", `"config":`, `"x":{"y":1},"config":`, ok},
		{"unknown members", `"stripes":`, `"x":[1],"stripes":`, ok},
		{"unknown config flag", `"json_size":`, `"flags":["x"],"json_size":`, ok},
		{"no requirement", `"json_size":`, `"requirements":{"mandatory":[]},"json_size":`, ok},
		{"priority", `"key_size":32,"af"`, `"priority":2,"key_size":32,"af"`, ok},
		{"fixed size", `"size":"dynamic"`, `"size":"1048576"`, ok},

		{"no tokens", `"tokens":`, `"tokenz":`, invalid},
		{"no digests", `"digests":`, `"digestz":`, invalid},
		{"member in another case", `"segments":{`, `"Segments":{`, invalid},
		{"twice the same member", `"config":`, `"config":{},"config":`, invalid},
		{"json_size", `"json_size":"4190208"`, `"json_size":"4190207"`, invalid},
		{"json_size as number", `"json_size":"4190208"`, `"json_size":4190208`, invalid},
		{"keyslots_size", `"keyslots_size":"8388608"`, `"keyslots_size":"8388607"`, invalid},
		{"keyslots area over the data", `"keyslots_size":"8388608"`, `"keyslots_size":"8392704"`, invalid},
		{"unaligned segment", `"offset":"16777216"`, `"offset":"16777217"`, invalid},
		{"segment in the keyslots area", `"offset":"16777216"`, `"offset":"8388608"`, invalid},
		{"area in the header", `"offset":"8388608"`, `"offset":"8384512"`, invalid},
		{"area over the data", `"offset":"8388608"`, `"offset":"16773120"`, invalid},
		{"area of huge size", `"size":"131072"`, `"size":"4611686018427387900"`, invalid},
		{"area of overflowing size", `"size":"131072"`, `"size":"18446744073709551615"`, invalid},
		{"area as number", `"size":"131072"`, `"size":131072`, invalid},
		{"digest of unknown keyslot", `"keyslots":["0"]`, `"keyslots":["0","3"]`, invalid},
		{"keyslot in no digest", `"keyslots":["0"]`, `"keyslots":[]`, invalid},
		{"digest of unknown segment", `"segments":["0"]`, `"segments":["0","1"]`, invalid},
		{"no digest for the segment", `"segments":["0"]`, `"segments":[]`, invalid},
		{"token of unknown keyslot", `"keyslots":[],"record"`, `"keyslots":["9"],"record"`, invalid},
		{"token without type", `"type":"systemd-homed",`, ``, invalid},
		{"keyslot number", `"keyslots":{"0":`, `"keyslots":{"00":`, invalid},
		{"sector size", `"sector_size":512`, `"sector_size":513`, invalid},
		{"space in the cipher", `"encryption":"aes-xts-plain64","sector_size"`, `"encryption":"aes-xts-plain64 00 0 8:0 0","sector_size"`, invalid},

		{"requirement", `"json_size":`, `"requirements":{"mandatory":["online-reencrypt"]},"json_size":`, unsupported},
		{"no encryption", `"encryption":"aes-xts-plain64","sector_size"`, `"encryption":"cipher_null-ecb","sector_size"`, unsupported},
		{"integrity", `"sector_size":512`, `"sector_size":512,"integrity":{}`, unsupported},
		{"linear segment", `"type":"crypt"`, `"type":"linear"`, unsupported},

		{"keyslot type", `"type":"luks2"`, `"type":"other"`, unusable},
		{"keyslot cipher", `"encryption":"aes-xts-plain64","key_size"`, `"encryption":"twofish-xts-plain64","key_size"`, unusable},
		{"salt", `"iterations":1000,"salt":"`, `"iterations":1000,"salt":"!`, unusable},
		{"stripes", `"stripes":4000`, `"stripes":1`, unusable},
		{"stripes beyond memory", `"stripes":4000`, `"stripes":2000000000`, unusable},
		{"small area", `"size":"131072"`, `"size":"4096"`, unusable},
		{"no iterations", `"iterations":1000,"salt"`, `"iterations":0,"salt"`, unusable},
		{"too many iterations", `"iterations":1000,"salt"`, `"iterations":4294967295,"salt"`, unusable},
		{"never to be tried", `"key_size":32,"af"`, `"priority":0,"key_size":32,"af"`, unusable},
	} {
		t.Run(c.name, func(t *testing.T) {
			changed := strings.Replace(text, c.old, c.new, 1)
			if c.old != "" && changed == text {
				t.Fatalf("%s is not in the text: %s", c.old, text)
			}
			m, err := parseMetadata([]byte(changed), formatCopy)
			got := ok
			switch {
			case errors.Is(err, errFeature) || errors.Is(err, errRequirement):
				got = unsupported
			case err != nil:
				got = invalid
			default:
				h := &Header{meta: m, size: formatCopy}
				if _, _, err := h.Unlock(newDevice(), []*secret.Bytes{keep(t, "pw")}); fault.Is(err, fault.NotSupported) {
					got = unusable
				}
			}
			if got != c.want {
				t.Errorf("%s (%v), want %s", got, err, c.want)
			}
		})
	}
}

// TestTableOfFixedSize: a segment's own size bounds the table.
func TestTableOfFixedSize(t *testing.T) {
	m, err := parseMetadata([]byte(strings.NewReplacer(`"size":"dynamic"`, `"size":"1048576"`, `"iv_tweak":"0"`, `"iv_tweak":"8"`).Replace(sample(t))), formatCopy)
	if err != nil {
		t.Fatal(err)
	}
	h := &Header{meta: m, uuid: strings.ToUpper(testUUID)}
	n, params := h.Table(1<<30, 253, 1, false)
	if want := "aes-xts-plain64 :32:logon:cryptsetup:" + testUUID + "-d0 8 253:1 32768"; n != 2048 || params != want {
		t.Errorf("%d sectors, %q, want %q", n, params, want)
	}
	if n, _ := h.Table(16<<20+5000, 253, 1, false); n != 9 {
		t.Errorf("%d sectors of a short device", n)
	}
}

// TestMemoryLimit: what asks for too much memory is told apart from a wrong
// password, and does not stand in the way of another keyslot.
func TestMemoryLimit(t *testing.T) {
	d, h, vk := formatted(t, Params{}, PBKDF{Type: "argon2id", MemoryKiB: 4096, ForceIterations: 4}, "", "pw")
	if got := h.KDFMemory(); got != 4<<20 {
		t.Errorf("derivation takes %d bytes", got)
	}
	h.SetMemoryLimit(1024)
	if got := h.KDFMemory(); got != 0 {
		t.Errorf("derivation takes %d bytes below the limit", got)
	}
	pw := []*secret.Bytes{keep(t, "pw")}
	if _, _, err := h.Unlock(d, pw); !fault.Is(err, fault.NoMemory) {
		t.Errorf("above the limit: %v", err)
	}
	if _, err := h.AddKeyslot(d, vk, keep(t, "pw"), cheap); err != nil {
		t.Fatal(err)
	}
	key, n, err := h.Unlock(d, pw)
	if err != nil || n != 1 {
		t.Fatalf("beside one above the limit: %d, %v", n, err)
	}
	key.Close()
	for _, c := range []struct {
		passes, memory, threads uint64
		good                    bool
	}{
		{4, 65536, 1, true}, {1, 8, 1, true}, {64, 4 << 20, 4, true},
		{0, 65536, 1, false}, {4, 65536, 0, false}, {4, 65536, 255, false}, {4, 4<<20 + 1, 1, false}, {4, 7, 1, false}, {1 << 31, 65536, 1, false}, {65, 4 << 20, 4, false},
	} {
		k := kdf{kind: "argon2id", passes: c.passes, memory: c.memory, threads: c.threads, salt: make([]byte, 32)}
		if err := k.check(); (err == nil) != c.good {
			t.Errorf("argon2 %+v: %v", c, err)
		}
	}
}

// TestPriority: keyslots are tried by priority, then by number.
// TestStop: nobody waits for a derivation that is not wanted any more.
func TestStop(t *testing.T) {
	d, h, vk := formatted(t, Params{}, cheap, "", "pw")
	stop := make(chan struct{})
	h.StopOn(stop)
	key, _, err := h.Unlock(d, []*secret.Bytes{keep(t, "pw")})
	if err != nil {
		t.Fatal(err)
	}
	key.Close()
	for _, k := range h.meta.keyslots {
		k.kdf.iterations = 200_000_000 // minutes
	}
	time.AfterFunc(20*time.Millisecond, func() { close(stop) })
	start := time.Now()
	if _, _, err := h.Unlock(d, []*secret.Bytes{keep(t, "pw"), keep(t, "another")}); !fault.Is(err, fault.Timeout) {
		t.Errorf("unlock: %v", err)
	}
	before := h.Seqid()
	if _, err := h.AddKeyslot(d, vk, keep(t, "new"), PBKDF{Type: "pbkdf2", ForceIterations: 200_000_000}); !fault.Is(err, fault.Timeout) {
		t.Errorf("add keyslot: %v", err)
	}
	if took := time.Since(start); took > 20*time.Second {
		t.Errorf("stopped after %v", took)
	}
	if now := mustRead(t, d).Seqid(); now != before {
		t.Errorf("seqid %d, then %d", before, now)
	}
}

func TestPriority(t *testing.T) {
	_, h, _ := formatted(t, Params{}, cheap, "", "a", "b", "c", "d")
	for id, p := range map[int]int{1: 2, 2: 0} {
		h.meta.keyslots[id].priority = p
	}
	var got []int
	for _, k := range h.candidates() {
		got = append(got, k.id)
	}
	if fmt.Sprint(got) != "[1 0 3]" {
		t.Errorf("order %v", got)
	}
}

// TestChoose: what a measurement picks keeps its bounds, however the machine
// does; in the time asked for a busy one measures little. How near it comes is
// a benchmark's to say.
func TestChoose(t *testing.T) {
	if testing.Short() {
		t.Skip("measures")
	}
	for _, p := range []PBKDF{{Type: "pbkdf2", TimeMS: 50}, {Type: "pbkdf2", TimeMS: 1}, {Type: "argon2id", TimeMS: 1}, {Type: "argon2id", TimeMS: 300, MemoryKiB: 8192}, {Type: "argon2i", TimeMS: 1}} {
		p := p.withDefaults()
		k, err := p.choose(32, make([]byte, saltSize))
		if err != nil {
			t.Fatal(err)
		}
		if p.Type == "pbkdf2" {
			if k.iterations < minIterations || k.iterations > maxIterations {
				t.Errorf("%s: %d iterations", p.Type, k.iterations)
			}
			continue
		}
		least := min(uint64(p.MemoryKiB), leastMeasuredKiB)
		if k.passes < minPasses || k.memory < least || k.memory > uint64(p.MemoryKiB) {
			t.Errorf("%s in %d ms: %d passes over %d KiB, want at least %d over %d", p.Type, p.TimeMS, k.passes, k.memory, minPasses, least)
		}
	}
}

// FuzzRead puts any binary header and JSON text where a container has them,
// with the right checksum, and uses what Read accepts.
func FuzzRead(f *testing.F) {
	d, _, _ := formatted(f, Params{}, cheap, `{"userName":"ann"}`, "pw")
	seed := make([]byte, 2*binarySize)
	if _, err := d.ReadAt(seed, 0); err != nil {
		f.Fatal(err)
	}
	head, text := seed[:endChecksum], bytes.TrimRight(seed[binarySize:], "\x00")
	f.Add(head, text)
	small := bytes.Clone(head)
	copy(small[offSize:], []byte{0, 0, 0, 0, 0, 0, 0x40, 0})
	f.Add(small, bytes.Replace(text, []byte("4190208"), []byte("12288"), 1))
	f.Fuzz(func(t *testing.T, head, text []byte) { fuzzOne(t, head, text) })
}

func fuzzOne(t *testing.T, head, text []byte) {
	if len(head) > binarySize || len(text) > 1<<16 {
		return
	}
	d := fixture.NewDisk(testSize).Section(0, testSize)
	full := make([]byte, binarySize)
	copy(full, head)
	size := int64(minCopy)
	if b, err := parseBinary(full, 0, 0); err == nil {
		size = b.size
	}
	if int64(len(text)) > size-binarySize {
		return
	}
	clear(full[offChecksum:endChecksum])
	if sum, err := sumCopy("sha256", full, text, size); err == nil {
		copy(full[offChecksum:], sum)
	}
	write(t, d, full, 0)
	write(t, d, text, binarySize)
	h, err := Read(d, testSize)
	if err != nil {
		if fault.Is(err, fault.Unknown) {
			t.Errorf("no kind: %v", err)
		}
		return
	}
	if h.DataOffset() < 0 || h.SectorSize() < 512 {
		t.Errorf("payload at %d in sectors of %d", h.DataOffset(), h.SectorSize())
	}
	if _, params := h.Table(testSize, 7, 0, true); strings.Count(params, " ") > 8 || strings.ContainsAny(params, "\n\t\x00") {
		t.Errorf("table %q", params)
	}
	again, err := parseMetadata(h.meta.doc.text(), h.size)
	if err != nil {
		t.Fatalf("what was accepted is refused when written again: %v", err)
	}
	if !bytes.Equal(again.doc.text(), h.meta.doc.text()) {
		t.Errorf("not a fixed point: %s", h.meta.doc.text())
	}
	vk := keep(t, strings.Repeat("k", 32))
	_, _ = h.HomedToken(vk)
	for _, k := range h.candidates() {
		if k.kdf.iterations > 2000 || k.kdf.passes*k.kdf.memory > 1<<15 {
			return // within the bounds, but not within a fuzzer's patience
		}
	}
	if h.meta.digest.iterations > 2000 || len(h.candidates()) > 4 {
		return
	}
	if key, _, err := h.Unlock(d, []*secret.Bytes{keep(t, "pw")}); err == nil {
		key.Close()
	}
	if err := h.Repair(d); err != nil {
		t.Errorf("repair: %v", err)
	}
	if h, err := Read(d, testSize); err != nil || h.Damaged != Neither {
		t.Errorf("after repair: %v", err)
	}
}

// FuzzMetadata reaches deeper into the JSON text than FuzzRead, for less.
func FuzzMetadata(f *testing.F) {
	f.Add(sample(f))
	f.Add(strings.ReplaceAll(sample(f), `"pbkdf2","hash":"sha512","iterations":1000`, `"argon2id","time":4,"memory":32,"cpus":1`))
	f.Fuzz(func(t *testing.T, text string) {
		m, err := parseMetadata([]byte(text), formatCopy)
		if err != nil {
			return
		}
		again, err := parseMetadata(m.doc.text(), formatCopy)
		if err != nil || !bytes.Equal(again.doc.text(), m.doc.text()) {
			t.Errorf("not a fixed point: %v\n%s", err, m.doc.text())
		}
		h := &Header{meta: m, size: formatCopy, rand: rand.NewChaCha8([32]byte{})}
		for _, n := range h.Keyslots() {
			if doc, err := h.docWithoutKeyslot(n); err != nil {
				t.Errorf("without keyslot %d: %v", n, err)
			} else if _, err := parseMetadata(doc.text(), formatCopy); err != nil {
				t.Errorf("without keyslot %d: %v", n, err)
			}
		}
		k := &keyslot{id: 0, keySize: 32, size: areaSize(32), encryption: "aes-xts-plain64", areaKey: 32, afHash: "sha512",
			kdf: kdf{kind: "pbkdf2", hash: "sha512", iterations: 1000, salt: make([]byte, 32)}}
		for h.meta.keyslots[k.id] != nil {
			k.id++
		}
		if !h.place(k) {
			return
		}
		doc, err := h.docWithKeyslot(k)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := parseMetadata(doc.text(), formatCopy); err != nil {
			t.Errorf("with one more keyslot: %v\n%s", err, doc.text())
		}
	})
}

func BenchmarkRead(b *testing.B) {
	d, _, _ := formatted(b, Params{}, cheap, `{"userName":"ann"}`, "pw")
	for b.Loop() {
		if _, err := Read(d, testSize); err != nil {
			b.Fatal(err)
		}
	}
}

func BenchmarkDerive(b *testing.B) {
	for _, k := range []kdf{
		{kind: "argon2id", passes: 4, memory: 64 << 10, threads: 1},
		{kind: "pbkdf2", hash: "sha512", iterations: 100000},
		{kind: "pbkdf2", hash: "sha256", iterations: 100000},
	} {
		k.salt = make([]byte, saltSize)
		b.Run(k.kind+k.hash, func(b *testing.B) {
			for b.Loop() {
				if _, err := k.derive([]byte("passphrase"), 32); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}

func BenchmarkMerge(b *testing.B) {
	stripes, key := make([]byte, 32*afStripes), make([]byte, 32)
	for b.Loop() {
		if err := merge("sha512", stripes, key); err != nil {
			b.Fatal(err)
		}
	}
}

// TestDearKeyslots: what a keyslot costs to try is bounded, whoever wrote it.
func TestDearKeyslots(t *testing.T) {
	salt := make([]byte, saltSize)
	for _, c := range []struct {
		what    string
		areaKey int
		kdf     kdf
		usable  bool
	}{
		{"the most iterations", 64, kdf{kind: "pbkdf2", hash: "sha512", iterations: maxIterations, salt: salt}, true},
		{"too many", 64, kdf{kind: "pbkdf2", hash: "sha512", iterations: maxIterations + 1, salt: salt}, false},
		{"four pieces, each the most", 64, kdf{kind: "pbkdf2", hash: "sha1", iterations: maxIterations, salt: salt}, false},
		{"four pieces, each a quarter", 64, kdf{kind: "pbkdf2", hash: "sha1", iterations: maxIterations / 4, salt: salt}, true},
		{"a key for no cipher", 512, kdf{kind: "pbkdf2", hash: "sha512", iterations: 1000, salt: salt}, false},
		{"the same by argon2", 512, kdf{kind: "argon2id", passes: 4, memory: 32 << 10, threads: 1, salt: salt}, false},
	} {
		k := &keyslot{keySize: 64, size: areaSize(64), encryption: "aes-xts-plain64", areaKey: c.areaKey, afHash: "sha512", kdf: c.kdf}
		got, err := parseKeyslot(member{"0", k.object().text()})
		if err != nil {
			t.Errorf("%s: %v", c.what, err)
		} else if (got.unusable == nil) != c.usable {
			t.Errorf("%s: unusable for %v", c.what, got.unusable)
		}
	}
}
