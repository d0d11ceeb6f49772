package trace

import (
	"context"
	"sync"
	"testing"
	"time"
)

func TestTrace(t *testing.T) {
	now := time.Unix(100, 0)
	tr := New("start", now, func() time.Time { return now })
	ctx := With(context.Background(), tr)
	pass := func(d time.Duration) { now = now.Add(d) }
	pass(time.Second)
	From(ctx).Step("header")
	for range 2 {
		done := From(ctx).Work(KDF)
		pass(3 * time.Second)
		done()
	}
	From(ctx).Step("mount")
	pass(time.Second)
	steps, work := tr.Seen()
	want := []Step{{"start", time.Second}, {"header", 6 * time.Second}, {"mount", time.Second}}
	if len(steps) != len(want) {
		t.Fatalf("steps: %v", steps)
	}
	for i := range want {
		if steps[i] != want[i] {
			t.Errorf("step %d is %v, want %v", i, steps[i], want[i])
		}
	}
	if work[KDF] != (Work{2, 6 * time.Second}) || tr.Times(KDF) != 2 || tr.Times(Digest) != 0 {
		t.Errorf("work: %v", work)
	}
}

// Without a trace nothing is noted, and several may note at once.
func TestNobodyAndMany(t *testing.T) {
	none := From(context.Background())
	none.Step("x")
	none.Work(Exec)()
	if steps, _ := none.Seen(); steps != nil || none.Times(Exec) != 0 {
		t.Error("a trace that is none has noted something")
	}
	tr := New("start", time.Now(), time.Now)
	var wg sync.WaitGroup
	for range 50 {
		wg.Go(func() { tr.Work(Hash)(); tr.Step("s") })
	}
	wg.Wait()
	if tr.Times(Hash) != 50 {
		t.Errorf("%d of 50 counted", tr.Times(Hash))
	}
}
