package userdb

import "slices"

// interfaces are the descriptions of what the socket speaks, in varlink's
// interface language. Some of the errors are declared and never sent, as in
// the original.
var interfaces = map[string]string{
	"org.varlink.service": `interface org.varlink.service

method GetInfo() -> (
	vendor: string,
	product: string,
	version: string,
	url: string,
	interfaces: []string
)

method GetInterfaceDescription(
	interface: string
) -> (
	description: string
)

error InterfaceNotFound(
	interface: string
)

error MethodNotFound(
	method: string
)

error MethodNotImplemented(
	method: string
)

error InvalidParameter(
	parameter: string
)

error PermissionDenied()

error ExpectedMore()
`,
	"io.systemd": `interface io.systemd

error Disconnected()

error TimedOut()

error Protocol()

error System(
	origin: ?string,
	errnoName: ?string,
	errno: ?int
)
`,
	"io.systemd.service": `interface io.systemd.service

method Ping() -> ()

method Reload(
	allowInteractiveAuthentication: ?bool
) -> ()

method SetLogLevel(
	level: ?int
) -> ()

method GetLogLevel() -> (
	level: int
)

method GetEnvironment() -> (
	environment: ?[]string
)

error InconsistentEnvironment()
`,
	"io.systemd.UserDatabase": `interface io.systemd.UserDatabase

method GetUserRecord(
	uid: ?int,
	userName: ?string,
	fuzzyNames: ?[]string,
	dispositionMask: ?[]string,
	uidMin: ?int,
	uidMax: ?int,
	uuid: ?string,
	service: string
) -> (
	record: object,
	incomplete: ?bool
)

method GetGroupRecord(
	gid: ?int,
	groupName: ?string,
	fuzzyNames: ?[]string,
	dispositionMask: ?[]string,
	gidMin: ?int,
	gidMax: ?int,
	uuid: ?string,
	service: string
) -> (
	record: object,
	incomplete: ?bool
)

method GetMemberships(
	userName: ?string,
	groupName: ?string,
	service: string
) -> (
	userName: string,
	groupName: string
)

error NoRecordFound()

error BadService()

error ServiceNotAvailable()

error ConflictingRecordFound()

error NonMatchingRecordFound()

error EnumerationNotSupported()
`,
}

func interfaceNames() []string {
	var names []string
	for n := range interfaces {
		names = append(names, n)
	}
	slices.Sort(names)
	return names
}

func describe(r *request) []reply {
	name, given := "", false
	for _, p := range r.params {
		text, ok := p.value.(string)
		if p.name != "interface" || !ok {
			return invalid(p.name)
		}
		name, given = text, true
	}
	if !given {
		return invalid("interface")
	}
	text, ok := interfaces[name]
	if !ok {
		return []reply{{Error: errNoInterface, Parameters: map[string]string{"interface": name}}}
	}
	return []reply{{Parameters: map[string]string{"description": text}}}
}
