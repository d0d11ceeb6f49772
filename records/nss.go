package records

import (
	"math"
	"slices"
)

// An Account is what passwd(5) says of a user.
type Account struct {
	Name              string
	UID, GID          uint32
	RealName          string
	Directory, Shell  string
	FallbackDirectory bool // Directory stands for the home's own, which is not there now
	FallbackShell     bool // likewise Shell
}

var noLogin = []string{"/bin/nologin", "/sbin/nologin", "/usr/bin/nologin", "/usr/sbin/nologin", "/bin/false", "/usr/bin/false", "/bin/true", "/usr/bin/true"}

// NoLogin reports whether a shell is one that lets nobody in.
func NoLogin(shell string) bool { return slices.Contains(noLogin, shell) }

// Account returns what the user's logins get now.
func (v *View) Account() Account {
	a := Account{Name: v.UserName, UID: v.UID, GID: v.GID, RealName: v.RealName, Directory: v.HomeDirectory, Shell: v.Shell}
	if v.UseFallback && v.FallbackHomeDirectory != "" {
		a.Directory, a.FallbackDirectory = v.FallbackHomeDirectory, true
	}
	if v.UseFallback && v.FallbackShell != "" {
		a.FallbackShell = true
		// Who may not log in does not get to the fallback either.
		if !NoLogin(v.Shell) {
			a.Shell = v.FallbackShell
		}
	}
	return a
}

// A Shadow is what shadow(5) says of a user. Times are days, since 1970 where
// they are points in time; -1 is an empty field.
type Shadow struct {
	Hash                                            string
	LastChange, Min, Max, Warning, Inactive, Expire int64
}

// Shadow returns the first password's hash, one that fits nothing if there is
// none, and its age.
func (v *View) Shadow() Shadow {
	s := Shadow{Hash: "!*", LastChange: days(v.LastPasswordChangeUSec), Min: days(v.PasswordChangeMinUSec), Max: days(v.PasswordChangeMaxUSec),
		Warning: days(v.PasswordChangeWarnUSec), Inactive: days(v.PasswordChangeInactiveUSec), Expire: days(v.NotAfterUSec)}
	if len(v.HashedPasswords) > 0 {
		s.Hash = v.HashedPasswords[0]
	}
	// Day 0 would ask for a new password at once.
	if s.LastChange == 0 {
		s.LastChange = 1
	}
	if v.Locked || s.Expire == 0 {
		s.Expire = 1
	}
	return s
}

func days(usec *uint64) int64 {
	if usec == nil || *usec == math.MaxUint64 {
		return -1
	}
	return int64(*usec / 86400e6)
}
