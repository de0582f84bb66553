package master

import (
	"context"
	"errors"
	"net/netip"
	"slices"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/rs/zerolog"
)

func TestAddressBook(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var answer atomic.Value // []netip.Addr
		answer.Store([]netip.Addr{netip.MustParseAddr("127.0.1.1"), netip.MustParseAddr("10.0.0.2"), netip.MustParseAddr("10.0.0.1")})
		changes := 0
		b := newAddressBook(func(_ context.Context, host string) ([]netip.Addr, error) {
			time.Sleep(3 * time.Second) // a resolver that is slow
			if found := answer.Load().([]netip.Addr); len(found) > 0 {
				return found, nil
			}
			return nil, errors.New("no such host")
		}, func() { changes++ }, zerolog.Nop())
		ctx, cancel := context.WithCancel(t.Context())
		done := make(chan error)
		go func() { done <- b.run(ctx) }()

		want := func(when string, addresses ...string) {
			t.Helper()
			var got []string
			began := time.Now()
			for _, a := range b.of("m1.example") {
				got = append(got, a.String())
			}
			if !slices.Equal(got, addresses) || time.Since(began) != 0 {
				t.Errorf("%s: %v, after %s", when, got, time.Since(began))
			}
		}
		if got := b.of("fd00::1"); len(got) != 1 || got[0] != netip.MustParseAddr("fd00::1") {
			t.Errorf("an address is looked up: %v", got)
		}
		want("at first")
		time.Sleep(4 * time.Second)
		want("when they were found", "10.0.0.1", "10.0.0.2")
		answer.Store([]netip.Addr{})
		time.Sleep(time.Minute)
		want("when the name server is away", "10.0.0.1", "10.0.0.2")
		answer.Store([]netip.Addr{netip.MustParseAddr("10.0.0.9")})
		time.Sleep(time.Minute)
		want("when the host has another", "10.0.0.9")
		time.Sleep(time.Hour)
		synctest.Wait()
		if changes != 2 {
			t.Errorf("told of %d changes", changes)
		}
		b.mu.Lock()
		if len(b.names) != 0 {
			t.Errorf("names that nobody asks for are kept: %d", len(b.names))
		}
		b.mu.Unlock()
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
	})
}
