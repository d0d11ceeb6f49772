package main

import (
	"fmt"
	"io"
)

// lookupGates are the goals of look-ups with 500 homes, as ratios to
// systemd-homed. All are times: four times the rate is a quarter of the time.
var lookupGates = []gate{
	{"by name", 0.50, 0.35},
	{"by name, service's processor time", 0.45, 0.30},
	{"unknown name", 0, 0},
	{"unknown name, service's processor time", 0, 0},
	{"new connection, by name", 0.75, 0.55},
	{"new connection, by name, service's processor time", 0, 0},
	{"32 pipelined, each", 0.25, 0.17},
	{"16 connections at once, each", 0, 0},
	{"enumerate", 0.15, 0.08},
	{"bus: GetHomeByName", 0, 0},
	{"bus: GetHomeByName, service's processor time", 0, 0},
	{"bus: GetUserRecordByName", 0, 0},
	{"bus: GetUserRecordByName, service's processor time", 0, 0},
	{"bus: ListHomes", 0, 0},
	{"getent passwd, one", 0, 0},
	{"getent passwd, all", 0, 0},
	{"homectl inspect", 1, 1},
	{"homectl list", 1, 1},
}

func (s *session) lookups() error {
	if err := s.records(500); err != nil {
		return err
	}
	return s.inTurn(func(d side, _ string) error {
		return s.measure(d, "lookups -n 500 -homectl "+d.homectl)
	})
}

// records has the services find so many records when they start the next time.
func (s *session) records(n int) error {
	// The key that signs them comes with the first home that is made. It is not
	// started for more: systemd-homed does not live with thousands of records.
	// What other parts left goes: it takes no more than 500 homes, of any kind.
	_, err := s.sh(fmt.Sprintf(`systemctl stop %[1]s %[2]s
		[ -e /var/lib/systemd/home/local.private ] || { systemctl start %[2]s; %[3]s/benchguest verbs -prefix key -kinds directory >/dev/null; systemctl stop %[2]s; }
		rm -rf /var/lib/systemd/home/*.identity /home/*.home /home/*.homedir
		%[3]s/benchguest records -n %[4]d`, ours.unit, theirs.unit, inGuest, n))
	return err
}

func writeLookups(w io.Writer, s *session) {
	fmt.Fprint(w, "## Look-ups\n\n500 homes; each sample is the median of a thousand calls or more, µs; enumerations, ListHomes and programs in ms.\n"+
		"*by name*, *unknown name*: `GetUserRecord` over a connection that is kept. Each side's own `homectl` is run.\n\n")
	s.table(w, lookupGates)
}

// lifeGates are the goals of start, stop and memory by the number of homes. As
// to memory, 8 MiB more PSS are the most, 4 the aim.
var lifeGates = []gate{
	{"start, 0 homes", 1, 1},
	{"start, 100 homes", 0, 0},
	{"start, 500 homes", 0.25, 0.12},
	{"first answer after it, 500 homes", 0, 0},
	{"stop, 0 homes", 0, 0},
	{"stop, 100 homes", 0, 0},
	{"stop, 500 homes", 0, 0},
	{"RSS, 0 homes", 0, 0},
	{"PSS, 0 homes", 0, 0},
	{"RSS, 500 homes", 0, 0},
	{"PSS, 500 homes", 0, 0},
	{"ANONYMOUS, 500 homes", 0, 0},
}

func (s *session) life() error {
	for _, n := range []int{0, 100, 500} {
		if err := s.records(n); err != nil {
			return err
		}
		for s.run = 1; s.run <= s.runs; s.run++ {
			for _, d := range []side{ours, theirs, theirs, ours} {
				if err := s.measure(d, fmt.Sprintf("life -unit %s -what ', %d homes'", d.unit, n)); err != nil {
					return err
				}
			}
		}
	}
	// systemd-homed takes no more than 500.
	for _, n := range []int{1000, 10000} {
		if err := s.records(n); err != nil {
			return err
		}
		for s.run = 1; s.run <= s.runs; s.run++ {
			if err := s.measure(ours, fmt.Sprintf("life -unit %s -what ', %d homes'", ours.unit, n)); err != nil {
				return err
			}
		}
	}
	return s.records(0)
}

func writeLife(w io.Writer, s *session) {
	fmt.Fprint(w, "## Start, stop, memory\n\nFrom `systemctl start` or `stop` to its end, ms; memory of the service when it has started, MiB.\n"+
		"At most 8 MiB more PSS than systemd-homed are allowed, 4 are the aim.\n\n")
	s.table(w, lifeGates)
	fmt.Fprint(w, "\nOurs alone, since systemd-homed ends at 500:\n\n| homes | start, ms | stop, ms | RSS, MiB | PSS, MiB |\n|---|---|---|---|---|\n")
	for _, n := range []int{1000, 10000} {
		fmt.Fprintf(w, "| %d |", n)
		for _, what := range []string{"start", "stop", "RSS", "PSS"} {
			v := s.of("ours", fmt.Sprintf("%s, %d homes", what, n), 0)
			if len(v) == 0 {
				fmt.Fprint(w, " – |")
				continue
			}
			fmt.Fprintf(w, " %s |", spread(v))
		}
		fmt.Fprintln(w)
	}
	fmt.Fprintln(w, "\nAsked for: start at 10,000 within 4 s and 12 times that at 1,000, at most 60 MiB RSS, stop within 0.3 s.")
}
