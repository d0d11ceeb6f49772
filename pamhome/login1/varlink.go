package login1

import (
	"context"
	"errors"
	"fmt"
	"os"
	"strings"

	"golang.org/x/sys/unix"

	"hearth/pamhome/varlink"
)

// Socket is where systemd-logind answers over varlink, since 258. Only root's
// programs may open sessions there.
const Socket = "/run/systemd/io.systemd.Login"

// errNoVarlink says that this way is closed, and the bus may be tried.
var errNoVarlink = errors.New("no varlink interface of the login manager")

// pidRef names a process so that no other can be taken for it.
type pidRef struct {
	PID    uint32 `json:"pid"`
	FDID   uint64 `json:"pidfdId,omitempty"`
	BootID string `json:"bootId,omitempty"`
}

// createRequest is io.systemd.Login.CreateSession, of which we use what the bus
// interface has and ExtraDeviceAccess, which it has not.
type createRequest struct {
	UID               uint32
	PID               pidRef
	Service           string `json:",omitempty"`
	Type              string
	Class             string
	Desktop           string `json:",omitempty"`
	Seat              string `json:",omitempty"`
	VTNr              uint32 `json:",omitempty"`
	TTY               string `json:",omitempty"`
	Display           string `json:",omitempty"`
	Remote            bool
	RemoteUser        string   `json:",omitempty"`
	RemoteHost        string   `json:",omitempty"`
	ExtraDeviceAccess []string `json:",omitempty"`
}

// createByVarlink asks for a session over varlink.
func createByVarlink(ctx context.Context, socket string, r Request) (Reply, error) {
	ch := r.Choice
	var made struct {
		ID          string `json:"Id"`
		RuntimePath string
		UID         uint32
		Seat        string
		VTNr        uint32
	}
	err := varlink.Call(ctx, socket, "io.systemd.Login.CreateSession", createRequest{
		UID: r.UID, PID: leader(r), Service: ch.Service, Type: enumeration(ch.Type), Class: enumeration(ch.Class), Desktop: ch.Desktop,
		Seat: ch.Seat, VTNr: ch.VTNr, TTY: ch.TTY, Display: ch.Display,
		Remote: ch.Remote, RemoteUser: ch.RemoteUser, RemoteHost: ch.RemoteHost, ExtraDeviceAccess: ch.ExtraDevices,
	}, &made)
	if err != nil {
		return Reply{}, varlinkFault(err)
	}
	return Reply{ID: made.ID, RuntimePath: made.RuntimePath, UID: made.UID, Seat: made.Seat, VTNr: made.VTNr}, nil
}

// enumeration spells a class or type as varlink does.
func enumeration(s string) string { return strings.ReplaceAll(s, "-", "_") }

// leader names the login program. A number alone can be given out twice; the
// inode of a pidfd, where the kernel has a file system for them, cannot.
func leader(r Request) pidRef {
	ref := pidRef{PID: r.PID}
	if r.Leader == nil {
		return ref
	}
	var fs unix.Statfs_t
	var st unix.Stat_t
	fd := int(r.Leader.Fd())
	if unix.Fstatfs(fd, &fs) != nil || fs.Type != unix.PID_FS_MAGIC || unix.Fstat(fd, &st) != nil {
		return ref
	}
	boot, err := os.ReadFile("/proc/sys/kernel/random/boot_id")
	if err != nil {
		return ref
	}
	ref.FDID, ref.BootID = st.Ino, strings.ReplaceAll(strings.TrimSpace(string(boot)), "-", "")
	return ref
}

func varlinkFault(err error) error {
	var refused *varlink.Error
	if errors.Is(err, varlink.ErrNotConnected) {
		return fmt.Errorf("%w: %w", errNoVarlink, err)
	}
	if !errors.As(err, &refused) {
		return err
	}
	switch refused.Name {
	case "io.systemd.Login.AlreadySessionMember":
		return fmt.Errorf("%w: %w", ErrBusy, err)
	case "org.varlink.service.InvalidParameter":
		return fmt.Errorf("%w: %w (%s)", ErrRefused, err, refused.Parameters)
	case "org.varlink.service.MethodNotFound", "org.varlink.service.InterfaceNotFound":
		return fmt.Errorf("%w: %w", errNoVarlink, err)
	}
	return err
}
