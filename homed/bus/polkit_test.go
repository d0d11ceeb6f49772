package bus

import (
	"strings"
	"testing"

	"github.com/godbus/dbus/v5"

	"hearth/homed/home1"
	"hearth/internal/testenv"
)

// slowAuthority is polkit while somebody looks for his glasses.
type slowAuthority struct {
	asked  chan string
	answer chan bool
}

func (a *slowAuthority) CheckAuthorization(_ struct {
	Kind    string
	Details map[string]dbus.Variant
}, _ string, details map[string]string, flags uint32, _ string) (struct {
	Yes, Challenge bool
	Details        map[string]string
}, *dbus.Error) {
	a.asked <- details["username"] + " " + details["uid"] + map[uint32]string{0: "", 1: " interactive"}[flags]
	return struct {
		Yes, Challenge bool
		Details        map[string]string
	}{Yes: <-a.answer}, nil
}

// TestPolkitAnswersLate: what polkit said of a home counts for that home alone,
// and nobody waits for polkit but who needs its answer.
func TestPolkitAnswersLate(t *testing.T) {
	testenv.Need(t, "root", "busctl")
	r := serve(t)
	a := &slowAuthority{asked: make(chan string), answer: make(chan bool)}
	r.polkit(t, a)
	remove := func() chan string {
		out := make(chan string, 1)
		go func() { out <- r.as(t, 1500, "RemoveHome", "s", "ann") }()
		return out
	}
	unregister := func() {
		t.Helper()
		if err := r.client.UnregisterHome(t.Context(), "ann"); err != nil {
			t.Fatal(err)
		}
	}
	r.register(t, "ann", map[string]any{"uid": 60456})

	// The home goes while polkit is asked.
	out := remove()
	if got := <-a.asked; got != "ann 60456 interactive" {
		t.Errorf("polkit is asked about %q", got)
	}
	if got := r.as(t, 1500, "GetHomeByName", "s", "ann"); !strings.Contains(got, "60456") {
		t.Errorf("a look-up beside it: %s", got)
	}
	unregister()
	a.answer <- true
	if got := <-out; !strings.Contains(got, "No home for user ann known") {
		t.Errorf("a home that is gone: %s", got)
	}

	// Another one bears the name by then.
	r.register(t, "ann", map[string]any{"uid": 60456})
	out = remove()
	<-a.asked
	unregister()
	r.register(t, "ann", map[string]any{"uid": 60457})
	a.answer <- true
	if got := <-out; !strings.Contains(got, "No home for user ann known") {
		t.Errorf("another home of that name: %s", got)
	}
	if _, err := r.client.GetHomeByName(t.Context(), "ann"); err != nil {
		t.Errorf("it was removed: %v", err)
	}

	// And where nothing happened, the answer holds.
	out = remove()
	<-a.asked
	a.answer <- false
	if got := <-out; !strings.Contains(got, "Access denied") {
		t.Errorf("no: %s", got)
	}
	out = remove()
	<-a.asked
	a.answer <- true
	if got := <-out; !strings.HasPrefix(got, "ok") {
		t.Errorf("yes: %s", got)
	}
	var list []any
	if err := r.call(home1.ManagerPath, home1.ManagerInterface+".ListHomes").Store(&list); err != nil || len(list) != 0 {
		t.Errorf("homes are %v, %v", list, err)
	}
}
