package records

import (
	"crypto/ed25519"
	"crypto/x509"
	"encoding/base64"
	"encoding/pem"
	"errors"
	"fmt"
	"slices"
	"strings"

	"hearth/internal/fault"
)

// A Verdict says who signed a record, seen from this machine.
type Verdict int

const (
	Unsigned      Verdict = iota
	SignedByUs            // by us and nobody else: may be changed and signed again here
	SignedByUsToo         // by us and by others
	SignedByOther         // by a registered key, not by us
	Foreign               // by keys we do not know only
)

func (v Verdict) String() string {
	switch v {
	case Unsigned:
		return "not signed"
	case SignedByUs:
		return "signed only by us"
	case SignedByUsToo:
		return "signed by us and others"
	case SignedByOther:
		return "signed by a registered key of others"
	}
	return "not signed by any known key"
}

// LocalKey is the name of the key that is ours.
const LocalKey = "local.public"

// Keys are the public keys whose signatures count. The zero value has none.
type Keys struct {
	own    ed25519.PublicKey
	others []ed25519.PublicKey
	names  []string
}

// Add adds a public key, a SubjectPublicKeyInfo PEM, under its file name.
// LocalKey is the one whose private half is here. Fault: FileExists for a
// name or a key that is there already.
func (k *Keys) Add(name string, pemPublic []byte) error {
	key, err := parsePublic(pemPublic)
	if err != nil {
		return fmt.Errorf("add key %s: %w", name, err)
	}
	for i, o := range k.others {
		if k.names[i] == name || o.Equal(key) {
			return fault.New(fault.FileExists, "add key "+name, nil)
		}
	}
	if name == LocalKey {
		k.own = key
		return nil
	}
	k.others = append(k.others, key)
	k.names = append(k.names, name)
	return nil
}

// Remove forgets a public key of others; one that is not there is no error.
func (k *Keys) Remove(name string) {
	if i := slices.Index(k.names, name); i >= 0 {
		k.names = slices.Delete(k.names, i, i+1)
		k.others = slices.Delete(k.others, i, i+1)
	}
}

// CanonicalKey returns a public key's PEM as it is stored, from any PEM that
// holds one.
func CanonicalKey(pemPublic []byte) ([]byte, error) {
	key, err := parsePublic(pemPublic)
	if err != nil {
		return nil, err
	}
	return encodePublic(key)
}

func parsePublic(text []byte) (ed25519.PublicKey, error) {
	block, _ := pem.Decode(text)
	if block == nil || block.Type != "PUBLIC KEY" {
		return nil, errors.New("no PEM block PUBLIC KEY")
	}
	key, err := x509.ParsePKIXPublicKey(block.Bytes)
	if err != nil {
		return nil, err
	}
	public, ok := key.(ed25519.PublicKey)
	if !ok {
		return nil, fmt.Errorf("%T is no Ed25519 key", key)
	}
	return public, nil
}

// maxSignatures is how many signatures a record may have. Each is tried with
// each key over the whole record, and the owner of a home can write as many
// as fit into its copy.
const maxSignatures = 16

// Verify says who signed the record. Only the signatures count: which key one
// claims to be made with says nothing. A signature is good over the normal
// form, and over the form without pairwise order too, which systemd-homed
// signs in some situations. Nothing in this is secret, so it may take longer
// for one record than for another. Fault: Inconsistent for a signature section
// that cannot be read or is too long.
func (k *Keys) Verify(r *Record) (Verdict, error) {
	sigs, err := r.signatures()
	if err != nil {
		return Foreign, err
	}
	if len(sigs) == 0 {
		return Unsigned, nil
	}
	doc := r.Signable().doc
	form := compact(normal(doc, true))
	// The second form is made when something asks for it, and not at all where
	// it is the same.
	var second []byte
	asked := false
	goodAsIs := func(key ed25519.PublicKey, sig []byte) bool {
		if !asked && unpaired(doc) {
			second = compact(normal(doc, false))
		}
		asked = true
		return second != nil && ed25519.Verify(key, second, sig)
	}
	count := func(key ed25519.PublicKey) (good int) {
		for _, s := range sigs {
			if ed25519.Verify(key, form, s) || goodAsIs(key, s) {
				good++
			}
		}
		return good
	}
	if k.own != nil {
		switch good := count(k.own); {
		case good == len(sigs):
			return SignedByUs, nil
		case good > 0:
			return SignedByUsToo, nil
		}
	}
	for _, key := range k.others {
		if count(key) > 0 {
			return SignedByOther, nil
		}
	}
	return Foreign, nil
}

// signatures decodes the signature section.
func (r *Record) signatures() ([][]byte, error) {
	bad := func(why string) error {
		return fault.New(fault.Inconsistent, "read signatures of user record", errors.New(why))
	}
	section := r.doc.get("signature")
	if section == nil {
		return nil, nil
	}
	if section.kind != array {
		return nil, bad("not an array")
	}
	if len(section.list) > maxSignatures {
		return nil, bad(fmt.Sprintf("%d signatures, at most %d are looked at", len(section.list), maxSignatures))
	}
	var out [][]byte
	for _, e := range section.list {
		data := e.get("data")
		if !data.is(text) {
			return nil, bad("an entry without data")
		}
		sig, err := base64.StdEncoding.Strict().DecodeString(strings.Join(strings.Fields(data.str), ""))
		if err != nil {
			return nil, bad("data is not base64")
		}
		out = append(out, sig)
	}
	return out, nil
}

// UnstableOrder reports whether a signed section holds a list of four or more
// objects or lists. systemd orders such lists by memory addresses when it
// verifies, so that it may accept the record in one boot and not in the next.
func (r *Record) UnstableOrder() bool { return unstable(r.Signable().doc) }

func unstable(v *value) bool {
	for i, e := range v.list {
		if unstable(e) || len(v.list) > 3 && i%2 == 0 && i+1 < len(v.list) && (e.kind == object || e.kind == array) {
			return true
		}
	}
	for _, m := range v.members {
		if unstable(m.value) {
			return true
		}
	}
	return false
}
