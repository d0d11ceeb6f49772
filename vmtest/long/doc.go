// Package long runs in guests what takes longer than continuous integration
// has. Its tests run under HEARTH_TEST_LONG=1 only; "make test-long" says so.
// What each part found is one line that begins with RESULT.
package long
