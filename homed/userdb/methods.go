package userdb

import (
	"context"
	"encoding/json"
	"log/slog"
	"math"
	"slices"
	"strconv"
	"strings"

	"hearth/homed/manager"
	"hearth/internal/fault"
	"hearth/records"
)

// The errors that we send.
const (
	errNoRecord         = "io.systemd.UserDatabase.NoRecordFound"
	errConflict         = "io.systemd.UserDatabase.ConflictingRecordFound"
	errBadService       = "io.systemd.UserDatabase.BadService"
	errInvalidParameter = "org.varlink.service.InvalidParameter"
	errMethodNotFound   = "org.varlink.service.MethodNotFound"
	errNoInterface      = "org.varlink.service.InterfaceNotFound"
	errPermission       = "org.varlink.service.PermissionDenied"
	errSystem           = "io.systemd.System"
)

func failed(name string) []reply { return []reply{{Error: name}} }

func invalid(parameter string) []reply {
	return []reply{{Error: errInvalidParameter, Parameters: map[string]string{"parameter": parameter}}}
}

// answer carries one request out. uid is the peer's.
func (s *server) answer(ctx context.Context, uid uint32, r *request) []reply {
	var out []reply
	switch r.method {
	case "io.systemd.UserDatabase.GetUserRecord":
		out = s.look(ctx, r, "uid", "userName", func(h *manager.Info) any {
			record, incomplete := h.Text(uid == 0 || uid == h.UID)
			return appended(func(b []byte) []byte {
				b = append(append(b, `{"record":`...), record...)
				return append(strconv.AppendBool(append(b, `,"incomplete":`...), incomplete), '}')
			})
		})
	case "io.systemd.UserDatabase.GetGroupRecord":
		out = s.look(ctx, r, "gid", "groupName", func(h *manager.Info) any {
			record := records.Group(h.Subject, s.o.Machine)
			return appended(func(b []byte) []byte { return append(append(append(b, `{"record":`...), record...), '}') })
		})
	case "io.systemd.UserDatabase.GetMemberships":
		out = s.memberships(ctx, r)
	case "io.systemd.service.Ping":
		return s.plain(r, func() []reply { return []reply{{}} })
	case "io.systemd.service.GetLogLevel":
		return s.plain(r, func() []reply {
			return []reply{{Parameters: map[string]int{"level": syslogLevel(s.o.Level.Level())}}}
		})
	case "io.systemd.service.SetLogLevel":
		return s.setLogLevel(uid, r)
	case "io.systemd.service.GetEnvironment":
		if uid != 0 {
			return failed(errPermission)
		}
		return s.plain(r, func() []reply {
			return []reply{{Parameters: map[string][]string{"environment": s.o.Environment}}}
		})
	case "org.varlink.service.GetInfo":
		return s.plain(r, func() []reply {
			return []reply{{Parameters: struct {
				Vendor     string   `json:"vendor"`
				Product    string   `json:"product"`
				Version    string   `json:"version"`
				URL        string   `json:"url"`
				Interfaces []string `json:"interfaces"`
			}{"Hearth", "hearth (homed)", s.o.Version, "", interfaceNames()}}}
		})
	case "org.varlink.service.GetInterfaceDescription":
		return describe(r)
	default:
		return []reply{{Error: errMethodNotFound, Parameters: map[string]string{"method": r.method}}}
	}
	// Without "more" an enumeration is not refused; its first item is sent.
	if !r.more && len(out) > 1 {
		out = out[:1]
	}
	return out
}

// plain answers a method without parameters.
func (s *server) plain(r *request, f func() []reply) []reply {
	if len(r.params) > 0 {
		return invalid(r.params[0].name)
	}
	return f()
}

func (s *server) setLogLevel(uid uint32, r *request) []reply {
	if uid != 0 {
		echo := map[string]any{}
		for _, p := range r.params {
			echo[p.name] = p.value
		}
		if len(echo) == 0 {
			return failed(errPermission)
		}
		return []reply{{Error: errPermission, Parameters: echo}}
	}
	level := uint64(math.MaxUint64)
	for _, p := range r.params {
		n, ok := integer(p.value)
		if p.name != "level" || !ok || n > 7 {
			return invalid(p.name)
		}
		level = n
	}
	switch {
	case level == math.MaxUint64:
		return invalid("level")
	case level >= 7:
		s.o.Level.Set(slog.LevelDebug)
	case level >= 5:
		s.o.Level.Set(slog.LevelInfo)
	case level == 4:
		s.o.Level.Set(slog.LevelWarn)
	default:
		s.o.Level.Set(slog.LevelError)
	}
	return []reply{{}}
}

// syslogLevel returns the number of the nearest level of syslog.
func syslogLevel(l slog.Level) int {
	switch {
	case l <= slog.LevelDebug:
		return 7
	case l <= slog.LevelInfo:
		return 6
	case l <= slog.LevelWarn:
		return 4
	}
	return 3
}

// integer reads a number that is not negative. A float with an integral value
// is one too.
func integer(v any) (uint64, bool) {
	n, ok := v.(json.Number)
	if !ok {
		return 0, false
	}
	if u, err := strconv.ParseUint(n.String(), 10, 64); err == nil {
		return u, true
	}
	f, err := n.Float64()
	if err != nil || f < 0 || f >= 1<<63 || f != math.Trunc(f) {
		return 0, false
	}
	return uint64(f), true
}

// query is what a request asks for, its parameters read.
type query struct {
	id      *uint32
	name    string // "" is none
	user    string // in GetMemberships, where name is the group
	service string
}

// read takes the parameters apart. A reply instead of nil refuses them.
func (s *server) read(r *request, id, name, user string) (q query, refusal []reply) {
	given := false
	for _, p := range r.params {
		text, isText := p.value.(string)
		switch p.name {
		case "service":
			if !isText {
				return q, invalid(p.name)
			}
			q.service, given = text, true
		case id:
			n, ok := integer(p.value)
			if !ok || n >= math.MaxUint32 || n == math.MaxUint16 {
				return q, invalid(p.name)
			}
			v := uint32(n)
			q.id = &v
		case name, user:
			if !isText || !records.RelaxedName(text) {
				return q, invalid(p.name)
			}
			if p.name == name {
				q.name = text
			} else {
				q.user = text
			}
		default:
			return q, invalid(p.name)
		}
	}
	if !given {
		return q, invalid("service")
	}
	if q.service != s.service {
		return q, failed(errBadService)
	}
	return q, nil
}

// find looks one home up. nil without refusal is every home.
func (s *server) find(ctx context.Context, id *uint32, name string) (*manager.Info, []reply) {
	key := manager.Key{Name: name}
	if id != nil {
		key = manager.Key{UID: *id, ByUID: true}
	} else if name == "" {
		return nil, nil
	}
	h, err := s.o.Manager.Lookup(ctx, key)
	if fault.Is(err, fault.NoSuchHome) {
		return nil, failed(errNoRecord)
	}
	if err != nil {
		return nil, s.internal(err)
	}
	if id != nil && name != "" && !h.Subject.Record().Matches(name) {
		return nil, failed(errConflict)
	}
	return &h, nil
}

func (s *server) internal(err error) []reply {
	s.o.Log.Warn("a user look-up failed", "error", err)
	return []reply{{Error: errSystem, Parameters: map[string]any{"origin": "hearth", "errnoName": "EIO", "errno": 5}}}
}

// all lists the homes by name; the order is free, and so every run is alike.
func (s *server) all(ctx context.Context) ([]*manager.Info, []reply) {
	homes, err := s.o.Manager.List(ctx)
	if err != nil {
		return nil, s.internal(err)
	}
	list := make([]*manager.Info, len(homes)) // an Info is not small
	for i := range homes {
		list[i] = &homes[i]
	}
	slices.SortFunc(list, func(a, b *manager.Info) int { return strings.Compare(a.Name, b.Name) })
	return list, nil
}

// look answers GetUserRecord and GetGroupRecord, which differ in the names of
// their parameters and in what they show.
func (s *server) look(ctx context.Context, r *request, id, name string, show func(*manager.Info) any) []reply {
	q, refusal := s.read(r, id, name, name)
	if refusal != nil {
		return refusal
	}
	h, refusal := s.find(ctx, q.id, q.name)
	if refusal != nil {
		return refusal
	}
	if h != nil {
		return replies([]any{show(h)})
	}
	list, refusal := s.all(ctx)
	if refusal != nil {
		return refusal
	}
	if !r.more && len(list) > 1 {
		list = list[:1]
	}
	out := make([]any, len(list))
	for i, h := range list {
		out[i] = func() any { return show(h) }
	}
	return replies(out)
}

func replies(items []any) []reply {
	if len(items) == 0 {
		return failed(errNoRecord)
	}
	out := make([]reply, 0, len(items))
	for _, it := range items {
		out = append(out, reply{Parameters: it})
	}
	return out
}

type membership struct {
	UserName  string `json:"userName"`
	GroupName string `json:"groupName"`
}

func (s *server) memberships(ctx context.Context, r *request) []reply {
	q, refusal := s.read(r, "", "groupName", "userName")
	if refusal != nil {
		return refusal
	}
	h, refusal := s.find(ctx, nil, q.user)
	if refusal != nil {
		return refusal
	}
	var out []any
	if h != nil {
		groups := h.Subject.View(s.o.Machine).MemberOf
		switch {
		case q.name == "":
			for _, g := range groups {
				out = append(out, membership{h.Name, g})
			}
			out = append(out, membership{h.Name, h.Name})
		case slices.Contains(groups, q.name) || h.Subject.Record().Matches(q.name):
			out = append(out, membership{h.Name, q.name})
		}
		return replies(out)
	}
	list, refusal := s.all(ctx)
	if refusal != nil {
		return refusal
	}
	for _, h := range list {
		groups := h.Subject.View(s.o.Machine).MemberOf
		if q.name != "" {
			if slices.Contains(groups, q.name) || h.Subject.Record().Matches(q.name) {
				out = append(out, membership{h.Name, q.name})
			}
			continue
		}
		out = append(out, membership{h.Name, h.Name})
		for _, g := range groups {
			out = append(out, membership{h.Name, g})
		}
	}
	return replies(out)
}
