package records

// SameCredentials reports whether two copies of a record let in by the same
// passwords, recovery keys and tokens.
func SameCredentials(a, b *Record) bool {
	x, y := a.doc.get("privileged"), b.doc.get("privileged")
	for _, field := range []string{"hashedPassword", "recoveryKey", "pkcs11EncryptedKey", "fido2HmacSalt"} {
		if !equal(x.get(field), y.get(field)) {
			return false
		}
	}
	return true
}
