package pamhome

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"time"

	"hearth/pamhome/varlink"
)

// Multiplexer is the socket on which systemd-userdbd answers for all user
// databases of the machine.
const Multiplexer = "/run/systemd/userdb/io.systemd.Multiplexer"

const userdbTimeout = 30 * time.Second

// UserRecord asks the user database behind a varlink socket for the record of
// a name (systemd's USER_GROUP_API). No such user is an error like any other.
func UserRecord(ctx context.Context, socket, name string) ([]byte, error) {
	ctx, cancel := context.WithTimeout(ctx, userdbTimeout)
	defer cancel()
	var reply struct{ Record json.RawMessage }
	query := map[string]string{"userName": name, "service": "io.systemd.Multiplexer"}
	if err := varlink.Call(ctx, socket, "io.systemd.UserDatabase.GetUserRecord", query, &reply); err != nil {
		return nil, fmt.Errorf("ask for %q: %w", name, err)
	}
	if len(reply.Record) == 0 {
		return nil, errors.New("the user database's reply has no record")
	}
	return reply.Record, nil
}
