package records

import (
	"fmt"

	"hearth/internal/fault"
)

// Manageable checks that a record given from outside describes a user of the
// kind that homes are for. Fault: InvalidArgs, with the text clients know.
func (r *Record) Manageable(m Machine) error {
	const op = "check user record"
	l := r.layers(m)
	switch uid, gid := l.u64("uid"), l.u64("gid"); {
	case l.text("disposition", "regular") != "regular":
		return fault.Newf(fault.InvalidArgs, op, "Cannot manage anything but regular users.")
	case l.text("storage", "luks") == "classic":
		return fault.Newf(fault.InvalidArgs, op, "User record has storage type this service cannot manage.")
	case gid != nil && (uid == nil || *gid != *uid):
		return fault.Newf(fault.InvalidArgs, op, "User record has to have matching UID/GID fields.")
	case l.text("service", Service) != Service:
		return fault.Newf(fault.InvalidArgs, op, "Not accepted with service not matching io.systemd.Home.")
	case l.last("blobDirectory") != nil:
		return fault.Newf(fault.InvalidArgs, op, "Cannot manage custom blob directories.")
	case r.doc.get("__systemd_homework_internal_blob_fdmap") != nil:
		return fault.Newf(fault.InvalidArgs, op, "User record contains unsafe internal fields.")
	}
	return nil
}

// Suitable checks that a bound record can become a home: its name, realm and
// ids. Faults: InvalidArgs, BadAddress for ids that belong to others.
func (r *Record) Suitable(m Machine) error {
	const op = "check user record"
	if !ValidName(r.UserName()) {
		return fault.New(fault.InvalidArgs, op, fmt.Errorf("user name %q cannot be a home's", r.UserName()))
	}
	if v := r.doc.get("realm"); v != nil && (v.kind != text || !ValidRealm(v.str)) {
		return fault.New(fault.InvalidArgs, op, fmt.Errorf("realm is not valid"))
	}
	v := r.View(m)
	if !v.HasUID {
		return fault.New(fault.InvalidArgs, op, fmt.Errorf("no uid"))
	}
	if v.UID != v.GID {
		return fault.New(fault.InvalidArgs, op, fmt.Errorf("uid %d and gid %d differ", v.UID, v.GID))
	}
	switch uid := v.UID; {
	case uid <= systemMax, uid >= firstDyn && uid <= lastDyn, uid >= firstGreet && uid <= lastGreet, uid == nobodyUID:
		return fault.New(fault.BadAddress, op, fmt.Errorf("uid %d belongs to the system", uid))
	}
	return nil
}
