package luks2

import (
	"bytes"
	"fmt"
	"os"
	"os/exec"
	"slices"
	"strings"
	"testing"

	luks "github.com/anatol/luks.go"

	"hearth/internal/fault"
	"hearth/internal/fixture"
	"hearth/internal/secret"
	"hearth/internal/testenv"
)

const (
	testSize = 18 << 20 // a container with 2 MiB of payload
	testUUID = "5c1f6a9e-2b77-4f0c-9d1a-6b8f0e3c2d41"
)

// cheap is the cheapest derivation that is allowed.
var cheap = PBKDF{Type: "pbkdf2", Hash: "sha512", ForceIterations: 1000}

func newDevice() *fixture.Section { return fixture.NewDisk(testSize).Section(0, testSize) }

// formatted is a new container with the passphrases given and a record.
func formatted(t testing.TB, p Params, kdf PBKDF, record string, passphrases ...string) (*fixture.Section, *Header, *secret.Bytes) {
	t.Helper()
	d := newDevice()
	if p.KeySize == 0 {
		p.KeySize = 32
	}
	p.Label, p.UUID, p.PBKDF = "ann", testUUID, cheap
	vk := keep(t, strings.Repeat("volume key bytes", 4)[:p.KeySize])
	h, err := Format(d, p, vk)
	if err != nil {
		t.Fatal(err)
	}
	for i, s := range passphrases {
		n, err := h.AddKeyslot(d, vk, keep(t, s), kdf)
		if err != nil || n != i {
			t.Fatalf("add keyslot: %d, %v", n, err)
		}
	}
	if record != "" {
		if err := h.SetHomedToken(d, vk, []byte(record)); err != nil {
			t.Fatal(err)
		}
	}
	return d, h, vk
}

var variants = []struct {
	name   string
	params Params
	kdf    PBKDF
}{
	{"pbkdf2", Params{}, cheap},
	{"pbkdf2-sha256", Params{Hash: "sha256"}, PBKDF{Type: "pbkdf2", Hash: "sha256", ForceIterations: 2000}},
	{"argon2id", Params{}, PBKDF{Type: "argon2id", MemoryKiB: 1024, ForceIterations: 4, Threads: 2}},
	{"argon2i", Params{}, PBKDF{Type: "argon2i", MemoryKiB: 512, ForceIterations: 4}},
	{"aes-256-xts-4k", Params{KeySize: 64, SectorSize: 4096}, cheap},
	{"cbc-essiv", Params{Mode: "cbc-essiv:sha256", Hash: "sha256"}, PBKDF{Type: "pbkdf2", Hash: "sha256", ForceIterations: 1000}},
}

// TestWrite writes containers and has three readers open them: our own,
// cryptsetup, and luks.go.
func TestWrite(t *testing.T) {
	for _, v := range variants {
		t.Run(v.name, func(t *testing.T) {
			t.Parallel()
			const record = `{"userName":"ann","lastChangeUSec":18446744073709551615}`
			d, h, vk := formatted(t, v.params, v.kdf, record, "first", "sécond")
			if h.Seqid() != 3+2 {
				t.Errorf("seqid %d after two keyslots and a token", h.Seqid())
			}
			again := mustRead(t, d)
			if again.Damaged != Neither || again.Seqid() != h.Seqid() || again.Label() != "ann" || again.UUID() != testUUID || again.SectorSize() != h.SectorSize() {
				t.Errorf("read back: %+v", again)
			}
			for i, s := range []string{"first", "sécond"} {
				key, n, err := again.Unlock(d, []*secret.Bytes{keep(t, "no"), keep(t, s)})
				if err != nil || n != i || !key.Equal(vk) {
					t.Errorf("%q: keyslot %d, %v", s, n, err)
				}
				key.Close()
			}
			if got, err := again.HomedToken(vk); err != nil || string(got) != record {
				t.Errorf("record %q, %v", got, err)
			}
			if err := again.CheckKey(vk); err != nil {
				t.Error(err)
			}
			wrong := keep(t, strings.Repeat("x", vk.Len()))
			if err := mustRead(t, d).CheckKey(wrong); !fault.Is(err, fault.BadPassword) {
				t.Errorf("wrong volume key: %v", err)
			}

			path := file(t, d)
			t.Run("cryptsetup", func(t *testing.T) {
				cryptsetup(t, "", "isLuks", path)
				dump := cryptsetup(t, "", "luksDump", path)
				for _, want := range []string{testUUID, "systemd-home", "Label:         \tann\n", "systemd-homed"} {
					if !strings.Contains(dump, want) {
						t.Errorf("luksDump lacks %q:\n%s", want, dump)
					}
				}
				cryptsetup(t, "first", "open", "--test-passphrase", "--key-file=-", "--key-slot=0", path)
				cryptsetup(t, "sécond", "open", "--test-passphrase", "--key-file=-", "--key-slot=1", path)
				if _, err := try("wrong", "open", "--test-passphrase", "--key-file=-", path); err == nil {
					t.Error("a wrong passphrase opens")
				}
			})
			t.Run("luks.go", func(t *testing.T) {
				if strings.Contains(v.name, "cbc") {
					t.Skip("luks.go knows no CBC")
				}
				dev, err := luks.Open(path)
				if err != nil {
					t.Fatal(err)
				}
				defer dev.Close()
				if _, err := dev.UnsealVolume(0, []byte("first")); err != nil {
					t.Errorf("keyslot 0: %v", err)
				}
				if _, err := dev.UnsealVolume(1, []byte("sécond")); err != nil {
					t.Errorf("keyslot 1: %v", err)
				}
			})
		})
	}
}

// try runs cryptsetup with input on its standard input.
func try(input string, args ...string) (string, error) {
	cmd := exec.Command("env", append([]string{"LC_ALL=C", "PATH=/usr/sbin:/sbin:/usr/bin:/bin", "cryptsetup", "--batch-mode"}, args...)...)
	cmd.Stdin = strings.NewReader(input)
	out, err := cmd.CombinedOutput()
	return string(out), err
}

func cryptsetup(t *testing.T, input string, args ...string) string {
	t.Helper()
	testenv.Need(t, "cryptsetup")
	out, err := try(input, args...)
	if err != nil {
		t.Fatalf("cryptsetup %q: %v\n%s", args, err, out)
	}
	return out
}

// readFile is the container in a file, after a program changed it.
func readFile(t *testing.T, path string) *fixture.Section {
	t.Helper()
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	d := fixture.NewDisk(int64(len(b)))
	if _, err := d.WriteAt(b, 0); err != nil {
		t.Fatal(err)
	}
	return d.Section(0, d.Size())
}

// TestCryptsetupRepairs: cryptsetup brings back either copy that we wrote, and
// we bring back either copy so that cryptsetup is content.
func TestCryptsetupRepairs(t *testing.T) {
	testenv.Need(t, "cryptsetup")
	d, h, _ := formatted(t, Params{}, cheap, `{"userName":"ann"}`, "first")
	older := bytes.Clone(must(t, d, 0, 8<<20))
	// One more write leaves copies with the lower seqid in older.
	if _, err := h.AddKeyslot(d, keep(t, "volume key bytesvolume key bytes"), keep(t, "second"), cheap); err != nil {
		t.Fatal(err)
	}
	for name, c := range map[string]struct {
		copy   Copy
		damage func(d Device)
	}{
		"primary checksum":   {Primary, func(d Device) { write(t, d, []byte{1}, offChecksum) }},
		"primary zeroed":     {Primary, func(d Device) { write(t, d, make([]byte, 4096), 0) }},
		"primary older":      {Primary, func(d Device) { write(t, d, older[:4<<20], 0) }},
		"secondary checksum": {Secondary, func(d Device) { write(t, d, []byte{1}, 4<<20+offChecksum) }},
		"secondary zeroed":   {Secondary, func(d Device) { write(t, d, make([]byte, 4096), 4<<20) }},
		"secondary older":    {Secondary, func(d Device) { write(t, d, older[4<<20:], 4<<20) }},
	} {
		t.Run(name, func(t *testing.T) {
			theirs, ours := copyOf(t, d), copyOf(t, d)
			c.damage(theirs)
			c.damage(ours)
			path := file(t, theirs)
			cryptsetup(t, "", "repair", path)
			back := readFile(t, path)
			if h := mustRead(t, back); h.Damaged != Neither || h.Seqid() != 5 {
				t.Errorf("after cryptsetup repair: damaged %v, seqid %d", h.Damaged, h.Seqid())
			}

			h := mustRead(t, ours)
			if h.Damaged != c.copy {
				t.Fatalf("damaged is %v", h.Damaged)
			}
			if err := h.Repair(ours); err != nil {
				t.Fatal(err)
			}
			path = file(t, ours)
			before, err := os.ReadFile(path)
			if err != nil {
				t.Fatal(err)
			}
			cryptsetup(t, "second", "open", "--test-passphrase", "--key-file=-", path)
			cryptsetup(t, "", "repair", path)
			after, err := os.ReadFile(path)
			if err != nil {
				t.Fatal(err)
			}
			if !bytes.Equal(before, after) {
				t.Error("cryptsetup found something left to repair")
			}
		})
	}
}

func must(t *testing.T, d *fixture.Section, at, n int64) []byte {
	t.Helper()
	b := make([]byte, n)
	if _, err := d.ReadAt(b, at); err != nil {
		t.Fatal(err)
	}
	return b
}

func copyOf(t *testing.T, d *fixture.Section) *fixture.Section {
	t.Helper()
	c := fixture.NewDisk(d.Size())
	write(t, c, must(t, d, 0, d.Size()), 0)
	return c.Section(0, c.Size())
}

// TestCryptsetupWrites: cryptsetup adds and kills keyslots beside ours, and we
// go on from what it left.
func TestCryptsetupWrites(t *testing.T) {
	testenv.Need(t, "cryptsetup")
	const record = `{"userName":"ann"}`
	d, _, vk := formatted(t, Params{}, cheap, record, "first")
	path := file(t, d)
	second := path + ".second"
	if err := os.WriteFile(second, []byte("second"), 0o600); err != nil {
		t.Fatal(err)
	}
	cryptsetup(t, "first", "luksAddKey", "--key-file=-", "--pbkdf=argon2id", "--pbkdf-force-iterations=4", "--pbkdf-memory=1024", path, second)
	cryptsetup(t, `{"type":"foreign","keyslots":["1"],"big":18446744073709551615,"a":{"<b>":[1.50]}}`, "token", "import", "--token-id=1", path)

	d = readFile(t, path)
	h := mustRead(t, d)
	key, n, err := h.Unlock(d, []*secret.Bytes{keep(t, "second")})
	if err != nil || n != 1 || !key.Equal(vk) {
		t.Fatalf("its keyslot: %d, %v", n, err)
	}
	key.Close()
	if n, err = h.AddKeyslot(d, vk, keep(t, "third"), cheap); err != nil || n != 2 {
		t.Fatalf("add beside it: %d, %v", n, err)
	}
	if err := h.RemoveKeyslot(d, 1); err != nil {
		t.Fatal(err)
	}
	if text := string(h.meta.doc.text()); !strings.Contains(text, `"big":18446744073709551615`) || !strings.Contains(text, `"1":{"type":"foreign","keyslots":[]`) {
		t.Errorf("the foreign token is now: %s", text)
	}

	path = file(t, d)
	cryptsetup(t, "first", "luksKillSlot", "--key-file=-", path, "2")
	cryptsetup(t, "first", "open", "--test-passphrase", "--key-file=-", path)
	if _, err := try("third", "open", "--test-passphrase", "--key-file=-", path); err == nil {
		t.Error("the killed keyslot opens")
	}
	d = readFile(t, path)
	h = mustRead(t, d)
	if !slices.Equal(h.Keyslots(), []int{0}) {
		t.Errorf("keyslots %v", h.Keyslots())
	}
	if got, err := h.HomedToken(vk); err != nil || string(got) != record {
		t.Errorf("record %q, %v", got, err)
	}
}

// TestCryptsetupBackup: cryptsetup keeps a copy of our header and puts it back
// over a container that has none any more, where we open it.
func TestCryptsetupBackup(t *testing.T) {
	testenv.Need(t, "cryptsetup")
	const record = `{"userName":"ann"}`
	d, h, vk := formatted(t, Params{}, cheap, record, "first", "second")
	path := file(t, d)
	backup := path + ".backup"
	cryptsetup(t, "", "luksHeaderBackup", "--header-backup-file="+backup, path)
	lost := copyOf(t, d)
	write(t, lost, make([]byte, 16<<20), 0)
	if _, err := Read(lost, lost.Size()); !fault.Is(err, fault.NotAnImage) {
		t.Fatalf("a container without header: %v", err)
	}
	path = file(t, lost)
	cryptsetup(t, "", "luksHeaderRestore", "--batch-mode", "--header-backup-file="+backup, path)
	back := readFile(t, path)
	again := mustRead(t, back)
	if again.Damaged != Neither || again.Seqid() != h.Seqid() || again.UUID() != h.UUID() {
		t.Errorf("it has come back as %s, seqid %d, damaged %v", again.UUID(), again.Seqid(), again.Damaged)
	}
	for i, pw := range []string{"first", "second"} {
		key, n, err := again.Unlock(back, []*secret.Bytes{keep(t, pw)})
		if err != nil || n != i || !key.Equal(vk) {
			t.Fatalf("%s: keyslot %d, %v", pw, n, err)
		}
		key.Close()
	}
	if got, err := again.HomedToken(vk); err != nil || string(got) != record {
		t.Errorf("record %q, %v", got, err)
	}
}

func TestRemoveKeyslot(t *testing.T) {
	d, h, _ := formatted(t, Params{}, cheap, "", "first", "second")
	k := h.meta.keyslots[0]
	before := must(t, d, k.offset, k.size)
	if err := h.RemoveKeyslot(d, 0); err != nil {
		t.Fatal(err)
	}
	after := must(t, d, k.offset, k.size)
	same := 0
	for at := 0; at < len(before); at += 512 {
		if bytes.Equal(before[at:at+512], after[at:at+512]) {
			same++
		}
	}
	if same > 0 {
		t.Errorf("%d sectors of the key material are still there", same)
	}
	if _, _, err := h.Unlock(d, []*secret.Bytes{keep(t, "first")}); !fault.Is(err, fault.BadPassword) {
		t.Errorf("removed passphrase: %v", err)
	}
	for _, n := range []int{0, 1, 31, -1} {
		if err := h.RemoveKeyslot(d, n); !fault.Is(err, fault.InvalidArgs) {
			t.Errorf("remove keyslot %d: %v", n, err)
		}
	}
}

func TestKeyslotsRunOut(t *testing.T) {
	d, h, vk := formatted(t, Params{}, cheap, "")
	for i := range maxID {
		if n, err := h.AddKeyslot(d, vk, keep(t, fmt.Sprint(i)), cheap); n != i || err != nil {
			t.Fatalf("keyslot %d: %d, %v", i, n, err)
		}
	}
	if _, err := h.AddKeyslot(d, vk, keep(t, "more"), cheap); !fault.Is(err, fault.NoDiskSpace) {
		t.Errorf("the 33rd: %v", err)
	}
	if err := h.RemoveKeyslot(d, 7); err != nil {
		t.Fatal(err)
	}
	if n, err := h.AddKeyslot(d, vk, keep(t, "again"), cheap); n != 7 || err != nil {
		t.Errorf("in the gap: %d, %v", n, err)
	}
	key, n, err := mustRead(t, d).Unlock(d, []*secret.Bytes{keep(t, "again")})
	if err != nil || n != 7 {
		t.Errorf("open: %d, %v", n, err)
	}
	key.Close()
}

func TestTokens(t *testing.T) {
	d, h, vk := formatted(t, Params{}, cheap, `{"userName":"ann"}`, "pw")
	first := h.meta.tokens[0].body.text()
	// Two more records, one of them behind a gap.
	doc := h.meta.doc.with("tokens", object{
		{"0", []byte(`{"type":"luks2-keyring","keyslots":[]}`)},
		{"1", first}, {"2", first}, {"5", first},
	}.text())
	if err := h.commit(d, doc); err != nil {
		t.Fatal(err)
	}
	if err := h.SetHomedToken(d, vk, []byte(`{"userName":"ann","new":true}`)); err != nil {
		t.Fatal(err)
	}
	h = mustRead(t, d)
	if got, err := h.HomedToken(vk); err != nil || string(got) != `{"userName":"ann","new":true}` {
		t.Errorf("record %q, %v", got, err)
	}
	if _, ok := h.meta.tokens[2]; ok || h.meta.tokens[0].kind != "luks2-keyring" || !bytes.Equal(h.meta.tokens[5].body.text(), first) {
		t.Errorf("tokens: %s", h.meta.doc.get("tokens"))
	}
	for name, body := range map[string]string{
		"no iv":     `{"type":"systemd-homed","keyslots":[],"record":"AAAA"}`,
		"short iv":  `{"type":"systemd-homed","keyslots":[],"record":"AAAAAAAAAAAAAAAAAAAAAAAA","iv":"AAAA"}`,
		"no base64": `{"type":"systemd-homed","keyslots":[],"record":"!","iv":"AAAAAAAAAAAAAAAAAAAAAA=="}`,
		"short":     `{"type":"systemd-homed","keyslots":[],"record":"AAAA","iv":"AAAAAAAAAAAAAAAAAAAAAA=="}`,
		"other":     `{"type":"other","keyslots":[]}`,
	} {
		if err := h.commit(d, h.meta.doc.with("tokens", object{{"0", []byte(body)}}.text())); err != nil {
			t.Fatal(err)
		}
		if got, err := h.HomedToken(vk); !fault.Is(err, fault.Inconsistent) {
			t.Errorf("%s: %q, %v", name, got, err)
		}
	}
	if err := h.SetHomedToken(d, vk, bytes.Repeat([]byte("x"), 4<<20)); !fault.Is(err, fault.NoDiskSpace) {
		t.Errorf("a record that does not fit: %v", err)
	}
	if err := h.SetHomedToken(d, keep(t, strings.Repeat("x", 32)), []byte(`{"userName":"ann"}`)); !fault.Is(err, fault.BadPassword) {
		t.Errorf("with another volume key: %v", err)
	}
	// The whole of it still reads.
	mustRead(t, d)
}

// TestForeignWriter: what somebody else wrote since is not overwritten.
func TestForeignWriter(t *testing.T) {
	d, h, vk := formatted(t, Params{}, cheap, "", "pw")
	other := mustRead(t, d)
	if err := other.SetHomedToken(d, vk, []byte(`{"userName":"ann"}`)); err != nil {
		t.Fatal(err)
	}
	if _, err := h.AddKeyslot(d, vk, keep(t, "x"), cheap); !fault.Is(err, fault.HomeInUse) {
		t.Errorf("write from an outdated header: %v", err)
	}
}

func TestFormatRefuses(t *testing.T) {
	for name, c := range map[string]struct {
		p    Params
		kind fault.Kind
	}{
		"label":   {Params{UUID: testUUID, Label: strings.Repeat("a", 48)}, fault.InvalidArgs},
		"UUID":    {Params{UUID: "x"}, fault.InvalidArgs},
		"size":    {Params{UUID: testUUID, KeySize: 64}, fault.InvalidArgs},
		"sector":  {Params{UUID: testUUID, SectorSize: 768}, fault.InvalidArgs},
		"cipher":  {Params{UUID: testUUID, Cipher: "serpent"}, fault.NotSupported},
		"null":    {Params{UUID: testUUID, Cipher: "cipher_null", Mode: "ecb"}, fault.NotSupported},
		"space":   {Params{UUID: testUUID, Mode: "xts-plain64 x"}, fault.NotSupported},
		"hash":    {Params{UUID: testUUID, Hash: "md5"}, fault.NotSupported},
		"no mode": {Params{UUID: testUUID, Mode: "ecb"}, fault.NotSupported},
	} {
		c.p.PBKDF.ForceIterations = 1000
		d := newDevice()
		write(t, d, []byte("precious"), 0)
		if _, err := Format(d, c.p, keep(t, strings.Repeat("k", 32))); !fault.Is(err, c.kind) {
			t.Errorf("%s: %v", name, err)
		}
		if !bytes.HasPrefix(must(t, d, 0, 16), []byte("precious")) {
			t.Errorf("%s: refused, but not before writing", name)
		}
	}
}

// small is a container with the smallest header, so that a test can write it
// very often.
func small(t *testing.T, passphrase, record string) (*fixture.Disk, *secret.Bytes) {
	t.Helper()
	disk := fixture.NewDisk(testSize)
	d := disk.Section(0, testSize)
	vk := keep(t, strings.Repeat("k", 32))
	p := Params{UUID: testUUID, PBKDF: cheap}.withDefaults(32)
	h := &Header{uuid: p.UUID, subsystem: p.Subsystem, seqid: formatSeqid, size: minCopy, keySize: 32, rand: p.Rand}
	doc, err := h.emptyDoc(p, vk)
	if err != nil {
		t.Fatal(err)
	}
	doc = doc.with("config", []byte(`{"json_size":"12288","keyslots_size":"524288"}`))
	if h.meta, err = parseMetadata(doc.text(), h.size); err != nil {
		t.Fatal(err)
	}
	for i := range h.salts {
		if err := h.writeCopy(d, i, h.seqid, doc.text()); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := h.AddKeyslot(d, vk, keep(t, passphrase), cheap); err != nil {
		t.Fatal(err)
	}
	if err := h.SetHomedToken(d, vk, []byte(record)); err != nil {
		t.Fatal(err)
	}
	return disk, vk
}

// TestSmallHeader: cryptsetup reads the smallest header as well.
func TestSmallHeader(t *testing.T) {
	disk, _ := small(t, "pw", `{"userName":"ann"}`)
	cryptsetup(t, "pw", "open", "--test-passphrase", "--key-file=-", file(t, disk.Section(0, testSize)))
}
