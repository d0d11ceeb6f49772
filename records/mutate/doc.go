// Package mutate breaks package records in one place at a time and counts how
// many of the breaks that package's tests notice. It has nothing but tests. It
// knows the places where a slip would hand out rights or lose data; what the
// right behaviour is, it leaves to the tests. It changes no file: the compiler
// gets the broken one as an overlay.
//
//	go test ./records/mutate -mutate -v -count=1 -timeout=60m
package mutate
