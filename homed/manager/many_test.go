package manager_test

import (
	"context"
	"fmt"
	"os"
	"runtime"
	"strconv"
	"testing"
	"time"

	"hearth/homed/home"
	"hearth/homed/manager"
	"hearth/homed/manager/managertest"
	"hearth/internal/fault"
	"hearth/records"
)

// TestNoUIDLeft: what cannot get a UID is not made. All tries take one that
// somebody has.
func TestNoUIDLeft(t *testing.T) {
	m, stop := managertest.Serve(t, managertest.Populate(t, t.TempDir(), 1), everyone{})
	defer stop()
	_, err := m.Do(t.Context(), manager.Operation{Verb: home.Create, Record: newRecord(t, "ann"), Secrets: (&daemon{t: t}).secrets("correct horse battery")})
	kind(t, "a home without a UID", err, fault.TooManyHomes)
}

// everyone has all numbers, and no name.
type everyone struct{ noAccounts }

func (everyone) User(_ context.Context, key string) (string, error) {
	if _, err := strconv.Atoi(key); err == nil {
		return "number" + key, nil
	}
	return "", nil
}

func (everyone) Free(context.Context, []string) bool { return false }

// TestManyRecords: systemd-homed takes 500 and skips the others.
func TestManyRecords(t *testing.T) {
	const n = 700
	m, stop := managertest.Serve(t, managertest.Populate(t, t.TempDir(), n), noAccounts{})
	defer stop()
	list, err := m.List(t.Context())
	if err != nil || len(list) != n {
		t.Fatalf("%d homes, %v", len(list), err)
	}
	for _, i := range []int{0, 499, 500, n - 1} {
		for _, k := range []manager.Key{
			{Name: fmt.Sprintf("user%d", i)}, {Name: fmt.Sprintf("alias%d", i)}, {Name: fmt.Sprintf("user%d@example.org", i)},
			{Name: fmt.Sprintf("alias%d@example.org", i)}, {UID: uint32(100000 + i), ByUID: true},
		} {
			if h, err := m.Lookup(t.Context(), k); err != nil || h.UID != uint32(100000+i) {
				t.Errorf("%+v: %s, %v", k, h.Name, err)
			}
		}
	}
	for _, k := range []manager.Key{{Name: "user700"}, {Name: "user1@example.com"}, {Name: "@example.org"}, {Name: ""}, {UID: 99999, ByUID: true}} {
		if _, err := m.Lookup(t.Context(), k); !fault.Is(err, fault.NoSuchHome) {
			t.Errorf("%+v: %v", k, err)
		}
	}
	// What a home claimed is free when it is gone.
	if _, err := m.Do(t.Context(), manager.Operation{Verb: home.Unregister, Key: manager.Key{Name: "user7"}}); err != nil {
		t.Fatal(err)
	}
	for _, k := range []manager.Key{{Name: "user7"}, {Name: "alias7"}, {Name: "alias7@example.org"}, {UID: 100007, ByUID: true}} {
		if _, err := m.Lookup(t.Context(), k); !fault.Is(err, fault.NoSuchHome) {
			t.Errorf("%+v: %v", k, err)
		}
	}
	r, err := records.NewBuilder("alias7").Set("disposition", "regular").Set("uid", uint64(100007)).Set("aliases", []string{"user7"}).Record()
	if err != nil {
		t.Fatal(err)
	}
	if _, err := m.Do(t.Context(), manager.Operation{Verb: home.Register, Record: r}); err != nil {
		t.Fatal(err)
	}
	if h, err := m.Lookup(t.Context(), manager.Key{Name: "user7"}); err != nil || h.Name != "alias7" {
		t.Errorf("user7 is %s, %v", h.Name, err)
	}
}

// TestLookUpsBesideWorkers: whoever asks is answered while workers run, however
// long they take.
func TestLookUpsBesideWorkers(t *testing.T) {
	d := boot(t, t.TempDir())
	const n = 20
	done := make(chan error, n)
	for i := range n {
		r := newRecord(t, fmt.Sprintf("user%d", i), "realName", "Slow")
		go func() { done <- d.create(r) }()
	}
	for i := range n {
		d.eventually(fmt.Sprintf("user%d", i), "creating")
	}
	for i := range 1000 {
		d.state(fmt.Sprintf("user%d", i%n), "creating")
		d.state("nobody", "")
	}
	if list, err := d.List(t.Context()); err != nil || len(list) != n {
		t.Errorf("%d homes, %v", len(list), err)
	}
	d.fails(fault.HomeBusy, home.Remove, "user0")
	if err := os.WriteFile(d.file("home", "go"), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	for range n {
		if err := <-done; err != nil {
			t.Error(err)
		}
	}
}

// BenchmarkHomes starts with many records: how long until all are known, how
// long a look-up takes then, and what a record costs in memory.
func BenchmarkHomes(b *testing.B) {
	for _, n := range []int{1000, 10000} {
		b.Run(fmt.Sprint(n), func(b *testing.B) {
			l := managertest.Populate(b, b.TempDir(), n)
			heap := func() uint64 {
				var s runtime.MemStats
				runtime.GC()
				runtime.ReadMemStats(&s)
				return s.HeapAlloc
			}
			var start, found, missed, ended time.Duration
			var size uint64
			for b.Loop() {
				before, begin := heap(), time.Now()
				m, stop := managertest.Serve(b, l, noAccounts{})
				start += time.Since(begin)
				size += heap() - before
				const rounds = 1000
				begin = time.Now()
				for i := range rounds {
					if _, err := m.Lookup(b.Context(), manager.Key{Name: fmt.Sprintf("alias%d", i*7%n)}); err != nil {
						b.Fatal(err)
					}
				}
				found += time.Since(begin) / rounds
				begin = time.Now()
				for i := range rounds {
					_, _ = m.Lookup(b.Context(), manager.Key{Name: fmt.Sprintf("nobody%d", i)})
				}
				missed += time.Since(begin) / rounds
				begin = time.Now()
				stop()
				ended += time.Since(begin)
			}
			runs := float64(b.N)
			b.ReportMetric(start.Seconds()*1000/runs, "ms-to-ready")
			b.ReportMetric(ended.Seconds()*1000/runs, "ms-to-stop")
			b.ReportMetric(float64(found.Nanoseconds())/1000/runs, "µs/look-up")
			b.ReportMetric(float64(missed.Nanoseconds())/1000/runs, "µs/miss")
			b.ReportMetric(float64(size)/1024/runs/float64(n), "KiB/home")
		})
	}
}
