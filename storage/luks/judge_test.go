package luks

import (
	"context"
	"crypto/rand"
	"crypto/sha256"
	"errors"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"hearth/internal/fault"
	"hearth/internal/secret"
	"hearth/internal/testenv"
	"hearth/records"
	"hearth/storage"
	"hearth/storage/mounts"
	"hearth/storage/storagetest"
)

// putHeader replaces the record in an image's header, as whoever knows the
// password can.
func putHeader(t *testing.T, a storage.Area, password string, r *records.Record) {
	t.Helper()
	s := &storage.Setup{}
	defer func() {
		if err := s.Close(context.Background()); err != nil {
			t.Error(err)
		}
	}()
	c, err := openImage(a, s)
	if err == nil {
		err = c.read(t.Context(), a, s)
	}
	if err != nil {
		t.Fatal(err)
	}
	p, err := secret.Copy([]byte(password))
	if err != nil {
		t.Fatal(err)
	}
	defer p.Close()
	if err := c.unlock(t.Context(), a, s, &storage.Credentials{Passphrases: []*secret.Bytes{p}}); err != nil {
		t.Fatal(err)
	}
	s.Private = &opened{window: c.window, header: c.header}
	if err := (Backend{}).WriteHeader(t.Context(), s, r.Embedded().Compact()); err != nil {
		t.Fatal(err)
	}
}

// forgeries are records that claim to be newer than host, and that no key
// which counts has signed.
func forgeries(t *testing.T, host *records.Record) map[string]*records.Record {
	t.Helper()
	newer, err := host.WithoutSignature().Edit().Set("lastChangeUSec", host.LastChangeUSec()+1).Append("memberOf", "wheel").Record()
	if err != nil {
		t.Fatal(err)
	}
	private, _, err := records.GenerateKey(rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	theirs, err := records.NewSigner(private)
	if err != nil {
		t.Fatal(err)
	}
	defer theirs.Close()
	foreign, err := theirs.Sign(newer)
	if err != nil {
		t.Fatal(err)
	}
	stolen, err := host.Edit().Set("lastChangeUSec", host.LastChangeUSec()+1).Record()
	if err != nil {
		t.Fatal(err)
	}
	return map[string]*records.Record{"unsigned": newer, "foreign": foreign.Record(), "with the old signature": stolen}
}

// imageSum tells of every byte of an image, and of its mark.
func imageSum(t *testing.T, path string) string {
	t.Helper()
	f, err := os.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = f.Close() }()
	h := sha256.New()
	if _, err := io.Copy(h, f); err != nil {
		t.Fatal(err)
	}
	dirty, err := mounts.IsDirty(path)
	if err != nil {
		t.Fatal(err)
	}
	return string(h.Sum(nil)) + map[bool]string{true: "dirty"}[dirty]
}

var errAdmitted = errors.New("admitted")

// onlyAdmit opens no further than to the header's record.
type onlyAdmit struct{ Backend }

func (b onlyAdmit) Open(ctx context.Context, a storage.Area, c *storage.Credentials) (*storage.Setup, error) {
	admit := a.Admit
	a.Admit = func(header []byte) error {
		if err := admit(header); err != nil {
			return err
		}
		return errAdmitted
	}
	return b.Backend.Open(ctx, a, c)
}

// TestForgedHeader: a header's record that claims to be newer is judged before
// the image is marked, mapped, checked or mounted. (This needs no device
// mapper, because nothing comes that far.)
func TestForgedHeader(t *testing.T) {
	a := area(t, t.TempDir())
	image(t, a, "one")
	p, err := secret.Copy([]byte("one"))
	if err != nil {
		t.Fatal(err)
	}
	defer p.Close()
	hash, err := records.HashPassword(p, rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	private, public, err := records.GenerateKey(rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	ours, err := records.NewSigner(private)
	if err != nil {
		t.Fatal(err)
	}
	defer ours.Close()
	keys := &records.Keys{}
	if err := keys.Add(records.LocalKey, public); err != nil {
		t.Fatal(err)
	}
	plain, err := records.NewBuilder("ann").Set("disposition", "regular").Set("uid", uint32(60100)).Set("lastChangeUSec", uint64(5)).
		Set("storage", "luks").Set("imagePath", a.ImagePath).Set("homeDirectory", a.HomeDirectory).
		SetPrivileged("hashedPassword", []string{hash}).Record()
	if err != nil {
		t.Fatal(err)
	}
	host, err := ours.Sign(plain)
	if err != nil {
		t.Fatal(err)
	}
	newer, err := plain.Edit().Set("lastChangeUSec", uint64(6)).Record()
	if err != nil {
		t.Fatal(err)
	}
	genuine, err := ours.Sign(newer)
	if err != nil {
		t.Fatal(err)
	}
	run := func(b storage.Backend, verb, password string) ([]string, error) {
		w, err := secret.Copy([]byte(password))
		if err != nil {
			t.Fatal(err)
		}
		s := &records.Secrets{Passwords: []*secret.Bytes{w}}
		defer s.Close()
		var stages []string
		_, err = storage.Run(t.Context(), storage.Host{
			Machine: storagetest.Machine, HomeRoot: filepath.Dir(a.ImagePath), Keys: keys,
			Progress: func(stage string, _, _ uint64) { stages = append(stages, stage) },
		}, verb, host, s, map[string]storage.Backend{"luks": b})
		return stages, err
	}
	for name, forged := range forgeries(t, host.Record()) {
		putHeader(t, a, "one", forged)
		before := imageSum(t, a.ImagePath)
		for _, verb := range []string{storage.Activate, storage.Inspect} {
			stages, err := run(Backend{}, verb, "one")
			if !fault.Is(err, fault.BadSignature) || !slices.Equal(stages, []string{"unlock"}) {
				t.Errorf("%s, %s: stages %q, %v", verb, name, stages, err)
			}
			if _, err := run(Backend{}, verb, "two"); !fault.Is(err, fault.BadPassword) {
				t.Errorf("%s, %s, wrong password: %v", verb, name, err)
			}
		}
		if imageSum(t, a.ImagePath) != before {
			t.Errorf("%s: the image was changed", name)
		}
	}
	putHeader(t, a, "one", genuine.Record())
	if _, err := run(onlyAdmit{}, storage.Inspect, "one"); !errors.Is(err, errAdmitted) {
		t.Errorf("a record that we signed: %v", err)
	}
	// The header is all that it takes to tell whether the password is right: the
	// image, which has no file system, is not attached nor written to.
	before := imageSum(t, a.ImagePath)
	if stages, err := run(Backend{}, storage.Inspect, "one"); err != nil || !slices.Equal(stages, []string{"unlock"}) {
		t.Errorf("the right password: stages %q, %v", stages, err)
	}
	for _, pw := range []string{"two", ""} {
		if _, err := run(Backend{}, storage.Inspect, pw); !fault.Is(err, fault.BadPassword) {
			t.Errorf("password %q: %v", pw, err)
		}
	}
	if imageSum(t, a.ImagePath) != before {
		t.Error("the image was changed")
	}
}

// TestForgedHeaderOfHome is that with a home: after every refusal nothing of it
// is open, not a byte has changed, and it opens again when its header is right.
func TestForgedHeaderOfHome(t *testing.T) {
	testenv.Need(t, "root", "loop", "dm-crypt", "ext4", "mkfs.ext4")
	w := storagetest.New(t, storagetest.Kind{Storage: "luks", Backend: Backend{}, Image: true, Remains: remains,
		Fields: map[string]any{"fileSystemType": "ext4", "diskSize": 50 * mib, "luksPbkdfType": "pbkdf2", "luksPbkdfForceIterations": 1000}})
	w.Must(t, storage.Create, storagetest.Password)
	a := area(t, w.Root)
	a.ImagePath, a.FullName = w.View().ImagePath, w.User
	genuine := w.Record
	for name, forged := range forgeries(t, genuine) {
		putHeader(t, a, storagetest.Password, forged)
		before := imageSum(t, a.ImagePath)
		for _, verb := range []string{storage.Activate, storage.Inspect} {
			w.Refused(t, verb, storagetest.Password, fault.BadSignature)
			w.Idle(t)
		}
		if imageSum(t, a.ImagePath) != before {
			t.Errorf("%s: the image was changed", name)
		}
	}
	putHeader(t, a, storagetest.Password, genuine)
	w.Must(t, storage.Activate, storagetest.Password)
	text, err := os.ReadFile(filepath.Join(w.Home(), ".identity"))
	if err != nil || strings.Contains(string(text), "wheel") {
		t.Errorf("the home's record is %s, %v", text, err)
	}
	w.Must(t, storage.Deactivate, "")
}
