package records

import (
	"bytes"
	"crypto/rand"
	"path/filepath"
	"strings"
	"testing"

	"hearth/internal/fault"
)

const images = "../fixtures/systemd-262-images"

func keyring(t testing.TB, foreign bool) *Keys {
	t.Helper()
	k := &Keys{}
	if err := k.Add(LocalKey, read(t, fixtures, "keys/local.public")); err != nil {
		t.Fatal(err)
	}
	if foreign {
		if err := k.Add("foreign.public", read(t, fixtures, "keys/foreign.public")); err != nil {
			t.Fatal(err)
		}
	}
	return k
}

func signer(t testing.TB, path ...string) *Signer {
	t.Helper()
	s, err := NewSigner(read(t, path...))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(s.Close)
	return s
}

// TestVerdicts: what the real daemon said of its files at start-up.
func TestVerdicts(t *testing.T) {
	k := keyring(t, true)
	special := map[string]Verdict{
		"foreignu": SignedByOther, "dualu": SignedByUsToo, "unsigned2": Unsigned, "presorted": Foreign, "objarray": Foreign,
		// Ignored by the real daemon, which does not try the second form.
		"sanat":    SignedByUs,
		"tampered": Foreign,
	}
	for _, path := range fixtureFiles(t, "host.identity", "embedded.identity", "tampered.identity") {
		want, ok := special[owner(path)]
		if !ok {
			want = SignedByUs
		}
		got, err := k.Verify(mustParse(t, read(t, path), HostFile))
		if owner(path) == "objarray" {
			continue // differs from boot to boot
		}
		if err != nil || got != want {
			t.Errorf("%s is %v (%v), want %v", path, got, err, want)
		}
	}
	for _, path := range fixtureFiles(t, "inspect-E.json", "luks2-token-decrypted.json", "inspect-full.json") {
		want, ok := special[owner(path)]
		if owner(path) == "presorted" {
			want = SignedByUs // in memory it was not permuted yet
		} else if owner(path) == "objarray" {
			continue
		} else if !ok {
			want = SignedByUs
		}
		if got, err := k.Verify(mustParse(t, read(t, path), ClientReply)); err != nil || got != want {
			t.Errorf("%s is %v (%v), want %v", path, got, err, want)
		}
	}
	foreign := mustParse(t, read(t, fixtures, "records/foreignu/host.identity"), HostFile)
	if v, _ := keyring(t, false).Verify(foreign); v != Foreign {
		t.Errorf("a record signed by an unknown key is %v", v)
	}
	if v, _ := (&Keys{}).Verify(foreign.WithoutSignature()); v != Unsigned {
		t.Errorf("an unsigned record is %v", v)
	}
}

func TestImageRecordsVerify(t *testing.T) {
	list, err := filepath.Glob(filepath.Join(images, "*", "host.identity"))
	if err != nil || len(list) != 10 {
		t.Fatalf("%d images (%v), 10 expected", len(list), err)
	}
	for _, path := range list {
		dir := filepath.Dir(path)
		pub := filepath.Join(images, "local.public")
		if filepath.Base(dir) == "fscrypt-v2" {
			pub = filepath.Join(dir, "local.public")
		}
		k := &Keys{}
		if err := k.Add(LocalKey, read(t, pub)); err != nil {
			t.Fatal(err)
		}
		host := mustParse(t, read(t, path), HostFile)
		if v, err := k.Verify(host); err != nil || v != SignedByUs {
			t.Errorf("%s is %v (%v)", path, v, err)
		}
		switch filepath.Base(dir) {
		case "directory", "fscrypt-v2":
			continue // no token
		}
		token := mustParse(t, read(t, dir, "token-record.json"), EmbeddedFile)
		if v, err := k.Verify(token); err != nil || v != SignedByUs {
			t.Errorf("token of %s is %v (%v)", dir, v, err)
		}
		if !token.Equal(host.Embedded()) {
			t.Errorf("token of %s says something else than the host", dir)
		}
	}
}

// TestSigningReproduces: Ed25519 is deterministic, so our signature over the
// input must be the one that the daemon stored.
func TestSigningReproduces(t *testing.T) {
	// What systemd signs differently, or kept with digits that changed.
	except := map[string]bool{"presorted": true, "objarray": true, "sanat": true, "realint": true}
	n := 0
	for _, path := range fixtureFiles(t, "input.json") {
		if except[owner(path)] {
			continue
		}
		key := "local.private"
		if owner(path) == "foreignu" {
			key = "foreign.private"
		}
		s := signer(t, fixtures, "keys", key)
		signed, err := s.Sign(mustParse(t, read(t, path), BusRegister))
		if err != nil {
			t.Fatal(err)
		}
		want := string(read(t, filepath.Dir(path), "host.identity"))
		data := signed.record.doc.get("signature").list[0].get("data").str
		if !strings.Contains(want, data) {
			t.Errorf("%s: another signature than the stored one", path)
		}
		n++
	}
	if n != 26 {
		t.Errorf("%d records signed, 26 expected", n)
	}
}

func TestSignedRecordIsTheStoredFile(t *testing.T) {
	s := signer(t, fixtures, "keys/local.private")
	r := mustParse(t, read(t, fixtures, "records/canon/input.json"), BusRegister)
	signed, err := s.Sign(r)
	if err != nil {
		t.Fatal(err)
	}
	host := mustParse(t, read(t, fixtures, "records/canon/host.identity"), HostFile)
	if !bytes.Equal(signed.Record().Pretty(), host.Embedded().Pretty()) {
		t.Errorf("got %s", signed.Record().Pretty())
	}
}

func TestKeysRoundTrip(t *testing.T) {
	private, public, err := GenerateKey(rand.Reader)
	if err != nil || len(private) != 119 || len(public) != 113 {
		t.Fatalf("%v, %d and %d bytes", err, len(private), len(public))
	}
	s, err := NewSigner(private)
	if err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(s.PublicPEM(), public) {
		t.Error("the signer has another public key")
	}
	if !bytes.Equal(signer(t, fixtures, "keys/local.private").PublicPEM(), read(t, fixtures, "keys/local.public")) {
		t.Error("the fixture's public key comes out differently")
	}
	k := &Keys{}
	if err := k.Add(LocalKey, public); err != nil {
		t.Fatal(err)
	}
	signed, err := s.Sign(mustParse(t, []byte(`{"userName":"ann"}`), BusRegister))
	if err != nil {
		t.Fatal(err)
	}
	if v, err := k.Verify(signed.Record()); v != SignedByUs || err != nil {
		t.Errorf("%v, %v", v, err)
	}
	changed, err := signed.Record().Edit().Set("realName", "Ann").Record()
	if err != nil {
		t.Fatal(err)
	}
	if v, _ := k.Verify(changed); v != Foreign {
		t.Errorf("a changed record is %v", v)
	}
	for _, bad := range []string{`{}`, `[{}]`, `[{"data":1}]`, `[{"data":"%"}]`, `[1]`} {
		if _, err := k.Verify(mustParse(t, []byte(`{"userName":"ann","signature":`+bad+`}`), HostFile)); !fault.Is(err, fault.Inconsistent) {
			t.Errorf("signature %s: %v", bad, err)
		}
	}
	if err := k.Add("x.public", read(t, fixtures, "keys/foreign.public")); err != nil {
		t.Error(err)
	}
	if err := k.Add("y.public", read(t, fixtures, "keys/foreign.public")); !fault.Is(err, fault.FileExists) {
		t.Errorf("the same key twice: %v", err)
	}
	if k.Add("z.public", []byte("no PEM")) == nil {
		t.Error("no PEM is accepted")
	}
	s.Close()
	s.Close()
	if _, err := s.Sign(changed); !fault.Is(err, fault.NoPrivateKey) {
		t.Errorf("a closed signer signs: %v", err)
	}
	if _, err := NewSigner(public); err == nil {
		t.Error("a public key is taken for a private one")
	}
}

// TestManySignatures: the time that verifying takes has an end, whoever wrote
// the record.
func TestManySignatures(t *testing.T) {
	k := keyring(t, true)
	good := mustParse(t, read(t, fixtures, "records/canon/host.identity"), HostFile)
	own := good.doc.get("signature").list[0]
	bad := newObject(member{"data", newText("AAAA")})
	for _, c := range []struct {
		n    int
		want Verdict
	}{{0, SignedByUs}, {1, SignedByUsToo}, {maxSignatures - 1, SignedByUsToo}} {
		list := make([]*value, c.n)
		for i := range list {
			list[i] = bad
		}
		if v, err := k.Verify(good.withSection("signature", newArray(append(list, own)))); v != c.want || err != nil {
			t.Errorf("behind %d that are not good: %v, %v", c.n, v, err)
		}
	}
	list := make([]*value, maxSignatures+1)
	for i := range list {
		list[i] = own
	}
	many := good.withSection("signature", newArray(list))
	if v, err := k.Verify(many); v != Foreign || !fault.Is(err, fault.Inconsistent) {
		t.Errorf("%d signatures: %v, %v", len(list), v, err)
	}
	if _, err := k.Vouch(many); !fault.Is(err, fault.Inconsistent) {
		t.Errorf("%d signatures: %v", len(list), err)
	}
}
