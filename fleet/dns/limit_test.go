package dns

import (
	"net/netip"
	"testing"
	"time"
)

func TestLimiter(t *testing.T) {
	l, now := newLimiter(10, false), time.Unix(1e9, 0)
	ask := func(from string, n int, now time.Time) (out map[verdict]int) {
		out = map[verdict]int{}
		for range n {
			out[l.take(netip.MustParseAddr(from), now)]++
		}
		return out
	}
	// All of a network are bounded together; the first two seconds' worth is free.
	if got := ask("192.0.2.1", 15, now); got[grant] != 15 {
		t.Errorf("%v", got)
	}
	if got := ask("192.0.2.200", 25, now); got[grant] != 5 || got[divert] != 10 || got[refuse] != 10 {
		t.Errorf("%v", got)
	}
	if got := ask("::ffff:192.0.2.200", 2, now); got[grant] != 0 {
		t.Errorf("a mapped address: %v", got)
	}
	if got := ask("192.0.3.1", 20, now); got[grant] != 20 {
		t.Errorf("another network: %v", got)
	}
	if got := ask("2001:db8:0:1::1", 10, now); got[grant] != 10 {
		t.Errorf("IPv6: %v", got)
	}
	if got := ask("2001:db8:0:2::2%eth0", 20, now); got[grant] != 10 {
		t.Errorf("the same IPv6 network: %v", got)
	}
	if got := ask("127.0.0.1", 1000, now); got[grant] != 1000 {
		t.Errorf("loopback: %v", got)
	}
	if got := ask("192.0.2.1", 20, now.Add(500*time.Millisecond)); got[grant] != 5 {
		t.Errorf("half a second later: %v", got)
	}
	if got := ask("192.0.2.1", 20, now); got[grant] != 0 {
		t.Errorf("the clock ran backwards: %v", got)
	}
	if got := ask("192.0.2.1", 100, now.Add(time.Hour)); got[grant] != 20 {
		t.Errorf("an hour later: %v", got)
	}
}

func TestLimiterAllocatesNothing(t *testing.T) {
	l, from, now := newLimiter(10, false), netip.MustParseAddr("192.0.2.1"), time.Unix(1e9, 0)
	if n := testing.AllocsPerRun(1000, func() { l.take(from, now) }); n != 0 {
		t.Errorf("%v allocations", n)
	}
}
