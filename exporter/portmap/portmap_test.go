package portmap

import (
	"bytes"
	"context"
	"encoding/hex"
	"errors"
	"flag"
	"fmt"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"

	"github.com/nfs-fleet/nfs-fleet/exporter/rpc"
)

var rewrite = flag.Bool("rewrite", false, "rewrite the golden transcript in testdata")

func services() []Service {
	all, lo := netip.MustParseAddrPort("[::]:2049"), netip.MustParseAddrPort("127.0.0.1:20048")
	return []Service{{100003, 3, "tcp", all}, {100005, 1, "tcp", lo}, {100005, 3, "tcp", lo}, {100005, 3, "udp", lo},
		{400001, 1, "tcp", netip.MustParseAddrPort("[2001:db8::1]:700")}}
}

func do(p *Program, version, proc uint32, args []byte) ([]byte, error) {
	return p.Append(context.Background(), &rpc.Call{Conn: new(rpc.Conn), Vers: version, Proc: proc, Args: args}, nil)
}

func pmap(nums ...uint32) (b []byte) {
	for _, n := range nums {
		b = rpc.AppendUint32(b, n)
	}
	return b
}

func rpcb(program, version uint32, netid, addr string) []byte {
	return appendBinding(nil, binding{program, version, netid, addr, ""})
}

func TestGetPort(t *testing.T) {
	p := New(services())
	for _, c := range []struct{ program, version, proto, want uint32 }{
		{100003, 3, protoTCP, 2049}, {100003, 4, protoTCP, 2049}, {100003, 0, protoTCP, 2049}, // another version: asking it tells
		{100003, 3, protoUDP, 0}, {100005, 3, protoUDP, 20048}, {100005, 1, protoTCP, 20048}, {100021, 4, protoTCP, 0},
		{400001, 1, protoTCP, 0}, // only on IPv6, which version 2 does not know
		{100003, 3, 0, 0}, {100003, 3, 99, 0},
	} {
		out, err := do(p, 2, procGet, pmap(c.program, c.version, c.proto, 0))
		if err != nil || !bytes.Equal(out, pmap(c.want)) {
			t.Errorf("%+v: % x, %v", c, out, err)
		}
	}
}

func TestGetAddr(t *testing.T) {
	p := New(services())
	for _, c := range []struct {
		vers, proc, program, version uint32
		netid, hint, want            string
	}{
		{3, procGet, 100003, 3, "tcp", "192.0.2.9.0.111", "192.0.2.9.8.1"},
		{4, procGet, 100003, 3, "tcp6", "2001:db8::9.0.111", "2001:db8::9.8.1"},
		{4, procGet, 100003, 3, "tcp6", "192.0.2.9.0.111", "::.8.1"}, // no address of that family is known
		{4, procGet, 100003, 4, "tcp", "nonsense", "0.0.0.0.8.1"},
		{4, procGetVersAddr, 100003, 4, "tcp", "", ""},
		{4, procGetVersAddr, 100005, 1, "tcp", "192.0.2.9.0.111", "127.0.0.1.78.80"}, // it listens there only
		{3, procGet, 100005, 3, "udp6", "", ""}, {3, procGet, 100021, 4, "tcp", "", ""}, {3, procGet, 100003, 3, "", "", ""},
		{4, procGet, 400001, 1, "tcp6", "", "2001:db8::1.2.188"},
	} {
		out, err := do(p, c.vers, c.proc, rpcb(c.program, c.version, c.netid, c.hint))
		if err != nil || !bytes.Equal(out, rpc.AppendOpaque(nil, c.want)) {
			t.Errorf("%+v: %q, %v", c, out, err)
		}
	}
}

func TestUaddr(t *testing.T) {
	for s, want := range map[string]string{"127.0.0.1.8.1": "127.0.0.1:2049", "::1.0.111": "[::1]:111", "0.0.0.0.255.255": "0.0.0.0:65535"} {
		a, ok := parseUaddr(s)
		if !ok || a.String() != want || uaddr(a) != s {
			t.Errorf("%s: %v, %t", s, a, ok)
		}
	}
	for _, s := range []string{"", ".", "..", "1.2.3.4", "1.2.3.4.5", "1.2.3.4.256.1", "1.2.3.4.-1.1", "host.0.111"} {
		if a, ok := parseUaddr(s); ok {
			t.Errorf("%q: %v", s, a)
		}
	}
}

// The zone of a link-local address is this host's business.
func TestUaddrHasNoZone(t *testing.T) {
	if got := uaddr(netip.MustParseAddrPort("[fe80::1%eth0]:2049")); got != "fe80::1.8.1" {
		t.Errorf("%s", got)
	}
}

func TestRefusals(t *testing.T) {
	p := New(services())
	for _, vers := range []uint32{2, 3, 4} {
		for _, proc := range []uint32{procSet, procUnset} {
			if out, err := do(p, vers, proc, pmap(1, 2, 3, 4)); err != nil || !bytes.Equal(out, pmap(0)) {
				t.Errorf("version %d, procedure %d: % x, %v, want false", vers, proc, out, err)
			}
		}
		if _, err := do(p, vers, procCall, pmap(1, 2, 3, 0)); !errors.Is(err, rpc.ErrProcUnavail) {
			t.Errorf("version %d, CALLIT: %v", vers, err)
		}
		for _, args := range [][]byte{nil, pmap(1, 2), pmap(1, 2, 0xffffffff)} {
			if _, err := do(p, vers, procGet, args); !errors.Is(err, rpc.ErrGarbageArgs) {
				t.Errorf("version %d, % x: %v", vers, args, err)
			}
		}
	}
	for _, c := range [][2]uint32{{2, procGetTime}, {3, procGetVersAddr}, {3, procUaddr2Taddr}, {4, procIndirect}, {4, 99}} {
		if _, err := do(p, c[0], c[1], rpcb(1, 1, "", "")); !errors.Is(err, rpc.ErrProcUnavail) {
			t.Errorf("version %d, procedure %d: %v", c[0], c[1], err)
		}
	}
	if out, err := do(p, 3, procGetTime, nil); err != nil || len(out) != 4 {
		t.Errorf("GETTIME: % x, %v", out, err)
	}
}

func TestGoldenTranscripts(t *testing.T) {
	p := New(services())
	var got strings.Builder
	for _, c := range []struct {
		vers, proc uint32
		args       []byte
	}{
		{2, procNull, nil}, {2, procGet, pmap(100003, 3, protoTCP, 0)}, {2, procDump, nil},
		{3, procNull, nil}, {3, procGet, rpcb(100005, 3, "udp", "")}, {3, procDump, nil},
		{4, procNull, nil}, {4, procGetAddrList, rpcb(100003, 3, "", "")}, {4, procGetAddrList, rpcb(9, 3, "", "")},
	} {
		out, err := do(p, c.vers, c.proc, c.args)
		if err != nil {
			t.Fatalf("version %d, procedure %d: %v", c.vers, c.proc, err)
		}
		fmt.Fprintf(&got, "# version %d procedure %d\n> %x\n%s\n", c.vers, c.proc, c.args, hex.Dump(out))
	}
	file := filepath.Join("testdata", "golden.txt")
	if *rewrite {
		os.MkdirAll("testdata", 0o755) //nolint:errcheck // shows in the next line
		if err := os.WriteFile(file, []byte(got.String()), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	if got.String() != string(want) {
		t.Errorf("%s differs; now:\n%s", file, got.String())
	}
}

// rpcbind is a program that takes registrations, as the host's does.
type rpcbind struct {
	mu     sync.Mutex
	had    []string
	refuse bool
}

func (r *rpcbind) Number() uint32             { return Number }
func (r *rpcbind) Versions() (uint32, uint32) { return 3, 4 }

func (r *rpcbind) Append(_ context.Context, c *rpc.Call, dst []byte) ([]byte, error) {
	b, err := decodeBinding(c.Args)
	if err != nil {
		return nil, err
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	name := fmt.Sprintf("%d/%d %s ", b.program, b.version, b.netid)
	at := slices.IndexFunc(r.had, func(s string) bool { return strings.HasPrefix(s, name) })
	switch c.Proc {
	case procSet:
		if r.refuse || at >= 0 {
			return rpc.AppendBool(dst, false), nil
		}
		r.had = append(r.had, name+b.addr)
		return rpc.AppendBool(dst, true), nil
	case procUnset:
		if at >= 0 {
			r.had = slices.Delete(r.had, at, at+1)
		}
		return rpc.AppendBool(dst, at >= 0), nil
	}
	return nil, rpc.ErrProcUnavail
}

// registered returns what is registered. That the answer came over a socket orders nothing for the race detector.
func (r *rpcbind) registered() []string {
	r.mu.Lock()
	defer r.mu.Unlock()
	return slices.Clone(r.had)
}

func TestRegister(t *testing.T) {
	r := new(rpcbind)
	socket := filepath.Join(t.TempDir(), "rpcbind.sock")
	l, err := net.Listen("unix", socket)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- rpc.New(rpc.Config{Programs: []rpc.Program{r}}).Serve(ctx, l) }()
	for range 2 { // the second time in place of the first
		if err := Register(ctx, socket, services()); err != nil {
			t.Fatal(err)
		}
	}
	want := []string{"100003/3 tcp 0.0.0.0.8.1", "100003/3 tcp6 ::.8.1", "100005/1 tcp 127.0.0.1.78.80", "100005/3 tcp 127.0.0.1.78.80",
		"100005/3 udp 127.0.0.1.78.80", "400001/1 tcp6 2001:db8::1.2.188"}
	if had := r.registered(); !slices.Equal(had, want) {
		t.Errorf("registered %q, want %q", had, want)
	}
	for range 2 {
		if err := Unregister(ctx, socket, services()); err != nil || len(r.registered()) != 0 {
			t.Errorf("%v, still registered: %q", err, r.registered())
		}
	}
	r.mu.Lock()
	r.refuse = true
	r.mu.Unlock()
	if err := Register(ctx, socket, services()); !errors.Is(err, ErrRefused) {
		t.Errorf("%v, want ErrRefused", err)
	}
	cancel()
	if err := <-done; err != nil {
		t.Error(err)
	}
	if err := Register(context.Background(), socket, services()); err == nil {
		t.Error("registered with nobody")
	}
}

func FuzzProcedures(f *testing.F) {
	p := New(services())
	f.Add(uint32(2), uint32(procGet), pmap(100003, 3, 6, 0))
	f.Add(uint32(4), uint32(procGet), rpcb(100003, 3, "tcp", "127.0.0.1.0.111"))
	f.Add(uint32(4), uint32(procGetAddrList), rpcb(100003, 3, "tcp", "..."))
	f.Fuzz(func(t *testing.T, version, proc uint32, args []byte) {
		if _, err := do(p, 2+version%3, proc%13, args); err != nil && !errors.Is(err, rpc.ErrGarbageArgs) && !errors.Is(err, rpc.ErrProcUnavail) {
			t.Fatal(err)
		}
	})
}

func FuzzReply(f *testing.F) {
	f.Add(pmap(1, 1, 0, 0, 0, 0, 1))
	f.Add(pmap(1, 1, 1, 0, 2, 2))
	f.Fuzz(func(t *testing.T, reply []byte) {
		if done, err := decodeReply(reply, 1); done && err != nil {
			t.Fatal("done, with an error")
		}
	})
}
