// Package shimtest holds the tests of pam_home.so: the real module in the real
// libpam, driven by a login program of its own (testdata/host.c) against a
// helper that behaves as the test says, or against the real helper and a bus.
// It has no code for anybody else.
package shimtest
