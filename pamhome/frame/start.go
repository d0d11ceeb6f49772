package frame

import (
	"fmt"
	"os"
	"slices"
	"strconv"
	"strings"

	"hearth/internal/secret"
)

// Phase is the PAM hook that is running.
type Phase uint8

// The hooks. setcred needs no helper.
const (
	Authenticate Phase = 1
	Account      Phase = 2
	OpenSession  Phase = 3
	CloseSession Phase = 4
	ChangeToken  Phase = 5
)

// Version of the protocol. Shim and helper are installed together.
const Version = 1

// Start is what the login program knows when it calls the hook. An item that
// is nil is not set, which is not the same as empty. Its maker closes it.
type Start struct {
	Phase   Phase
	Flags   uint32   // of the PAM call
	Args    []string // of the module line
	Service *string
	User    *string
	TTY     *string
	Display *string
	RHost   *string
	RUser   *string

	AuthTok, OldAuthTok *secret.Bytes
	// Conversation reports whether the login program has a function to ask
	// with; it may still refuse.
	Conversation bool
	PAMEnv       []string
	ProcEnv      []string // empty in secure mode

	PID, PPID              uint32
	RUID, EUID, RGID, EGID uint32
	Secure                 bool
	Host                   *os.File // pidfd of the login program, or nil
}

// Close wipes the tokens and closes the pidfd.
func (s *Start) Close() {
	s.AuthTok.Close()
	s.OldAuthTok.Close()
	if s.Host != nil {
		_ = s.Host.Close()
	}
}

// hostPID is the login program's process id, or -1 where that is somebody else
// for us: a login program may have its children in another name space.
func (s *Start) hostPID() int {
	if s.Host != nil {
		info, _ := os.ReadFile(fmt.Sprintf("/proc/self/fdinfo/%d", s.Host.Fd()))
		for line := range strings.Lines(string(info)) {
			if pid, ok := strings.CutPrefix(line, "Pid:"); ok && strings.TrimSpace(pid) != strconv.FormatUint(uint64(s.PID), 10) {
				return -1
			}
		}
	}
	return int(s.PID)
}

// Env looks a name up in the PAM environment.
func (s *Start) Env(name string) (string, bool) { return lookupEnv(s.PAMEnv, name) }

// HostEnv looks a name up in the login program's own environment.
func (s *Start) HostEnv(name string) (string, bool) { return lookupEnv(s.ProcEnv, name) }

func lookupEnv(env []string, name string) (string, bool) {
	for _, kv := range slices.Backward(env) {
		if v, ok := strings.CutPrefix(kv, name+"="); ok {
			return v, true
		}
	}
	return "", false
}

// readStart decodes START; host is taken over.
func readStart(p *packet, host *os.File) (*Start, error) {
	s := &Start{
		Phase: Phase(p.number(2)), Flags: uint32(p.number(3)), Args: p.texts(4),
		Service: p.text(5), User: p.text(6), TTY: p.text(7), Display: p.text(8), RHost: p.text(9), RUser: p.text(10),
		Conversation: p.number(13) == 1, PAMEnv: p.texts(14), ProcEnv: p.texts(15),
		PID: uint32(p.number(16)), PPID: uint32(p.number(17)),
		RUID: uint32(p.number(18)), EUID: uint32(p.number(19)), RGID: uint32(p.number(20)), EGID: uint32(p.number(21)),
		Secure: p.number(22) == 1,
		Host:   host,
	}
	fail := func(err error) (*Start, error) {
		s.Close()
		return nil, err
	}
	tokens := p.get(11) != nil || p.get(12) != nil
	switch {
	case p.typ != TypeStart:
		return fail(breach("frame %d in place of START", p.typ))
	case p.number(1) != Version:
		return fail(breach("version %d", p.number(1)))
	case s.Phase < Authenticate || s.Phase > ChangeToken:
		return fail(breach("phase %d", s.Phase))
	case tokens && s.Phase != Authenticate && s.Phase != ChangeToken:
		return fail(breach("token in phase %d", s.Phase))
	}
	var err error
	if s.AuthTok, err = takeSecret(p.get(11)); err != nil {
		return fail(err)
	}
	if s.OldAuthTok, err = takeSecret(p.get(12)); err != nil {
		return fail(err)
	}
	return s, nil
}

// takeSecret moves a field into memory of its own; nil stays nil.
func takeSecret(b []byte) (*secret.Bytes, error) {
	if b == nil {
		return nil, nil
	}
	return secret.Take(b)
}
