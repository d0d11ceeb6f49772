// Package varlink calls methods of the system's varlink services
// (varlink.org): one connection, one call, one reply. What a method means is
// its caller's matter.
package varlink

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
)

// maxReply bounds a reply, in bytes: a user record is the longest.
const maxReply = 4 << 20

// ErrNotConnected is returned where the service cannot be reached at all.
var ErrNotConnected = errors.New("no such service")

// Error is a reply that refuses, by its name.
type Error struct {
	Name       string
	Parameters json.RawMessage
}

func (e *Error) Error() string { return e.Name }

// Call calls a method of the service behind a socket and decodes the
// parameters of its reply into result. A refusal is an *Error. It waits for
// the reply until ctx ends.
func Call(ctx context.Context, socket, method string, parameters, result any) error {
	request, err := json.Marshal(map[string]any{"method": method, "parameters": parameters})
	if err != nil {
		return err
	}
	var d net.Dialer
	conn, err := d.DialContext(ctx, "unix", socket)
	if err != nil {
		return fmt.Errorf("%w: %w", ErrNotConnected, err)
	}
	defer func() { _ = conn.Close() }()
	stop := context.AfterFunc(ctx, func() { _ = conn.Close() })
	defer stop()
	if _, err := conn.Write(append(request, 0)); err != nil {
		return fmt.Errorf("call %s: %w", method, err)
	}
	message, err := bufio.NewReader(io.LimitReader(conn, maxReply)).ReadBytes(0)
	if err != nil {
		return fmt.Errorf("read the reply to %s: %w", method, err)
	}
	var reply struct {
		Error      string
		Parameters json.RawMessage
	}
	if err := json.Unmarshal(message[:len(message)-1], &reply); err != nil {
		return fmt.Errorf("read the reply to %s: %w", method, err)
	}
	if reply.Error != "" {
		return fmt.Errorf("call %s: %w", method, &Error{reply.Error, reply.Parameters})
	}
	if len(reply.Parameters) == 0 {
		return nil
	}
	if err := json.Unmarshal(reply.Parameters, result); err != nil {
		return fmt.Errorf("read the reply to %s: %w", method, err)
	}
	return nil
}
