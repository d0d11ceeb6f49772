package bus

import (
	"context"
	"sync"
	"time"

	"github.com/godbus/dbus/v5"

	"hearth/homed/home1"
	"hearth/homed/manager"
)

// settle is how long changes gather before they are announced, so that a home
// whose creation is refused at once is never heard of, and that several
// changes of one home become one signal.
const settle = 20 * time.Millisecond

// announcer turns the manager's changes into signals.
type announcer struct {
	mu sync.Mutex
	// pending is the last state of each home with news, in order of their
	// first news; gone are homes that left since.
	order   []string
	pending map[string]manager.Info
	gone    []string
	login   bool
	wake    chan struct{}

	// announced is the announcing goroutine's own.
	announced map[string]bool
}

// change is called on the manager's loop and does not wait.
func (a *announcer) change(c manager.Change) {
	a.mu.Lock()
	defer a.mu.Unlock()
	name := c.Info.Name
	if c.Kind == manager.Removed {
		delete(a.pending, name)
		a.gone = append(a.gone, name)
	} else {
		if _, ok := a.pending[name]; !ok {
			a.order = append(a.order, name)
		}
		a.pending[name] = c.Info
	}
	a.login = true
	select {
	case a.wake <- struct{}{}:
	default:
	}
}

// announce starts to announce changes from now on; the homes of this moment
// count as announced. What it starts ends with ctx and is added to calls.
func (s *server) announce(ctx context.Context, calls *sync.WaitGroup) error {
	a := &announcer{pending: map[string]manager.Info{}, wake: make(chan struct{}, 1), announced: map[string]bool{}}
	list, err := s.o.Manager.List(ctx)
	if err != nil {
		return err
	}
	for i := range list {
		a.announced[list[i].Name] = true
	}
	s.o.Manager.Subscribe(a.change)
	calls.Go(func() {
		for {
			select {
			case <-a.wake:
			case <-ctx.Done():
				return
			}
			select {
			case <-time.After(settle):
			case <-ctx.Done():
				return
			}
			if err := s.flush(ctx, a); err != nil && ctx.Err() == nil {
				s.o.Log.Warn("changes could not be announced", "error", err)
			}
		}
	})
	return nil
}

// flush sends what gathered: homes that left, homes with news, then the list
// of automatic logins. A home that left and came back is both.
func (s *server) flush(ctx context.Context, a *announcer) error {
	a.mu.Lock()
	order, pending, gone, login := a.order, a.pending, a.gone, a.login
	a.order, a.pending, a.gone, a.login = nil, map[string]manager.Info{}, nil, false
	a.mu.Unlock()
	for _, name := range gone {
		if !a.announced[name] {
			continue
		}
		delete(a.announced, name)
		ifaces := []string{home1.PeerInterface, home1.IntrospectableInterface, home1.PropertiesInterface, home1.HomeInterface}
		if err := s.conn.emit(home1.HomesPath, home1.ObjectManagerInterface, "InterfacesRemoved",
			dbus.ObjectPath(home1.HomePath(name)), ifaces); err != nil {
			return err
		}
	}
	for _, name := range order {
		h, ok := pending[name]
		if !ok {
			continue
		}
		delete(pending, name) // a home that came back stands in order twice
		path := home1.HomePath(name)
		if !a.announced[name] {
			a.announced[name] = true
			// The state at this moment is what counts, not that of the news.
			if now, err := s.o.Manager.Lookup(ctx, manager.Key{Name: name}); err == nil {
				h = now
			}
			if err := s.conn.emit(home1.HomesPath, home1.ObjectManagerInterface, "InterfacesAdded",
				dbus.ObjectPath(path), homeInterfaces(&h)); err != nil {
				return err
			}
			continue
		}
		values := map[string]dbus.Variant{}
		invalid := []string{}
		for _, p := range home1.Home.Properties {
			switch p.Emits {
			case home1.EmitsValue:
				values[p.Name] = dbus.MakeVariant(homeProperty(p.Name, &h))
			case home1.EmitsInvalidate:
				invalid = append(invalid, p.Name)
			}
		}
		if err := s.conn.emit(path, home1.PropertiesInterface, "PropertiesChanged", home1.HomeInterface, values, invalid); err != nil {
			return err
		}
	}
	if !login {
		return nil
	}
	logins, err := s.autoLogin(ctx)
	if err != nil {
		return err
	}
	return s.conn.emit(home1.ManagerPath, home1.PropertiesInterface, "PropertiesChanged", home1.ManagerInterface,
		map[string]dbus.Variant{"AutoLogin": dbus.MakeVariant(logins)}, []string{})
}
