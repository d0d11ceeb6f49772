package records

// What the owner of a regular record may change without an administrator
// unless the record lists something else (field lists of the same names,
// records of systemd 262). Read only.
var (
	SelfModifiableFields = []string{
		"realName", "emailAddress", "iconName", "location", "shell", "umask", "environment", "timeZone",
		"preferredLanguage", "additionalLanguages", "preferredSessionLauncher", "preferredSessionType", "defaultArea",
		"pkcs11TokenUri", "fido2HmacCredential", "recoveryKeyType", "lastChangeUSec", "lastPasswordChangeUSec",
	}
	SelfModifiableBlobs      = []string{"avatar", "login-background"}
	SelfModifiablePrivileged = []string{"passwordHint", "hashedPassword", "pkcs11EncryptedKey", "fido2HmacSalt", "recoveryKey", "sshAuthorizedKeys"}
)
