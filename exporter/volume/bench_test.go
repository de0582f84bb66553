package volume_test

import (
	"context"
	"fmt"
	"math/rand/v2"
	"runtime"
	"testing"

	"github.com/rs/zerolog"

	"github.com/nfs-fleet/nfs-fleet/exporter/volume"
	"github.com/nfs-fleet/nfs-fleet/exporter/volume/volumetest"
	"github.com/nfs-fleet/nfs-fleet/replicator/tree"
)

// The calls that answer NFS calls allocate nothing.
func TestNoAllocations(t *testing.T) {
	big, _ := sparse()
	s := volumetest.New(t, append(crowd(5000), file("d/small", "abc"), big)...)
	v, state := s.Volume, s.Volume.State()
	p, fh := make([]byte, 100_000), make([]byte, 0, volume.HandleSize)
	small, large, many := s.Node("d/small"), s.Node("sparse"), s.Node("crowd")
	handle := s.Handle("crowd/file-004999.txt")
	for _, off := range []uint64{70_000, 70_000 + tree.ChunkSize} {
		if _, _, err := v.Read(t.Context(), large, p, off); err != nil {
			t.Fatal(err)
		}
	}
	if _, _, err := v.Read(t.Context(), small, p, 0); err != nil {
		t.Fatal(err)
	}
	name, absent, dots := []byte("file-004321.txt"), []byte("absent"), []byte("..")
	cursor, ok, sum := state.List(many, 0), true, 0
	for _, c := range []struct {
		name string
		call func()
	}{
		{"State", func() { ok = v.State() == state }},
		{"Resolve", func() { n, err := state.Resolve(handle); ok = err == nil && n.Ino() > 0 }},
		{"Resolve of a bad handle", func() { _, err := state.Resolve(name); ok = err != nil }},
		{"ParseHandle", func() { _, _, ok = volume.ParseHandle(handle) }},
		{"Lookup", func() { _, ok = state.Lookup(many, name) }},
		{"Lookup of what is absent", func() { _, ok = state.Lookup(many, absent); ok = !ok }},
		{"Lookup of ..", func() { _, ok = state.Lookup(many, dots) }},
		{"Attr", func() { sum += len(small.Attr()) }},
		{"AppendHandle", func() { fh = small.AppendHandle(fh[:0]) }},
		{"List", func() { c := state.List(many, 4500); _, _, _, ok = c.Next() }},
		{"Next", func() { _, _, _, ok = cursor.Next() }},
		{"ReadCached", func() { _, _, ok = v.ReadCached(small, p, 0) }},
		{"ReadCached of chunks", func() { _, _, ok = v.ReadCached(large, p, 70_000+tree.ChunkSize-5000) }},
		{"ReadCached of a hole", func() { _, _, ok = v.ReadCached(large, p[:50], 0) }},
		{"Read", func() { _, _, err := v.Read(context.Background(), small, p, 0); ok = err == nil }},
	} {
		if allocs := testing.AllocsPerRun(200, c.call); allocs != 0 || !ok {
			t.Errorf("%s: %v allocations, %v", c.name, allocs, ok)
		}
	}
}

// many is n files in directories of 100.
func many(n int) []volumetest.File {
	all := make([]volumetest.File, n)
	for i := range all {
		all[i] = file(fmt.Sprintf("d%03d/d%03d/file-%06d", i/10_000, i/100%100, i), "x")
	}
	return all
}

func heap() uint64 {
	runtime.GC()
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	return m.HeapAlloc
}

// BenchmarkLoad is a start with a million files: in directories of 100, and in one.
func BenchmarkLoad(b *testing.B) {
	const n = 1_000_000
	for name, files := range map[string]func(int) []volumetest.File{"dirs": many, "flat": crowd} {
		b.Run(name, func(b *testing.B) {
			s := volumetest.NewShard(b)
			g := s.Stage(files(n)...)
			var v *volume.Volume
			before := heap()
			for b.Loop() {
				v = volume.New(volumetest.FSID, s.Store, zerolog.Nop())
				if err := v.Flip(b.Context(), g); err != nil {
					b.Fatal(err)
				}
			}
			b.ReportMetric(float64(heap()-before)/n, "B/entry")
			runtime.KeepAlive(v)
		})
	}
}

// BenchmarkFlip is one changed file, there and back, and forgetting what it was.
func BenchmarkFlip(b *testing.B) {
	for _, c := range []struct {
		name  string
		files []volumetest.File
	}{
		{"flat-100000", crowd(100_000)},
		{"dirs-100000", many(100_000)},
	} {
		b.Run(c.name, func(b *testing.B) {
			c.files[50_000].Data = "original"
			s := volumetest.New(b, c.files...)
			c.files[50_000].Data = "changed"
			s.Publish(c.files...)
			next := s.Head()
			runtime.GC()
			for i := 0; b.Loop(); i++ {
				next.Number++
				next.Root = s.Generations[i%2].Root
				if err := s.Volume.Flip(b.Context(), next); err != nil {
					b.Fatal(err)
				}
				if err := s.Volume.Forget(b.Context(), next.Number); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}

func BenchmarkAnswers(b *testing.B) {
	files := append(many(200_000), crowd(100_000)...)
	s := volumetest.New(b, files...)
	v, state := s.Volume, s.Volume.State()
	r := rand.New(rand.NewPCG(1, 1))
	var handles [][]byte
	for range 1 << 16 {
		handles = append(handles, s.Handle(files[r.IntN(len(files))].Name))
	}
	flat, hot := s.Node("crowd"), s.Node(files[0].Name)
	var crowded [][]byte
	for range 1 << 16 {
		crowded = append(crowded, fmt.Appendf(nil, "file-%06d.txt", r.IntN(100_000)))
	}
	p := make([]byte, 4096)
	if _, _, err := v.Read(b.Context(), hot, p, 0); err != nil {
		b.Fatal(err)
	}
	run := func(name string, call func(i int) bool) {
		b.Run(name, func(b *testing.B) {
			b.ReportAllocs()
			for i := 0; b.Loop(); i++ {
				if !call(i) {
					b.Fatal(i)
				}
			}
		})
	}
	run("resolve-hot", func(int) bool { _, err := state.Resolve(handles[0]); return err == nil })
	run("resolve-random", func(i int) bool { _, err := state.Resolve(handles[i&0xffff]); return err == nil })
	run("lookup-random-of-100000", func(i int) bool { _, ok := state.Lookup(flat, crowded[i&0xffff]); return ok })
	cursor := state.List(flat, 0)
	run("next", func(int) bool {
		if _, _, _, ok := cursor.Next(); !ok {
			cursor = state.List(flat, 0)
		}
		return true
	})
	run("read-cached", func(int) bool { _, _, ok := v.ReadCached(hot, p, 0); return ok })
}
