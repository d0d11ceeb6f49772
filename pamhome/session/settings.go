package session

import (
	"fmt"
	"slices"
	"strings"

	"hearth/records"
)

// Settings is what the record changes in the login process, in the order in
// which it is to be done. nil means: leave as it is.
type Settings struct {
	Umask *uint32
	// Env holds K=V assignments for the PAM environment.
	Env  []string
	Nice *int // relative to what the process has
	// Limits by number of setrlimit(2).
	Limits            []ResourceLimit
	Ambient, Bounding *Capabilities
	Warnings          []string
}

// A ResourceLimit is one setrlimit(2) call; 2^64-1 is infinity.
type ResourceLimit struct {
	Number     uint32
	Soft, Hard uint64
}

// limitNumbers of x86, arm and most others (asm-generic/resource.h).
var limitNumbers = []string{"CPU", "FSIZE", "DATA", "STACK", "CORE", "RSS", "NPROC", "NOFILE", "MEMLOCK", "AS", "LOCKS", "SIGPENDING", "MSGQUEUE", "NICE", "RTPRIO", "RTTIME"}

// Machine answers what the settings depend on outside the record.
type Machine struct {
	TimeZone func(name string) bool // the zone exists here
	Locale   func(name string) bool // the locale is installed
	// Kernel is the bounding set that the login process has.
	Kernel Capabilities
}

// From reads the settings out of a record. seat says whether the session has
// one: a person at a seat may set an alarm that wakes the machine.
func From(v records.View, o Options, service string, seat bool, m Machine) Settings {
	l := v.Login
	s := Settings{Umask: l.Umask, Nice: l.NiceLevel, Env: slices.Clone(v.Environment)}
	if l.EmailAddress != "" {
		s.Env = append(s.Env, "EMAIL="+l.EmailAddress)
	}
	if l.TimeZone != "" {
		if m.TimeZone(l.TimeZone) {
			s.Env = append(s.Env, "TZ=:"+l.TimeZone)
		} else {
			s.warn("Time zone specified in user record is not valid locally, not setting $TZ: %s", l.TimeZone)
		}
	}
	if len(l.Languages) > 0 {
		if m.Locale(l.Languages[0]) {
			s.Env = append(s.Env, "LANG="+l.Languages[0])
			if len(l.Languages) > 1 {
				s.Env = append(s.Env, "LANGUAGE="+strings.Join(l.Languages, ":"))
			}
		} else {
			s.warn("Preferred languages are not available locally, not setting $LANG: %s", l.Languages[0])
		}
	}
	for i, name := range limitNumbers {
		if limit, ok := l.ResourceLimits["RLIMIT_"+name]; ok {
			s.Limits = append(s.Limits, ResourceLimit{uint32(i), limit.Cur, limit.Max})
		}
	}
	s.capabilities(v, o, service, seat, m)
	return s
}

func (s *Settings) capabilities(v records.View, o Options, service string, seat bool, m Machine) {
	parse := func(list []string, unset *Capabilities) *Capabilities {
		if list == nil {
			return unset
		}
		set, unknown := records.ParseCapabilities(list)
		for _, name := range unknown {
			s.warn("Unknown capability '%s' in user record, ignoring.", name)
		}
		return &set
	}
	bounding := parse(v.Login.CapabilityBounding, o.Bounding)
	ambient := parse(v.Login.CapabilityAmbient, o.Ambient)
	if ambient == nil && v.Disposition == "regular" && (service == "systemd-user" || seat) {
		wake := WakeAlarm
		ambient = &wake
	}
	if ambient != nil && *ambient != 0 {
		set := *ambient & m.Kernel
		if bounding != nil {
			set &= *bounding
		}
		s.Ambient = &set
	}
	if bounding != nil && *bounding&All != All {
		s.Bounding = bounding
	}
}

func (s *Settings) warn(format string, args ...any) {
	s.Warnings = append(s.Warnings, fmt.Sprintf(format, args...))
}
