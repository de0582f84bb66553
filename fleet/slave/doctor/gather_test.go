package doctor

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/miekg/dns"
	"github.com/rs/zerolog"

	"github.com/nfs-fleet/nfs-fleet/exporter"
	"github.com/nfs-fleet/nfs-fleet/exporter/export/exporttest"
	"github.com/nfs-fleet/nfs-fleet/exporter/hello"
	"github.com/nfs-fleet/nfs-fleet/exporter/rpc"
	"github.com/nfs-fleet/nfs-fleet/fleet/slave/control"
	"github.com/nfs-fleet/nfs-fleet/fleet/slave/direct"
	"github.com/nfs-fleet/nfs-fleet/fleet/slave/relay"
	"github.com/nfs-fleet/nfs-fleet/replicator/tree"
)

// serve runs a master's NFS server until the test ends.
func serve(t *testing.T, rules exporter.Rules, items ...exporttest.Item) relay.Target {
	t.Helper()
	greet := func(context.Context, netip.AddrPort, hello.Greeting) (hello.Answer, error) {
		return hello.Answer{Status: hello.Refused, Master: "m1", Why: "no name"}, nil
	}
	s := exporter.New(exporter.Config{Programs: []rpc.Program{hello.Program(greet)}, Logger: zerolog.Nop()})
	if len(items) > 0 {
		s.SetExports([]exporter.Export{{Name: "www", Volume: exporttest.New(t, 1, items...).Volume, Rules: rules}})
	}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- s.Serve(ctx, l) }()
	t.Cleanup(func() {
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
	})
	return at(l)
}

func at(l net.Listener) relay.Target {
	return relay.Target{Name: "m1", Addr: l.Addr().(*net.TCPAddr).AddrPort()}
}

// A master is talked to as far as it answers.
func TestProbe(t *testing.T) {
	open := exporter.Rules{Insecure: true}
	file := exporttest.Item{Path: "dir/deep/file", Data: []byte("bytes")}
	secret := exporttest.Item{Path: "a-secret", Data: []byte("bytes"), Entry: tree.Entry{Mode: 0o600, UID: 12345, GID: 12345}}
	empty := exporttest.Item{Path: "empty"}
	for _, tt := range []struct {
		name  string
		to    relay.Target
		shard string
		ok    func(Master) bool
	}{
		{"all is well", serve(t, open, empty, file), "www", func(m Master) bool {
			return m.File == "/dir/deep/file" && m.Read.Err == nil && m.Hello.Err == nil && len(m.Root) > 0 && m.Offset.Abs() < time.Second
		}},
		{"no shard is named", serve(t, open, file), "", func(m Master) bool { return m.Shard == "www" && m.Read.Err == nil && m.File != "" }},
		{"another shard", serve(t, open, file), "docs", func(m Master) bool { return errors.Is(m.Mount.Err, status(2)) && !m.Read.Tried }},
		{"ports below 1024 only", serve(t, exporter.Rules{}, file), "www", func(m Master) bool { return errors.Is(m.Mount.Err, status(13)) }},
		{"nothing with bytes", serve(t, open, empty), "www", func(m Master) bool { return m.Read.Err == nil && m.File == "" }},
		{"nothing at all", serve(t, open), "", func(m Master) bool { return m.Exports.Err == nil && m.Shard == "" }},
		{"a file that is not for us", serve(t, open, secret, file), "www", func(m Master) bool { return m.Read.Err == nil && m.File == "/dir/deep/file" || os.Getuid() == 0 }},
	} {
		t.Run(tt.name, func(t *testing.T) {
			if m := probe(t.Context(), tt.to, false, tt.shard); !tt.ok(m) {
				t.Errorf("%+v", m)
			}
		})
	}
}

// What is no master is found out, and does not hold the doctor up.
func TestProbeStrangers(t *testing.T) {
	listen := func(do func(net.Conn)) relay.Target {
		l, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { l.Close() })
		go func() {
			for {
				c, err := l.Accept()
				if err != nil {
					return
				}
				do(c)
			}
		}()
		return at(l)
	}
	gone, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	gone.Close()
	if m := probe(t.Context(), at(gone), false, ""); !errors.Is(m.Connect.Err, syscall.ECONNREFUSED) || m.Null.Tried {
		t.Errorf("nobody: %+v", m)
	}
	if m := probe(t.Context(), listen(func(c net.Conn) { c.Close() }), false, ""); m.Null.Err == nil || m.Exports.Tried {
		t.Errorf("who hangs up: %+v", m)
	}
	if m := probe(t.Context(), listen(func(c net.Conn) { c.Write([]byte("HTTP/1.1 400 Bad Request\r\n\r\n")) }), false, ""); m.Null.Err == nil {
		t.Errorf("a web server: %+v", m)
	}
	mute := listen(func(net.Conn) {})
	ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	if m := probe(ctx, mute, false, ""); !timedOut(m.Null.Err) {
		t.Errorf("who says nothing: %+v", m)
	}
}

func FuzzReplies(f *testing.F) {
	f.Add([]byte{0x80, 0, 0, 0})
	f.Fuzz(func(t *testing.T, b []byte) {
		ours, theirs := net.Pipe()
		go func() {
			theirs.Read(make([]byte, 4096)) //nolint:errcheck // the call
			theirs.Write(b)                 //nolint:errcheck // the peer may have had enough
			theirs.Close()
		}()
		c := newClient(ours)
		if len(b) > 8 {
			c.xid = uint32(b[4])<<24 + uint32(b[5])<<16 + uint32(b[6])<<8 + uint32(b[7]) - 1
		}
		ctx, cancel := within(context.Background())
		defer cancel()
		if _, err := c.list(ctx, "handle"); err == nil && len(b) < 40 {
			t.Error("it was taken for a listing")
		}
		ours.Close()
	})
}

func TestHost(t *testing.T) {
	write := func(files map[string]string) string {
		root := t.TempDir()
		for name, content := range files {
			path := filepath.Join(root, name)
			if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
				t.Fatal(err)
			}
			if err := os.WriteFile(path, []byte(content), 0o644); err != nil {
				t.Fatal(err)
			}
		}
		return root
	}
	none := map[string]string{"/proc/filesystems": "nodev\tproc\n", "/proc/modules": "ext4 1 0\n"}
	if err := nfsClient(write(none), "6.1"); err == nil || !strings.Contains(err.Error(), "6.1") {
		t.Errorf("none: %v", err)
	}
	for name, content := range map[string][2]string{
		"loaded":     {"/proc/modules", "ext4 1 0\nnfsv3 1 0\n"},
		"first":      {"/proc/modules", "nfsv3 1 0\n"},
		"a module":   {"/lib/modules/6.1/modules.dep", "kernel/fs/nfs/nfsv3.ko.xz: kernel/fs/nfs/nfs.ko.xz\n"},
		"built in":   {"/lib/modules/6.1/modules.builtin", "kernel/fs/nfs/nfsv3.ko\n"},
		"no modules": {"/proc/filesystems", "nodev\tproc\nnodev\tnfs\n"},
	} {
		files := map[string]string{"/proc/filesystems": "nodev\tproc\n"}
		files[content[0]] = content[1]
		if err := nfsClient(write(files), "6.1"); err != nil {
			t.Errorf("%s: %v", name, err)
		}
	}
	line := "   0: 6400A8C0:%s 0100A8C0:0801 01 00000000:00000000\n"
	tcp := strings.ReplaceAll(line, "%s", "03FF") + strings.ReplaceAll(line, "%s", "0801")
	if n := freePorts(write(map[string]string{"/proc/net/tcp": "  sl local rem\n" + tcp, "/proc/net/tcp6": tcp})); n != highPort-lowPort {
		t.Errorf("%d ports are free", n)
	}
}

// cannot is a Breaker that does not work here.
type cannot struct{ direct.Breaker }

func (cannot) Name() string { return "cannot" }
func (cannot) Check() error { return errors.New("no") }

type can struct{ direct.Breaker }

func (can) Name() string { return "can" }
func (can) Check() error { return nil }

func TestBreaker(t *testing.T) {
	if name, err := breaker([]direct.Breaker{cannot{}, can{}}); name != "can" || err != nil {
		t.Errorf("%q, %v", name, err)
	}
	if _, err := breaker([]direct.Breaker{cannot{}}); err == nil || err.Error() != "cannot: no" {
		t.Error(err)
	}
}

// A name is looked up where its mount looks it up, unless other name servers are given.
func TestNameServers(t *testing.T) {
	a := Agent{Mounts: []control.Mount{{Name: "_nfs._tcp.x"}, {Name: "_nfs._tcp.x", DNS: []string{"10.77.0.1:5353"}}, {Name: "_nfs._tcp.y", DNS: []string{"10.77.0.2:5353"}}}}
	for _, tt := range []struct {
		given      []string
		name, want string
	}{{nil, "_nfs._tcp.x", "[10.77.0.1:5353]"}, {nil, "_nfs._tcp.z", "[]"}, {[]string{"10.77.0.9:53"}, "_nfs._tcp.x", "[10.77.0.9:53]"}} {
		if got := fmt.Sprint(nameServers(Options{DNS: tt.given}, a, tt.name)); got != tt.want {
			t.Errorf("%s with %q: %s, want %s", tt.name, tt.given, got, tt.want)
		}
	}
}

// With DNS away the masters that the agent reads from are looked at all the same.
func TestMastersThatTheAgentKnows(t *testing.T) {
	a := Agent{Mounts: []control.Mount{
		{Name: srv, Master: "m1", At: "10.0.0.1:2049"}, {Name: srv, Master: "m1", At: "10.0.0.1:2049"}, {Name: srv, Master: "m2", At: "10.0.0.2:2049"},
		{Name: "_nfs._tcp.other.example", Master: "m3", At: "10.0.0.3:2049"}, {Name: srv},
	}}
	if got := knownTargets(a, srv); len(got) != 2 || got[0] != target("m1") || got[1] != target("m2") {
		t.Errorf("%+v", got)
	}
	alone := serve(t, exporter.Rules{Insecure: true})
	n := gatherName(t.Context(), Options{DNS: []string{"127.0.0.1:1"}}, srv, nil, []relay.Target{alone}, false)
	if len(n.Masters) != 1 || n.Masters[0].Connect.Err != nil || n.Servers[0].Err == nil {
		t.Errorf("%+v", n)
	}
}

// A name server that refuses the domain is up: the domain is what to look at.
func TestARefusedDomain(t *testing.T) {
	pc, err := net.ListenPacket("udp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	refuse := dns.HandlerFunc(func(w dns.ResponseWriter, q *dns.Msg) {
		if err := w.WriteMsg(new(dns.Msg).SetRcode(q, dns.RcodeRefused)); err != nil {
			t.Error(err)
		}
	})
	server := &dns.Server{PacketConn: pc, Handler: refuse}
	done := make(chan error, 1)
	go func() { done <- server.ActivateAndServe() }()
	n := gatherName(t.Context(), Options{DNS: []string{pc.LocalAddr().String()}}, srv, nil, nil, false)
	if err := server.Shutdown(); err != nil {
		t.Error(err)
	}
	if err := <-done; err != nil {
		t.Error(err)
	}
	if found := judgeDNS(n); len(found) != 1 || found[0].Level != Fail || !strings.Contains(found[0].Do, "--domain") {
		t.Errorf("%+v", found)
	}
}
