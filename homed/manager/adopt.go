package manager

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"

	"hearth/homed/home"
	"hearth/internal/fault"
	"hearth/records"
)

// Adopt looks at a path outside of the home root as if it lay there: what looks
// like a home becomes an unfixated one, until it is fixated or the service ends.
// One whose name is taken is left alone without an error, as systemd-homed does.
// Faults: FileNotFound, BadAddress for a path without a name, UnrecognizedFormat.
func (m *Manager) Adopt(ctx context.Context, path string) error {
	const op = "adopt home"
	path = filepath.Clean(path)
	if path == "/" {
		return fault.New(fault.BadAddress, op, errors.New("the root directory has no name"))
	}
	c, ok := assess(path)
	if ok {
		return m.found(ctx, c)
	}
	if _, err := os.Stat(path); errors.Is(err, fs.ErrNotExist) {
		return fault.New(fault.FileNotFound, op, err)
	} else if err != nil {
		return fault.New(fault.Unknown, op, err)
	}
	return fault.Newf(fault.UnrecognizedFormat, op, "Unrecognized format of home directory: %s", path)
}

// found makes an unfixated home of storage that nobody has a record of. It asks
// for accounts, so it runs outside of the loop. An error is the loop's end.
func (m *Manager) found(ctx context.Context, c candidate) error {
	var known bool
	if err := m.ask(ctx, func() { known = m.names[c.name] != nil }); err != nil || known {
		return err
	}
	first := firstUID(c.owner, c.name)
	free := m.Accounts.Free(ctx, []string{c.name, fmt.Sprint(first)})
	if !free {
		if kind, _ := m.account(ctx, c.name); kind != "" {
			m.log.Info("ignoring an image, an account of that name exists", "HOME_USER", c.name, "path", c.path)
			return nil
		}
	}
	uid, err := m.allocateUID(ctx, c.owner, c.name, func(uid uint32) bool { return free && uid == first })
	if err != nil {
		m.log.Warn("no UID for the image found", "HOME_USER", c.name, "path", c.path, "error", err)
		return nil
	}
	b := records.NewBuilder(c.name)
	if c.realm != "" {
		b = b.Set("realm", c.realm)
	}
	r, err := b.Record()
	if err != nil {
		m.log.Warn("cannot make a record for the image found", "HOME_USER", c.name, "path", c.path, "error", err)
		return nil
	}
	subject := records.Bind(r.FoundAs(m.Machine.ID), m.Machine.ID, records.Binding{
		Storage: c.storage, ImagePath: c.path, HomeDirectory: filepath.Join(m.Layout.HomeRoot, c.name),
	})
	// By themselves, as the text of such a record has them last with systemd-homed.
	subject = records.Bind(subject, m.Machine.ID, records.Binding{UID: uid, GID: uid, HasUID: true})
	return m.ask(ctx, func() {
		if m.names[c.name] != nil || m.find(Key{UID: uid, ByUID: true}) != nil {
			return
		}
		e := m.add(subject, home.Home{Stored: home.Unfixated})
		m.logOf(e).Info("found a home without a record, it becomes usable with its first activation", "path", c.path, "storage", c.storage)
		m.say(e)
	})
}
