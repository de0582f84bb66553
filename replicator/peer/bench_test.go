package peer

import (
	"context"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/nfs-fleet/nfs-fleet/replicator/store"
	"github.com/nfs-fleet/nfs-fleet/replicator/tree"
)

// BenchmarkFetch fetches a tree of small files into an empty store over TLS 1.3 on the loopback, hashed and durable in the
// end, and tells its speed beside that of net/http, which streams the same bytes and does nothing with them.
func BenchmarkFetch(b *testing.B) {
	for _, c := range []struct{ files, size int }{{100_000, 256}, {50_000, 1024}, {50_000, 4096}, {12_803, 32 << 10}, {50, 4 << 20}} {
		b.Run(fmt.Sprintf("%dx%d", c.files, c.size), func(b *testing.B) { benchmarkFetch(b, c.files, c.size) })
	}
}

func benchmarkFetch(b *testing.B, count, size int) {
	from := openStore(b, store.Options{})
	f := make(files)
	for i := range count {
		f[fmt.Sprintf("%05d", i)] = noise(uint64(i), size)
	}
	head := publish(b, from, tree.Merged{}, f)
	f = nil
	n := newNetwork(b)
	n.add("a", from, nil)
	b.SetBytes(int64(count) * int64(size))
	var spent, used time.Duration
	for b.Loop() {
		b.StopTimer()
		to := openStore(b, store.Options{})
		fetcher := n.fetcher(to)
		b.StartTimer()
		start, cpu := time.Now(), cpuTime()
		if err := fetcher.Fetch(context.Background(), head.Root, tree.Digest{}, "a", nil); err != nil {
			b.Fatal(err)
		}
		spent += time.Since(start)
		used += cpuTime() - cpu
		b.StopTimer()
		to.Close()
		b.StartTimer()
	}
	rate, cost := float64(count)*float64(b.N)/spent.Seconds(), used.Seconds()/float64(count*b.N)
	plain, plainCost := plainRate(b, count, size)
	b.ReportMetric(rate, "objects/s")
	b.ReportMetric(rate/plain, "of-net/http")
	b.ReportMetric(plain, "net/http/s")
	b.ReportMetric(cost*1e9, "cpu-ns/object")
	b.ReportMetric(plainCost*1e9, "net/http-cpu-ns")
}

// cpuTime is what this process has used: it does not depend on what else the machine does.
func cpuTime() time.Duration {
	var u unix.Rusage
	_ = unix.Getrusage(unix.RUSAGE_SELF, &u)
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
}

// plainRate is how many objects a second net/http streams over TLS in one response, from memory, to io.Discard, and the
// seconds of processor time that each takes.
func plainRate(b *testing.B, count, size int) (rate, cost float64) {
	chunk := noise(1, writeSize)
	s := httptest.NewTLSServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		for left := count * size; left > 0; left -= len(chunk) {
			if _, err := w.Write(chunk[:min(left, len(chunk))]); err != nil {
				return
			}
		}
	}))
	defer s.Close()
	const rounds = 3
	cpu := cpuTime()
	for range rounds {
		start := time.Now()
		resp, err := s.Client().Get(s.URL)
		if err != nil {
			b.Fatal(err)
		}
		if _, err := io.CopyBuffer(struct{ io.Writer }{io.Discard}, resp.Body, make([]byte, writeSize)); err != nil {
			b.Fatal(err)
		}
		resp.Body.Close()
		rate = max(rate, float64(count)/time.Since(start).Seconds())
	}
	return rate, (cpuTime() - cpu).Seconds() / float64(rounds*count)
}

// BenchmarkFetchOneChange is how long one changed file of 100,000 takes, durable, with the generation before as its base.
func BenchmarkFetchOneChange(b *testing.B) {
	from, to := openStore(b, store.Options{}), openStore(b, store.Options{})
	f := make(files)
	for i := range 100_000 {
		f[fmt.Sprintf("%06d", i)] = fmt.Append(nil, i)
	}
	head := publish(b, from, tree.Merged{}, f)
	n := newNetwork(b)
	n.add("a", from, nil)
	fetcher := n.fetcher(to)
	if err := fetcher.Fetch(context.Background(), head.Root, tree.Digest{}, "a", nil); err != nil {
		b.Fatal(err)
	}
	for i := 0; b.Loop(); i++ {
		b.StopTimer()
		f["050000"] = fmt.Append(nil, "changed", i)
		next := publish(b, from, head, f)
		b.StartTimer()
		if err := fetcher.Fetch(context.Background(), next.Root, head.Root, "a", nil); err != nil {
			b.Fatal(err)
		}
		head = next
	}
}
