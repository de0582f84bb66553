package direct

import (
	"errors"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"reflect"
	"runtime"
	"slices"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// write writes the files of a made-up /sys and /proc, and makes its links.
func tree(t *testing.T, files, links map[string]string) *Linux {
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
	for name, target := range links {
		path := filepath.Join(root, name)
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.Symlink(target, path); err != nil {
			t.Fatal(err)
		}
	}
	return &Linux{Root: root}
}

// What Linux 6.1 writes.
const (
	seenInfo = "last_used=4294937578\ncur_cong=0\ncong_win=256\nmax_num_slots=65536\nmin_num_slots=2\nnum_reqs=2\n" +
		"binding_q_len=0\nsending_q_len=1\npending_q_len=4\nbacklog_q_len=0\nmain_xprt=1\nsrc_port=1005\n" +
		"tasks_queuelen=5\ndst_port=2049\n\x00"
	seenState = "state= CONNECTED   BOUND       \n\x00"
)

func TestTransports(t *testing.T) {
	files := map[string]string{}
	for dir, addr := range map[string]string{"switch-0/xprt-0-tcp": "10.77.0.2", "switch-0/xprt-1-tcp": "2001:db8::1", "switch-1/xprt-3-tcp": "10.77.0.3"} {
		files[switchesDir+"/"+dir+"/dstaddr"] = addr + "\n\x00"
		files[switchesDir+"/"+dir+"/xprt_info"] = seenInfo
		files[switchesDir+"/"+dir+"/xprt_state"] = seenState
	}
	for _, sw := range []string{"switch-0", "switch-1"} {
		files[switchesDir+"/"+sw+"/xprt_switch_info"] = "num_xprts=2\nqueue_len=7\n"
	}
	files[switchesDir+"/switch-2/xprt-4-local/dstaddr"] = "/run/rpcbind.sock\n"
	files[switchesDir+"/switch-1/xprt-3-tcp/xprt_info"] = "<closed>\n"
	files[switchesDir+"/switch-1/xprt-3-tcp/xprt_state"] = "state=LOCKED  CONNECTING  BOUND\n"
	want := []Transport{
		{ID: "switch-0/xprt-0-tcp", Addr: at("10.77.0.2:2049"), LocalPort: 1005, Connected: true, Waiting: 5},
		{ID: "switch-0/xprt-1-tcp", Addr: at("[2001:db8::1]:2049"), LocalPort: 1005, Connected: true, Waiting: 5},
		{ID: "switch-1/xprt-3-tcp", Addr: at("10.77.0.3:0"), Waiting: 7},
	}
	got, err := tree(t, files, nil).Transports()
	if err != nil || !reflect.DeepEqual(got, want) {
		t.Errorf("Linux 6.1: %+v, %v", got, err)
	}
	// Since 6.5 each file system says who its client is.
	files[nfsDir+"/net/nfs_client/identifier"] = "(null)\n"
	got, err = tree(t, files, map[string]string{
		nfsDir + "/0:52/nfs_client":                    "../../../kernel/sunrpc/rpc-clients/clnt-1",
		nfsDir + "/0:53/nfs_client":                    "../../../kernel/sunrpc/rpc-clients/clnt-1",
		"/sys/kernel/sunrpc/rpc-clients/clnt-1/switch": "../../xprt-switches/switch-0",
	}).Transports()
	want[0].Devices, want[1].Devices, want[2].Devices = []string{"0:52", "0:53"}, []string{"0:52", "0:53"}, []string{}
	if err != nil || !reflect.DeepEqual(got, want) {
		t.Errorf("Linux 6.5: %+v, %v", got, err)
	}
	if _, err := tree(t, nil, nil).Transports(); !errors.Is(err, ErrUnsupported) {
		t.Errorf("Linux 5.10: %v", err)
	}
}

func TestAim(t *testing.T) {
	l := tree(t, map[string]string{switchesDir + "/switch-0/xprt-0-tcp/dstaddr": ""}, nil)
	if err := l.Aim("switch-0/xprt-0-tcp", netip.MustParseAddr("10.0.0.2")); err != nil {
		t.Fatal(err)
	}
	if b, err := os.ReadFile(l.Root + switchesDir + "/switch-0/xprt-0-tcp/dstaddr"); string(b) != "10.0.0.2\n" {
		t.Errorf("wrote %q, %v", b, err)
	}
	if err := l.Aim("switch-9/xprt-9-tcp", netip.MustParseAddr("10.0.0.2")); err == nil {
		t.Error("a transport that is gone was sent elsewhere")
	}
}

func TestMounts(t *testing.T) {
	l := tree(t, map[string]string{mountInfo: `21 1 0:19 / / ro - hostfs none rw
22 21 0:20 / /mnt/a\040b ro,relatime - nfs 10.77.0.2:/www ro,vers=3,port=2049,mountaddr=10.77.0.9,mountport=2049,addr=10.77.0.2
23 21 0:21 / /mnt/6 ro,relatime shared:7 - nfs [2001:db8::1]:/www ro,vers=3,addr=2001:db8::1
24 21 0:22 / /mnt/p ro - nfs 10.77.0.3:/www ro,vers=3,port=2050,addr=10.77.0.3
25 21 0:23 / /mnt/4 ro - nfs4 10.77.0.3:/www ro,vers=4.2,addr=10.77.0.3
26 21 0:24 / /mnt/x ro - nfs
`}, nil)
	want := []Mount{
		{Dir: "/mnt/a b", Device: "0:20", Addr: at("10.77.0.2:2049")},
		{Dir: "/mnt/6", Device: "0:21", Addr: at("[2001:db8::1]:2049")},
		{Dir: "/mnt/p", Device: "0:22", Addr: at("10.77.0.3:2050")},
	}
	if got, err := l.Mounts(); err != nil || !slices.Equal(got, want) {
		t.Errorf("%+v, %v", got, err)
	}
}

func FuzzParse(f *testing.F) {
	f.Add("10.77.0.2\n", seenInfo, seenState)
	f.Add("fe80::1%eth0\n", "dst_port=99999999999\nsrc_port=-1\npending_q_len", "")
	f.Fuzz(func(t *testing.T, addr, info, state string) {
		if tr, err := parseTransport("x", addr, info, state, info); err == nil && !tr.Addr.Addr().IsValid() {
			t.Errorf("%+v", tr)
		}
		for _, m := range parseMounts([]byte(info)) {
			if !m.Addr.IsValid() {
				t.Errorf("%+v", m)
			}
		}
		parseSocket([]byte(info)) //nolint:errcheck // it must not panic
	})
}

// inNamespace runs the rest of the test in a network namespace of its own, with a host 10.0.0.1 (and 2001:db8::1) that is
// nothing but addresses of the loopback interface.
func inNamespace(t *testing.T) {
	if os.Getuid() != 0 {
		t.Skip("needs root for a network namespace")
	}
	runtime.LockOSThread() // for good: the thread ends with the test's goroutine
	if err := unix.Unshare(unix.CLONE_NEWNET); err != nil {
		t.Skip("needs a network namespace: ", err)
	}
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(fd)
	ifr, err := unix.NewIfreq("lo")
	if err != nil {
		t.Fatal(err)
	}
	ifr.SetUint16(unix.IFF_UP)
	if err := unix.IoctlIfreq(fd, unix.SIOCSIFFLAGS, ifr); err != nil {
		t.Fatal(err)
	}
}

// pair returns the two ends of a connection to port 2049 of an address, and what ends listening there.
func pair(t *testing.T, addr string) (client, server net.Conn, deaf func()) {
	t.Helper()
	l, err := net.Listen("tcp", net.JoinHostPort(addr, "2049"))
	if err != nil {
		t.Fatal(err)
	}
	if client, err = net.Dial("tcp", l.Addr().String()); err != nil {
		t.Fatal(err)
	}
	if server, err = l.Accept(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { client.Close(); server.Close(); l.Close() })
	return client, server, func() { l.Close() }
}

func TestSockets(t *testing.T) {
	inNamespace(t)
	l := &Linux{}
	for _, addr := range []string{"127.0.0.1", "::1"} {
		client, server, deaf := pair(t, addr)
		sockets, err := l.Sockets(2049)
		if err != nil || len(sockets) != 1 {
			t.Fatalf("%+v, %v", sockets, err)
		}
		s := sockets[0]
		if s.Local.String() != client.LocalAddr().String() || s.Remote.String() != client.RemoteAddr().String() || s.State != Established || s.Received != 0 {
			t.Errorf("%+v", s)
		}
		if _, err := server.Write([]byte("hello")); err != nil {
			t.Fatal(err)
		}
		until(t, time.Second, func() bool {
			again, err := l.Socket(s)
			return err == nil && again.Received == 5 && again.Cookie == s.Cookie && again.Silent < time.Second
		})
		client.Close()
		server.Close()
		deaf()
		if _, err := l.Socket(s); err == nil {
			until(t, time.Second, func() bool { _, err := l.Socket(s); return err != nil })
		}
	}
}

// Every way to break connections that this kernel has does: this host's end is reset, and nothing else is.
func TestBreakersOfLinux(t *testing.T) {
	inNamespace(t)
	l := &Linux{}
	for _, b := range l.Breakers() {
		t.Run(b.Name(), func(t *testing.T) {
			// A subtest is a goroutine of its own.
			inNamespace(t)
			if err := b.Check(); errors.Is(err, ErrUnsupported) {
				t.Skip(err)
			} else if err != nil {
				t.Fatal(err)
			}
			for _, addr := range []string{"127.0.0.2", "::1"} {
				client, _, deaf := pair(t, addr)
				other, otherEnd, otherDeaf := pair(t, "127.0.0.3")
				sockets, err := l.Sockets(2049)
				if err != nil {
					t.Fatal(err)
				}
				i := slices.IndexFunc(sockets, func(s Socket) bool { return s.Local.String() == client.LocalAddr().String() })
				release, err := b.Break(sockets[i])
				if err != nil {
					t.Fatal(err)
				}
				_, err = client.Write([]byte("x")) // what is sent is answered with a reset, unless it is over already
				client.SetReadDeadline(time.Now().Add(5 * time.Second))
				if err == nil {
					_, err = client.Read(make([]byte, 1))
				}
				if !errors.Is(err, syscall.ECONNRESET) && !errors.Is(err, syscall.ECONNABORTED) {
					t.Errorf("%s: the connection ends with %v", addr, err)
				}
				if _, err := other.Write([]byte("x")); err != nil {
					t.Errorf("another connection: %v", err)
				}
				if _, err := otherEnd.Read(make([]byte, 1)); err != nil {
					t.Errorf("another connection: %v", err)
				}
				if err := release(); err != nil {
					t.Error(err)
				}
				deaf()
				again, _, deaf := pair(t, addr)
				if _, err := again.Write([]byte("x")); err != nil {
					t.Errorf("after release: %v", err)
				}
				again.Close()
				other.Close()
				deaf()
				otherDeaf()
			}
		})
	}
}

// What catches the ends of connections breaks those that end, this host's side of it at once, and nothing else: what goes on goes
// on, and new ones can be made.
func TestEndsAreCaught(t *testing.T) {
	for _, b := range []Breaker{&nftFence{}, &iptablesFence{}} {
		t.Run(b.Name(), func(t *testing.T) {
			inNamespace(t)
			if err := b.Check(); err != nil {
				t.Skip(err)
			}
			for _, addr := range []string{"127.0.0.2", "::1"} {
				client, server, deaf := pair(t, addr)
				remote := client.RemoteAddr().(*net.TCPAddr).AddrPort()
				release, err := b.Catch(Socket{Remote: remote})
				if err != nil {
					t.Fatal(err)
				}
				passes(t, client, server)
				other, err := net.Dial("tcp", remote.String())
				if err != nil {
					t.Errorf("%s: a new connection: %v", addr, err)
				} else {
					other.Close()
				}
				client.(*net.TCPConn).CloseWrite()
				client.SetReadDeadline(time.Now().Add(5 * time.Second))
				if _, err := client.Read(make([]byte, 1)); !errors.Is(err, syscall.ECONNRESET) {
					t.Errorf("%s: a connection that was ended on this side ends with %v", addr, err)
				}
				if err := release(); err != nil {
					t.Error(err)
				}
				deaf()
			}
		})
	}
}

// passes sends a byte.
func passes(t *testing.T, from, to net.Conn) {
	t.Helper()
	if _, err := from.Write([]byte("x")); err != nil {
		t.Error(err)
	}
	to.SetReadDeadline(time.Now().Add(5 * time.Second))
	if _, err := to.Read(make([]byte, 1)); err != nil {
		t.Error(err)
	}
}

// A fence that was left behind by a crash is removed by the next process, and stops nobody for long even before.
func TestFenceIsNotLeft(t *testing.T) {
	inNamespace(t)
	n := &nftFence{}
	if err := n.Check(); err != nil {
		t.Skip(err)
	}
	l, err := net.Listen("tcp", "127.0.0.2:2049")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	passes := func() bool {
		c, err := net.Dial("tcp", "127.0.0.2:2049")
		if err == nil {
			c.Close()
		}
		return err == nil
	}
	for range 2 {
		if _, err := n.Break(Socket{Remote: at("127.0.0.2:2049")}); err != nil {
			t.Fatal(err)
		}
	}
	if passes() {
		t.Fatal("the fence lets a connection through")
	}
	if err := (&nftFence{}).Sweep(); err != nil {
		t.Fatal(err)
	}
	if !passes() {
		t.Fatal("the fence is still there after a sweep")
	}
	if _, err := n.Break(Socket{Remote: at("127.0.0.2:2049")}); err != nil {
		t.Fatal(err)
	}
	until(t, fenceTime+2*time.Second, passes)
	if err := n.Sweep(); err != nil {
		t.Fatal(err)
	}
}
