package home1

// What the service has beyond org.freedesktop.home1 is under names of its own,
// so that the other interface stays what clients know. A service that has it not
// is served as well: see Client.
const (
	OwnName      = "org.hearth.Home1"
	OwnPath      = "/org/hearth/Home1"
	OwnInterface = "org.hearth.Home1.Manager"
)

// OwnManager has those methods of Manager that take a password, with one
// difference: an argument that holds a secret section is a descriptor of a sealed
// memfd with the text in it (secret.Sealed). The bus passes the descriptor on and
// never has the text. The rows are made of the manager's own, so that who may
// call is the same by construction.
//
// Progress goes to the caller alone while its call runs, and names it by its
// serial. A stage is a word for people; total 0 means that its end is unknown.
var OwnManager = &Interface{Name: OwnInterface, Methods: sealedMethods(), Signals: []Signal{
	{Name: "Progress", Args: args("s", "user_name", "u", "serial", "s", "stage", "t", "done", "t", "total")},
}}

func sealedMethods() []Method {
	var out []Method
	for _, m := range Manager.Methods {
		var in []Arg
		sealed := false
		for _, a := range m.In {
			switch a.Name {
			case "secret", "new_secret", "old_secret", "user_record":
				a.Type, sealed = "h", true
			}
			in = append(in, a)
		}
		// A record to register has no secret section.
		if sealed && m.Name != "RegisterHome" {
			m.In = in
			out = append(out, m)
		}
	}
	return out
}
