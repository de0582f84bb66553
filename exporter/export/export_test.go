package export_test

import (
	"net/netip"
	"slices"
	"testing"

	"github.com/nfs-fleet/nfs-fleet/exporter/export"
	"github.com/nfs-fleet/nfs-fleet/exporter/export/exporttest"
	"github.com/nfs-fleet/nfs-fleet/exporter/rpc"
)

func TestAdmits(t *testing.T) {
	nets := func(s ...string) (p []netip.Prefix) {
		for _, n := range s {
			p = append(p, netip.MustParsePrefix(n))
		}
		return p
	}
	for _, c := range []struct {
		rules export.Rules
		from  string
		want  bool
	}{
		{export.Rules{}, "192.0.2.1:1023", true},
		{export.Rules{}, "192.0.2.1:1024", false},
		{export.Rules{Insecure: true}, "192.0.2.1:65535", true},
		{export.Rules{Networks: nets("10.0.0.0/8")}, "10.255.0.1:700", true},
		{export.Rules{Networks: nets("10.0.0.0/8")}, "11.0.0.1:700", false},
		{export.Rules{Networks: nets("10.0.0.0/8")}, "10.0.0.1:7000", false},
		{export.Rules{Networks: nets("10.0.0.0/8"), Insecure: true}, "11.0.0.1:7000", false},
		{export.Rules{Networks: nets("192.0.2.7/32", "2001:db8::/32")}, "[2001:db8::1]:1", true},
		{export.Rules{Networks: nets("192.0.2.7/32", "2001:db8::/32")}, "[2001:db9::1]:1", false},
		{export.Rules{Networks: nets("192.0.2.7/32", "2001:db8::/32")}, "192.0.2.7:1", true},
		{export.Rules{Networks: nets("192.0.2.7/32")}, "[::ffff:192.0.2.7]:1", true}, // a dual-stack listener says it so
		{export.Rules{Networks: nets("fe80::/10")}, "[fe80::1%eth0]:1", true},
		{export.Rules{Networks: nets("0.0.0.0/0")}, "[2001:db8::1]:1", false},
	} {
		if got := c.rules.Admits(netip.MustParseAddrPort(c.from)); got != c.want {
			t.Errorf("%+v admits %s: %t, want %t", c.rules, c.from, got, c.want)
		}
	}
}

func TestIdentify(t *testing.T) {
	root := rpc.Cred{Flavor: rpc.AuthSys, GIDs: []uint32{0, 5}}
	user := rpc.Cred{Flavor: rpc.AuthSys, UID: 1000, GID: 100, GIDs: []uint32{0, 5}}
	none := rpc.Cred{Flavor: rpc.AuthNone, UID: 1000, GID: 100}
	all := export.Rules{Squash: export.SquashAll, AnonUID: 99, AnonGID: 98}
	for _, c := range []struct {
		rules    export.Rules
		cred     rpc.Cred
		uid, gid uint32
		in, not  []uint32
	}{
		{export.Rules{}, root, export.Nobody, export.Nobody, []uint32{export.Nobody, 5}, []uint32{0}},
		{export.Rules{}, user, 1000, 100, []uint32{100, 5, export.Nobody}, []uint32{0, 1000}},
		{export.Rules{AnonUID: 7, AnonGID: 8}, root, 7, 8, []uint32{8, 5}, []uint32{0, 7}},
		{export.Rules{Squash: export.SquashNone}, root, 0, 0, []uint32{0, 5}, []uint32{export.Nobody}},
		{export.Rules{Squash: export.SquashNone}, user, 1000, 100, []uint32{0, 5, 100}, []uint32{1}},
		{export.Rules{Squash: export.SquashNone}, none, export.Nobody, export.Nobody, []uint32{export.Nobody}, []uint32{100}},
		{all, user, 99, 98, []uint32{98}, []uint32{0, 5, 100}},
		{all, none, 99, 98, []uint32{98}, []uint32{100}},
	} {
		id := c.rules.Identify(&c.cred)
		if id.UID != c.uid || id.GID != c.gid {
			t.Errorf("%+v, %+v: %d and %d, want %d and %d", c.rules, c.cred, id.UID, id.GID, c.uid, c.gid)
		}
		for _, g := range c.in {
			if !id.In(g) {
				t.Errorf("%+v, %+v: not in group %d", c.rules, c.cred, g)
			}
		}
		for _, g := range c.not {
			if id.In(g) {
				t.Errorf("%+v, %+v: in group %d", c.rules, c.cred, g)
			}
		}
	}
}

func TestPermits(t *testing.T) {
	r := export.Rules{Squash: export.SquashNone}
	as := func(uid, gid uint32) export.Identity {
		return r.Identify(&rpc.Cred{Flavor: rpc.AuthSys, UID: uid, GID: gid})
	}
	const all = export.Read | export.Write | export.Exec
	for _, c := range []struct {
		id   export.Identity
		mode uint32
		dir  bool
		want uint32
	}{
		{as(1, 9), 0o741, false, all}, {as(2, 5), 0o741, false, export.Read}, {as(2, 9), 0o741, false, export.Exec},
		{as(1, 5), 0o077, false, 0}, // the owner's bits, though others have more
		{as(2, 5), 0o707, false, 0},
		{as(0, 0), 0, false, export.Read | export.Write}, {as(0, 0), 0, true, all}, {as(0, 0), 0o001, false, all},
		{as(2, 9), 0o4751, false, export.Exec},
	} {
		if got := c.id.Permits(c.mode, 1, 5, c.dir); got != c.want {
			t.Errorf("%+v on mode %#o: %#o, want %#o", c.id, c.mode, got, c.want)
		}
	}
}

func TestTable(t *testing.T) {
	www, pub := exporttest.New(t, 1).Volume, exporttest.New(t, 2).Volume
	nets := []netip.Prefix{netip.MustParsePrefix("10.0.0.0/8")}
	table := export.NewTable([]export.Export{{Name: "www", Volume: www, Rules: export.Rules{Networks: nets}}, {Name: "pub", Volume: pub}})
	nets[0] = netip.MustParsePrefix("0.0.0.0/0")
	var names []string
	for _, e := range table.All() {
		names = append(names, e.Name)
	}
	if want := []string{"pub", "www"}; !slices.Equal(names, want) {
		t.Errorf("exports %v, want %v", names, want)
	}
	if e := table.ByName("www"); e == nil || e.Volume != www || e.Rules.Covers(netip.MustParseAddr("192.0.2.1")) {
		t.Errorf("www is %+v", e)
	}
	if e := table.ByFSID(2); e == nil || e.Name != "pub" {
		t.Errorf("fsid 2 is %+v", e)
	}
	if table.ByName("ww") != nil || table.ByFSID(3) != nil {
		t.Error("exports that are not")
	}
}
