package nfs3

import (
	"context"
	"testing"

	"github.com/nfs-fleet/nfs-fleet/exporter/rpc"
)

// hot is the calls that must cost nothing but their work.
func hot(b *bench) map[string]rpc.Call {
	b.must(procRead, args(b.handle("big"), uint64(0), 1)) // opens it
	call := func(proc uint32, in []byte) rpc.Call {
		c := b.call
		c.Proc, c.Args = proc, in
		return c
	}
	return map[string]rpc.Call{
		"GETATTR":     call(procGetattr, args(b.handle("hello"))),
		"LOOKUP":      call(procLookup, args(b.handle("dir"), "ccccc")),
		"ACCESS":      call(procAccess, args(b.handle("hello"), 0x3f)),
		"READ":        call(procRead, args(b.handle("big"), uint64(4096), 4096)),
		"READ1M":      call(procRead, args(b.handle("big"), uint64(0), 1<<20)),
		"READDIRPLUS": call(procReaddirplus, args(b.handle("dir"), uint64(0), uint64(0), 8192, 8192)),
		"READLINK":    call(procReadlink, args(b.handle("link"))),
	}
}

func TestHotProceduresAllocateNothing(t *testing.T) {
	b := newBench(t, open, nil, items()...)
	dst := make([]byte, 0, 2<<20)
	for name, c := range hot(b) {
		allocs := testing.AllocsPerRun(200, func() {
			if _, err := b.Append(context.Background(), &c, dst); err != nil {
				t.Fatal(err)
			}
		})
		if allocs != 0 {
			t.Errorf("%s: %v allocations a call, want 0", name, allocs)
		}
	}
}

func BenchmarkProcedures(b *testing.B) {
	w := newBench(b, open, nil, items()...)
	dst := make([]byte, 0, 2<<20)
	for name, c := range hot(w) {
		b.Run(name, func(b *testing.B) {
			b.ReportAllocs()
			for b.Loop() {
				if _, err := w.Append(context.Background(), &c, dst); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}
