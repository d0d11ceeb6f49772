package bus

import (
	"testing"
	"time"

	"hearth/internal/fault"
	"hearth/internal/secret"
)

func TestPenalty(t *testing.T) {
	section := func(text string) *secret.Bytes {
		s, err := secret.Copy([]byte(text))
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(s.Close)
		return s
	}
	wrong := fault.New(fault.BadPassword, "x", nil)
	for _, c := range []struct {
		what  string
		err   error
		spent time.Duration
		given []*secret.Bytes
		want  time.Duration
	}{
		{"a wrong password", wrong, 100 * time.Millisecond, []*secret.Bytes{section(`{"password":["a"]}`)}, 2900 * time.Millisecond},
		{"a slow one", wrong, 7 * time.Second, []*secret.Bytes{section(`{"password":["a"]}`)}, 2 * time.Second},
		{"a wrong recovery key", fault.New(fault.BadRecoveryKey, "x", nil), 0, []*secret.Bytes{section(`{"password":["a"]}`)}, 3 * time.Second},
		{"a wrong old password", wrong, 0, []*secret.Bytes{section(`{}`), section(`{"password":["a"]}`)}, 3 * time.Second},
		{"no password", wrong, 0, []*secret.Bytes{section(`{}`), nil}, 0},
		{"another failure", fault.New(fault.HomeAbsent, "x", nil), 0, []*secret.Bytes{section(`{"password":["a"]}`)}, 0},
		{"success", nil, 0, []*secret.Bytes{section(`{"password":["a"]}`)}, 0},
	} {
		got := time.Duration(0)
		if guesses(c.given...) {
			got = penalty(c.err, c.spent)
		}
		if got != c.want {
			t.Errorf("%s waits %v, want %v", c.what, got, c.want)
		}
	}
}
