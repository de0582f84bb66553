package e2e

import (
	"testing"
	"time"

	"github.com/nfs-fleet/nfs-fleet/e2e/nfs"
)

// stamp reads the file "stamp" of the shard "www" over a connection of its own, from a host, and says what went wrong.
func (f *Fleet) stamp(from *Host, addr string) (string, error) {
	c, err := nfs.Dial(f.t.Context(), from.dial, addr+":2049", homeLimit)
	if err != nil {
		return "", err
	}
	defer c.Close()
	h, err := c.Mount("/www")
	if err == nil {
		h, _, err = c.Lookup(h, "stamp")
	}
	if err != nil {
		return "", err
	}
	data, _, err := c.Read(h, 0, 1<<16)
	return string(data), err
}

// serves demands that every one of the masters gives the stamp to new connections for a while, asked on its own host.
func (f *Fleet) serves(t *testing.T, want string, d time.Duration, masters ...*Master) {
	t.Helper()
	reads := 0
	for end := time.Now().Add(d); time.Now().Before(end); {
		for _, m := range masters {
			got, err := f.stamp(m.Host, "127.0.0.1")
			if reads++; err != nil || got != want {
				t.Fatalf("%s, read %d: %q, %v", m.Name, reads, got, err)
			}
		}
	}
	t.Logf("%d reads, each over a new connection", reads)
}

// Who serves on and who does not: a master that has lost etcd steps down when another one tells it that the fleet goes on
// without it; one that hears nobody goes on, and so do all of them when etcd itself is gone.
func TestStepDown(t *testing.T) {
	f := StartFleet(t, FleetConfig{Masters: 3, Etcd: EtcdDebian, TTL: 2 * time.Second})
	dir := t.TempDir()
	writeFile(t, dir+"/stamp", "one")
	f.createShard("www")
	f.WaitServed("www", f.publishAnywhere("www", dir, "").Number, restLimit)
	m, etcd := f.Masters[0], []*Host{f.Etcd.Members[0].Host}
	long := 3 * f.TTL

	t.Run("etcd is gone", func(t *testing.T) {
		f.Etcd.Members[0].Kill()
		f.serves(t, "one", long, f.Masters...)
		f.Etcd.Members[0].Start()
		f.serves(t, "one", long, f.Masters...) // nor when it comes back
	})
	t.Run("one master is alone", func(t *testing.T) {
		m.Host.Cut(t)
		f.serves(t, "one", long, f.Masters...)
		m.Host.Mend(t)
	})
	writeFile(t, dir+"/stamp", "two")
	f.WaitServed("www", f.publishAnywhere("www", dir, "").Number, restLimit)
	eventually(t, restLimit, "it has a lease again", func() bool {
		got, err := f.stamp(f.Outside, m.Host.Addr)
		return err == nil && got == "two"
	})
	t.Run("one master has lost etcd, and the others have not", func(t *testing.T) {
		held, err := nfs.Dial(t.Context(), f.Outside.dial, m.Host.Addr+":2049", homeLimit)
		if err == nil {
			err = held.Null()
		}
		if err != nil {
			t.Fatal(err)
		}
		defer held.Close()
		eachPair([]*Host{m.Host}, etcd, func(a, b *Host) { a.LoseTo(t, b) })
		eventually(t, restLimit, "it closes the connections that it has", func() bool { return held.Null() != nil })
		writeFile(t, dir+"/stamp", "three")
		var g Generation
		f.Masters[1].JSON(&g, "publish", "www", dir)
		if got, err := f.stamp(f.Outside, m.Host.Addr); err == nil {
			t.Errorf("it serves %q to a new connection", got)
		}
		f.serves(t, "three", f.TTL, f.Masters[1:]...)
		eachPair([]*Host{m.Host}, etcd, func(a, b *Host) { a.ReachTo(t, b) })
		eventually(t, restLimit, "it serves again, what is published now", func() bool {
			got, err := f.stamp(f.Outside, m.Host.Addr)
			return err == nil && got == "three"
		})
	})
}
