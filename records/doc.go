// Package records knows the JSON user record: its syntax, its sections, what
// its fields mean on a given machine, who may see which part, how it is
// signed, and which of several copies wins. A record is a document first:
// fields nobody here has heard of are kept, signed and given back unchanged.
//
// It makes no system call and reads no clock. Time, randomness, the machine
// and the uids that are taken are arguments; where a home lies and whether
// something may happen to it now is left to storage and to homed/home.
package records
