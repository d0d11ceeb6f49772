package home1

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"sync/atomic"
	"syscall"
	"time"
	"unsafe"

	"github.com/godbus/dbus/v5"

	"hearth/internal/busconn"
	"hearth/internal/fault"
	"hearth/internal/secret"
)

// lookupTimeout bounds the calls that wait for no storage; it is the bus's
// usual reply time. Storage calls have no bound but their ctx: a create runs
// for minutes, and its caller asks to stop by leaving.
const lookupTimeout = 25 * time.Second

// Client calls the service on the system bus. Its methods may be used from
// several goroutines, and return errors that are *fault.Error: the kind comes
// from the bus error's name, the text is the service's. The service may be
// Hearth's or systemd-homed.
//
// Passwords go to OwnManager, where the bus does not see them. A service without
// it is asked in the plain way, from the first call on that could not be delivered.
type Client struct {
	conn  *busconn.Caller
	plain atomic.Bool // the service has no OwnManager
}

// HomeInfo is what the look-ups tell of a home.
type HomeInfo struct {
	UserName      string
	UID           uint32
	State         string
	GID           uint32
	RealName      string
	HomeDirectory string
	Shell         string
	Path          string
}

// Dial connects to the system bus, or where DBUS_SYSTEM_BUS_ADDRESS points. A
// bus that is not there is fault.ServiceUnknown. The caller closes the client.
func Dial(ctx context.Context) (*Client, error) {
	return dial(ctx, busconn.DialSystem)
}

// DialAddress connects to the bus at a D-Bus address.
func DialAddress(ctx context.Context, address string) (*Client, error) {
	return dial(ctx, func() (*busconn.Caller, error) { return busconn.Dial(address) })
}

func dial(ctx context.Context, connect func() (*busconn.Caller, error)) (*Client, error) {
	const op = "connect to system bus"
	type result struct {
		conn *busconn.Caller
		err  error
	}
	done := make(chan result, 1)
	go func() {
		conn, err := connect()
		done <- result{conn, err}
	}()
	select {
	case r := <-done:
		if r.err != nil {
			kind := fault.Unknown
			if errors.Is(r.err, syscall.ENOENT) || errors.Is(r.err, syscall.ECONNREFUSED) {
				kind = fault.ServiceUnknown
			}
			return nil, fault.New(kind, op, r.err)
		}
		return &Client{conn: r.conn}, nil
	case <-ctx.Done():
		go func() {
			if r := <-done; r.err == nil {
				_ = r.conn.Close()
			}
		}()
		return nil, contextFault(ctx, op)
	}
}

// Close ends the connection. Calls that still wait return an error.
func (c *Client) Close() error { return c.conn.Close() }

// Call calls a method of the manager that answers nothing of use. Arguments
// are those of the method table; a *secret.Bytes is sent as a string, nil as
// the empty secret section.
func (c *Client) Call(ctx context.Context, method string, args ...any) error {
	_, err := c.Query(ctx, method, args...)
	return err
}

// Query is Call for a method whose answer is wanted. It returns the values as
// godbus decodes them; a dbus.UnixFD among them is the caller's to close.
func (c *Client) Query(ctx context.Context, method string, args ...any) ([]any, error) {
	return c.query(ctx, "", method, args...)
}

func (c *Client) query(ctx context.Context, user, method string, args ...any) ([]any, error) {
	op := "call " + method
	if ctx.Err() != nil {
		return nil, contextFault(ctx, op)
	}
	own := !c.plain.Load() && carriesSecret(args) && OwnManager.Method(method) != nil
	var call *busconn.Call
	var err error
	if own {
		// No memfd, no descriptor left: the plain way needs none.
		call, err = c.sendSealed(method, args)
		own = err == nil
	}
	if !own {
		call, err = c.send(method, args)
	}
	if err != nil {
		return nil, fault.New(fault.Unknown, op, err)
	}
	select {
	case <-call.Done:
	case <-ctx.Done():
		// The answer may still bring a descriptor, and with it a reference
		// that would keep the home active for as long as we run.
		go func() {
			<-call.Done
			closeFDs(call.Body)
		}()
		return nil, contextFault(ctx, op)
	}
	if own && undelivered(call) {
		c.plain.Store(true)
		return c.query(ctx, user, method, args...)
	}
	if call.Err != nil {
		return nil, busFault(op, user, call.Err)
	}
	return call.Body, nil
}

// send writes the call before it returns, so what it borrows of secrets ends
// with it. The message is built by hand because godbus's Object drops the flag
// that lets polkit ask.
func (c *Client) send(method string, args []any) (*busconn.Call, error) {
	body := make([]any, len(args))
	for i, a := range args {
		if s, ok := a.(*secret.Bytes); ok && s == nil {
			body[i] = "{}"
		} else {
			body[i] = a
		}
	}
	return lend(body, 0, func() (*busconn.Call, error) {
		m := Manager.Method(method)
		if m == nil {
			return nil, fmt.Errorf("%s is no method of %s", method, ManagerInterface)
		}
		return c.conn.Go(message(Name, ManagerPath, ManagerInterface, m, body)), nil
	})
}

func message(name, path, iface string, m *Method, body []any) *dbus.Message {
	msg := &dbus.Message{Type: dbus.TypeMethodCall, Body: body, Headers: map[dbus.HeaderField]dbus.Variant{
		dbus.FieldDestination: dbus.MakeVariant(name),
		dbus.FieldPath:        dbus.MakeVariant(dbus.ObjectPath(path)),
		dbus.FieldInterface:   dbus.MakeVariant(iface),
		dbus.FieldMember:      dbus.MakeVariant(m.Name),
	}}
	if m.Action != "" {
		msg.Flags = dbus.FlagAllowInteractiveAuthorization
	}
	if len(body) > 0 {
		msg.Headers[dbus.FieldSignature] = dbus.MakeVariant(dbus.SignatureOf(body...))
	}
	return msg
}

// carriesSecret says whether a call has anything to hide.
func carriesSecret(args []any) bool {
	for _, a := range args {
		if s, ok := a.(*secret.Bytes); ok && s != nil {
			return true
		}
	}
	return false
}

// sendSealed is send to OwnManager. What it borrows ends with it, too: the bus
// has descriptors of the memfds by then.
func (c *Client) sendSealed(method string, args []any) (*busconn.Call, error) {
	body := make([]any, len(args))
	for i, a := range args {
		s, ok := a.(*secret.Bytes)
		if !ok {
			body[i] = a
			continue
		}
		f, err := seal(s)
		if err != nil {
			return nil, err
		}
		defer f.Close()
		body[i] = dbus.UnixFD(f.Fd())
	}
	msg := message(OwnName, OwnPath, OwnInterface, OwnManager.Method(method), body)
	// Nobody is started for it: who is asked has the other name already, or is
	// started by the plain call.
	msg.Flags |= dbus.FlagNoAutoStart
	return c.conn.Go(msg), nil
}

func seal(s *secret.Bytes) (f *os.File, err error) {
	if s == nil {
		return secret.Sealed("secret", []byte("{}"))
	}
	err = s.Use(func(p []byte) error {
		f, err = secret.Sealed("secret", p)
		return err
	})
	return f, err
}

// undelivered says that no service took the call, so that it may be made once
// more in the plain way without a wrong password counting twice: the bus knows
// nobody of the name or, by its policy, lets nobody through, or the service
// knows no such thing.
func undelivered(call *busconn.Call) bool {
	var d dbus.Error
	if !errors.As(call.Err, &d) {
		return false
	}
	const prefix = "org.freedesktop.DBus.Error."
	switch d.Name {
	case prefix + "ServiceUnknown", prefix + "NameHasNoOwner", prefix + "AccessDenied":
		return call.Sender == "org.freedesktop.DBus"
	case prefix + "UnknownMethod", prefix + "UnknownObject", prefix + "UnknownInterface":
		return true
	}
	return false
}

// lend puts each secret of body, from index i on, into its place as a string
// over the locked memory itself, and calls f while all are lent. The buffer that
// it is encoded in is wiped once sent; what godbus's encoder copied on the way we
// cannot reach, it ends with the client process, which is short-lived.
func lend(body []any, i int, f func() (*busconn.Call, error)) (call *busconn.Call, err error) {
	for ; i < len(body); i++ {
		s, ok := body[i].(*secret.Bytes)
		if !ok {
			continue
		}
		uerr := s.Use(func(p []byte) error {
			body[i] = unsafe.String(unsafe.SliceData(p), len(p))
			call, err = lend(body, i+1, f)
			return err
		})
		return call, uerr
	}
	return f()
}

func closeFDs(body []any) {
	for _, v := range body {
		if fd, ok := v.(dbus.UnixFD); ok {
			_ = syscall.Close(int(fd))
		}
	}
}

func contextFault(ctx context.Context, op string) error {
	if errors.Is(ctx.Err(), context.DeadlineExceeded) {
		return fault.New(fault.Timeout, op, ctx.Err())
	}
	e := fault.Newf(fault.Unknown, op, "Operation canceled")
	e.Err = ctx.Err()
	return e
}

// busFault gives an error from the bus its kind. The cause stays reachable
// with errors.As as a dbus.Error.
func busFault(op, user string, err error) error {
	e := fault.New(fault.Unknown, op, err)
	e.User = user
	var d dbus.Error
	var f dbus.FormatError
	switch {
	case errors.As(err, &d):
	case errors.As(err, &f):
		// godbus would not send it: a string that is no UTF-8, or holds NUL.
		e.Kind = fault.InvalidArgs
		return e
	default:
		e.Text = "The connection to the system bus ended."
		return e
	}
	switch d.Name {
	case "org.freedesktop.DBus.Error.NameHasNoOwner", "org.freedesktop.systemd1.NoSuchUnit", "org.freedesktop.systemd1.UnitMasked":
		// Other ways of saying that nobody serves the name and that none
		// can be started.
		e.Kind = fault.ServiceUnknown
	default:
		e.Kind = fault.FromBus(d.Name)
	}
	e.Text = d.Error()
	return e
}

// shaped reports an answer whose types are not those of the table.
func shaped(method string, err error) error {
	return fault.New(fault.Unknown, "read the answer to "+method, err)
}

// GetHomeByName looks a home up by user name, alias or name@realm; the empty
// name is the caller's own home. Fault: NoSuchHome.
func (c *Client) GetHomeByName(ctx context.Context, name string) (HomeInfo, error) {
	ctx, cancel := context.WithTimeout(ctx, lookupTimeout)
	defer cancel()
	body, err := c.query(ctx, name, "GetHomeByName", name)
	if err != nil {
		return HomeInfo{}, err
	}
	h := HomeInfo{UserName: name}
	var path dbus.ObjectPath
	if err := dbus.Store(body, &h.UID, &h.State, &h.GID, &h.RealName, &h.HomeDirectory, &h.Shell, &path); err != nil {
		return HomeInfo{}, shaped("GetHomeByName", err)
	}
	h.Path = string(path)
	return h, nil
}

// ListHomes returns all homes, in no order.
func (c *Client) ListHomes(ctx context.Context) ([]HomeInfo, error) {
	ctx, cancel := context.WithTimeout(ctx, lookupTimeout)
	defer cancel()
	body, err := c.query(ctx, "", "ListHomes")
	if err != nil {
		return nil, err
	}
	var rows []struct {
		UserName      string
		UID           uint32
		State         string
		GID           uint32
		RealName      string
		HomeDirectory string
		Shell         string
		Path          dbus.ObjectPath
	}
	if err := dbus.Store(body, &rows); err != nil {
		return nil, shaped("ListHomes", err)
	}
	list := make([]HomeInfo, 0, len(rows))
	for _, r := range rows {
		list = append(list, HomeInfo{r.UserName, r.UID, r.State, r.GID, r.RealName, r.HomeDirectory, r.Shell, string(r.Path)})
	}
	return list, nil
}

// GetUserRecordByName returns the augmented record as JSON text. incomplete
// says that the privileged section exists and was withheld. Fault: NoSuchHome.
func (c *Client) GetUserRecordByName(ctx context.Context, name string) (text []byte, incomplete bool, err error) {
	ctx, cancel := context.WithTimeout(ctx, lookupTimeout)
	defer cancel()
	body, err := c.query(ctx, name, "GetUserRecordByName", name)
	if err != nil {
		return nil, false, err
	}
	var s string
	var path dbus.ObjectPath
	if err := dbus.Store(body, &s, &incomplete, &path); err != nil {
		return nil, false, shaped("GetUserRecordByName", err)
	}
	return []byte(s), incomplete, nil
}

// CreateHome registers a record and makes its storage. record is a JSON object
// without secret section; section is the content of that section, or nil. blobs
// are files to be kept beside it, or nil. All are borrowed.
func (c *Client) CreateHome(ctx context.Context, record []byte, section *secret.Bytes, blobs map[string]*os.File) error {
	joined, err := JoinSecret(record, section)
	if err != nil {
		return fault.New(fault.InvalidArgs, "join record and secret", err)
	}
	defer joined.Close()
	if blobs != nil {
		return c.Call(ctx, "CreateHomeEx", joined, descriptors(blobs), uint64(0))
	}
	return c.Call(ctx, "CreateHome", joined)
}

// descriptors are what travels of files. The call has them when it is sent.
func descriptors(files map[string]*os.File) map[string]dbus.UnixFD {
	out := map[string]dbus.UnixFD{}
	for name, f := range files {
		out[name] = dbus.UnixFD(f.Fd())
	}
	return out
}

// JoinSecret returns the record's text with section as its member "secret".
// The caller closes the result. A nil section adds nothing.
func JoinSecret(record []byte, section *secret.Bytes) (*secret.Bytes, error) {
	record = bytes.TrimSpace(record)
	if len(record) < 2 || record[0] != '{' || record[len(record)-1] != '}' {
		return nil, errors.New("the record is no JSON object")
	}
	if section == nil {
		return secret.Copy(record)
	}
	members := record[:len(record)-1]
	key := `,"secret":`
	if len(bytes.TrimSpace(members)) == 1 {
		key = `"secret":`
	}
	out, err := secret.New(len(members) + len(key) + section.Len() + 1)
	if err != nil {
		return nil, err
	}
	err = section.Use(func(s []byte) error {
		return out.Use(func(p []byte) error {
			n := copy(p, members)
			n += copy(p[n:], key)
			n += copy(p[n:], s)
			p[n] = '}'
			return nil
		})
	})
	if err != nil {
		out.Close()
		return nil, err
	}
	return out, nil
}

// ActivateHome mounts a home by hand, without reference. In this and the
// following, secrets is the content of a secret section, borrowed, or nil for
// none.
func (c *Client) ActivateHome(ctx context.Context, name string, secrets *secret.Bytes) error {
	_, err := c.query(ctx, name, "ActivateHome", name, secrets)
	return err
}

// ActivateHomeIfReferenced mounts a home that somebody holds a reference on.
// Fault: HomeNotReferenced.
func (c *Client) ActivateHomeIfReferenced(ctx context.Context, name string, secrets *secret.Bytes) error {
	_, err := c.query(ctx, name, "ActivateHomeIfReferenced", name, secrets)
	return err
}

// DeactivateHome unmounts a home, whoever holds references.
func (c *Client) DeactivateHome(ctx context.Context, name string) error {
	_, err := c.query(ctx, name, "DeactivateHome", name)
	return err
}

// DeactivateAllHomes unmounts every home.
func (c *Client) DeactivateAllHomes(ctx context.Context) error {
	return c.Call(ctx, "DeactivateAllHomes")
}

// LockHome takes the key of an active home out of memory. Faults:
// HomeNotActive, HomeLocked, NotSupported where the storage has no key.
func (c *Client) LockHome(ctx context.Context, name string) error {
	_, err := c.query(ctx, name, "LockHome", name)
	return err
}

// UnlockHome lets a locked home go on. Fault: HomeNotLocked.
func (c *Client) UnlockHome(ctx context.Context, name string, secrets *secret.Bytes) error {
	_, err := c.query(ctx, name, "UnlockHome", name, secrets)
	return err
}

// LockAllHomes locks the homes whose every reference allows it.
func (c *Client) LockAllHomes(ctx context.Context) error { return c.Call(ctx, "LockAllHomes") }

// Rebalance shares free space out among the open homes.
func (c *Client) Rebalance(ctx context.Context) error { return c.Call(ctx, "Rebalance") }

// RegisterHome stores a record whose storage exists elsewhere or comes later.
func (c *Client) RegisterHome(ctx context.Context, record []byte) error {
	return c.Call(ctx, "RegisterHome", string(record))
}

// UnregisterHome forgets a record and keeps its storage.
func (c *Client) UnregisterHome(ctx context.Context, name string) error {
	_, err := c.query(ctx, name, "UnregisterHome", name)
	return err
}

// RemoveHome deletes a home's storage and record.
func (c *Client) RemoveHome(ctx context.Context, name string) error {
	_, err := c.query(ctx, name, "RemoveHome", name)
	return err
}

// FixateHome takes the record out of a home that was found and stores it.
func (c *Client) FixateHome(ctx context.Context, name string, secrets *secret.Bytes) error {
	_, err := c.query(ctx, name, "FixateHome", name, secrets)
	return err
}

// AuthenticateHome checks secrets and changes nothing.
func (c *Client) AuthenticateHome(ctx context.Context, name string, secrets *secret.Bytes) error {
	_, err := c.query(ctx, name, "AuthenticateHome", name, secrets)
	return err
}

// AcquireHome makes a home accessible and returns the reference on it: the
// home stays active until every copy of the file is closed. pleaseSuspend
// allows locking the home while the machine sleeps.
func (c *Client) AcquireHome(ctx context.Context, name string, secrets *secret.Bytes, pleaseSuspend bool) (*os.File, error) {
	return c.reference(ctx, name, "AcquireHome", name, secrets, pleaseSuspend)
}

// RefHome returns a further reference on an active home. Faults:
// HomeNotActive, HomeLocked.
func (c *Client) RefHome(ctx context.Context, name string, pleaseSuspend bool) (*os.File, error) {
	return c.reference(ctx, name, "RefHome", name, pleaseSuspend)
}

// RefHomeUnrestricted returns a reference whatever the home's state.
func (c *Client) RefHomeUnrestricted(ctx context.Context, name string, pleaseSuspend bool) (*os.File, error) {
	return c.reference(ctx, name, "RefHomeUnrestricted", name, pleaseSuspend)
}

// ReleaseHome waits until a home without references is deactivated. Fault:
// HomeBusy if references remain.
func (c *Client) ReleaseHome(ctx context.Context, name string) error {
	_, err := c.query(ctx, name, "ReleaseHome", name)
	return err
}

// SigningKey is a public key whose signatures the service accepts.
type SigningKey struct {
	Name, PEM string
	Flags     uint64
}

// ListSigningKeys returns the keys whose signatures are accepted.
func (c *Client) ListSigningKeys(ctx context.Context) ([]SigningKey, error) {
	ctx, cancel := context.WithTimeout(ctx, lookupTimeout)
	defer cancel()
	body, err := c.query(ctx, "", "ListSigningKeys")
	if err != nil {
		return nil, err
	}
	var keys []SigningKey
	if err := dbus.Store(body, &keys); err != nil {
		return nil, shaped("ListSigningKeys", err)
	}
	return keys, nil
}

// GetSigningKey returns one of them as PEM. Fault: NoSuchKey.
func (c *Client) GetSigningKey(ctx context.Context, name string) (string, error) {
	ctx, cancel := context.WithTimeout(ctx, lookupTimeout)
	defer cancel()
	body, err := c.query(ctx, "", "GetSigningKey", name)
	if err != nil {
		return "", err
	}
	var text string
	var flags uint64
	if err := dbus.Store(body, &text, &flags); err != nil {
		return "", shaped("GetSigningKey", err)
	}
	return text, nil
}

// AdoptHome has a home known that lies outside of the home root. Faults:
// InvalidArgs, FileNotFound, UnrecognizedFormat.
func (c *Client) AdoptHome(ctx context.Context, path string) error {
	return c.Call(ctx, "AdoptHome", path, uint64(0))
}

// AddSigningKey has records accepted that a key signed. Fault: InvalidArgs.
func (c *Client) AddSigningKey(ctx context.Context, name, pem string) error {
	return c.Call(ctx, "AddSigningKey", name, pem, uint64(0))
}

// RemoveSigningKey ends that. Fault: InvalidArgs for a name that is not known.
func (c *Client) RemoveSigningKey(ctx context.Context, name string) error {
	return c.Call(ctx, "RemoveSigningKey", name, uint64(0))
}

func (c *Client) reference(ctx context.Context, name, method string, args ...any) (*os.File, error) {
	body, err := c.query(ctx, name, method, args...)
	if err != nil {
		return nil, err
	}
	var fd dbus.UnixFD
	if err := dbus.Store(body, &fd); err != nil {
		closeFDs(body)
		return nil, shaped(method, err)
	}
	return os.NewFile(uintptr(fd), "home-reference"), nil
}
