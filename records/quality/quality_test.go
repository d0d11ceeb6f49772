package quality

import (
	"strings"
	"testing"
	"time"

	"hearth/internal/secret"
)

func advice(t *testing.T, password string, names ...string) string {
	t.Helper()
	p, err := secret.Copy([]byte(password))
	if err != nil {
		t.Fatal(err)
	}
	defer p.Close()
	return Advice(p, names...)
}

func TestAdvice(t *testing.T) {
	for password, want := range map[string]pattern{
		"":                      short,
		"x7!q":                  short,
		"password":              common,
		"PassW0rd":              common,
		"drowssap":              common,
		"dragon1":               common,
		"mustang-shadow":        common,
		"annabelle":             name,
		"AnnaBelle99":           name,
		"wertyuiop":             row,
		"abcdefghijkl":          row,
		"9876543210":            row,
		"asdfghjkl;":            row,
		"aaaaaaaaaaaaaaaa":      repeated,
		"xq9xq9xq9xq9":          repeated,
		"1987-11-25":            date,
		"25.11.1987":            date,
		"20071231":              date,
		"Corr3ct-Horse-9-Batt":  "",
		"purple stapler gravel": "",
		"zxq8vLp2Ws":            "",
		"f7Q!mz0#Lp":            "",
		"üßgrö9x-q":             "",
	} {
		got := advice(t, password, "annabelle")
		if (got == "") != (want == "") || !strings.Contains(got, string(want)) {
			t.Errorf("%q: %q, want %q", password, got, want)
		}
		if len(password) > 3 && password != "password" && strings.Contains(got, password) {
			t.Errorf("%q is in its own advice", password)
		}
	}
	if got := advice(t, "annabelle"); got == "" || strings.Contains(got, string(name)) {
		t.Errorf("a name that nobody knows: %q", got)
	}
}

func TestAdviceTakesNoTime(t *testing.T) {
	begin := time.Now()
	for _, c := range []string{"a", "ab", "abc1", "qwerty", "\xff", "é"} {
		advice(t, strings.Repeat(c, 2000))
	}
	if took := time.Since(begin); took > 10*time.Second {
		t.Errorf("it took %v", took)
	}
}

func FuzzAdvice(f *testing.F) {
	for _, s := range []string{"", "password", "aaaa", "19991231", "qwerty\x00\xff"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, password string) {
		b := []byte(password)
		guesses, why := estimate(b[:min(len(b), maxJudged)], []string{"ann"})
		if guesses < 0 || guesses > maxJudged || why == "" {
			t.Errorf("%q: %v, %q", password, guesses, why)
		}
		if string(b) != password {
			t.Error("the password changed")
		}
	})
}
