package direct

import (
	"net/netip"
	"slices"
	"testing"
)

func at(s string) netip.AddrPort { return netip.MustParseAddrPort(s) }

func TestClaim(t *testing.T) {
	const a, b, c = "10.0.0.1:2049", "10.0.0.2:2049", "10.0.0.3:2049"
	transport := func(id, addr string, devices ...string) Transport {
		return Transport{ID: id, Addr: at(addr), Devices: devices}
	}
	mount := func(dir, device, addr string) Mount { return Mount{Dir: dir, Device: device, Addr: at(addr)} }
	for _, tt := range []struct {
		name       string
		transports []Transport
		mounts     []Mount
		in         interest
		want       []string
	}{
		{name: "where it was mounted from", transports: []Transport{transport("x", a)}, mounts: []Mount{mount("/m", "0:1", a)}, want: []string{"x"}},
		{name: "several connections, several mounts", transports: []Transport{transport("x", a), transport("y", a), transport("z", b)},
			mounts: []Mount{mount("/m", "0:1", a), mount("/n", "0:2", b)}, in: interest{dirs: []string{"/m", "/n"}}, want: []string{"x", "y", "z"}},
		{name: "nothing is mounted", transports: []Transport{transport("x", a)}},
		{name: "another port", transports: []Transport{transport("x", "10.0.0.1:2050")}, mounts: []Mount{mount("/m", "0:1", a)}},
		{name: "its port is not known, as it is not connected", transports: []Transport{transport("x", "10.0.0.1:0")}, mounts: []Mount{mount("/m", "0:1", a)}, want: []string{"x"}},
		{name: "moved before this process began, to a master of ours", transports: []Transport{transport("x", b)},
			mounts: []Mount{mount("/m", "0:1", a)}, in: interest{fleet: []netip.Addr{at(b).Addr()}}, want: []string{"x"}},
		{name: "connected to a server that is none of ours", transports: []Transport{transport("x", b)}, mounts: []Mount{mount("/m", "0:1", a)}},
		{name: "somebody else's mount from one of our masters", transports: []Transport{transport("x", a), transport("y", b)},
			mounts: []Mount{mount("/m", "0:1", a), mount("/other", "0:2", b)}, in: interest{fleet: []netip.Addr{at(a).Addr(), at(b).Addr()}}, want: []string{"x"}},
		{name: "moved by us to where somebody else mounts from", transports: []Transport{transport("x", b)},
			mounts: []Mount{mount("/m", "0:1", a), mount("/other", "0:2", b)}, in: interest{owned: map[string]bool{"x": true}}, want: []string{"x"}},
		{name: "of another SRV name", transports: []Transport{transport("x", a)}, mounts: []Mount{mount("/m", "0:1", a)}, in: interest{others: map[string]bool{"x": true}}},
		{name: "the kernel says whose it is, wherever it is connected to", transports: []Transport{transport("x", c, "0:1", "0:9"), transport("y", a, "0:2")},
			mounts: []Mount{mount("/m", "0:1", a), mount("/other", "0:2", a)}, want: []string{"x"}},
		{name: "the kernel says that it is nobody's", transports: []Transport{{ID: "x", Addr: at(a), Devices: []string{}}}, mounts: []Mount{mount("/m", "0:1", a)}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			in := tt.in
			in.port = 2049
			if in.dirs == nil {
				in.dirs = []string{"/m"}
			}
			var got []string
			for _, o := range claim(tt.transports, tt.mounts, in) {
				got = append(got, o.ID)
			}
			if !slices.Equal(got, tt.want) {
				t.Errorf("claimed %v, not %v", got, tt.want)
			}
		})
	}
}
