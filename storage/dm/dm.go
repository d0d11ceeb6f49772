// Package dm maps block devices through the kernel's device mapper, by its
// ioctl interface (linux/dm-ioctl.h). It knows names, tables and states, no
// format; what a table means is its caller's, who also has to see that a key
// the table names is found by the thread that loads it.
package dm

import (
	"context"
	"errors"
	"fmt"
	"os"
	"time"

	"golang.org/x/sys/unix"

	"hearth/internal/fault"
)

// Dir is where device mapper's links by name are.
const Dir = "/dev/mapper"

// How long the kernel's and udev's own work on a device is waited for.
const (
	nodeWait   = 5 * time.Second  // devtmpfs makes the node before the ioctl returns
	removeWait = 5 * time.Second  // udev opens new and changed devices for a moment
	goneWait   = 30 * time.Second // systemd-homed's limit
	pauseFirst = time.Millisecond
	pauseLast  = 50 * time.Millisecond
)

// Options of Create.
type Options struct {
	ReadOnly bool
}

// Mapped is a mapped device. It holds nothing open.
type Mapped struct {
	Name         string
	Major, Minor uint32
	Node         string // /dev/dm-N
}

// Status is what the kernel says of a device.
type Status struct {
	UUID      string
	OpenCount int  // opens and mounts
	Suspended bool // IO waits
	Live      bool // it has a table that IO goes through
	Deferred  bool // goes with its last close
	ReadOnly  bool
}

// Available reports whether this kernel has a device mapper and we may use it.
func Available() bool {
	_, err := call("look for device mapper", unix.DM_VERSION, request{})
	return err == nil
}

// HasTarget reports whether the kernel has a target type, loading its module
// if need be. Kernels before 5.3 cannot be asked; it then says yes.
func HasTarget(name string) bool {
	_, err := call("look for target", unix.DM_GET_TARGET_VERSION, request{name: name, room: replyRoom})
	return !errors.Is(err, unix.EINVAL)
}

// Create maps sectors of 512 bytes by one target with the given parameters.
// When it returns, Node is there, and a link in Dir for other tools: udev makes
// it too, but some time after the device works, and we do not wait for it
// (event number 0, no cookie). On error nothing of the device remains.
//
// A table that names a logon key must be loaded by the thread whose keyring
// holds it: call Create inside keyring.WithLogonKey.
//
// Faults: FileExists if the name or uuid is mapped already, NotSupported if the
// kernel lacks device mapper or target, KeyUnavailable if the key is not found
// from this thread, HomeBusy if the device below is in use.
func Create(ctx context.Context, name, uuid string, sectors uint64, target, params string, o Options) (*Mapped, error) {
	m, _, err := create(ctx, name, uuid, sectors, target, params, o, false)
	return m, err
}

// CreateHeld is Create of a device that goes by itself with its last close; the
// caller closes hold, which keeps it until others use it. That is settled before
// the table is live: who is killed on the way leaves nothing that can be read.
// A device without a live table may be left, because kernels make the node only
// when a table is loaded.
func CreateHeld(ctx context.Context, name, uuid string, sectors uint64, target, params string, o Options) (m *Mapped, hold *os.File, err error) {
	return create(ctx, name, uuid, sectors, target, params, o, true)
}

func create(ctx context.Context, name, uuid string, sectors uint64, target, params string, o Options, held bool) (*Mapped, *os.File, error) {
	op := "create mapped device " + name
	if name == "" || len(name) >= unix.DM_NAME_LEN || len(uuid) >= unix.DM_UUID_LEN {
		return nil, nil, fault.Newf(fault.InvalidArgs, op, "Name %q is not fit for a mapped device.", name)
	}
	flags := uint32(0)
	if o.ReadOnly {
		flags = unix.DM_READONLY_FLAG
	}
	r, err := call(op, unix.DM_DEV_CREATE, request{name: name, uuid: uuid})
	if errors.Is(err, unix.EBUSY) {
		return nil, nil, fault.New(fault.FileExists, op, err)
	}
	if err != nil {
		return nil, nil, err
	}
	m := mapped(name, r)
	var hold *os.File
	err = m.load(sectors, target, params, flags)
	if err == nil && held {
		hold, err = m.hold(ctx)
	}
	if err == nil {
		err = m.Resume()
	}
	if err == nil {
		err = m.awaitNode(ctx)
	}
	if err == nil {
		err = m.link()
	}
	if err != nil {
		if hold != nil {
			err = errors.Join(err, hold.Close())
		}
		// The operation may be over; what it made must go all the same.
		return nil, nil, errors.Join(err, Remove(context.WithoutCancel(ctx), name, false))
	}
	return m, hold, nil
}

// hold opens the device, and has it go with its last close.
func (m *Mapped) hold(ctx context.Context) (*os.File, error) {
	if err := m.awaitNode(ctx); err != nil {
		return nil, err
	}
	f, err := os.Open(m.Node)
	if err != nil {
		return nil, fault.New(fault.IOError, "open mapped device", err)
	}
	op := "have mapped device " + m.Name + " go with its last close"
	if r, err := call(op, unix.DM_DEV_REMOVE, request{name: m.Name, flags: unix.DM_DEFERRED_REMOVE}); err != nil {
		return nil, errors.Join(err, f.Close())
	} else if r.head.Flags&unix.DM_DEFERRED_REMOVE == 0 {
		return nil, errors.Join(fmt.Errorf("%s: it went at once", op), f.Close())
	}
	return f, nil
}

func mapped(name string, r *reply) *Mapped {
	dev := r.head.Dev
	return &Mapped{
		Name: name, Major: unix.Major(dev), Minor: unix.Minor(dev),
		Node: fmt.Sprintf("/dev/dm-%d", unix.Minor(dev)),
	}
}

// load puts a table in the device's inactive slot; Resume makes it live.
func (m *Mapped) load(sectors uint64, target, params string, flags uint32) error {
	op := "load table of " + m.Name
	// The kernel wipes its copy of the request.
	_, err := call(op, unix.DM_TABLE_LOAD, request{
		name: m.Name, flags: flags | unix.DM_SECURE_DATA_FLAG,
		targets: 1, data: encodeTarget(sectors, target, params),
	})
	switch {
	case err == nil:
		return nil
	case errors.Is(err, unix.ENOKEY):
		return fault.New(fault.KeyUnavailable, op, err)
	case errors.Is(err, unix.EBUSY):
		return fault.New(fault.HomeBusy, op, err)
	case errors.Is(err, unix.EINVAL) && !HasTarget(target):
		e := fault.Newf(fault.NotSupported, op, "This kernel has no device mapper target %s.", target)
		e.Err = err
		return e
	}
	return err
}

// Reload replaces the table of a device that may be in use. Faults as Create.
func (m *Mapped) Reload(sectors uint64, target, params string, o Options) error {
	flags := uint32(0)
	if o.ReadOnly {
		flags = unix.DM_READONLY_FLAG
	}
	if err := m.load(sectors, target, params, flags); err != nil {
		_, cerr := call("clear table of "+m.Name, unix.DM_TABLE_CLEAR, request{name: m.Name})
		return errors.Join(err, cerr)
	}
	// Resuming with a new table suspends by itself for the swap.
	return m.Resume()
}

// Suspend freezes the file system on the device, writes everything out, and
// makes further IO wait.
func (m *Mapped) Suspend() error {
	_, err := call("suspend "+m.Name, unix.DM_DEV_SUSPEND, request{name: m.Name, flags: unix.DM_SUSPEND_FLAG})
	return err
}

// Resume makes a loaded table live and lets IO go on.
func (m *Mapped) Resume() error {
	_, err := call("resume "+m.Name, unix.DM_DEV_SUSPEND, request{name: m.Name})
	return err
}

// Message sends text to the device's target. Faults: KeyUnavailable if it
// names a key that is not found from this thread.
func (m *Mapped) Message(text string) error {
	op := "send message to " + m.Name
	_, err := call(op, unix.DM_TARGET_MSG, request{
		name: m.Name, flags: unix.DM_SECURE_DATA_FLAG, data: encodeMessage(text), room: replyRoom,
	})
	if errors.Is(err, unix.ENOKEY) {
		return fault.New(fault.KeyUnavailable, op, err)
	}
	return err
}

// Status asks for the device's state.
func (m *Mapped) Status() (Status, error) {
	r, err := status(m.Name)
	if err != nil {
		return Status{}, err
	}
	return Status{
		UUID: cString(r.head.Uuid[:]), OpenCount: int(r.head.Open_count),
		Suspended: r.head.Flags&unix.DM_SUSPEND_FLAG != 0,
		Live:      r.head.Flags&unix.DM_ACTIVE_PRESENT_FLAG != 0,
		Deferred:  r.head.Flags&unix.DM_DEFERRED_REMOVE != 0,
		ReadOnly:  r.head.Flags&unix.DM_READONLY_FLAG != 0,
	}, nil
}

// Table returns the live table's only target, as it was loaded; keys in hex
// are left out by the kernel, names of keys are not.
func (m *Mapped) Table() (sectors uint64, target, params string, err error) {
	op := "read table of " + m.Name
	r, err := call(op, unix.DM_TABLE_STATUS, request{name: m.Name, flags: unix.DM_STATUS_TABLE_FLAG | unix.DM_NOFLUSH_FLAG, room: replyRoom})
	if err != nil {
		return 0, "", "", err
	}
	if r.head.Target_count != 1 {
		return 0, "", "", fmt.Errorf("%s: %d targets", op, r.head.Target_count)
	}
	return decodeTarget(r.data)
}

// Backing returns the numbers of the one device the table rests on.
func (m *Mapped) Backing() (major, minor uint32, err error) {
	op := "read dependencies of " + m.Name
	r, err := call(op, unix.DM_TABLE_DEPS, request{name: m.Name, room: replyRoom})
	if err != nil {
		return 0, 0, err
	}
	dev, err := decodeDeps(r.data)
	if err != nil {
		return 0, 0, fmt.Errorf("%s: %w", op, err)
	}
	return unix.Major(dev), unix.Minor(dev), nil
}

// Open returns the mapped device of a name. Faults: HomeNotActive if there is
// none.
func Open(name string) (*Mapped, error) {
	r, err := status(name)
	if errors.Is(err, unix.ENXIO) {
		return nil, fault.New(fault.HomeNotActive, "open mapped device "+name, err)
	}
	if err != nil {
		return nil, err
	}
	return mapped(name, r), nil
}

// Exists asks the kernel, not the links in /dev, whether a name is mapped. It
// says no where there is no device mapper.
func Exists(name string) bool {
	_, err := status(name)
	return err == nil
}

func status(name string) (*reply, error) {
	return call("look for mapped device "+name, unix.DM_DEV_STATUS, request{name: name})
}

// Remove removes the device of a name; that there is none is success. A device
// in use is tried again for some seconds, because udev opens devices for a
// moment at times that nobody can foresee.
//
// With deferred a device in use stays, and goes by itself with its last close.
//
// Faults: HomeBusy if it is still in use at the end.
func Remove(ctx context.Context, name string, deferred bool) error {
	op := "remove mapped device " + name
	r := request{name: name}
	if deferred {
		r.flags = unix.DM_DEFERRED_REMOVE
	}
	var state *reply
	err := until(ctx, removeWait, func() (bool, error) {
		var err error
		state, err = call(op, unix.DM_DEV_REMOVE, r)
		return !errors.Is(err, unix.EBUSY), err
	})
	switch {
	case err == nil && deferred && state.head.Flags&unix.DM_DEFERRED_REMOVE != 0:
		return nil // it waits for its last close, the link stays good
	case err == nil, errors.Is(err, unix.ENXIO):
		return unlink(name)
	case fault.Is(err, fault.NotSupported):
		return nil // without device mapper there are no devices
	case errors.Is(err, unix.EBUSY):
		return fault.New(fault.HomeBusy, op, err)
	}
	return err
}

// WaitGone waits until no device of the name exists, at most 30 seconds, and
// clears away a link to it that nobody else did. Faults: Timeout.
func WaitGone(ctx context.Context, name string) error {
	var last error
	err := until(ctx, goneWait, func() (bool, error) {
		_, err := status(name)
		if errors.Is(err, unix.ENXIO) || fault.Is(err, fault.NotSupported) {
			return true, nil
		}
		last = err
		return err != nil, err
	})
	switch {
	case errors.Is(err, errTooLong):
		return fault.New(fault.Timeout, "wait for the end of mapped device "+name, last)
	case err != nil:
		return err
	}
	return unlink(name)
}

// errTooLong: until gave up.
var errTooLong = errors.New("took too long")

// until calls f, with growing pauses, until it says that it is done, and
// returns f's last error, joined with why it stopped early.
func until(ctx context.Context, limit time.Duration, f func() (done bool, err error)) error {
	deadline := time.Now().Add(limit)
	for wait := pauseFirst; ; wait = min(wait*2, pauseLast) {
		done, err := f()
		if done {
			return err
		}
		if time.Now().After(deadline) {
			return errors.Join(errTooLong, err)
		}
		t := time.NewTimer(wait)
		select {
		case <-ctx.Done():
			t.Stop()
			return errors.Join(context.Cause(ctx), err)
		case <-t.C:
		}
	}
}

func (m *Mapped) awaitNode(ctx context.Context) error {
	return until(ctx, nodeWait, func() (bool, error) {
		var st unix.Stat_t
		err := unix.Stat(m.Node, &st)
		if err == nil && (unix.Major(st.Rdev) != m.Major || unix.Minor(st.Rdev) != m.Minor) {
			err = unix.ENXIO // the node of a device that is gone
		}
		if err != nil {
			return false, fmt.Errorf("wait for %s: %w", m.Node, err)
		}
		return true, nil
	})
}

// link makes the link in Dir, as udev will in a while, unless it is there and
// right. One that is wrong was left by a device that is gone: the kernel has
// one device of a name at most.
func (m *Mapped) link() error {
	path, to := Dir+"/"+m.Name, fmt.Sprintf("../dm-%d", m.Minor)
	for range 3 {
		if got, err := os.Readlink(path); err == nil && got == to {
			return nil
		}
		var st unix.Stat_t
		if unix.Stat(path, &st) == nil && unix.Major(st.Rdev) == m.Major && unix.Minor(st.Rdev) == m.Minor {
			return nil // a node instead of a link, as without udev
		}
		switch err := os.Symlink(to, path); {
		case err == nil:
			return nil
		case !errors.Is(err, os.ErrExist):
			return fmt.Errorf("link mapped device: %w", err)
		}
		if err := os.Remove(path); err != nil && !errors.Is(err, os.ErrNotExist) {
			return fmt.Errorf("link mapped device: %w", err)
		}
	}
	return fmt.Errorf("link mapped device: %s keeps changing", path)
}

// unlink takes the link of a device that is gone away, if udev has not.
func unlink(name string) error {
	if Exists(name) {
		return nil // a new one of that name, whose link it is
	}
	if err := os.Remove(Dir + "/" + name); err != nil && !errors.Is(err, os.ErrNotExist) {
		return fmt.Errorf("unlink mapped device: %w", err)
	}
	return nil
}
