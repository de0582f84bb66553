package slave

import (
	"context"
	"errors"
	"net/netip"
	"testing"
	"testing/synctest"
	"time"
)

// Each greeting asks for the masters' addresses: a host is looked up once a minute, one that was never found every other second, and
// what was found counts while nothing is.
func TestHostsAreLookedUpNowAndThen(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var h hosts
		var found []netip.Addr
		asked := 0
		find := func(context.Context, string) ([]netip.Addr, error) {
			asked++
			if len(found) == 0 {
				return nil, errors.New("no such host")
			}
			return found, nil
		}
		greet := func(seconds int) (last []netip.Addr) {
			for range 2 * seconds {
				last = h.lookup(t.Context(), find, "m1.example")
				time.Sleep(500 * time.Millisecond)
			}
			return last
		}
		if got := greet(10); len(got) != 0 || asked != 5 {
			t.Errorf("an unknown host: %v, asked for %d times in 10 s", got, asked)
		}
		first, second := netip.MustParseAddr("10.0.0.1"), netip.MustParseAddr("10.0.0.2")
		found, asked = []netip.Addr{first}, 0
		if got := greet(120); len(got) != 1 || got[0] != first || asked != 2 {
			t.Errorf("a known host: %v, asked for %d times in 2 min", got, asked)
		}
		found = nil
		if got := greet(120); len(got) != 1 || got[0] != first {
			t.Errorf("while the name server is away: %v", got)
		}
		found = []netip.Addr{second}
		if got := greet(60); len(got) != 1 || got[0] != second {
			t.Errorf("a host that has moved: %v", got)
		}
	})
}
