package tree

import (
	"bytes"
	"fmt"
	"math/rand/v2"
	"slices"
	"testing"
)

func sumsOf(objects [][]byte) []Digest {
	d := make([]Digest, len(objects))
	Sums(d, objects)
	return d
}

func checkSums(t *testing.T, objects [][]byte) {
	t.Helper()
	for i, d := range sumsOf(objects) {
		if d != Sum(objects[i]) {
			t.Fatalf("object %d of %d, of %d bytes: wrong digest", i, len(objects), len(objects[i]))
		}
	}
}

func TestSums(t *testing.T) {
	r := rand.New(rand.NewPCG(1, 2))
	bytesOf := func(n int) []byte {
		b := make([]byte, n)
		for i := range b {
			b[i] = byte(r.Uint32())
		}
		return b
	}
	var all [][]byte
	for n := range 300 { // every length of a tail
		all = append(all, bytesOf(n))
	}
	checkSums(t, all)
	for range 200 {
		objects := make([][]byte, r.IntN(40))
		for i := range objects {
			objects[i] = bytesOf(r.IntN(1 << r.IntN(15)))
		}
		checkSums(t, objects)
	}
	for n := range 2 * fewWide { // more than maxBlocks blocks, and few of them
		objects := make([][]byte, n)
		for i := range objects {
			objects[i] = bytesOf(150_000 + i)
		}
		checkSums(t, objects)
	}
	checkSums(t, make([][]byte, 100))
	one := slices.Repeat(all[299:], 50) // the same one many times
	checkSums(t, one)
}

func FuzzSums(f *testing.F) {
	f.Add([]byte("a lot of bytes"), uint16(3), uint16(20))
	f.Fuzz(func(t *testing.T, b []byte, step, count uint16) {
		objects := make([][]byte, count%200)
		for i := range objects {
			from := i * int(step) % (len(b) + 1)
			objects[i] = b[from:]
		}
		checkSums(t, objects)
	})
}

func BenchmarkSums(b *testing.B) {
	for _, size := range []int{256, 1024, 4096, 32 << 10} {
		objects := make([][]byte, max(16, 256<<10/size))
		for i := range objects {
			objects[i] = bytes.Repeat([]byte{byte(i)}, size)
		}
		digests := make([]Digest, len(objects))
		b.Run(fmt.Sprint(size), func(b *testing.B) {
			b.SetBytes(int64(len(objects) * size))
			for b.Loop() {
				Sums(digests, objects)
			}
		})
		b.Run(fmt.Sprintf("%d-one-by-one", size), func(b *testing.B) {
			b.SetBytes(int64(len(objects) * size))
			for b.Loop() {
				for i := range objects {
					digests[i] = Sum(objects[i])
				}
			}
		})
	}
}
