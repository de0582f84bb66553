package hello_test

import (
	"context"
	"encoding/binary"
	"errors"
	"io"
	"net"
	"net/netip"
	"reflect"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/rs/zerolog"

	"github.com/nfs-fleet/nfs-fleet/exporter"
	"github.com/nfs-fleet/nfs-fleet/exporter/hello"
	"github.com/nfs-fleet/nfs-fleet/exporter/rpc"
)

var web17 = hello.Greeting{Slave: "web17", Instance: "one", Mode: "relay", Version: "0.4.0",
	Mounts: []hello.Mount{{Name: "_nfs._tcp.web17.slaves.prod.example", Shard: "www", Dir: "/srv/www"}}}

var fine = hello.Answer{Status: hello.OK, Master: "m1", Revision: 12, Every: time.Second,
	Targets: []hello.Target{{Name: "m1", Host: "127.0.0.1", Port: 2049}, {Name: "m2", Host: "127.0.0.2", Port: 2049}}}

// listen starts a master's NFS port that answers HELLO with greet.
func listen(t *testing.T, greet hello.Greet) net.Addr {
	t.Helper()
	return listenWith(t, hello.Program(greet))
}

func listenWith(t *testing.T, programs ...rpc.Program) net.Addr {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	s := exporter.New(exporter.Config{Logger: zerolog.Nop(), Programs: programs})
	go func() { done <- s.Serve(ctx, l) }()
	t.Cleanup(func() {
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
	})
	return l.Addr()
}

func dial(t *testing.T, to net.Addr) net.Conn {
	t.Helper()
	c, err := net.Dial("tcp", to.String())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	return c
}

// patient is a context for what is to succeed, however busy the machine.
func patient(t *testing.T) context.Context {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
	t.Cleanup(cancel)
	return ctx
}

func TestHello(t *testing.T) {
	type greeted struct {
		from netip.AddrPort
		g    hello.Greeting
	}
	came := make(chan greeted, 1)
	conn := dial(t, listen(t, func(_ context.Context, from netip.AddrPort, g hello.Greeting) (hello.Answer, error) {
		came <- greeted{from, g}
		return fine, nil
	}))
	c := hello.NewClient(conn)
	for range 3 {
		a, err := c.Hello(patient(t), web17)
		if age := time.Since(a.Now); age < 0 || age > time.Minute {
			t.Errorf("the master's clock says %s", a.Now)
		}
		a.Now = time.Time{}
		if err != nil || !reflect.DeepEqual(a, fine) {
			t.Fatalf("%+v, %v", a, err)
		}
		got := <-came
		if got.from.String() != conn.LocalAddr().String() || !reflect.DeepEqual(got.g, web17) {
			t.Errorf("greeted %+v", got)
		}
	}
	if err := c.Close(); err != nil {
		t.Error(err)
	}
	if _, err := c.Hello(patient(t), web17); !errors.Is(err, net.ErrClosed) {
		t.Errorf("after Close: %v", err)
	}
}

// The greeting is answered while the master is at others', and in the meantime the connection's reader goes on.
func TestSlowGreet(t *testing.T) {
	let := make(chan struct{})
	addr := listen(t, func(ctx context.Context, _ netip.AddrPort, g hello.Greeting) (hello.Answer, error) {
		if g.Slave == "slow" {
			<-let
		}
		return fine, nil
	})
	conn := dial(t, addr)
	call(t, conn, hello.Version, 1, hello.AppendGreeting(nil, hello.Greeting{Slave: "slow"}))
	if accept, _ := exchange(t, conn, hello.Version, 0, nil); accept != 0 {
		t.Errorf("NULL: accept_stat %d", accept)
	}
	if _, err := hello.NewClient(dial(t, addr)).Hello(patient(t), web17); err != nil {
		t.Error(err)
	}
	close(let)
	if accept, rest := reply(t, conn); accept != 0 || len(rest) == 0 {
		t.Errorf("the slow one: accept_stat %d, %d bytes", accept, len(rest))
	}
}

// A greeting that takes too long is given up, without a word, for nobody waits for it.
func TestGreetIsBounded(t *testing.T) {
	ended := make(chan error, 1)
	addr := listen(t, func(ctx context.Context, _ netip.AddrPort, g hello.Greeting) (hello.Answer, error) {
		if g.Slave == "stuck" {
			<-ctx.Done()
			ended <- ctx.Err()
			return hello.Answer{}, ctx.Err()
		}
		return fine, nil
	})
	conn := dial(t, addr)
	call(t, conn, hello.Version, 1, hello.AppendGreeting(nil, hello.Greeting{Slave: "stuck"}))
	if err := <-ended; !errors.Is(err, context.DeadlineExceeded) {
		t.Error(err)
	}
	if a, err := hello.NewClient(conn).Hello(patient(t), web17); err != nil || a.Master != "m1" {
		t.Errorf("the next one on the same connection: %+v, %v", a, err)
	}
}

// Of hundreds of greetings at once those that find no room are not answered, and cost nothing.
func TestTooManyAtOnce(t *testing.T) {
	let := make(chan struct{})
	var now, calls atomic.Int64
	addr := listen(t, func(ctx context.Context, _ netip.AddrPort, _ hello.Greeting) (hello.Answer, error) {
		calls.Add(1)
		if n := now.Add(1); n > 256 {
			t.Errorf("%d at once", n)
		}
		defer now.Add(-1)
		select {
		case <-let:
		case <-ctx.Done():
			return hello.Answer{}, ctx.Err()
		}
		return fine, nil
	})
	for range 8 {
		conn := dial(t, addr)
		for range 64 {
			call(t, conn, hello.Version, 1, hello.AppendGreeting(nil, web17))
		}
		// the reader has taken all of them, and one more
		if accept, _ := exchange(t, conn, hello.Version, 0, nil); accept != 0 {
			t.Fatalf("NULL: accept_stat %d", accept)
		}
	}
	if calls.Load() == 0 {
		t.Error("nobody was greeted")
	}
	close(let)
	if _, err := hello.NewClient(dial(t, addr)).Hello(patient(t), web17); err != nil {
		t.Errorf("afterwards: %v", err)
	}
}

func TestGreetFails(t *testing.T) {
	c := hello.NewClient(dial(t, listen(t, func(_ context.Context, _ netip.AddrPort, g hello.Greeting) (hello.Answer, error) {
		switch g.Slave {
		case "bug":
			return hello.Answer{}, errors.New("no reason")
		case "panic":
			panic("told to")
		}
		return fine, nil
	})))
	for _, slave := range []string{"bug", "panic"} {
		if _, err := c.Hello(patient(t), hello.Greeting{Slave: slave}); !errors.Is(err, hello.ErrFailed) {
			t.Errorf("%s: %v", slave, err)
		}
	}
	if _, err := c.Hello(patient(t), web17); err != nil {
		t.Errorf("afterwards: %v", err)
	}
}

// What is no greeting gets the protocol's own answers.
func TestProtocol(t *testing.T) {
	fine := fine
	fine.Now = time.Unix(1_800_000_000, 0)
	conn := dial(t, listen(t, func(context.Context, netip.AddrPort, hello.Greeting) (hello.Answer, error) { return fine, nil }))
	good := hello.AppendGreeting(nil, web17)
	versions := rpc.AppendUint32(rpc.AppendUint32(nil, 1), 1)
	for _, c := range []struct {
		what         string
		version, num uint32
		args         []byte
		accept       uint32
		rest         []byte
	}{
		{"NULL", 1, 0, nil, 0, []byte{}},
		{"a greeting", 1, 1, good, 0, hello.AppendAnswer(nil, fine)},
		{"a later greeting", 1, 1, append(good[:len(good):len(good)], 1, 2, 3, 4), 0, hello.AppendAnswer(nil, fine)},
		{"version 2", 2, 1, good, 2, versions},
		{"version 0", 0, 0, nil, 2, versions},
		{"procedure 2", 1, 2, nil, 3, []byte{}},
		{"no arguments", 1, 1, nil, 4, []byte{}},
		{"half of them", 1, 1, good[:len(good)/2], 4, []byte{}},
		{"too many", 1, 1, append(good[:len(good):len(good)], make([]byte, hello.MaxGreeting)...), 4, []byte{}},
		{"noise", 1, 1, []byte(strings.Repeat("noise", 100)), 4, []byte{}},
	} {
		accept, rest := exchange(t, conn, c.version, c.num, c.args)
		if accept != c.accept || !reflect.DeepEqual(rest, c.rest) {
			t.Errorf("%s: accept_stat %d, %x", c.what, accept, rest)
		}
	}
}

func TestOtherServers(t *testing.T) {
	if _, err := hello.NewClient(dial(t, listenWith(t))).Hello(patient(t), web17); !errors.Is(err, hello.ErrNoHello) {
		t.Errorf("an NFS server without HELLO: %v", err)
	}
	c := hello.NewClient(dial(t, listenWith(t, laterOnly{})))
	if _, err := c.Hello(patient(t), web17); !errors.Is(err, hello.ErrVersion) || !strings.Contains(err.Error(), "2 to 3") {
		t.Errorf("a master of a later kind: %v", err)
	}
}

// laterOnly is HELLO as it may be one day.
type laterOnly struct{}

func (laterOnly) Number() uint32             { return hello.Number }
func (laterOnly) Versions() (uint32, uint32) { return 2, 3 }
func (laterOnly) Append(context.Context, *rpc.Call, []byte) ([]byte, error) {
	return nil, rpc.ErrProcUnavail
}

// call sends a call of HELLO.
func call(t *testing.T, conn net.Conn, version, proc uint32, args []byte) {
	t.Helper()
	var b []byte
	for _, v := range []uint32{0, 7, 0, 2, hello.Number, version, proc, 0, 0, 0, 0} {
		b = rpc.AppendUint32(b, v)
	}
	b = append(b, args...)
	binary.BigEndian.PutUint32(b, 1<<31|uint32(len(b)-4))
	if _, err := conn.Write(b); err != nil {
		t.Fatal(err)
	}
}

// reply returns accept_stat and what follows of the next reply.
func reply(t *testing.T, conn net.Conn) (uint32, []byte) {
	t.Helper()
	conn.SetReadDeadline(time.Now().Add(30 * time.Second)) //nolint:errcheck // a failure shows below
	head := make([]byte, 28)
	if _, err := io.ReadFull(conn, head); err != nil {
		t.Fatal(err)
	}
	rest := make([]byte, binary.BigEndian.Uint32(head)&^(1<<31)-24)
	if _, err := io.ReadFull(conn, rest); err != nil {
		t.Fatal(err)
	}
	return binary.BigEndian.Uint32(head[24:]), rest
}

func exchange(t *testing.T, conn net.Conn, version, proc uint32, args []byte) (uint32, []byte) {
	t.Helper()
	call(t, conn, version, proc, args)
	return reply(t, conn)
}
