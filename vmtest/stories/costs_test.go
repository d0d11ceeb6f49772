package stories

import (
	"encoding/json"
	"fmt"
	"strings"
	"testing"

	"hearth/internal/trace"
	"hearth/vmtest"
)

// costs are what one operation may take, exactly: derivations of a keyslot,
// checks of the volume key, headers read, password hashes, programs run, files
// and file systems synced. What is dear is designed, and does not come back
// unnoticed.
type costs struct{ header, kdf, digest, hash, exec, sync int }

// TestCosts counts what each verb takes: syncs and programs by strace, as the
// kernel sees them in daemon and worker, the rest by the worker's own trace.
func TestCosts(t *testing.T) {
	t.Parallel()
	p := install(t, vmtest.Options{Suite: vmtest.Forky})
	p.MustSh(`mkdir -p /etc/systemd/system/homed.service.d
		printf '[Service]\nEnvironment=HEARTH_TRACE=/run/trace\n' >/etc/systemd/system/homed.service.d/trace.conf`)
	p.enable()
	const newer = "Corr3ct-Horse-10-Batt"
	type verb struct {
		command string
		want    costs // header, KDF, digest, hash, exec, sync
	}
	for _, kind := range []struct {
		name, options string
		verbs         []verb
	}{
		{"lena", "--storage=luks --fs-type=ext4 --disk-size=64M --rebalance-weight=off", []verb{
			{"create", costs{0, 1, 0, 1, 3, 28}},
			{"authenticate lena", costs{1, 1, 1, 1, 0, 3}},
			{"activate lena", costs{1, 1, 1, 1, 0, 4}},
			{"authenticate lena", costs{1, 1, 1, 1, 0, 3}},
			{"update lena --real-name=Lena", costs{1, 1, 1, 1, 0, 10}},
			{"resize lena 80M", costs{1, 1, 1, 1, 0, 22}},
			{"lock lena", costs{0, 0, 0, 0, 0, 1}},
			{"unlock lena", costs{1, 1, 1, 1, 0, 3}},
			{"passwd lena", costs{1, 2, 1, 1, 0, 18}},
			{"deactivate lena", costs{0, 0, 0, 0, 0, 3}},
			{"remove lena", costs{0, 0, 0, 0, 0, 2}},
		}},
		{"dirk", "--storage=directory", []verb{
			{"create", costs{0, 0, 0, 1, 2, 8}},
			{"activate dirk", costs{0, 0, 0, 1, 0, 3}},
			{"passwd dirk", costs{0, 0, 0, 1, 0, 10}},
			{"deactivate dirk", costs{0, 0, 0, 0, 0, 1}},
		}},
	} {
		pw := password
		for _, v := range kind.verbs {
			t.Run(kind.name+" "+v.command, func(t *testing.T) {
				p := &product{p.With(t), t}
				c := "homectl " + v.command
				if v.command == "create" {
					c = "homectl create " + kind.name + " " + kind.options + " " + cheap
				}
				given := "NEWPASSWORD='" + newer + "' PASSWORD='" + pw + "' "
				if v.command == "create" {
					given = "NEWPASSWORD='" + pw + "' "
				}
				got := p.count(given + atMost + c)
				if strings.HasPrefix(v.command, "passwd") {
					pw = newer
				}
				if got != v.want {
					t.Errorf("%s took %+v, want %+v\n%s", v.command, got, v.want, p.MustSh("grep -v SIG /run/calls; cat /run/trace"))
				}
			})
		}
	}
}

// count runs a command and says what it cost the service.
func (p *product) count(command string) costs {
	p.t.Helper()
	out := p.MustSh(fmt.Sprintf(`rm -f /run/trace /run/calls
		pid=$(systemctl show -P MainPID homed.service)
		# The worker that waits for this operation, or it would not be seen.
		until spare=$(pgrep -P $pid -f 'homework spare'); do sleep 0.02; done
		strace -f -qq -e trace=fsync,fdatasync,syncfs,sync,sync_file_range,execve -o /run/calls -p $pid -p $spare & tracer=$!
		for p in $pid $spare; do
			until grep -q "TracerPid:[[:space:]]*$tracer" /proc/$p/status; do kill -0 $tracer; done
		done
		%s >/dev/null
		kill -INT $tracer; wait $tracer || :
		# The next worker that waits starts cat, to have a user namespace at hand.
		awk '/execve\(/ && !/homework|bin\/cat"|ENOENT/ { tool[$1]; execs++ }
			/sync[a-z_]*\(/ && !($1 in tool) { syncs++ }
			END { print syncs+0; print execs+0 }' /run/calls
		cat /run/trace`, command))
	var c costs
	lines := strings.SplitN(out, "\n", 3)
	if len(lines) < 3 {
		p.t.Fatalf("counting %s gave %q", command, out)
	}
	if _, err := fmt.Sscan(lines[0]+" "+lines[1], &c.sync, &c.exec); err != nil {
		p.t.Fatalf("counting %s gave %q: %v", command, out, err)
	}
	for line := range strings.Lines(lines[2]) {
		var noted struct {
			Work []struct {
				What  string
				Times int
			}
		}
		if err := json.Unmarshal([]byte(line), &noted); err != nil {
			p.t.Fatalf("the trace says %q: %v", line, err)
		}
		for _, w := range noted.Work {
			switch w.What {
			case trace.Header:
				c.header += w.Times
			case trace.KDF:
				c.kdf += w.Times
			case trace.Digest:
				c.digest += w.Times
			case trace.Hash:
				c.hash += w.Times
			}
		}
	}
	return c
}
