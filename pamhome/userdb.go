package pamhome

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"time"
)

// Multiplexer is the socket on which systemd-userdbd answers for all user
// databases of the machine.
const Multiplexer = "/run/systemd/userdb/io.systemd.Multiplexer"

const (
	maxUserRecord = 4 << 20
	userdbTimeout = 30 * time.Second
)

// UserRecord asks the user database behind a varlink socket for the record of
// a name (systemd's USER_GROUP_API). No such user is an error like any other.
func UserRecord(ctx context.Context, socket, name string) ([]byte, error) {
	ctx, cancel := context.WithTimeout(ctx, userdbTimeout)
	defer cancel()
	var d net.Dialer
	conn, err := d.DialContext(ctx, "unix", socket)
	if err != nil {
		return nil, err
	}
	defer func() { _ = conn.Close() }()
	stop := context.AfterFunc(ctx, func() { _ = conn.Close() })
	defer stop()
	request, err := json.Marshal(map[string]any{
		"method":     "io.systemd.UserDatabase.GetUserRecord",
		"parameters": map[string]string{"userName": name, "service": "io.systemd.Multiplexer"},
	})
	if err != nil {
		return nil, err
	}
	if _, err := conn.Write(append(request, 0)); err != nil {
		return nil, fmt.Errorf("ask for %q: %w", name, err)
	}
	message, err := bufio.NewReader(io.LimitReader(conn, maxUserRecord)).ReadBytes(0)
	if err != nil {
		return nil, fmt.Errorf("read the record of %q: %w", name, err)
	}
	var reply struct {
		Error      string
		Parameters struct{ Record json.RawMessage }
	}
	if err := json.Unmarshal(message[:len(message)-1], &reply); err != nil {
		return nil, fmt.Errorf("read the record of %q: %w", name, err)
	}
	switch {
	case reply.Error != "":
		return nil, fmt.Errorf("ask for %q: %s", name, reply.Error)
	case len(reply.Parameters.Record) == 0:
		return nil, errors.New("the user database's reply has no record")
	}
	return reply.Parameters.Record, nil
}
