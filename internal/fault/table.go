package fault

// Row is one line of the table: all that is said of a kind, anywhere.
type Row struct {
	Kind Kind
	// Bus is the D-Bus error name. One kind per name, so that a client can
	// map back.
	Bus string
	// PAM is the PAM result where a hook gives up at once.
	PAM string
	// Text is what the bus carries; %u is the home's user name. Clients of
	// systemd-homed know these sentences.
	Text string
	// Next is what homectl adds on a terminal.
	Next string
}

// The kinds. The names are those of the bus errors they become.
const (
	NoSuchHome            Kind = "NoSuchHome"
	UIDInUse              Kind = "UIDInUse"
	UserNameExists        Kind = "UserNameExists"
	HomeExists            Kind = "HomeExists"
	HomeAlreadyActive     Kind = "HomeAlreadyActive"
	HomeAlreadyFixated    Kind = "HomeAlreadyFixated"
	HomeUnfixated         Kind = "HomeUnfixated"
	HomeNotActive         Kind = "HomeNotActive"
	HomeAbsent            Kind = "HomeAbsent"
	HomeBusy              Kind = "HomeBusy"
	BadPassword           Kind = "BadPassword"
	BadRecoveryKey        Kind = "BadRecoveryKey"
	LowPasswordQuality    Kind = "LowPasswordQuality"
	BadPasswordAndNoToken Kind = "BadPasswordAndNoToken"
	TokenPinNeeded        Kind = "TokenPinNeeded"
	TokenPathNeeded       Kind = "TokenProtectedAuthenticationPathNeeded"
	TokenPresenceNeeded   Kind = "TokenUserPresenceNeeded"
	TokenVerifyNeeded     Kind = "TokenUserVerificationNeeded"
	TokenActionTimeout    Kind = "TokenActionTimeout"
	TokenPinLocked        Kind = "TokenPinLocked"
	BadPin                Kind = "BadPin"
	BadPinFewTriesLeft    Kind = "BadPinFewTriesLeft"
	BadPinOneTryLeft      Kind = "BadPinOneTryLeft"
	BadSignature          Kind = "BadSignature"
	RecordMismatch        Kind = "RecordMismatch"
	RecordDowngrade       Kind = "RecordDowngrade"
	RecordSigned          Kind = "RecordSigned"
	BadHomeSize           Kind = "BadHomeSize"
	NoPrivateKey          Kind = "NoPrivateKey"
	HomeLocked            Kind = "HomeLocked"
	HomeNotLocked         Kind = "HomeNotLocked"
	NoDiskSpace           Kind = "NoDiskSpace"
	TooManyOperations     Kind = "TooManyOperations"
	AuthenticationLimit   Kind = "AuthenticationLimitHit"
	HomeCantAuthenticate  Kind = "HomeCantAuthenticate"
	HomeInUse             Kind = "HomeInUse"
	RebalanceNotNeeded    Kind = "RebalanceNotNeeded"
	HomeNotReferenced     Kind = "HomeNotReferenced"
	NoSuchKey             Kind = "NoSuchKey"
	UnrecognizedFormat    Kind = "UnrecognizedHomeFormat"

	// Generic kinds of the bus.
	Unknown             Kind = "Unknown"
	InvalidArgs         Kind = "InvalidArgs"
	AccessDenied        Kind = "AccessDenied"
	InteractiveRequired Kind = "InteractiveAuthorizationRequired"
	NotSupported        Kind = "NotSupported"
	FileExists          Kind = "FileExists"
	FileNotFound        Kind = "FileNotFound"
	IOError             Kind = "IOError"
	NoMemory            Kind = "NoMemory"
	Timeout             Kind = "Timeout"
	BadAddress          Kind = "BadAddress"
	Inconsistent        Kind = "InconsistentMessage"
	LimitsExceeded      Kind = "LimitsExceeded"
	UnknownMethod       Kind = "UnknownMethod"
	UnknownObject       Kind = "UnknownObject"
	UnknownInterface    Kind = "UnknownInterface"
	UnknownProperty     Kind = "UnknownProperty"
	PropertyReadOnly    Kind = "PropertyReadOnly"
	ServiceUnknown      Kind = "ServiceUnknown"

	// Kinds that systemd-homed passes on as an errno of the system.
	KeyUnavailable   Kind = "ENOKEY"
	StaleRecord      Kind = "ESTALE"
	OtherUser        Kind = "EREMCHG"
	NotAnImage       Kind = "ENOPKG"
	TooManyHomes     Kind = "EUSERS"
	WorkerFailed     Kind = "EPROTO"
	NoLastChange     Kind = "ENETDOWN"
	WrongMedium      Kind = "EMEDIUMTYPE"
	ProtocolMismatch Kind = "EPROTONOSUPPORT"
)

const (
	home1  = "org.freedesktop.home1."
	dbus   = "org.freedesktop.DBus.Error."
	system = "System.Error."
)

// Table returns a copy of the rows, for tests and documents.
func Table() []Row { return append([]Row(nil), table...) }

var table = []Row{
	{NoSuchHome, home1 + "NoSuchHome", "USER_UNKNOWN", "No home for user %u known", `%u: no home area of that name. See "homectl list".`},
	{UIDInUse, home1 + "UIDInUse", "SERVICE_ERR", "Specified UID already in use, refusing.", `Leave out --uid=, or choose one in 60001..60513 that "getent passwd" does not show.`},
	{UserNameExists, home1 + "UserNameExists", "SERVICE_ERR", "Specified user name %u exists already, refusing.", `Choose another name. An existing account cannot be turned into a home yet.`},
	{HomeExists, home1 + "HomeExists", "SERVICE_ERR", "Home of user %u already exists.", `Storage of that name is there already. Move it away, or activate it.`},
	{HomeAlreadyActive, home1 + "HomeAlreadyActive", "SUCCESS", "Home %u is already active.", ""},
	{HomeAlreadyFixated, home1 + "HomeAlreadyFixated", "SERVICE_ERR", "Home %u is already fixated.", ""},
	{HomeUnfixated, home1 + "HomeUnfixated", "SERVICE_ERR", "Home %u has not been fixated yet.", `%u: activate it once, its record is then taken over.`},
	{HomeNotActive, home1 + "HomeNotActive", "PERM_DENIED", "Home %u not active.", `%u: not active. Run "homectl activate %u".`},
	{HomeAbsent, home1 + "HomeAbsent", "PERM_DENIED", "Home %u is currently missing or not plugged in.", `%u: storage is absent. Plug in the device that holds it.`},
	{HomeBusy, home1 + "HomeBusy", "SERVICE_ERR", "Home %u is currently being used, or an operation on home %u is currently being executed.", `%u: another operation is running, or processes still use the home. Try again in a moment.`},
	{BadPassword, home1 + "BadPassword", "MAXTRIES", "Password for home %u is incorrect or not sufficient for authentication.", `%u: password not accepted. Try again.`},
	{BadRecoveryKey, home1 + "BadRecoveryKey", "MAXTRIES", "Recovery key for home %u is incorrect or not sufficient for authentication.", `%u: recovery key not accepted. Try again.`},
	{LowPasswordQuality, home1 + "LowPasswordQuality", "AUTHTOK_ERR", "Password too weak", `Choose a longer password, or pass --enforce-password-policy=no.`},
	{BadPasswordAndNoToken, home1 + "BadPasswordAndNoToken", "MAXTRIES", "Password for home %u is incorrect or not sufficient, and configured security token not found either.", `%u: password not accepted. Try again, or insert the token.`},
	{TokenPinNeeded, home1 + "TokenPinNeeded", "MAXTRIES", "PIN for security token required.", ""},
	{TokenPathNeeded, home1 + "TokenProtectedAuthenticationPathNeeded", "MAXTRIES", "Security token requires protected authentication path.", ""},
	{TokenPresenceNeeded, home1 + "TokenUserPresenceNeeded", "MAXTRIES", "Security token requires presence confirmation.", ""},
	{TokenVerifyNeeded, home1 + "TokenUserVerificationNeeded", "MAXTRIES", "Security token requires user verification.", ""},
	{TokenActionTimeout, home1 + "TokenActionTimeout", "MAXTRIES", "Token action timeout. (User was supposed to verify presence or similar, by interacting with the token, and didn't do that in time.)", ""},
	{TokenPinLocked, home1 + "TokenPinLocked", "SERVICE_ERR", "PIN of security token locked.", `%u: the token's PIN is locked, unlock it first.`},
	{BadPin, home1 + "BadPin", "MAXTRIES", "Bad PIN of security token.", `%u: token PIN not accepted.`},
	{BadPinFewTriesLeft, home1 + "BadPinFewTriesLeft", "MAXTRIES", "Bad PIN of security token, and only a few tries left.", `%u: token PIN not accepted, few tries left.`},
	{BadPinOneTryLeft, home1 + "BadPinOneTryLeft", "MAXTRIES", "Bad PIN of security token, and only one try left.", `%u: token PIN not accepted, one try left.`},
	{BadSignature, home1 + "BadSignature", "SERVICE_ERR", "User record %u is not signed by any known key, refusing.", `Install the public key of the machine that made the record as /var/lib/systemd/home/NAME.public.`},
	{RecordMismatch, home1 + "RecordMismatch", "SERVICE_ERR", "Updated user record is not compatible with existing one.", `%u: the record given does not fit the one in use. Nothing changed.`},
	{RecordDowngrade, home1 + "RecordDowngrade", "SERVICE_ERR", "Refusing to update to older home record.", `%u: the record given is older than the one in use. Nothing changed.`},
	{RecordSigned, home1 + "RecordSigned", "SERVICE_ERR", "Home %u is signed and cannot be modified locally.", `%u: change the record on the machine whose key signed it.`},
	{BadHomeSize, home1 + "BadHomeSize", "SERVICE_ERR", "Requested size for home %u out of acceptable range.", ""},
	{NoPrivateKey, home1 + "NoPrivateKey", "SERVICE_ERR", "Can't sign without local key.", ""},
	{HomeLocked, home1 + "HomeLocked", "PERM_DENIED", "Home %u is currently locked.", `%u: locked. Run "homectl unlock %u".`},
	{HomeNotLocked, home1 + "HomeNotLocked", "SERVICE_ERR", "Home %u is not locked.", ""},
	{NoDiskSpace, home1 + "NoDiskSpace", "SERVICE_ERR", "Not enough disk space for home %u", `%u: free some space below /home, or choose a smaller --disk-size=.`},
	{TooManyOperations, home1 + "TooManyOperations", "SERVICE_ERR", "Too many client operations requested", ""},
	{AuthenticationLimit, home1 + "AuthenticationLimitHit", "MAXTRIES", "Too many login attempts for user %u, try again later.", `%u: too many attempts. Try again in a minute.`},
	{HomeCantAuthenticate, home1 + "HomeCantAuthenticate", "PERM_DENIED", "Home %u has no password or other authentication mechanism defined.", ""},
	{HomeInUse, home1 + "HomeInUse", "SERVICE_ERR", "Home %u is currently being used elsewhere.", `%u: another machine or process holds the image. Close it there first.`},
	{RebalanceNotNeeded, home1 + "RebalanceNotNeeded", "SERVICE_ERR", "No home directories need rebalancing.", ""},
	{HomeNotReferenced, home1 + "HomeNotReferenced", "SERVICE_ERR", "Home %u is currently not referenced.", ""},
	{NoSuchKey, home1 + "NoSuchKey", "SERVICE_ERR", "No such key.", ""},
	{UnrecognizedFormat, home1 + "UnrecognizedHomeFormat", "SERVICE_ERR", "Unrecognized format of home directory.", ""},

	{Unknown, dbus + "Failed", "SERVICE_ERR", "Operation failed.", `%u: the operation failed. See "journalctl HOME_USER=%u".`},
	{InvalidArgs, dbus + "InvalidArgs", "SERVICE_ERR", "Invalid argument", ""},
	{AccessDenied, dbus + "AccessDenied", "PERM_DENIED", "Access denied", `Run it as root, or as the owner of the home.`},
	{InteractiveRequired, dbus + "InteractiveAuthorizationRequired", "PERM_DENIED", "Access denied as the requested operation requires interactive authentication. However, interactive authentication has not been enabled by the calling program.", `Run it as root, or where an authentication agent runs.`},
	{NotSupported, dbus + "NotSupported", "SERVICE_ERR", "Operation not supported", `Not available yet. docs/status.md lists what works.`},
	{FileExists, dbus + "FileExists", "SERVICE_ERR", "File exists", `%u: the home directory or image path is taken. Move what is there away.`},
	{FileNotFound, dbus + "FileNotFound", "SERVICE_ERR", "No such file or directory", ""},
	{IOError, dbus + "IOError", "SERVICE_ERR", "Input/output error", `%u: the storage cannot be read, or its file system is damaged. See "journalctl HOME_USER=%u".`},
	{NoMemory, dbus + "NoMemory", "BUF_ERR", "Cannot allocate memory", ""},
	{Timeout, dbus + "Timeout", "SERVICE_ERR", "Timer expired", ""},
	{BadAddress, dbus + "BadAddress", "SERVICE_ERR", "Cannot assign requested address", ""},
	{Inconsistent, dbus + "InconsistentMessage", "SERVICE_ERR", "Bad message", `%u: the header or the record in the home is damaged. See "journalctl HOME_USER=%u".`},
	{LimitsExceeded, dbus + "LimitsExceeded", "SERVICE_ERR", "No buffer space available", ""},
	{UnknownMethod, dbus + "UnknownMethod", "SERVICE_ERR", "Unknown method or interface.", ""},
	{UnknownObject, dbus + "UnknownObject", "SERVICE_ERR", "Unknown object.", ""},
	{UnknownInterface, dbus + "UnknownInterface", "SERVICE_ERR", "Unknown interface.", ""},
	{UnknownProperty, dbus + "UnknownProperty", "SERVICE_ERR", "Unknown property or interface.", ""},
	{PropertyReadOnly, dbus + "PropertyReadOnly", "SERVICE_ERR", "Property is not writable.", ""},
	{ServiceUnknown, dbus + "ServiceUnknown", "USER_UNKNOWN", "The home service is not available.", `Start it: "systemctl start homed".`},

	{KeyUnavailable, system + "ENOKEY", "SERVICE_ERR", "Required key not available", ""},
	{StaleRecord, system + "ESTALE", "SERVICE_ERR", "Stale file handle", `%u: the record in the home is newer than the one given. Nothing changed.`},
	{OtherUser, system + "EREMCHG", "SERVICE_ERR", "Remote address changed", `%u: the home holds the record of another user.`},
	{NotAnImage, system + "ENOPKG", "SERVICE_ERR", "Package not installed", `%u: the image holds no home area that this machine recognizes.`},
	{TooManyHomes, system + "EUSERS", "SERVICE_ERR", "Too many users", ""},
	{WorkerFailed, system + "EPROTO", "SERVICE_ERR", "Failed to execute operation: Protocol error", `%u: the worker ended without an answer. See "journalctl HOME_USER=%u".`},
	{NoLastChange, system + "ENETDOWN", "SERVICE_ERR", "Network is down", ""},
	{WrongMedium, system + "EMEDIUMTYPE", "SERVICE_ERR", "Wrong medium type", `%u: UUID or cipher of the image differ from those on record. Is it the right image?`},
	{ProtocolMismatch, system + "EPROTONOSUPPORT", "SERVICE_ERR", "Protocol not supported", ""},
}
