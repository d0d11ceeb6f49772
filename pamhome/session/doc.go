// Package session knows what a login session is to be: its class, type, seat
// and terminal, from what the login program says of itself (pam_systemd(8)),
// and its environment, umask, nice level, limits and capabilities, from the
// user record. It decides only. Asking the login manager, and changing the
// login process, is left to package pamhome and to pam_home.so.
package session
