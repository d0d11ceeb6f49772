package records

import (
	"crypto/ed25519"
	"crypto/x509"
	"encoding/base64"
	"encoding/pem"
	"errors"
	"fmt"
	"io"

	"hearth/internal/fault"
)

// signedBytes are what a signature covers: the signable sections, normalised,
// compact. Without pairs it is the variant that systemd-homed signs in two
// situations and does not accept itself afterwards.
func (r *Record) signedBytes(pairs bool) []byte {
	return compact(normal(r.Signable().doc, pairs))
}

// A Signer signs records with this machine's private key. Whoever makes one
// closes it.
type Signer struct {
	key    ed25519.PrivateKey
	public []byte
}

// NewSigner reads an unencrypted PKCS#8 PEM with an Ed25519 key. pemPrivate
// stays the caller's to wipe.
func NewSigner(pemPrivate []byte) (*Signer, error) {
	block, _ := pem.Decode(pemPrivate)
	if block == nil || block.Type != "PRIVATE KEY" {
		return nil, errors.New("read signing key: no PEM block PRIVATE KEY")
	}
	defer clear(block.Bytes)
	key, err := x509.ParsePKCS8PrivateKey(block.Bytes)
	if err != nil {
		return nil, fmt.Errorf("read signing key: %w", err)
	}
	private, ok := key.(ed25519.PrivateKey)
	if !ok {
		return nil, fmt.Errorf("read signing key: %T is no Ed25519 key", key)
	}
	public, err := encodePublic(private.Public().(ed25519.PublicKey))
	if err != nil {
		return nil, err
	}
	return &Signer{private, public}, nil
}

// Close wipes the private key. It may be called twice.
func (s *Signer) Close() {
	clear(s.key)
	s.key = nil
}

// PublicPEM returns the public key as it is stored and put into signatures.
func (s *Signer) PublicPEM() []byte { return append([]byte(nil), s.public...) }

// Sign returns the record with this one signature instead of those it had. By
// that this machine vouches for it: what it says is the caller's to have judged.
func (s *Signer) Sign(r *Record) (Verified, error) {
	if s.key == nil {
		return Verified{}, fault.New(fault.NoPrivateKey, "sign user record", errors.New("signer is closed"))
	}
	sig := ed25519.Sign(s.key, r.signedBytes(true))
	return Verified{whole(r.WithoutSecret().withSection("signature", newArray([]*value{newObject(
		member{"data", newText(base64.StdEncoding.EncodeToString(sig))},
		member{"key", newText(string(s.public))},
	)}))), SignedByUs}, nil
}

// GenerateKey makes a signing key: PKCS#8 and SubjectPublicKeyInfo PEM. The
// caller wipes privPEM.
func GenerateKey(rand io.Reader) (privPEM, pubPEM []byte, err error) {
	seed := make([]byte, ed25519.SeedSize)
	defer clear(seed)
	if _, err := io.ReadFull(rand, seed); err != nil {
		return nil, nil, fmt.Errorf("generate signing key: %w", err)
	}
	private := ed25519.NewKeyFromSeed(seed)
	defer clear(private)
	der, err := x509.MarshalPKCS8PrivateKey(private)
	if err != nil {
		return nil, nil, fmt.Errorf("generate signing key: %w", err)
	}
	defer clear(der)
	if pubPEM, err = encodePublic(private.Public().(ed25519.PublicKey)); err != nil {
		return nil, nil, err
	}
	return pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: der}), pubPEM, nil
}

func encodePublic(key ed25519.PublicKey) ([]byte, error) {
	der, err := x509.MarshalPKIXPublicKey(key)
	if err != nil {
		return nil, fmt.Errorf("encode public key: %w", err)
	}
	return pem.EncodeToMemory(&pem.Block{Type: "PUBLIC KEY", Bytes: der}), nil
}
