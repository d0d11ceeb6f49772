package luks2

import (
	"testing"
	"time"
)

// TestCosts: a question is measured once, unless the answer that is remembered
// is weaker than a measurement may be.
func TestCosts(t *testing.T) {
	salt := make([]byte, saltSize)
	for _, c := range []struct {
		name string
		p    PBKDF
		// remembered, and whether it is believed
		iterations, kib uint64
		believed        bool
	}{
		{"pbkdf2", PBKDF{Type: "pbkdf2", TimeMS: 1}, 54321, 0, true},
		{"pbkdf2, too few", PBKDF{Type: "pbkdf2", TimeMS: 1}, minIterations - 1, 0, false},
		{"pbkdf2, too many", PBKDF{Type: "pbkdf2", TimeMS: 1}, maxIterations + 1, 0, false},
		{"pbkdf2, memory", PBKDF{Type: "pbkdf2", TimeMS: 1}, 54321, 1, false},
		{"argon2id", PBKDF{Type: "argon2id", TimeMS: 1, MemoryKiB: 40 << 10}, 77, 33 << 10, true},
		{"argon2id, few passes", PBKDF{Type: "argon2id", TimeMS: 1, MemoryKiB: 40 << 10}, minPasses - 1, 40 << 10, false},
		{"argon2id, little memory", PBKDF{Type: "argon2id", TimeMS: 1, MemoryKiB: 40 << 10}, 77, 31 << 10, false},
		{"argon2id, more memory than asked", PBKDF{Type: "argon2id", TimeMS: 1, MemoryKiB: 40 << 10}, 77, 41 << 10, false},
		{"argon2id, for ever", PBKDF{Type: "argon2id", TimeMS: 1, MemoryKiB: 40 << 10}, maxPasses, 40 << 10, false},
	} {
		p := c.p.withDefaults()
		remembered := p.question(32)
		remembered.Iterations, remembered.MemoryKiB = c.iterations, c.kib
		p.Costs = &Costs{List: []Cost{remembered}}
		k, err := p.choose(32, salt)
		if err != nil {
			t.Fatal(err)
		}
		got := k.iterations + k.passes
		if p.Costs.Changed == c.believed || (got == c.iterations && k.memory == c.kib) != c.believed {
			t.Errorf("%s: %+v, changed %v, believed should be %v", c.name, k, p.Costs.Changed, c.believed)
		}
		if n := len(p.Costs.List); n != 1 {
			t.Errorf("%s: %d remembered", c.name, n)
		}
		again, err := p.choose(32, salt)
		if err != nil || again.iterations != k.iterations || again.passes != k.passes || again.memory != k.memory {
			t.Errorf("%s: asked again, %+v instead of %+v, %v", c.name, again, k, err)
		}
		p.TimeMS, p.Costs.Changed = 2, false
		if _, err := p.choose(32, salt); err != nil || !p.Costs.Changed || len(p.Costs.List) != 2 {
			t.Errorf("%s: another question was not measured: %+v, %v", c.name, p.Costs, err)
		}
	}
}

// TestCostsChecked: what turns out to be far too cheap is not asked for again.
func TestCostsChecked(t *testing.T) {
	c := PBKDF{Type: "pbkdf2", TimeMS: 500}.withDefaults().question(32)
	c.Iterations = 1000
	s := &Costs{List: []Cost{c}}
	if s.check(c, 251*time.Millisecond); s.Changed || len(s.List) != 1 {
		t.Errorf("forgot what was near enough: %+v", s)
	}
	if s.check(c, 249*time.Millisecond); !s.Changed || len(s.List) != 0 {
		t.Errorf("kept what is too cheap: %+v", s)
	}
	var none *Costs
	none.check(c, 0)
}
