package dns

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"io"
	"net"
	"os/exec"
	"strconv"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/miekg/dns"
	"github.com/rs/zerolog"
)

// patience is how long a test waits for what must happen.
const patience = 20 * time.Second

// serving is a server on one port of this machine.
type serving struct {
	*Server
	port string
	stop func() error // ends it; returns what Serve returned
}

func serve(t *testing.T, address string, c Config) serving {
	t.Helper()
	udp, tcp, err := Listen(t.Context(), address)
	if err != nil {
		t.Skip(err) // no such address family here
	}
	c.Logger = zerolog.New(zerolog.NewTestWriter(t))
	s := serving{Server: NewServer(c)}
	_, s.port, _ = net.SplitHostPort(tcp.Addr().String())
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- s.Serve(ctx, udp, tcp) }()
	s.stop = func() error {
		cancel()
		select {
		case err := <-done:
			done <- err
			return err
		case <-time.After(patience):
			return errors.New("the server does not end")
		}
	}
	t.Cleanup(func() {
		if err := s.stop(); err != nil {
			t.Error(err)
		}
	})
	return s
}

func of(z *Zone) func() *Zone { return func() *Zone { return z } }

// exchange asks the server at host; over UDP it asks again when a datagram is lost.
func (s serving) exchange(t *testing.T, network, host string, m *dns.Msg) *dns.Msg {
	t.Helper()
	c := dns.Client{Net: network, Timeout: 2 * time.Second}
	m.Id = dns.Id()
	for end := time.Now().Add(patience); ; {
		r, _, err := c.Exchange(m, net.JoinHostPort(host, s.port))
		if err == nil {
			return r
		}
		if time.Now().After(end) {
			t.Fatalf("%s %s: %v", network, host, err)
		}
	}
}

func TestServe(t *testing.T) {
	var zone atomic.Pointer[Zone]
	s := serve(t, "127.0.0.1:0", Config{Zone: zone.Load})
	q := question("_nfs._tcp.web17.slaves.prod.example", dns.TypeSRV)
	for _, network := range []string{"udp", "tcp"} {
		zone.Store(nil)
		if r := s.exchange(t, network, "127.0.0.1", q); r.Rcode != dns.RcodeServerFailure {
			t.Errorf("%s, before anything is known: %v", network, r)
		}
		zone.Store(threeMasters())
		r := s.exchange(t, network, "127.0.0.1", q)
		same(t, network, srvs(r.Answer), []string{"10 100 2050 m2.masters.prod.example.", "20 100 2049 m1.masters.prod.example."})
		if len(r.Extra) != 4 {
			t.Errorf("%s: additional %v", network, r.Extra)
		}
		zone.Store(manyMasters(100))
		r = s.exchange(t, network, "127.0.0.1", question("_nfs._tcp.prod.example", dns.TypeSRV))
		if r.Truncated != (network == "udp") || network == "tcp" && len(r.Answer) != 100 {
			t.Errorf("%s: a hundred masters: cut short %v, %d", network, r.Truncated, len(r.Answer))
		}
	}
	if st := s.Stats(); st.UDP < 3 || st.TCP < 3 || st.Limited+st.Faults+st.Unanswered != 0 {
		t.Errorf("%+v", st)
	}
	if err := s.stop(); err != nil {
		t.Error(err)
	}
	if n := s.Stats().Connections; n != 0 {
		t.Errorf("%d connections after the end", n)
	}
}

// A client takes an answer only from the address that it asked.
func TestAnswersComeFromTheAddressAsked(t *testing.T) {
	for _, c := range []struct{ listen, ask string }{
		{"0.0.0.0:0", "127.0.0.1"}, {"0.0.0.0:0", "127.0.0.7"}, {"[::]:0", "127.0.0.7"}, {"[::]:0", "::1"}, {":0", "127.0.0.7"},
	} {
		t.Run(c.listen+" asked at "+c.ask, func(t *testing.T) {
			if probe, err := net.ListenPacket("udp", net.JoinHostPort(c.ask, "0")); err != nil {
				t.Skip(err)
			} else {
				_ = probe.Close()
			}
			s := serve(t, c.listen, Config{Zone: of(threeMasters())})
			if r := s.exchange(t, "udp", c.ask, question("prod.example", dns.TypeSOA)); len(r.Answer) != 1 {
				t.Errorf("%v", r)
			}
		})
	}
}

func TestOnePortForBoth(t *testing.T) {
	udp, tcp, err := Listen(t.Context(), "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer udp.Close()
	defer tcp.Close()
	if u, c := udp.LocalAddr().(*net.UDPAddr).Port, tcp.Addr().(*net.TCPAddr).Port; u != c {
		t.Errorf("UDP %d, TCP %d", u, c)
	}
	if _, _, err := Listen(t.Context(), tcp.Addr().String()); err == nil {
		t.Error("a port that is taken")
	}
	if _, _, err := Listen(t.Context(), "127.0.0.1"); err == nil {
		t.Error("an address without a port")
	}
}

func TestHostileDatagrams(t *testing.T) {
	s := serve(t, "127.0.0.1:0", Config{Zone: of(threeMasters())})
	c, err := net.Dial("udp", net.JoinHostPort("127.0.0.1", s.port))
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	good, err := question("prod.example", dns.TypeSOA).Pack()
	if err != nil {
		t.Fatal(err)
	}
	for n := range good {
		_, _ = c.Write(good[:n])
	}
	for _, n := range []int{maxQuery, maxQuery + 1, 60000} {
		_, _ = c.Write(append(good, make([]byte, n-len(good))...))
	}
	for range 100 {
		_, _ = c.Write(append([]byte{0, 0, 0x80}, good[3:]...)) // an answer: two servers would talk for ever
	}
	if r := s.exchange(t, "udp", "127.0.0.1", question("prod.example", dns.TypeSOA)); len(r.Answer) != 1 {
		t.Errorf("%v", r)
	}
}

// A bug costs the question that met it.
func TestABugCostsOneQuestion(t *testing.T) {
	z := threeMasters()
	z.SlaveOrder = func(slave string) []string {
		if slave == "bad" {
			panic("a bug")
		}
		return []string{"m1"}
	}
	s := serve(t, "127.0.0.1:0", Config{Zone: of(z)})
	c := dns.Client{Net: "tcp", Timeout: patience}
	if r, _, err := c.Exchange(question("_nfs._tcp.bad.slaves.prod.example", dns.TypeSRV), net.JoinHostPort("127.0.0.1", s.port)); err == nil {
		t.Errorf("%v", r)
	}
	if r := s.exchange(t, "tcp", "127.0.0.1", question("_nfs._tcp.good.slaves.prod.example", dns.TypeSRV)); len(r.Answer) != 1 {
		t.Errorf("%v", r)
	}
	if n := s.Stats().Faults; n != 1 {
		t.Errorf("%d faults", n)
	}
}

func TestRates(t *testing.T) {
	s := serve(t, "127.0.0.1:0", Config{Zone: of(threeMasters()), Rate: 1})
	for range 50 { // loopback has no bound
		s.exchange(t, "udp", "127.0.0.1", question("prod.example", dns.TypeSOA))
	}
	if n := s.Stats().Limited; n != 0 {
		t.Errorf("%d limited", n)
	}

	s = serve(t, "127.0.0.1:0", Config{Zone: of(threeMasters()), Rate: 1, local: true})
	cut, c := 0, dns.Client{Timeout: 100 * time.Millisecond}
	for range 20 {
		m := question("_nfs._tcp.prod.example", dns.TypeSRV)
		m.Id = dns.Id()
		if r, _, err := c.Exchange(m, net.JoinHostPort("127.0.0.1", s.port)); err == nil && r.Truncated && len(r.Answer) == 0 {
			cut++
		}
	}
	if cut == 0 || s.Stats().Limited == 0 {
		t.Errorf("%d times told to come back, %+v", cut, s.Stats())
	}
	if r := s.exchange(t, "tcp", "127.0.0.1", question("_nfs._tcp.prod.example", dns.TypeSRV)); len(r.Answer) != 2 {
		t.Errorf("%v", r)
	}

	// Over TCP whoever asks too much waits.
	s = serve(t, "127.0.0.1:0", Config{Zone: of(threeMasters()), Rate: 100, local: true})
	stream, wire, began := s.dial(t), frame(packed(t, question("prod.example", dns.TypeSOA))), time.Now()
	if _, err := stream.Write(bytes.Repeat(wire, 230)); err != nil {
		t.Fatal(err)
	}
	for range 230 {
		if _, err := readFrame(stream); err != nil {
			t.Fatal(err)
		}
	}
	if took := time.Since(began); took < 290*time.Millisecond {
		t.Errorf("230 questions in %v", took)
	}
}

// dig is nobody's code here.
func TestDig(t *testing.T) {
	path, err := exec.LookPath("dig")
	if err != nil {
		t.Skip(err)
	}
	var zone atomic.Pointer[Zone]
	z := threeMasters()
	z.Self = "m2"
	zone.Store(z)
	s := serve(t, "127.0.0.1:0", Config{Zone: zone.Load})
	dig := func(args ...string) string {
		t.Helper()
		ctx, cancel := context.WithTimeout(t.Context(), patience)
		defer cancel()
		out, err := exec.CommandContext(ctx, path, append([]string{"-r", "@127.0.0.1", "-p", s.port}, args...)...).CombinedOutput()
		if err != nil {
			t.Fatalf("dig %v: %v\n%s", args, err, out)
		}
		return string(out)
	}
	const slave = "20 100 2049 m1.masters.prod.example."
	for _, flags := range [][]string{{"+short"}, {"+short", "+tcp"}, {"+short", "+noedns"}, {"+short", "+dnssec", "+bufsize=512"}} {
		if out := dig(append(flags, "_nfs._tcp.Web17.slaves.prod.example", "SRV")...); !strings.Contains(out, slave) || strings.Count(out, "\n") != 2 {
			t.Errorf("%v: %s", flags, out)
		}
	}
	for _, c := range []struct {
		args []string
		want []string
	}{
		{[]string{"+nsid", "prod.example", "SOA"}, []string{"status: NOERROR", "flags: qr aa rd;", `NSID: 6d 32 ("m2")`, "udp: 1232"}},
		{[]string{"gone.masters.prod.example", "A"}, []string{"status: NXDOMAIN", "flags: qr aa rd;", "SOA"}},
		{[]string{"prod.example", "ANY", "+notcp"}, []string{"status: NOERROR", `HINFO`, "RFC8482"}},
		{[]string{"elsewhere.example", "A"}, []string{"status: REFUSED"}},
		{[]string{"prod.example", "AXFR"}, []string{"Transfer failed"}},
		{[]string{"+noednsneg", "+edns=1", "prod.example", "SOA"}, []string{"status: BADVERS"}},
		{[]string{"+opcode=UPDATE", "prod.example", "SOA"}, []string{"status: NOTIMP"}},
		{[]string{"-c", "CH", "version.bind", "TXT"}, []string{"status: REFUSED"}},
		{[]string{"+ednsopt=65001:00", "+cookie", "+subnet=10.0.0.0/8", "prod.example", "NS"}, []string{"status: NOERROR", "m1.masters.prod.example."}},
	} {
		out := dig(c.args...)
		for _, want := range c.want {
			if !strings.Contains(out, want) {
				t.Errorf("dig %v: no %q in\n%s", c.args, want, out)
			}
		}
		if strings.Contains(out, "malformed") || strings.Contains(out, "WARNING") && !strings.Contains(out, "recursion requested") {
			t.Errorf("dig %v:\n%s", c.args, out)
		}
	}
	zone.Store(manyMasters(100))
	if out := dig("+ignore", "_nfs._tcp.prod.example", "SRV"); !strings.Contains(out, "flags: qr aa tc rd") {
		t.Errorf("%s", out)
	}
	if out := dig("+short", "_nfs._tcp.prod.example", "SRV"); strings.Count(out, "\n") < 100 {
		t.Errorf("%s", out)
	}
}

func frame(b []byte) []byte {
	return append(binary.BigEndian.AppendUint16(nil, uint16(len(b))), b...)
}

func readFrame(c net.Conn) ([]byte, error) {
	head := make([]byte, lengthSize)
	if _, err := io.ReadFull(c, head); err != nil {
		return nil, err
	}
	b := make([]byte, binary.BigEndian.Uint16(head))
	_, err := io.ReadFull(c, b)
	return b, err
}

func (s serving) dial(t *testing.T) net.Conn {
	t.Helper()
	port, _ := strconv.Atoi(s.port)
	c, err := net.DialTCP("tcp", nil, &net.TCPAddr{IP: net.IPv4(127, 0, 0, 1), Port: port})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = c.Close() })
	_ = c.SetDeadline(time.Now().Add(patience))
	return c
}
