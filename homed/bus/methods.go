package bus

import (
	"context"
	"errors"
	"math"
	"strconv"
	"strings"
	"time"

	"github.com/godbus/dbus/v5"

	"hearth/homed/home"
	"hearth/homed/home1"
	"hearth/homed/manager"
	"hearth/internal/fault"
	"hearth/internal/secret"
	"hearth/records"
)

// keyOfLabel reads the last element of a home's path: a uid or a name.
func keyOfLabel(label string) manager.Key {
	text := home1.UnescapeLabel(label)
	if uid, err := strconv.ParseUint(text, 10, 32); err == nil {
		return manager.Key{UID: uint32(uid), ByUID: true}
	}
	return manager.Key{Name: text}
}

// keyOfName reads a user name argument. The empty one is the caller's home.
func keyOfName(c *call, name []byte) manager.Key {
	if len(name) == 0 {
		return manager.Key{UID: c.uid, ByUID: true}
	}
	return manager.Key{Name: string(name)}
}

func keyOfUID(uid uint32) (manager.Key, error) {
	if uid == math.MaxUint16 || uid == math.MaxUint32 {
		return manager.Key{}, fault.Newf(fault.InvalidArgs, "read uid", "UID %d is not valid", uid)
	}
	return manager.Key{UID: uid, ByUID: true}, nil
}

// find looks a home up and notes it as the one that texts speak of.
func (s *server) find(ctx context.Context, c *call, key manager.Key) (manager.Info, error) {
	return s.lookUp(ctx, c, key, false)
}

// named is find for a user name argument; the empty one is the caller's home.
func (s *server) named(ctx context.Context, c *call, name []byte) (manager.Info, error) {
	return s.lookUp(ctx, c, keyOfName(c, name), len(name) == 0)
}

func (s *server) lookUp(ctx context.Context, c *call, key manager.Key, caller bool) (manager.Info, error) {
	if key.Name != "" {
		c.user = key.Name
	}
	info, err := s.o.Manager.Lookup(ctx, key)
	switch {
	case err == nil:
		c.user = info.Name
	case caller && fault.Is(err, fault.NoSuchHome):
		err = fault.Newf(fault.NoSuchHome, "look up home", "Client's UID %d not managed.", key.UID)
	}
	return info, err
}

// lookups are the methods that only read.
var lookups = map[string]func(*server, context.Context, *call) ([]any, error){
	"GetHomeByName": func(s *server, ctx context.Context, c *call) ([]any, error) {
		h, err := s.named(ctx, c, c.args[0].([]byte))
		if err != nil {
			return nil, err
		}
		return []any{h.UID, h.State, h.GID, h.RealName, h.HomeDirectory, h.Shell, dbus.ObjectPath(home1.HomePath(h.Name))}, nil
	},
	"GetHomeByUID": func(s *server, ctx context.Context, c *call) ([]any, error) {
		key, err := keyOfUID(c.args[0].(uint32))
		if err != nil {
			return nil, err
		}
		h, err := s.find(ctx, c, key)
		if err != nil {
			return nil, err
		}
		return []any{h.Name, h.State, h.GID, h.RealName, h.HomeDirectory, h.Shell, dbus.ObjectPath(home1.HomePathByUID(h.UID))}, nil
	},
	"GetUserRecordByName": func(s *server, ctx context.Context, c *call) ([]any, error) {
		h, err := s.named(ctx, c, c.args[0].([]byte))
		if err != nil {
			return nil, err
		}
		text, incomplete := userRecord(c, &h)
		return []any{text, incomplete, dbus.ObjectPath(home1.HomePath(h.Name))}, nil
	},
	"GetUserRecordByUID": func(s *server, ctx context.Context, c *call) ([]any, error) {
		key, err := keyOfUID(c.args[0].(uint32))
		if err != nil {
			return nil, err
		}
		h, err := s.find(ctx, c, key)
		if err != nil {
			return nil, err
		}
		text, incomplete := userRecord(c, &h)
		return []any{text, incomplete, dbus.ObjectPath(home1.HomePathByUID(h.UID))}, nil
	},
	"ListHomes": func(s *server, ctx context.Context, c *call) ([]any, error) {
		list, err := s.o.Manager.List(ctx)
		if err != nil {
			return nil, err
		}
		type row struct {
			Name          string
			UID           uint32
			State         string
			GID           uint32
			RealName      string
			HomeDirectory string
			Shell         string
			Path          dbus.ObjectPath
		}
		rows := make([]row, 0, len(list))
		for _, h := range list {
			rows = append(rows, row{h.Name, h.UID, h.State, h.GID, h.RealName, h.HomeDirectory, h.Shell, dbus.ObjectPath(home1.HomePath(h.Name))})
		}
		return []any{rows}, nil
	},
}

// userRecord returns what the caller may see of a home's record.
func userRecord(c *call, h *manager.Info) (text string, incomplete bool) {
	record, incomplete := h.Text(c.uid == 0 || c.uid == h.UID)
	return string(record), incomplete
}

// verbs maps a method's stem, which both interfaces share, to its operation.
var verbs = map[string]home.Verb{
	"Activate":             home.Activate,
	"ActivateIfReferenced": home.ActivateIfReferenced,
	"Deactivate":           home.Deactivate,
	"Register":             home.Register,
	"Unregister":           home.Unregister,
	"Create":               home.Create,
	"CreateEx":             home.Create,
	"Realize":              home.Realize,
	"Remove":               home.Remove,
	"Fixate":               home.Fixate,
	"Authenticate":         home.Authenticate,
	"Update":               home.Update,
	"UpdateEx":             home.Update,
	"Resize":               home.Resize,
	"ChangePassword":       home.ChangePassword,
	"Lock":                 home.Lock,
	"Unlock":               home.Unlock,
	"Acquire":              home.Acquire,
	"Ref":                  home.Ref,
	"RefUnrestricted":      home.RefUnrestricted,
	"Release":              home.Release,
	"LockAllHomes":         home.LockAll,
	"DeactivateAllHomes":   home.DeactivateAll,
	"Rebalance":            home.Rebalance,
}

// stem turns ActivateHomeIfReferenced into ActivateIfReferenced.
func stem(method string) string {
	if strings.HasSuffix(method, "AllHomes") {
		return method
	}
	return strings.Replace(method, "Home", "", 1)
}

// operate carries a method out that the manager knows as an operation. The
// steps come in the order of the reference: look-up, arguments, polkit, and
// the rest in the manager; activation asks polkit before it reads the secret.
func (s *server) operate(ctx context.Context, c *call, n *node) ([]any, error) {
	name := stem(c.method.Name)
	verb, ok := verbs[name]
	if !ok {
		return nil, s.unsupported(ctx, c)
	}
	op := manager.Operation{Verb: verb, Caller: c.uid, Posted: c.posted}
	handedOver := false
	defer func() {
		if !handedOver {
			op.Secrets.Close()
			op.OldSecrets.Close()
			closeFiles(op.Blobs)
		}
	}()
	target := n.home
	named := -1 // the argument that is the user's name
	for i, a := range c.method.In {
		if a.Name == "user_name" {
			named = i
		}
	}
	if named >= 0 {
		info, err := s.named(ctx, c, c.args[named].([]byte))
		if err != nil {
			return nil, err
		}
		target = &info
	}
	late := verb == home.Activate || verb == home.ActivateIfReferenced
	if !late {
		if err := readArguments(c, &op); err != nil {
			return nil, err
		}
	}
	if verb == home.Update && target == nil {
		info, err := s.find(ctx, c, manager.Key{Name: op.Record.UserName()})
		if err != nil {
			return nil, err
		}
		target = &info
	}
	var about *subject
	if target != nil {
		op.Key = manager.Key{Name: target.Name}
		about = &subject{target.UID, target.Name}
	} else if op.Record != nil {
		c.user = op.Record.UserName()
		op.Key = manager.Key{Name: c.user}
	}
	action := c.method.Action
	if verb == home.Update && target != nil {
		if op.Flags&^manager.Offline != 0 {
			return nil, fault.Newf(fault.InvalidArgs, "read flags", "Invalid flags provided.")
		}
		if err := s.addManifest(&op); err != nil {
			return nil, err
		}
		// Root is nobody's owner. An owner who dates a change later than now
		// would keep everybody else from changing the record.
		if c.uid == target.UID && records.SelfModifiable(target.Subject.Record(), op.Record, target.Machine) &&
			!records.Postdated(target.Subject.Record(), op.Record, uint64(time.Now().UnixMicro())) {
			action = home1.ActionUpdateByOwner
		}
	}
	asked := false
	if err := s.access.allowed(ctx, c, action, about, func() { asked = true; c.posted() }); err != nil {
		return nil, err
	}
	if asked && target != nil {
		// Somebody may have typed a password for minutes meanwhile. The home
		// that polkit spoke of must still be the one that bears the name.
		info, err := s.find(ctx, c, op.Key)
		if err != nil {
			return nil, err
		}
		if info.UID != about.uid {
			return nil, fault.New(fault.NoSuchHome, "find the home again", nil)
		}
	}
	if late {
		if err := readArguments(c, &op); err != nil {
			return nil, err
		}
	}
	if c.msg.dest == home1.OwnName {
		op.Progress = s.progress(c)
	}
	begin, guess := time.Now(), guesses(op.Secrets, op.OldSecrets)
	handedOver = true
	result, err := s.o.Manager.Do(ctx, op)
	if guess {
		slowDown(ctx, err, time.Since(begin))
	}
	if result.Reference != nil {
		c.done = append(c.done, func() { _ = result.Reference.Close() })
	}
	if err != nil {
		return nil, err
	}
	if len(c.method.Out) == 0 {
		return nil, nil
	}
	if result.Reference == nil {
		return nil, fault.New(fault.Unknown, "pass the reference on", nil)
	}
	return []any{dbus.UnixFD(result.Reference.Fd())}, nil
}

// readArguments takes an operation's arguments apart by their names in the
// method table. Secrets leave the receive buffer for locked memory here.
func readArguments(c *call, op *manager.Operation) (err error) {
	for i, a := range c.method.In {
		switch a.Name {
		case "secret", "new_secret":
			op.Secrets, err = readSecret(c.args[i].([]byte))
		case "old_secret":
			op.OldSecrets, err = readSecret(c.args[i].([]byte))
		case "user_record":
			op.Record, op.Secrets, err = readRecord(c.args[i].([]byte), op.Verb)
		case "please_suspend":
			op.PleaseSuspend = c.args[i].(bool)
		case "size":
			op.Size = c.args[i].(uint64)
		case "blobs":
			op.Blobs, err = takeBlobs(c.args[i].(blobs), c.msg.fds)
		case "flags":
			if op.Flags = c.args[i].(uint64); op.Flags != 0 && op.Verb == home.Create {
				err = fault.Newf(fault.InvalidArgs, "read flags", "Invalid flags provided.")
			}
		}
		if err != nil {
			return err
		}
	}
	return nil
}

// readSecret takes a secret section out of the receive buffer. The caller
// closes it. Fault: InvalidArgs.
func readSecret(text []byte) (*secret.Bytes, error) {
	section, err := secret.Take(text)
	if err != nil {
		return nil, err
	}
	parsed, err := records.ParseSecrets(section)
	if err != nil {
		section.Close()
		var f *fault.Error
		if errors.As(err, &f) {
			f.Text = strings.Replace(f.Text, "JSON identity record", "JSON secret record", 1)
		}
		return nil, err
	}
	parsed.Close()
	return section, nil
}

// readRecord parses a record argument. Its secret section never meets the
// JSON decoder. The caller closes it. Fault: InvalidArgs.
func readRecord(text []byte, verb home.Verb) (*records.Record, *secret.Bytes, error) {
	rest, section, err := records.CutSecret(text)
	if err != nil {
		return nil, nil, err
	}
	if section != nil {
		parsed, err := records.ParseSecrets(section)
		if err != nil {
			section.Close()
			return nil, nil, err
		}
		parsed.Close()
	}
	r, err := records.Parse(rest, map[home.Verb]records.Context{
		home.Create:   records.BusCreate,
		home.Update:   records.BusUpdate,
		home.Register: records.BusRegister,
	}[verb])
	if err != nil {
		section.Close()
		return nil, nil, err
	}
	return r, section, nil
}

// unsupported answers the methods that no operation stands behind yet, after
// the checks that their reference makes before polkit.
func (s *server) unsupported(ctx context.Context, c *call) error {
	for i, a := range c.method.In {
		if a.Name == "flags" && c.args[i].(uint64) != 0 {
			return fault.New(fault.InvalidArgs, "read flags", nil)
		}
	}
	if err := s.access.allowed(ctx, c, c.method.Action, nil, c.posted); err != nil {
		return err
	}
	return fault.Newf(fault.NotSupported, "call "+c.method.Name, "%s is not supported yet.", c.method.Name)
}
