package master

import (
	"context"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"strings"
	"testing"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"

	"github.com/nfs-fleet/nfs-fleet/election/etcdtest"
	"github.com/nfs-fleet/nfs-fleet/exporter/mount3"
	"github.com/nfs-fleet/nfs-fleet/exporter/rpc"
	"github.com/nfs-fleet/nfs-fleet/fleet"
	"github.com/nfs-fleet/nfs-fleet/fleet/console"
)

// records is the fleet's etcd, looked at beside the masters.
type records struct {
	*testing.T
	client *clientv3.Client
	keys   fleet.Keys
}

func recordsOf(t *testing.T, server *etcdtest.Server, r *running) records {
	return records{t, server.Dial(t), fleet.KeysOf(r.cfg.Fleet)}
}

// slaves returns the slaves' records, and how many writes there were of all of them together: transactions, not records.
func (r records) slaves() (all map[string]fleet.Slave, revisions map[int64]bool) {
	r.Helper()
	resp, err := r.client.Get(r.Context(), r.keys.Slaves(), clientv3.WithPrefix())
	if err != nil {
		r.Fatal(err)
	}
	all, revisions = map[string]fleet.Slave{}, map[int64]bool{}
	for _, kv := range resp.Kvs {
		var s fleet.Slave
		if err := json.Unmarshal(kv.Value, &s); err != nil {
			r.Fatal(err)
		}
		s.Revision = kv.ModRevision
		all[s.Name], revisions[kv.ModRevision] = s, true
	}
	return all, revisions
}

// enrol writes slaves down as a coordinator did before, at these masters in turn.
func (r records) enrol(n int, masters ...string) {
	r.Helper()
	for i := range n {
		s := fleet.Slave{
			Name: fmt.Sprintf("s%02d", i), Master: masters[i%len(masters)], Mode: fleet.ModeRelay, Address: netip.MustParseAddr("10.77.0.100"),
			EnrolledAt: time.Now(), SeenAt: time.Now(),
		}
		for k := 1; k < len(masters); k++ {
			s.Fallbacks = append(s.Fallbacks, masters[(i+k)%len(masters)])
		}
		b, err := json.Marshal(s)
		if err != nil {
			r.Fatal(err)
		}
		if _, err := r.client.Put(r.Context(), r.keys.Slave(s.Name), string(b)); err != nil {
			r.Fatal(err)
		}
	}
}

// leader is who holds a leader key.
func (r records) leader(subject string) string {
	resp, err := r.client.Get(r.Context(), r.keys.Leader(subject))
	if err != nil || len(resp.Kvs) == 0 {
		return ""
	}
	var l struct{ Master string }
	if err := json.Unmarshal(resp.Kvs[0].Value, &l); err != nil {
		r.Fatal(err)
	}
	return l.Master
}

// expire ends a master's lease, as its running out would.
func (r records) expire(master string) {
	r.Helper()
	resp, err := r.client.Get(r.Context(), r.keys.Master(master))
	if err == nil {
		_, err = r.client.Revoke(r.Context(), clientv3.LeaseID(resp.Kvs[0].Lease))
	}
	if err != nil {
		r.Fatal(err)
	}
}

// await waits until ok says yes of the records, and returns how long that took.
func (r records) await(what string, ok func(map[string]fleet.Slave) bool) time.Duration {
	r.Helper()
	began := time.Now()
	ctx, cancel := context.WithTimeout(r.Context(), patience)
	defer cancel()
	all := map[string]fleet.Slave{}
	if !poll(ctx, 5*time.Millisecond, func() bool { all, _ = r.slaves(); return ok(all) }) {
		r.Fatalf("never seen: %s; last %v", what, homesOf(all))
	}
	return time.Since(began)
}

func nobodyAt(master string) func(map[string]fleet.Slave) bool {
	return func(all map[string]fleet.Slave) bool {
		for _, s := range all {
			if s.Master == master {
				return false
			}
		}
		return true
	}
}

func homesOf(all map[string]fleet.Slave) map[string]string {
	out := map[string]string{}
	for name, s := range all {
		out[name] = s.Master
	}
	return out
}

// steady waits until every master serves everything and the coordinator may move slaves: etcd must have answered for a TTL.
func steady(t *testing.T, all map[string]*running, r records) {
	t.Helper()
	for _, m := range all {
		m.until("all masters in step, and up for a while", func(s console.Status) bool {
			for _, other := range s.Masters {
				if s.Time.Sub(other.StartedAt) < m.cfg.LeaseTTL+2*time.Second {
					return false
				}
			}
			return inStep(len(all), 1)(s)
		})
	}
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	if !poll(ctx, 50*time.Millisecond, func() bool { return r.leader(fleet.CoordinatorSubject) != "" }) {
		t.Fatal("nobody coordinates")
	}
}

func TestSlavesOfALostMasterHaveAnotherHomeWithinASecond(t *testing.T) {
	for _, coordinator := range []bool{false, true} {
		t.Run(fmt.Sprintf("coordinator=%t", coordinator), func(t *testing.T) {
			proxies := map[string]*etcdtest.Proxy{}
			all, server := severalWith(t, func(c *Config) {
				p := etcdtest.NewProxy(t, strings.TrimPrefix(c.Etcd.Endpoints[0], "http://"))
				proxies[c.Name], c.Etcd.Endpoints = p, []string{p.URL()}
			}, "m1", "m2", "m3", "m4")
			r := recordsOf(t, server, all["m1"])
			steady(t, all, r)
			r.enrol(40, "m1", "m2", "m3", "m4")
			lost := ""
			for name := range all {
				if (r.leader(fleet.CoordinatorSubject) == name) == coordinator {
					lost = name
				}
			}
			before, _ := r.slaves()
			proxies[lost].Cut(true)
			r.expire(lost)
			took := r.await("nobody at "+lost, nobodyAt(lost))
			if t.Logf("%s is lost; its slaves have other homes after %s", lost, took); took > time.Second {
				t.Errorf("after %s", took)
			}
			after, _ := r.slaves()
			writes := map[int64]int{}
			loads := map[string]int{}
			for name, s := range after {
				loads[s.Master]++
				if was := before[name]; s.Master != was.Master {
					writes[s.Revision]++
				}
				if was := before[name]; was.Master != lost && s.Master != was.Master {
					t.Errorf("%s was at %s, which lives, and is at %s", name, was.Master, s.Master)
				}
			}
			if len(writes) != 1 {
				t.Errorf("written in %d transactions", len(writes))
			}
			for name, n := range loads {
				if n > 14 {
					t.Errorf("%s has %d slaves", name, n)
				}
			}
			// It makes itself a new lease, and gets nobody back.
			proxies[lost].Cut(false)
			all[lost].until("four masters", func(s console.Status) bool {
				living := 0
				for _, m := range s.Masters {
					if m.State == console.MasterServing {
						living++
					}
				}
				return living == 4
			})
			if now, _ := r.slaves(); fmt.Sprint(homesOf(now)) != fmt.Sprint(homesOf(after)) {
				t.Errorf("it is back, and %v became %v", homesOf(after), homesOf(now))
			}
		})
	}
}

func TestSlavesOfADrainedMasterMove(t *testing.T) {
	all, server := several(t, "m1", "m2", "m3")
	r := recordsOf(t, server, all["m1"])
	steady(t, all, r)
	r.enrol(9, "m1", "m2", "m3")
	if err := all["m1"].client.Drain(t.Context(), "m2", console.DrainRequest{}); err != nil {
		t.Fatal(err)
	}
	before, _ := r.slaves()
	if !nobodyAt("m2")(before) {
		t.Errorf("drained, and %v", homesOf(before))
	}
	if err := all["m1"].client.Undrain(t.Context(), "m2"); err != nil {
		t.Fatal(err)
	}
	all["m3"].until("m2 serving", func(s console.Status) bool { return s.Masters[1].State == console.MasterServing })
	if now, _ := r.slaves(); fmt.Sprint(homesOf(now)) != fmt.Sprint(homesOf(before)) {
		t.Errorf("undrained, and %v became %v", homesOf(before), homesOf(now))
	}
}

// mnt sends a MNT of /www as a kernel does that calls itself machine.
func mnt(t *testing.T, address, machine string) {
	t.Helper()
	conn, err := net.Dial("tcp", address)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	var who []byte
	who = rpc.AppendOpaque(rpc.AppendUint32(who, 0), machine)
	for range 3 { // uid, gid, no more groups
		who = rpc.AppendUint32(who, 0)
	}
	call := []byte{0, 0, 0, 0}
	for _, v := range []uint32{1, 0, 2, mount3.Number, mount3.Version, 1, rpc.AuthSys} {
		call = rpc.AppendUint32(call, v)
	}
	call = rpc.AppendOpaque(rpc.AppendUint32(rpc.AppendUint32(rpc.AppendOpaque(call, who), rpc.AuthNone), 0), "/www")
	binary.BigEndian.PutUint32(call, 1<<31|uint32(len(call)-4))
	if _, err := conn.Write(call); err != nil {
		t.Fatal(err)
	}
	reply := make([]byte, 32)
	if _, err := io.ReadFull(conn, reply); err != nil || binary.BigEndian.Uint32(reply[24:]) != 0 || binary.BigEndian.Uint32(reply[28:]) != 0 {
		t.Fatalf("MNT: % x, %v", reply, err)
	}
}

func TestAMountEnrolsASlave(t *testing.T) {
	all, server := several(t, "m1", "m2")
	r := recordsOf(t, server, all["m1"])
	for name, m := range all {
		m.until("the first generation", inStep(2, 1))
		if _, err := m.client.SetShard(t.Context(), "www", console.ShardPatch{Insecure: new(true)}); err != nil {
			t.Fatal(err)
		}
		mnt(t, m.cfg.Listen.NFS, "Web-"+name)
		mnt(t, m.cfg.Listen.NFS, "localhost")
	}
	r.await("both enrolled", func(all map[string]fleet.Slave) bool { return len(all) == 2 })
	known, _ := r.slaves()
	for name := range all {
		if s := known["web-"+name]; s.Master != name || s.Mode != fleet.ModeMount || !s.Address.IsLoopback() || s.SeenAt.IsZero() {
			t.Errorf("mounted from %s: %+v", name, s)
		}
	}
}

func TestSlavesAreMovedForgottenAndRebalanced(t *testing.T) {
	all, server := several(t, "m1", "m2", "m3")
	r := recordsOf(t, server, all["m1"])
	steady(t, all, r)
	r.enrol(6, "m1", "m2") // m3 has none
	m3, ctx := all["m3"], t.Context()
	for _, m := range all {
		m.until("six slaves", func(s console.Status) bool { return s.Slaves.Total == 6 })
	}
	st := m3.until("six slaves", func(s console.Status) bool { return s.Slaves.Total == 6 })
	if st.Masters[0].Slaves != 3 || st.Masters[2].Slaves != 0 || st.Masters[0].Slots != 10 || len(st.Slaves.Shown) != 6 || st.Slaves.Heard != 0 {
		t.Errorf("%+v, of m1: %+v", st.Slaves, st.Masters[0])
	}
	dry, err := m3.client.Rebalance(ctx, console.RebalanceRequest{DryRun: true})
	if err != nil || len(dry) != 2 || dry[0].To != "m3" {
		t.Errorf("a dry run: %+v, %v", dry, err)
	}
	if before, _ := r.slaves(); !nobodyAt("m3")(before) {
		t.Errorf("a dry run moved somebody: %+v", homesOf(before))
	}
	for name, m := range all { // whichever coordinates, and whichever is asked
		if err := m.client.MoveSlave(ctx, "s00", name); err != nil {
			t.Errorf("asked of %s: %v", name, err)
		}
		if s, err := m.client.Slave(ctx, "s00"); err != nil || s.Master != name || s.Reads != "" || s.Mode != "relay" {
			t.Errorf("moved to %s: %+v, %v", name, s, err)
		}
	}
	if err := m3.client.ForgetSlave(ctx, "s01"); err != nil {
		t.Error(err)
	}
	if _, err := m3.client.Slave(ctx, "s01"); !errors.Is(err, console.ErrNotFound) {
		t.Errorf("a slave that was forgotten: %v", err)
	}
	if _, err := m3.client.Rebalance(ctx, console.RebalanceRequest{}); err != nil {
		t.Error(err)
	}
	r.await("two slaves at most at each", func(all map[string]fleet.Slave) bool {
		n := map[string]int{}
		for _, home := range homesOf(all) {
			n[home]++
		}
		return len(all) == 5 && max(n["m1"], n["m2"], n["m3"]) == 2
	})
	if err := all["m1"].client.Drain(ctx, "m2", console.DrainRequest{}); err != nil {
		t.Fatal(err)
	}
	for what, tc := range map[string]struct {
		err, want error
	}{
		"move nobody":         {m3.client.MoveSlave(ctx, "no", "m1"), console.ErrNotFound},
		"forget nobody":       {m3.client.ForgetSlave(ctx, "no"), console.ErrNotFound},
		"move to no master":   {m3.client.MoveSlave(ctx, "s00", "m9"), console.ErrNotFound},
		"move to one drained": {m3.client.MoveSlave(ctx, "s00", "m2"), console.ErrConflict},
		"move to a bad name":  {m3.client.MoveSlave(ctx, "s00", "M 2"), console.ErrInvalid},
		"forget a bad name":   {m3.client.ForgetSlave(ctx, "a/b"), console.ErrInvalid},
	} {
		if !errors.Is(tc.err, tc.want) {
			t.Errorf("%s: %v, want %v", what, tc.err, tc.want)
		}
	}
}
