package bus

import (
	"context"

	"hearth/internal/fault"
)

// keyMethods are the methods about keys that sign records.
var keyMethods = map[string]func(*server, context.Context, *call) ([]any, error){
	"ListSigningKeys": func(s *server, ctx context.Context, c *call) ([]any, error) {
		list, err := s.o.Manager.SigningKeys(ctx)
		if err != nil {
			return nil, err
		}
		type row struct {
			Name, PEM string
			Flags     uint64
		}
		rows := make([]row, 0, len(list))
		for _, k := range list {
			rows = append(rows, row{k.Name, k.PEM, 0})
		}
		return []any{rows}, nil
	},
	"GetSigningKey": func(s *server, ctx context.Context, c *call) ([]any, error) {
		list, err := s.o.Manager.SigningKeys(ctx)
		if err != nil {
			return nil, err
		}
		name := string(c.args[0].([]byte))
		for _, k := range list {
			if k.Name == name {
				return []any{k.PEM, uint64(0)}, nil
			}
		}
		return nil, fault.Newf(fault.NoSuchKey, "find key", "No key with name: %s", name)
	},
	"AddSigningKey": func(s *server, ctx context.Context, c *call) ([]any, error) {
		name, pem := string(c.args[0].([]byte)), c.args[1].([]byte)
		if err := s.mayChangeKeys(ctx, c, c.args[2].(uint64), name, s.o.Manager.NewKeyName); err != nil {
			return nil, err
		}
		return nil, s.o.Manager.AddSigningKey(ctx, name, pem)
	},
	"RemoveSigningKey": func(s *server, ctx context.Context, c *call) ([]any, error) {
		name := string(c.args[0].([]byte))
		if err := s.mayChangeKeys(ctx, c, c.args[1].(uint64), name, s.o.Manager.KnownKeyName); err != nil {
			return nil, err
		}
		return nil, s.o.Manager.RemoveSigningKey(ctx, name)
	},
}

// mayChangeKeys checks the arguments first, as the reference does: anybody is
// told of bad ones. The manager checks them again after polkit's answer.
func (s *server) mayChangeKeys(ctx context.Context, c *call, flags uint64, name string, check func(context.Context, string) error) error {
	if flags != 0 {
		return fault.Newf(fault.InvalidArgs, "read flags", "Flags parameter must be zero.")
	}
	if err := check(ctx, name); err != nil {
		return err
	}
	return s.access.allowed(ctx, c, c.method.Action, nil, c.posted)
}
