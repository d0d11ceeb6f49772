// Package mutate breaks package records, and the places that act by what it
// judges, in one spot at a time and counts how many of the breaks the tests
// notice. It has nothing but tests. It knows the places where a slip would hand
// out rights or lose data; what the right behaviour is, it leaves to the tests.
// It changes no file: the compiler gets the broken ones as an overlay.
//
// Breaks are of two kinds. Those of a rule (each check dropped, each comparison
// inverted, each bound moved, each cell of a table flipped) are compiled in at
// once, each behind a switch; the others are a list, one build each.
//
//	go test ./records/mutate -mutate -v -count=1 -timeout=60m
package mutate
