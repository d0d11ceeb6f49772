package main

import (
	"fmt"
	"io"
	"slices"
	"strings"
)

func (s *session) verbs() error {
	// Both open the same homes then, which no side's own choice of costs is in.
	if err := s.with(theirs); err != nil {
		return err
	}
	foreign := strings.ReplaceAll(s.kinds, "luks-btrfs,", "")
	s.run = 0
	if err := s.measure(theirs, "verbs -prefix x -only make -kinds "+foreign); err != nil {
		return err
	}
	s.samples = slices.DeleteFunc(s.samples, func(x sample) bool { return x.part == s.part && x.run == 0 })
	first := map[string]bool{}
	return s.inTurn(func(d side, block string) error {
		warm := ""
		if !first[d.name] {
			warm = " -warm"
		}
		first[d.name] = true
		if err := s.measure(d, fmt.Sprintf("verbs -prefix %s -rounds %d -kinds %s%s", block, s.rounds, s.kinds, warm)); err != nil {
			return err
		}
		for range s.rounds {
			if err := s.measure(d, "verbs -prefix x -only open -kinds "+foreign); err != nil {
				return err
			}
		}
		return nil
	})
}

// verbGates are the goals of each verb, as ratios to systemd-homed.
var verbGates = []gate{
	{"luks-ext4 create", 0.50, 0.35},
	{"luks-ext4 authenticate inactive", 0.20, 0.12},
	{"luks-ext4 activate", 0.40, 0.28},
	{"luks-ext4 authenticate active", 0.25, 0.08},
	{"luks-ext4 update active", 0.40, 0.25},
	{"luks-ext4 resize active", 0.50, 0.30},
	{"luks-ext4 lock", 0.35, 0.20},
	{"luks-ext4 unlock", 0.35, 0.25},
	{"luks-ext4 passwd active", 0.45, 0.30},
	{"luks-ext4 unlock yescrypt", 0.50, 0.40},
	{"luks-ext4 deactivate", 0.70, 0.55},
	{"luks-ext4 update inactive", 0.40, 0.28},
	{"luks-ext4 remove", 0, 0},
	{"luks-btrfs create", 0, 0},
	{"luks-btrfs authenticate inactive", 0, 0},
	{"luks-btrfs activate", 0, 0},
	{"luks-btrfs authenticate active", 0, 0},
	{"luks-btrfs update active", 0, 0},
	{"luks-btrfs resize active", 0, 0},
	{"luks-btrfs lock", 0, 0},
	{"luks-btrfs unlock", 0, 0},
	{"luks-btrfs passwd active", 0, 0},
	{"luks-btrfs unlock yescrypt", 0, 0},
	{"luks-btrfs deactivate", 0, 0},
	{"luks-btrfs update inactive", 0, 0},
	{"luks-btrfs remove", 0, 0},
	{"directory create", 0.85, 0.65},
	{"directory authenticate inactive", 0.85, 0.65},
	{"directory activate", 0.85, 0.65},
	{"directory authenticate active", 0.85, 0.65},
	{"directory update active", 0, 0},
	{"directory passwd active", 0.60, 0.40},
	{"directory deactivate", 0.85, 0.65},
	{"directory update inactive", 0, 0},
	{"directory remove", 0, 0},
	{"luks-default create", 0.35, 0.15},
	{"luks-default authenticate inactive", 0, 0},
	{"luks-default activate", 0.60, 0.45},
	{"luks-default authenticate active", 0, 0},
	{"luks-default passwd active", 0.25, 0.15},
	{"luks-default deactivate", 0, 0},
	{"luks-default remove", 0, 0},
	{"luks-ext4 foreign authenticate inactive", 0.20, 0.12},
	{"luks-ext4 foreign activate", 0.40, 0.28},
	{"luks-ext4 foreign deactivate", 0.70, 0.55},
	{"luks-default foreign authenticate inactive", 0, 0},
	{"luks-default foreign activate", 0.60, 0.45},
	{"luks-default foreign deactivate", 0, 0},
	{"directory foreign authenticate inactive", 0.85, 0.65},
	{"directory foreign activate", 0.85, 0.65},
	{"directory foreign deactivate", 0.85, 0.65},
	{"luks-ext4 activate cpu udevd", 0.70, 0.30},
}

func writeVerbs(w io.Writer, s *session) {
	fmt.Fprint(w, "## Verbs\n\nFrom the D-Bus call to its reply, ms: median [least .. most]. *luks-ext4*, *luks-btrfs* and *directory* have a cheap\n"+
		"key derivation (PBKDF2, 1000 rounds) and a cheap password hash until their password is changed (`passwd` makes yescrypt);\n"+
		"*luks-default* is what each makes when nobody asks for anything. *foreign* homes were made by systemd-homed, and both open\nthe same ones.\n\n")
	s.table(w, verbGates)
	fmt.Fprint(w, "\n### Processor time of others\n\nms of processor time that one verb costs other services, mean of all samples, ours / theirs.\n\n")
	names := []string{"udevd", "dbus", "journald", "userdbd", "homed"}
	fmt.Fprintf(w, "| verb | %s |\n|---%s|\n", strings.Join(names, " | "), strings.Repeat("|---", len(names)))
	for _, g := range verbGates {
		if !strings.HasPrefix(g.what, "luks-ext4 ") && !strings.HasPrefix(g.what, "directory ") || strings.Contains(g.what, "foreign") || strings.Contains(g.what, " cpu ") {
			continue
		}
		n := len(s.of("ours", g.what, 0))
		m := len(s.of("theirs", g.what, 0))
		if n == 0 || m == 0 {
			continue
		}
		fmt.Fprintf(w, "| %s |", g.what)
		for _, name := range names {
			what := g.what + " cpu " + name
			fmt.Fprintf(w, " %.1f / %.1f |", sum(s.of("ours", what, 0))/float64(n), sum(s.of("theirs", what, 0))/float64(m))
		}
		fmt.Fprintln(w)
	}
	fmt.Fprintln(w, "\n*homed* is the service itself with its workers.")
}
