// Package stories tells in tests what users and administrators do with the
// product, in a guest with real PAM, logind, D-Bus and dm-crypt, and beside the
// real systemd-homed. It knows commands and what they print; how a guest is
// made it leaves to vmtest.
package stories
