package doctor

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/nfs-fleet/nfs-fleet/exporter/hello"
	"github.com/nfs-fleet/nfs-fleet/fleet/slave/control"
	"github.com/nfs-fleet/nfs-fleet/fleet/slave/mounts"
	"github.com/nfs-fleet/nfs-fleet/fleet/slave/relay"
	"github.com/nfs-fleet/nfs-fleet/fleet/slave/resolve"
)

const srv = "_nfs._tcp.web17.slaves.prod.example"

func target(name string) relay.Target {
	return relay.Target{Name: name, Addr: netip.MustParseAddrPort("10.0.0." + name[1:] + ":2049")}
}

// good is a master with which everything works.
func good(name string) Master {
	done := Step{Tried: true, Took: time.Millisecond}
	return Master{
		Target: target(name), Low: true, Connect: done, Null: done, Hello: done, Exports: done, Mount: done, Read: done,
		Exported: []string{"/www"}, Shard: "www", Root: "handle", File: "/hello.txt",
	}
}

// with changes a good master.
func with(name string, change func(*Master)) Master {
	m := good(name)
	change(&m)
	return m
}

func opened(server string, masters ...string) resolve.Opinion {
	o := resolve.Opinion{Server: server, TTL: 5 * time.Second}
	for _, m := range masters {
		o.Targets = append(o.Targets, target(m))
	}
	return o
}

// well is a slave that nothing is wrong with.
func well() Facts {
	return Facts{
		Host:  Host{Release: "6.1", Breaker: "sock_destroy", FreePorts: 300},
		Agent: Agent{Version: "1.0", Own: "1.0", Mounts: []control.Mount{{Dir: "/srv/www", Name: srv, State: control.Reading, Master: "m1", Home: "m1"}}},
		Names: []Name{{
			Name: srv, Mounts: []mounts.Mount{{Name: srv, Path: "/www", Dir: "/srv/www"}},
			Servers: []resolve.Opinion{opened("10.0.0.1:53", "m1", "m2")}, Masters: []Master{good("m1"), good("m2")},
		}},
	}
}

func dialError(err error) error { return &net.OpError{Op: "dial", Net: "tcp", Err: err} }

// Each row breaks one thing of a slave that is well, and says what must be told of it, with what to do. "" as want: nothing
// but what is well.
func TestJudge(t *testing.T) {
	master := func(change func(*Master)) func(*Facts) {
		return func(f *Facts) { f.Names[0].Masters[1] = with("m2", change) }
	}
	for _, tt := range []struct {
		name string
		do   func(*Facts)
		want []string // of the first finding that is worse than a note: its level, and what it and its advice contain
	}{
		{"nothing", func(*Facts) {}, nil},
		{"nothing is mounted, and no agent runs", func(f *Facts) { f.Agent = Agent{Absent: true}; f.Names[0].Mounts = nil }, nil},
		{"no NFS", func(f *Facts) { f.Host.NFS = errors.New("no module nfsv3") }, []string{"fail", "no module nfsv3", "modprobe"}},
		{"no sysfs, via relay", func(f *Facts) { f.Host.Transports = errors.New("too old") }, nil},
		{"no sysfs, via direct", func(f *Facts) { f.Host.Transports, f.Host.Direct = errors.New("too old"), true }, []string{"fail", "direct", "too old", "--via relay"}},
		{"no breaker, via relay", func(f *Facts) { f.Host.NoBreaker = errors.New("none") }, nil},
		{"no breaker, via direct", func(f *Facts) { f.Host.NoBreaker, f.Host.Direct = errors.New("none"), true }, []string{"warn", "300 s", "nf_tables"}},
		{"not root", func(f *Facts) { f.Host.Bind = syscall.EACCES }, []string{"fail", "below 1024", "root"}},
		{"few ports", func(f *Facts) { f.Host.FreePorts = 3 }, []string{"warn", "only 3", "ss -tanp"}},
		{"no agent", func(f *Facts) { f.Agent = Agent{Absent: true} }, []string{"fail", "no agent runs, and a mount needs one: no lost master is left", "systemctl start"}},
		{"no agent, via relay", func(f *Facts) {
			f.Agent, f.Names[0].Mounts[0].Addr = Agent{Absent: true}, netip.MustParseAddrPort("127.0.0.1:701")
		}, []string{"fail", "a mount needs one: reads wait until one runs"}},
		{"no agent, both ways", func(f *Facts) {
			m := f.Names[0].Mounts[0]
			m.Addr = netip.MustParseAddrPort("127.0.0.1:701")
			f.Agent, f.Names[0].Mounts = Agent{Absent: true}, append(f.Names[0].Mounts, m)
		}, []string{"fail", "2 mounts need one: reads via relay wait"}},
		{"a mute agent", func(f *Facts) { f.Agent = Agent{Err: errors.New("refused")} }, []string{"fail", "does not answer: refused", "root"}},
		{"an agent that only root may ask", func(f *Facts) { f.Agent = Agent{Err: control.ErrNotAllowed} }, []string{"fail", "only root", "run this as root"}},
		{"an old agent", func(f *Facts) { f.Agent.Version = "0.9" }, []string{"warn", "0.9", "restart"}},
		{"an agent that lacks a mount", func(f *Facts) { f.Agent.Mounts = nil }, []string{"warn", "/srv/www", "restart"}},
		{"no master for a mount", func(f *Facts) { f.Agent.Mounts[0].State, f.Agent.Mounts[0].Why = control.Searching, "all silent" }, []string{"fail", "/srv/www finds no master: all silent"}},
		{"away from home", func(f *Facts) { f.Agent.Mounts[0].Master = "m2" }, nil},

		{"no name server", func(f *Facts) { f.Names[0].NoDNS = errors.New("no resolv.conf"); f.Names[0].Servers = nil }, []string{"fail", "no resolv.conf", "--dns"}},
		{"a name server that is down", func(f *Facts) {
			f.Names[0].Servers = append(f.Names[0].Servers, resolve.Opinion{Server: "10.0.0.9:53", Err: errors.New("10.0.0.9: i/o timeout")})
		}, []string{"warn", "10.0.0.9", "mend this one"}},
		{"all name servers are down", func(f *Facts) {
			f.Names[0].Servers, f.Names[0].Masters = []resolve.Opinion{{Err: errors.New("i/o timeout")}}, nil
		}, []string{"fail", "i/o timeout", "firewall"}},
		{"nothing answers on port 53", func(f *Facts) {
			f.Names[0].Servers, f.Names[0].Masters = []resolve.Opinion{{Server: "10.77.0.1:53", Err: dialError(syscall.ECONNREFUSED)}}, nil
		}, []string{"fail", "--dns HOST:5353"}},
		{"nobody knows the name", func(f *Facts) {
			f.Names[0].Servers, f.Names[0].Masters = []resolve.Opinion{{Err: fmt.Errorf("%w: %s", resolve.ErrNoName, srv)}}, nil
		}, []string{"fail", srv, "delegated"}},
		{"kept for too long", func(f *Facts) { f.Names[0].Servers[0].TTL = time.Hour }, []string{"warn", "1h0m0s", "5 s"}},
		{"name servers disagree", func(f *Facts) { f.Names[0].Servers = append(f.Names[0].Servers, opened("10.0.0.2:53", "m1")) }, nil},

		{"refused", master(func(m *Master) { m.Connect.Err = dialError(syscall.ECONNREFUSED) }), []string{"fail", "m2", "refuses", "2049", "systemctl status nfs-fleet"}},
		{"no route", master(func(m *Master) { m.Connect.Err = dialError(syscall.EHOSTUNREACH) }), []string{"fail", "no way", "routes"}},
		{"our own filter", master(func(m *Master) { m.Connect.Err = dialError(syscall.EPERM) }), []string{"fail", "own packet filter", "output"}},
		{"a silent host", master(func(m *Master) { m.Connect.Err = context.DeadlineExceeded }), []string{"fail", "says nothing", "ping"}},
		{"a silent port", func(f *Facts) {
			f.Names[0].Masters[0] = with("m1", func(m *Master) { m.Connect.Err = context.DeadlineExceeded })
		}, []string{"fail", "answers DNS, but says nothing on port 2049", "firewall"}},
		{"another failure", master(func(m *Master) { m.Connect.Err = errors.New("strange") }), []string{"fail", "strange"}},
		{"it hangs", master(func(m *Master) { m.Null.Err = context.DeadlineExceeded }), []string{"fail", "answers nothing", "hangs"}},
		{"it hangs up", master(func(m *Master) { m.Null.Err = io.EOF }), []string{"fail", "closes connections", "log"}},
		{"it speaks HTTP", master(func(m *Master) { m.Null.Err = errReply }), []string{"fail", "not answer as an NFS server", "ss -tlnp"}},
		{"another NFS server", master(func(m *Master) { m.Hello.Err = hello.ErrNoHello }), []string{"fail", "no nfs-fleet master", "SRV"}},
		{"no exports", master(func(m *Master) { m.Exports.Err = status(5) }), []string{"fail", "exports: I/O error", "log"}},
		{"nothing is published", master(func(m *Master) { m.Shard = "" }), []string{"fail", "exports nothing", "publish"}},
		{"not allowed", master(func(m *Master) { m.Mount.Err = status(13) }), []string{"fail", "let this host mount /www", "--network"}},
		{"a high port", master(func(m *Master) { m.Mount.Err, m.Low = status(13), false }), []string{"fail", "above 1023", "root"}},
		{"no such shard", master(func(m *Master) { m.Mount.Err, m.Exported = status(2), []string{"/docs"} }), []string{"fail", "no shard www; it exports /docs", "in step"}},
		{"another mount failure", master(func(m *Master) { m.Mount.Err = status(10006) }), []string{"fail", "status 10006", "log"}},
		{"a bad disk", master(func(m *Master) { m.Read.Err = status(5) }), []string{"fail", "/www/hello.txt fails: I/O error", "verify"}},
		{"nothing for this user", master(func(m *Master) { m.Read.Err, m.File = status(13), "" }), []string{"warn", "nothing of /www", "squash"}},
		{"HELLO fails", master(func(m *Master) { m.Hello.Err = context.DeadlineExceeded }), []string{"warn", "HELLO fails: no answer within 3s", "overloaded"}},
		{"slow", master(func(m *Master) { m.Null.Took = time.Second }), []string{"warn", "1s", "overloaded"}},
		{"an empty shard", master(func(m *Master) { m.File = "" }), nil},
		{"a clock ahead", master(func(m *Master) { m.Says.Now, m.Offset = time.Now(), -time.Minute }), []string{"warn", "1m0s ahead of m2", "chrony"}},
		{"a clock behind", master(func(m *Master) { m.Says.Now, m.Offset = time.Now(), time.Minute }), []string{"warn", "1m0s behind m2", "chrony"}},
		{"a clock that is not known so well", master(func(m *Master) { m.Says.Now, m.Offset, m.Accuracy = time.Now(), 3*time.Second, 2*time.Second }), nil},
		{"another fleet's master", master(func(m *Master) { m.Root = "other" }), []string{"fail", "m1 and m2 give different handles", "SRV"}},
		{"one master", func(f *Facts) { f.Names[0].Masters = f.Names[0].Masters[:1] }, []string{"warn", "only m1", "start another"}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			f := well()
			tt.do(&f)
			findings := Judge(f)
			var worst *Finding
			for i, fi := range findings {
				if fi.Level != OK && fi.Level != Note && worst == nil {
					worst = &findings[i]
				}
				if fi.Check == "" || fi.What == "" || strings.ContainsAny(fi.What+fi.Do, "\n\t") {
					t.Errorf("badly said: %+v", fi)
				}
			}
			if tt.want == nil {
				if worst != nil || !Well(findings) {
					t.Fatalf("something is wrong: %+v", worst)
				}
				return
			}
			if worst == nil || Well(findings) {
				t.Fatalf("nothing is wrong: %+v", findings)
			}
			if string(worst.Level) != tt.want[0] {
				t.Errorf("%s, not %s: %+v", worst.Level, tt.want[0], worst)
			}
			for _, words := range tt.want[1:] {
				if said := worst.Check + ": " + worst.What + " → " + worst.Do; !strings.Contains(said, words) {
					t.Errorf("%q does not say %q", said, words)
				}
			}
		})
	}
}
