package home1

// Arg is one argument of a method or signal: its name and D-Bus type.
type Arg struct{ Name, Type string }

// Method is one row of a method table.
type Method struct {
	Name    string
	In, Out []Arg
	// Privileged members are for root alone; checked before the signature.
	Privileged bool
	// Action is the polkit action that guards the method, "" for none.
	Action string
	// Details says that polkit is told uid and user name of the home.
	Details bool
	// OwnerSkips says that the home's own uid needs no polkit.
	OwnerSkips bool
	// Sensitive bodies carry secrets or hashes: never logged, wiped after use.
	Sensitive bool
}

// InSignature is the D-Bus signature of a call's body.
func (m *Method) InSignature() string { return signature(m.In) }

// OutSignature is the D-Bus signature of the reply's body.
func (m *Method) OutSignature() string { return signature(m.Out) }

func signature(args []Arg) string {
	s := ""
	for _, a := range args {
		s += a.Type
	}
	return s
}

// Emits says how a property's changes are announced, in the words of the
// EmitsChangedSignal annotation. The zero value announces the new value.
type Emits string

// The ways other than announcing the value.
const (
	EmitsValue      Emits = ""
	EmitsConst      Emits = "const"
	EmitsInvalidate Emits = "invalidates"
	EmitsNothing    Emits = "false"
)

// Property is one row of a property table.
type Property struct {
	Name, Type string
	Emits      Emits
	Writable   bool
	// Privileged guards writing alone.
	Privileged bool
}

// Signal is one signal of an interface.
type Signal struct {
	Name string
	Args []Arg
}

// Interface is one D-Bus interface, its members in the order of the
// introspection document.
type Interface struct {
	Name       string
	Properties []Property
	Methods    []Method
	Signals    []Signal
}

// Method returns the row of that name, nil if there is none.
func (i *Interface) Method(name string) *Method {
	for k := range i.Methods {
		if i.Methods[k].Name == name {
			return &i.Methods[k]
		}
	}
	return nil
}

// Property returns the row of that name, nil if there is none.
func (i *Interface) Property(name string) *Property {
	for k := range i.Properties {
		if i.Properties[k].Name == name {
			return &i.Properties[k]
		}
	}
	return nil
}

// args pairs types and names: args("s", "user_name", "u", "uid").
func args(pairs ...string) []Arg {
	var out []Arg
	for i := 0; i < len(pairs); i += 2 {
		out = append(out, Arg{Type: pairs[i], Name: pairs[i+1]})
	}
	return out
}

var (
	name       = args("s", "user_name")
	secretArg  = args("s", "secret")
	nameSecret = args("s", "user_name", "s", "secret")
	recordArg  = args("s", "user_record")
	recordEx   = args("s", "user_record", "a{sh}", "blobs", "t", "flags")
	suspend    = args("b", "please_suspend")
	fdOut      = args("h", "send_fd")
)

// Standard are the interfaces that every object has, in document order.
var Standard = []*Interface{
	{Name: PeerInterface, Methods: []Method{
		{Name: "Ping"},
		{Name: "GetMachineId", Out: args("s", "machine_uuid")},
	}},
	{Name: IntrospectableInterface, Methods: []Method{
		{Name: "Introspect", Out: args("s", "xml_data")},
	}},
	{Name: PropertiesInterface,
		Methods: []Method{
			{Name: "Get", In: args("s", "interface_name", "s", "property_name"), Out: args("v", "value")},
			{Name: "GetAll", In: args("s", "interface_name"), Out: args("a{sv}", "props")},
			{Name: "Set", In: args("s", "interface_name", "s", "property_name", "v", "value")},
		},
		Signals: []Signal{
			{Name: "PropertiesChanged", Args: args("s", "interface_name", "a{sv}", "changed_properties", "as", "invalidated_properties")},
		}},
}

// ObjectManager is the interface of the node above the homes.
var ObjectManager = &Interface{
	Name:    ObjectManagerInterface,
	Methods: []Method{{Name: "GetManagedObjects", Out: args("a{oa{sa{sv}}}", "object_paths_interfaces_and_properties")}},
	Signals: []Signal{
		{Name: "InterfacesAdded", Args: args("o", "object_path", "a{sa{sv}}", "interfaces_and_properties")},
		{Name: "InterfacesRemoved", Args: args("o", "object_path", "as", "interfaces")},
	},
}

// LogControl is the interface that sets what the daemon logs.
var LogControl = &Interface{
	Name: LogControlInterface,
	Properties: []Property{
		{Name: "LogLevel", Type: "s", Emits: EmitsNothing, Writable: true, Privileged: true},
		{Name: "LogTarget", Type: "s", Emits: EmitsNothing, Writable: true, Privileged: true},
		{Name: "SyslogIdentifier", Type: "s", Emits: EmitsNothing},
	},
}

// Manager is org.freedesktop.home1.Manager.
var Manager = &Interface{
	Name:       ManagerInterface,
	Properties: []Property{{Name: "AutoLogin", Type: "a(sso)"}},
	Methods: []Method{
		{Name: "GetHomeByName", In: name,
			Out: args("u", "uid", "s", "home_state", "u", "gid", "s", "real_name", "s", "home_directory", "s", "shell", "o", "bus_path")},
		{Name: "GetHomeByUID", In: args("u", "uid"),
			Out: args("s", "user_name", "s", "home_state", "u", "gid", "s", "real_name", "s", "home_directory", "s", "shell", "o", "bus_path")},
		{Name: "GetUserRecordByName", In: name, Sensitive: true,
			Out: args("s", "user_record", "b", "incomplete", "o", "bus_path")},
		{Name: "GetUserRecordByUID", In: args("u", "uid"), Sensitive: true,
			Out: args("s", "user_record", "b", "incomplete", "o", "bus_path")},
		{Name: "ListHomes", Out: args("a(susussso)", "home_areas")},
		{Name: "ActivateHome", In: nameSecret, Action: ActionActivate, OwnerSkips: true, Sensitive: true},
		{Name: "ActivateHomeIfReferenced", In: nameSecret, Action: ActionActivate, OwnerSkips: true, Sensitive: true},
		{Name: "DeactivateHome", In: name, Privileged: true},
		{Name: "RegisterHome", In: recordArg, Action: ActionCreate, Sensitive: true},
		{Name: "AdoptHome", In: args("s", "image_path", "t", "flags"), Action: ActionCreate},
		{Name: "UnregisterHome", In: name, Action: ActionRemove, Details: true},
		{Name: "CreateHome", In: recordArg, Action: ActionCreate, Sensitive: true},
		{Name: "CreateHomeEx", In: recordEx, Action: ActionCreate, Sensitive: true},
		{Name: "RealizeHome", In: nameSecret, Action: ActionCreate, Details: true, Sensitive: true},
		{Name: "RemoveHome", In: name, Action: ActionRemove, Details: true},
		{Name: "FixateHome", In: nameSecret, Privileged: true, Sensitive: true},
		{Name: "AuthenticateHome", In: nameSecret, Action: ActionAuthenticate, Details: true, OwnerSkips: true, Sensitive: true},
		{Name: "UpdateHome", In: recordArg, Action: ActionUpdate, Details: true, Sensitive: true},
		{Name: "UpdateHomeEx", In: recordEx, Action: ActionUpdate, Details: true, Sensitive: true},
		{Name: "ResizeHome", In: args("s", "user_name", "t", "size", "s", "secret"), Action: ActionResize, Details: true, Sensitive: true},
		{Name: "ChangePasswordHome", In: args("s", "user_name", "s", "new_secret", "s", "old_secret"),
			Action: ActionPasswd, Details: true, OwnerSkips: true, Sensitive: true},
		{Name: "LockHome", In: name, Privileged: true},
		{Name: "UnlockHome", In: nameSecret, Privileged: true, Sensitive: true},
		// Open to everybody: a screen lock runs without privileges. The
		// secret it carries is the permission.
		{Name: "AcquireHome", In: args("s", "user_name", "s", "secret", "b", "please_suspend"), Out: fdOut, Sensitive: true},
		{Name: "RefHome", In: args("s", "user_name", "b", "please_suspend"), Out: fdOut, Privileged: true},
		{Name: "RefHomeUnrestricted", In: args("s", "user_name", "b", "please_suspend"), Out: fdOut, Privileged: true},
		{Name: "ReleaseHome", In: name, Privileged: true},
		{Name: "ListSigningKeys", Out: args("a(sst)", "keys")},
		// The answer is PEM in spite of its name, which clients know.
		{Name: "GetSigningKey", In: args("s", "name"), Out: args("s", "der", "t", "flags")},
		{Name: "AddSigningKey", In: args("s", "name", "s", "pem", "t", "flags"), Action: ActionManageKeys},
		{Name: "RemoveSigningKey", In: args("s", "name", "t", "flags"), Action: ActionManageKeys},
		{Name: "LockAllHomes", Privileged: true},
		{Name: "DeactivateAllHomes", Privileged: true},
		{Name: "Rebalance", Privileged: true},
	},
}

// Home is org.freedesktop.home1.Home.
var Home = &Interface{
	Name: HomeInterface,
	Properties: []Property{
		{Name: "UserName", Type: "s", Emits: EmitsConst},
		{Name: "UID", Type: "u"},
		{Name: "UnixRecord", Type: "(suusss)"},
		{Name: "State", Type: "s", Emits: EmitsNothing},
		{Name: "UserRecord", Type: "(sb)", Emits: EmitsInvalidate},
	},
	Methods: []Method{
		{Name: "Activate", In: secretArg, Action: ActionActivate, OwnerSkips: true, Sensitive: true},
		{Name: "ActivateIfReferenced", In: secretArg, Action: ActionActivate, OwnerSkips: true, Sensitive: true},
		{Name: "Deactivate", Privileged: true},
		{Name: "Unregister", Action: ActionRemove, Details: true},
		{Name: "Realize", In: secretArg, Action: ActionCreate, Details: true, Sensitive: true},
		{Name: "Remove", Action: ActionRemove, Details: true},
		{Name: "Fixate", In: secretArg, Privileged: true, Sensitive: true},
		{Name: "Authenticate", In: secretArg, Action: ActionAuthenticate, Details: true, OwnerSkips: true, Sensitive: true},
		{Name: "Update", In: recordArg, Action: ActionUpdate, Details: true, Sensitive: true},
		{Name: "UpdateEx", In: recordEx, Action: ActionUpdate, Details: true, Sensitive: true},
		{Name: "Resize", In: args("t", "size", "s", "secret"), Action: ActionResize, Details: true, Sensitive: true},
		{Name: "ChangePassword", In: args("s", "new_secret", "s", "old_secret"),
			Action: ActionPasswd, Details: true, OwnerSkips: true, Sensitive: true},
		{Name: "Lock", Privileged: true},
		{Name: "Unlock", In: secretArg, Privileged: true, Sensitive: true},
		// Unlike AcquireHome of the manager.
		{Name: "Acquire", In: args("s", "secret", "b", "please_suspend"), Out: fdOut, Privileged: true, Sensitive: true},
		{Name: "Ref", In: suspend, Out: fdOut, Privileged: true},
		{Name: "RefUnrestricted", In: suspend, Out: fdOut, Privileged: true},
		{Name: "Release", Privileged: true},
	},
}
