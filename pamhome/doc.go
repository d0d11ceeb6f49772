// Package pamhome holds the PAM hooks of a home area as plain Go: which user
// is ours, asking for a password until the service gives a reference to the
// home, the verdict on an account, giving the reference back. It reaches the
// login program through a Conversation and the homes through Homes, the bus
// interface org.freedesktop.home1, so it works with systemd-homed as well. It
// opens no home itself, and leaves to the program around it where both come
// from.
package pamhome
