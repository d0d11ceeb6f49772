package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"os"
	"strconv"
	"strings"
	"time"

	"hearth/homed/home1"
	"hearth/internal/secret"
)

// The two passwords of every home, and a hash of the first that costs next to
// nothing: what is timed is the service and the keyslot.
const (
	password    = "Bench-Pass-One-77"
	newPassword = "Bench-Pass-Two-88"
	cheapHash   = "$6$rounds=1000$hearthbench$kjMYz7NmO.R.mbfyMdOct3N2lyTP0xja9l3FCwUiwM289AJavzOUOZBqik7iV.gMIPjD.oR2QbRZnlIZaWk..1"
	mib         = 1 << 20
	diskSize    = 256 * mib
)

// A kind is one sort of home. The verbs of the full round are all there are;
// the short one leaves out what a costly key derivation adds nothing to.
type kind struct {
	fields map[string]any
	luks   bool
	full   bool
}

// pbkdf2 is the cheapest key derivation that both daemons accept.
func pbkdf2(fields map[string]any) map[string]any {
	fields["luksPbkdfType"] = "pbkdf2"
	fields["luksPbkdfForceIterations"] = 1000
	return fields
}

var kinds = map[string]kind{
	"luks-ext4": {pbkdf2(map[string]any{"storage": "luks", "fileSystemType": "ext4", "diskSize": diskSize}), true, true},
	"luks-btrfs": {pbkdf2(map[string]any{"storage": "luks", "fileSystemType": "btrfs", "diskSize": diskSize}),
		true, true},
	"directory":    {map[string]any{"storage": "directory"}, false, true},
	"luks-default": {map[string]any{"storage": "luks", "fileSystemType": "ext4", "diskSize": diskSize}, true, false},
}

// A bench times calls to the service.
type bench struct {
	*home1.Client
	ctx   context.Context
	kind  string
	quiet bool // the sample does not count
}

func verbs(ctx context.Context, args []string) error {
	f := flag.NewFlagSet("verbs", flag.ContinueOnError)
	list := f.String("kinds", "luks-ext4,luks-btrfs,directory,luks-default", "the sorts of home")
	prefix := f.String("prefix", "b", "what the users' names begin with")
	rounds := f.Int("rounds", 1, "how often each")
	only := f.String("only", "", "do no more than make, or open and close, the homes")
	warm := f.Bool("warm", false, "one more round first, which does not count")
	if err := f.Parse(args); err != nil {
		return err
	}
	client, err := home1.Dial(ctx)
	if err != nil {
		return err
	}
	defer func() { _ = client.Close() }()
	for _, name := range strings.Split(*list, ",") {
		k, ok := kinds[name]
		if !ok {
			return fmt.Errorf("no kind %q", name)
		}
		b := &bench{Client: client, ctx: ctx, kind: name}
		begin := 0
		if *warm {
			begin = -1
		}
		for i := begin; i < *rounds; i++ {
			b.quiet = i < 0
			who := fmt.Sprintf("%s%s%d", *prefix, strings.ReplaceAll(name, "-", ""), i+1)
			switch *only {
			case "":
				err = b.wholeLife(who, k)
			case "make":
				err = b.create(who, k)
			case "open":
				err = b.openAndClose(who, "foreign ")
			}
			if err != nil {
				return fmt.Errorf("%s: %w", who, err)
			}
		}
	}
	return nil
}

// wholeLife takes a home from its making to its end.
func (b *bench) wholeLife(user string, k kind) error {
	// Short by design: each step depends on the one before.
	pw := password
	steps := []struct {
		verb       string
		full, luks bool // only for such kinds
		do         func() error
	}{
		{"authenticate inactive", false, false, func() error {
			return b.timed("authenticate inactive", func() error { return b.authenticate(user, pw) })
		}},
		{"activate", false, false, func() error { return b.timed("activate", func() error { return b.activate(user, pw) }) }},
		{"authenticate active", false, false, func() error { return b.timed("authenticate active", func() error { return b.authenticate(user, pw) }) }},
		{"update active", true, false, func() error { return b.update(user, pw, "update active") }},
		{"resize active", true, true, func() error { return b.resize(user, pw) }},
		{"lock", true, true, func() error { return b.timed("lock", func() error { return b.LockHome(b.ctx, user) }) }},
		{"unlock", true, true, func() error { return b.unlock(user, pw, "unlock") }},
		{"passwd active", false, false, func() error {
			err := b.passwd(user, pw, newPassword)
			pw = newPassword
			return err
		}},
		{"lock", true, true, func() error { return b.LockHome(b.ctx, user) }},
		{"unlock yescrypt", true, true, func() error { return b.unlock(user, pw, "unlock yescrypt") }},
		{"deactivate", false, false, func() error { return b.timed("deactivate", func() error { return b.DeactivateHome(b.ctx, user) }) }},
		{"update inactive", true, false, func() error { return b.update(user, pw, "update inactive") }},
		{"remove", false, false, func() error { return b.timed("remove", func() error { return b.RemoveHome(b.ctx, user) }) }},
	}
	if err := b.create(user, k); err != nil {
		return err
	}
	for _, s := range steps {
		if s.full && !k.full || s.luks && !k.luks {
			continue
		}
		if err := s.do(); err != nil {
			return fmt.Errorf("%s: %w", s.verb, err)
		}
	}
	return nil
}

func (b *bench) openAndClose(user, prefix string) error {
	if err := b.timed(prefix+"authenticate inactive", func() error { return b.authenticate(user, password) }); err != nil {
		return err
	}
	if err := b.timed(prefix+"activate", func() error { return b.activate(user, password) }); err != nil {
		return err
	}
	return b.timed(prefix+"deactivate", func() error { return b.DeactivateHome(b.ctx, user) })
}

func (b *bench) create(user string, k kind) error {
	r := map[string]any{
		"userName": user, "realName": user, "disposition": "regular", "enforcePasswordPolicy": false,
		// systemd-homed would resize homes by itself as they open, and be busy.
		"rebalanceWeight": false, "rateLimitBurst": 100000, "lastChangeUSec": time.Now().UnixMicro(), "lastPasswordChangeUSec": time.Now().UnixMicro(),
		"privileged": map[string]any{"hashedPassword": []string{cheapHash}},
	}
	for name, value := range k.fields {
		r[name] = value
	}
	text, err := json.Marshal(r)
	if err != nil {
		return err
	}
	return b.timed("create", func() error {
		return withSecret(password, func(s *secret.Bytes) error { return b.CreateHome(b.ctx, text, s, nil) })
	})
}

func (b *bench) authenticate(user, pw string) error {
	return withSecret(pw, func(s *secret.Bytes) error { return b.AuthenticateHome(b.ctx, user, s) })
}

func (b *bench) activate(user, pw string) error {
	return withSecret(pw, func(s *secret.Bytes) error { return b.ActivateHome(b.ctx, user, s) })
}

func (b *bench) unlock(user, pw, verb string) error {
	return b.timed(verb, func() error {
		return withSecret(pw, func(s *secret.Bytes) error { return b.UnlockHome(b.ctx, user, s) })
	})
}

func (b *bench) passwd(user, from, to string) error {
	return b.timed("passwd active", func() error {
		return withSecret(to, func(s *secret.Bytes) error {
			return withSecret(from, func(old *secret.Bytes) error { return b.Call(b.ctx, "ChangePasswordHome", user, s, old) })
		})
	})
}

func (b *bench) resize(user, pw string) error {
	return b.timed("resize active", func() error {
		return withSecret(pw, func(s *secret.Bytes) error {
			return b.Call(b.ctx, "ResizeHome", user, uint64(diskSize+32*mib), s)
		})
	})
}

// update changes one field of the record, as homectl does: all that belongs to
// this machine or was signed is left out of what is sent.
func (b *bench) update(user, pw, verb string) error {
	text, _, err := b.GetUserRecordByName(b.ctx, user)
	if err != nil {
		return err
	}
	var r map[string]any
	d := json.NewDecoder(bytes.NewReader(text))
	d.UseNumber()
	if err := d.Decode(&r); err != nil {
		return err
	}
	for _, section := range []string{"binding", "status", "signature"} {
		delete(r, section)
	}
	r["realName"], r["lastChangeUSec"] = verb, time.Now().UnixMicro()
	r["secret"] = map[string]any{"password": []string{pw}}
	if text, err = json.Marshal(r); err != nil {
		return err
	}
	return b.timed(verb, func() error {
		whole, err := secret.Copy(text)
		if err != nil {
			return err
		}
		defer whole.Close()
		return b.Call(b.ctx, "UpdateHome", whole)
	})
}

func withSecret(pw string, do func(*secret.Bytes) error) error {
	text, err := json.Marshal(map[string]any{"password": []string{pw}})
	if err != nil {
		return err
	}
	s, err := secret.Take(text)
	if err != nil {
		return err
	}
	defer s.Close()
	return do(s)
}

// The services that work when a home is used, by the names of their units. One
// of ours and systemd-homed's is stopped and counts nothing.
var services = map[string]string{
	"udevd": "systemd-udevd", "dbus": "dbus", "journald": "systemd-journald", "userdbd": "systemd-userdbd",
	"homed": "systemd-homed", "ours": "homed",
}

// timed does one call with nothing of the last one's going on any more, and
// tells its time and what processor time each service took for it.
func (b *bench) timed(verb string, do func() error) error {
	settle()
	before := cpu()
	start := time.Now()
	err := do()
	took := time.Since(start)
	if err != nil {
		return err
	}
	settle()
	if b.quiet {
		return nil
	}
	what := b.kind + " " + verb
	sample(what, milliseconds(took), "ms")
	after := cpu()
	for name := range services {
		if d := after[name] - before[name]; d > 0 && name != "ours" && name != "homed" {
			sample(what+" cpu "+name, d, "ms")
		}
	}
	if d := after["homed"] + after["ours"] - before["homed"] - before["ours"]; d > 0 {
		sample(what+" cpu homed", d, "ms")
	}
	return nil
}

// settle waits until udev has nothing to do, which includes that it has told
// everybody. An event may be on its way to it, hence more than one look.
func settle() {
	for quiet, tries := 0, 0; quiet < 5 && tries < 5000; tries++ {
		if _, err := os.Stat("/run/udev/queue"); errors.Is(err, os.ErrNotExist) {
			quiet++
		} else {
			quiet = 0
		}
		time.Sleep(2 * time.Millisecond)
	}
}

// cpu is the processor time of each service with all it started, ms.
func cpu() map[string]float64 {
	out := map[string]float64{}
	for name, unit := range services {
		text, err := os.ReadFile("/sys/fs/cgroup/system.slice/" + unit + ".service/cpu.stat")
		if err != nil {
			continue
		}
		for line := range strings.Lines(string(text)) {
			if v, ok := strings.CutPrefix(line, "usage_usec "); ok {
				usec, _ := strconv.ParseFloat(strings.TrimSpace(v), 64)
				out[name] = usec / 1000
			}
		}
	}
	return out
}
