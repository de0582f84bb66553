package store

import (
	"context"
	"fmt"
	"sync/atomic"
	"testing"
	"time"

	"github.com/nfs-fleet/nfs-fleet/replicator/tree"
)

// BenchmarkPutSync is the measurement of DESIGN section 5: 5,000 objects of 4 KiB, made durable together. Hashing them,
// which that measurement did without, is told apart.
func BenchmarkPutSync(b *testing.B) {
	objects := make([][]byte, 5000)
	var hashing time.Duration
	for b.Loop() {
		b.StopTimer()
		for i := range objects {
			objects[i] = object(b.N*10_000+i, 4096)
		}
		s := openStore(b, b.TempDir(), Options{})
		b.StartTimer()
		for _, o := range objects {
			mustPut(b, s, o)
		}
		mustSync(b, s)
		b.StopTimer()
		s.Close()
		start := time.Now()
		for _, o := range objects {
			tree.Sum(o)
		}
		hashing += time.Since(start)
		b.StartTimer()
	}
	b.ReportMetric(float64(hashing.Nanoseconds())/float64(b.N), "hash-ns/op")
}

// BenchmarkPutLarge is 64 chunks of 4 MiB, made durable together.
func BenchmarkPutLarge(b *testing.B) {
	o := object(1, tree.ChunkSize)
	b.SetBytes(64 * tree.ChunkSize)
	for b.Loop() {
		s := openStore(b, b.TempDir(), Options{})
		for i := range 64 {
			o[0] = byte(i)
			mustPut(b, s, o)
		}
		mustSync(b, s)
		s.Close()
	}
}

// BenchmarkRead is what a READ call costs: OpenBlob, ReadCached and Close, from a pack and from a large file.
func BenchmarkRead(b *testing.B) {
	for _, c := range []struct{ object, read int }{{4096, 4096}, {128 << 10, 128 << 10}, {4 << 20, 4096}, {4 << 20, 128 << 10}, {4 << 20, 1 << 20}} {
		b.Run(fmt.Sprintf("%dKiB-of-%dKiB", c.read>>10, c.object>>10), func(b *testing.B) {
			s := openStore(b, b.TempDir(), Options{})
			const objects = 16
			var digests [objects]tree.Digest
			for i := range digests {
				digests[i] = mustPut(b, s, object(i, c.object))
				mustHold(b, s, object(i, c.object))
			}
			mustSync(b, s)
			var waited atomic.Int64
			b.SetBytes(int64(c.read))
			b.ReportAllocs()
			b.ResetTimer()
			b.RunParallel(func(pb *testing.PB) {
				p := make([]byte, c.read)
				for i := 0; pb.Next(); i++ {
					blob, err := s.OpenBlob(digests[i%objects])
					if err != nil {
						b.Error(err)
						return
					}
					if _, ok := blob.ReadCached(p, 0); !ok {
						waited.Add(1)
						if _, err := blob.ReadAt(p, 0); err != nil {
							b.Error(err)
						}
					}
					_ = blob.Close()
				}
			})
			b.ReportMetric(float64(waited.Load())/float64(b.N), "waits/op")
		})
	}
}

func BenchmarkOpenBlob(b *testing.B) {
	s := openStore(b, b.TempDir(), Options{})
	digests := make([]tree.Digest, 10_000)
	for i := range digests {
		digests[i] = mustPut(b, s, object(i, 32))
	}
	b.ReportAllocs()
	b.ResetTimer()
	b.RunParallel(func(pb *testing.PB) {
		for i := 0; pb.Next(); i++ {
			if _, err := s.OpenBlob(digests[i%len(digests)]); err != nil {
				b.Error(err)
				return
			}
		}
	})
}

// million makes a store of a million objects of 64 bytes and closes it.
func million(tb testing.TB, dir string) {
	s := openStore(tb, dir, Options{})
	for i := range 1_000_000 {
		mustPut(tb, s, object(i, 64))
	}
	if err := s.Close(); err != nil {
		tb.Fatal(err)
	}
}

func BenchmarkOpenMillion(b *testing.B) {
	dir := b.TempDir()
	million(b, dir)
	for b.Loop() {
		s := openStore(b, dir, Options{})
		if n := s.Stats().Objects; n != 1_000_000 {
			b.Fatalf("%d objects", n)
		}
		s.Close()
	}
}

// TestReadAllocatesNothing: the READ path makes no garbage, from a pack or from a large file.
func TestReadAllocatesNothing(t *testing.T) {
	s := openStore(t, t.TempDir(), Options{})
	p := make([]byte, 4096)
	for _, size := range []int{4096, 1 << 20} {
		d := mustPut(t, s, object(1, size))
		mustSync(t, s)
		mustHold(t, s, object(1, size))
		if n := testing.AllocsPerRun(100, func() {
			blob, err := s.OpenBlob(d)
			if err != nil {
				t.Fatal(err)
			}
			blob.ReadCached(p, 0)
			if _, err := blob.ReadAt(p, 0); err != nil {
				t.Fatal(err)
			}
			blob.Close()
		}); n != 0 {
			t.Errorf("%v allocations to read an object of %d bytes", n, size)
		}
	}
}

// BenchmarkReadWhilePutting reads while somebody puts and syncs without a pause.
func BenchmarkReadWhilePutting(b *testing.B) {
	s := openStore(b, b.TempDir(), Options{})
	d := mustPut(b, s, object(1, 4096))
	mustSync(b, s)
	s.active = nil // what is put from here on goes into another page
	mustHold(b, s, object(1, 4096))
	var stop atomic.Bool
	ended := make(chan error)
	go func() {
		var err error
		for i := 2; !stop.Load() && err == nil; i++ {
			if _, err = s.Put(context.Background(), object(i, 4096)); err == nil && i%100 == 0 {
				err = s.Sync(context.Background())
			}
		}
		ended <- err
	}()
	p := make([]byte, 4096)
	var worst time.Duration
	for b.Loop() {
		start := time.Now()
		blob, err := s.OpenBlob(d)
		if err != nil {
			b.Fatal(err)
		}
		if _, ok := blob.ReadCached(p, 0); !ok {
			b.Fatal("not cached")
		}
		worst = max(worst, time.Since(start))
	}
	stop.Store(true)
	if err := <-ended; err != nil {
		b.Fatal(err)
	}
	b.ReportMetric(float64(worst.Microseconds()), "worst-µs")
}
