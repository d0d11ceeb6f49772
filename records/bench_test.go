package records

import (
	"fmt"
	"runtime"
	"strings"
	"testing"
)

// benchRecords are a record as most homes have it, and one of 100 KiB.
func benchRecords(b *testing.B) map[string][]byte {
	typical := mustParse(b, read(b, fixtures, "records/luksargon/host.identity"), HostFile)
	build := typical.Edit()
	for i := range 1000 {
		build.Set(fmt.Sprintf("x-%d", i), strings.Repeat("v", 90))
	}
	large, err := build.Record()
	if err != nil {
		b.Fatal(err)
	}
	out := map[string][]byte{}
	for name, r := range map[string]*Record{"typical": typical, "100KiB": large} {
		signed, err := signer(b, fixtures, "keys/local.private").Sign(r)
		if err != nil {
			b.Fatal(err)
		}
		out[name] = signed.Record().Pretty()
	}
	return out
}

func bench(b *testing.B, f func(b *testing.B, text []byte, r *Record)) {
	for name, text := range benchRecords(b) {
		r := mustParse(b, text, HostFile)
		b.Run(name, func(b *testing.B) {
			b.ReportAllocs()
			b.SetBytes(int64(len(text)))
			for b.Loop() {
				f(b, text, r)
			}
		})
	}
}

func BenchmarkParse(b *testing.B) {
	bench(b, func(b *testing.B, text []byte, _ *Record) {
		if _, err := Parse(text, HostFile); err != nil {
			b.Fatal(err)
		}
	})
}

func BenchmarkVerify(b *testing.B) {
	k := keyring(b, true)
	bench(b, func(b *testing.B, _ []byte, r *Record) {
		if v, err := k.Verify(r); v != SignedByUs || err != nil {
			b.Fatal(v, err)
		}
	})
}

func BenchmarkMask(b *testing.B) {
	bench(b, func(b *testing.B, _ []byte, r *Record) { r.Mask(false) })
}

func BenchmarkPrint(b *testing.B) {
	bench(b, func(b *testing.B, _ []byte, r *Record) { r.Compact() })
}

func BenchmarkView(b *testing.B) {
	m := machine(b)
	bench(b, func(b *testing.B, _ []byte, r *Record) { r.View(m) })
}

// BenchmarkHeld reports what a record keeps in memory, parsed and packed.
func BenchmarkHeld(b *testing.B) {
	for name, text := range benchRecords(b) {
		benchHeld(b, name, func() any { return mustParse(b, text, HostFile) })
		benchHeld(b, name+" packed", func() any { return Pack(vouched(mustParse(b, text, HostFile))).text })
	}
}

func benchHeld(b *testing.B, name string, get func() any) {
	b.Run(name, func(b *testing.B) {
		const n = 64
		var kept [n]any
		var before, after runtime.MemStats
		for b.Loop() {
			clear(kept[:])
			runtime.GC()
			runtime.ReadMemStats(&before)
			for i := range kept {
				kept[i] = get()
			}
			runtime.GC()
			runtime.ReadMemStats(&after)
		}
		b.ReportMetric(float64(after.HeapAlloc-before.HeapAlloc)/n, "B/record")
		b.ReportMetric(float64(after.HeapObjects-before.HeapObjects)/n, "objects/record")
		runtime.KeepAlive(kept)
	})
}
