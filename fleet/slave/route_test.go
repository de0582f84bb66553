package slave

import (
	"net/netip"
	"testing"

	"github.com/rs/zerolog"

	"github.com/nfs-fleet/nfs-fleet/fleet/slave/control"
)

// The kernel can be given a master's address and not its port: who listens elsewhere is not even greeted.
func TestDirectKeepsToOnePort(t *testing.T) {
	for _, c := range []struct {
		via  string
		port uint16 // as the kernel has it
		to   string
		want bool
	}{
		{control.Direct, 2049, "10.77.0.2:2049", true},
		{control.Direct, 2049, "10.77.0.2:22049", false},
		{control.Direct, 0, "10.77.0.2:22049", true}, // the first master gives the port
		{control.Relay, 0, "10.77.0.2:22049", true},
	} {
		r := newRoute(&Agent{cfg: Config{Logger: zerolog.Nop()}}, key{name: "_nfs._tcp.test", via: c.via}, routeRecord{})
		r.kernelPort = c.port
		if err := r.hasOurPort(netip.MustParseAddrPort(c.to)); (err == nil) != c.want {
			t.Errorf("via %s at port %d, to %s: %v", c.via, c.port, c.to, err)
		}
	}
}
