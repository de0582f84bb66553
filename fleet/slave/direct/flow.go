package direct

import (
	"net/netip"
	"time"

	"github.com/nfs-fleet/nfs-fleet/fleet/slave/relay"
)

// sampleEvery is how often the kernel is looked at, at the most.
const sampleEvery = 20 * time.Millisecond

// flow follows how replies come. It is a pure function of what it sees.
type flow struct {
	flow    relay.Flow
	at      time.Time            // of the last look
	waiting map[string]time.Time // since when a transport was seen to wait, without a break
	joined  map[string]bool      // transports that were connected to the target
	useful  bool                 // bytes of a reply came since the target is the target
	turned  time.Time            // when the target was made the target; zero: not looked at since
}

// due says whether it is time to look again.
func (f *flow) due(now time.Time) bool { return now.Sub(f.at) >= sampleEvery }

// turn begins anew, for another target.
func (f *flow) turn() { *f = flow{} }

// see takes a look into account, and says whether a connection to the target was lost: one that calls wait for is there no
// more.
func (f *flow) see(now time.Time, target netip.AddrPort, ours []Transport, sockets []Socket) (lost bool) {
	if f.turned.IsZero() {
		f.turned = now
	}
	waiting, joined := make(map[string]time.Time), make(map[string]bool)
	f.at = now
	f.flow.Conns, f.flow.Waiting = len(ours), time.Time{}
	for _, t := range ours {
		at := t.Addr == target
		var heard time.Time
		for _, s := range sockets {
			if at && s.of(t) && s.Remote == target && s.Received > 0 {
				heard = now.Add(-s.Silent)
			}
		}
		if heard.After(f.flow.Heard) {
			f.flow.Heard = heard
		}
		f.useful = f.useful || heard.After(f.turned)
		joined[t.ID] = at && t.Connected
		if f.joined[t.ID] && at && !t.Connected && t.Waiting > 0 {
			lost = true
		}
		if t.Waiting == 0 {
			continue
		}
		since, ok := f.waiting[t.ID]
		if !ok {
			since = now
		}
		if heard.After(since) {
			since = heard
		}
		waiting[t.ID] = since
		if f.flow.Waiting.IsZero() || since.Before(f.flow.Waiting) {
			f.flow.Waiting = since
		}
	}
	f.waiting, f.joined = waiting, joined
	return lost
}
