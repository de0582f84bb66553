package rpc

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"testing"
	"time"

	"github.com/rs/zerolog"
)

// echo is a program with a procedure for everything that a program can do to the engine.
type echo struct {
	let    chan struct{} // a token lets one postponed call go on
	began  chan uint32   // XIDs of postponed calls that have begun
	panics any
}

const (
	echoNumber = 400000

	echoNull    = 0 // nothing
	echoBytes   = 1 // an opaque, returned
	echoLater   = 2 // as echoBytes, postponed until let
	echoPanic   = 3
	echoLarge   = 4 // a size, of 1 MiB at the most: so many bytes, as an opaque
	echoClose   = 5
	echoDrop    = 6
	echoFail    = 7 // an error that no program should return
	echoCred    = 8 // the credential: flavor, uid, gid, gids
	echoGrowBad = 9 // grows the buffer, writes to it, then panics
)

func newEcho() *echo {
	return &echo{let: make(chan struct{}, 1000), began: make(chan uint32, 1000), panics: "told to"}
}

func (e *echo) Number() uint32             { return echoNumber }
func (e *echo) Versions() (uint32, uint32) { return 2, 3 }

func (e *echo) Append(ctx context.Context, c *Call, dst []byte) ([]byte, error) {
	d := NewDecoder(c.Args)
	switch c.Proc {
	case echoNull:
		return dst, nil
	case echoLater:
		if !c.Blocking {
			c.Cost = d.Len()
			return nil, ErrDefer
		}
		e.began <- c.XID
		select {
		case <-e.let:
		case <-ctx.Done():
			return nil, ctx.Err()
		}
		fallthrough
	case echoBytes:
		b := d.Opaque(1 << 20)
		if err := d.Err(); err != nil {
			return nil, err
		}
		return AppendOpaque(c.Grow(dst, len(b)+8), b), nil
	case echoPanic:
		panic(e.panics)
	case echoLarge:
		n := int(min(d.Uint32(), 1<<20))
		if err := d.Err(); err != nil {
			return nil, err
		}
		return AppendOpaque(c.Grow(dst, n+8), make([]byte, n)), nil
	case echoClose:
		return nil, ErrClose
	case echoDrop:
		return nil, ErrDrop
	case echoFail:
		return nil, errors.New("no reason")
	case echoCred:
		dst = AppendUint32(AppendUint32(AppendUint32(dst, c.Cred.Flavor), c.Cred.UID), c.Cred.GID)
		for _, g := range c.Cred.GIDs {
			dst = AppendUint32(dst, g)
		}
		return AppendOpaque(dst, c.Cred.Machine), nil
	case echoGrowBad:
		dst = append(c.Grow(dst, 300<<10), "half a result"...)
		panic(len(dst))
	}
	return nil, ErrProcUnavail
}

// call builds a call of echo, version 3, without credential, as one record body.
func call(xid, proc uint32, args ...byte) []byte {
	return callWith(xid, proc, AppendOpaque(AppendUint32(nil, AuthNone), ""), args)
}

// callWith is call with an encoded opaque_auth as the credential.
func callWith(xid, proc uint32, cred, args []byte) []byte {
	var b []byte
	for _, v := range []uint32{xid, msgCall, rpcVersion, echoNumber, 3, proc} {
		b = AppendUint32(b, v)
	}
	b = append(b, cred...)
	b = append(b, 0, 0, 0, 0, 0, 0, 0, 0)
	return append(b, args...)
}

// sys builds an AUTH_SYS credential.
func sys(machine string, uid, gid uint32, gids ...uint32) []byte {
	body := AppendOpaque(AppendUint32(nil, 7), machine)
	body = AppendUint32(AppendUint32(body, uid), gid)
	body = AppendUint32(body, uint32(len(gids)))
	for _, g := range gids {
		body = AppendUint32(body, g)
	}
	return AppendOpaque(AppendUint32(nil, AuthSys), body)
}

// record puts a record mark before b; fragments of at most n bytes when n > 0.
func record(b []byte, n int) []byte {
	var out []byte
	for n > 0 && len(b) > n {
		out = append(AppendUint32(out, uint32(n)), b[:n]...)
		b = b[n:]
	}
	return append(AppendUint32(out, lastFragment|uint32(len(b))), b...)
}

// peer is the other end of a connection.
type peer struct {
	t *testing.T
	net.Conn
}

func (p peer) send(records ...[]byte) {
	p.t.Helper()
	for _, r := range records {
		if _, err := p.Write(record(r, 0)); err != nil {
			p.t.Fatalf("send: %v", err)
		}
	}
}

// recv reads one record.
func (p peer) recv() []byte {
	p.t.Helper()
	b, err := receive(p)
	if err != nil {
		p.t.Fatal(err)
	}
	return b
}

// receive reads one record, which must be one fragment.
func receive(r io.Reader) ([]byte, error) {
	var mark [4]byte
	if _, err := io.ReadFull(r, mark[:]); err != nil {
		return nil, fmt.Errorf("read a record mark: %w", err)
	}
	m := binary.BigEndian.Uint32(mark[:])
	if m&lastFragment == 0 {
		return nil, fmt.Errorf("reply is fragmented: %#x", m)
	}
	b := make([]byte, m&^lastFragment)
	if _, err := io.ReadFull(r, b); err != nil {
		return nil, fmt.Errorf("read a record of %d bytes: %w", len(b), err)
	}
	return b, nil
}

// closed checks that the server closes the connection without another byte.
func (p peer) closed() {
	p.t.Helper()
	if n, err := p.Read(make([]byte, 1)); n != 0 || err == nil {
		p.t.Fatal("a byte came where the connection was to be closed")
	}
}

// accepted checks that a reply is an accepted one and returns its result.
func (p peer) accepted(reply []byte, xid, stat uint32) []byte {
	p.t.Helper()
	want := appendAccepted(nil, xid, stat)[markSize:]
	if !bytes.HasPrefix(reply, want) {
		p.t.Fatalf("reply % x, want it to begin with % x", reply, want)
	}
	return reply[len(want):]
}

// serving starts a server of an echo on a loopback port; stop ends it and returns Serve's error.
func serving(t *testing.T, change func(*Config)) (s *Server, e *echo, dial func() peer, stop func() error) {
	t.Helper()
	e = newEcho()
	cfg := Config{Programs: []Program{e}, Log: zerolog.New(zerolog.NewTestWriter(t))}
	if change != nil {
		change(&cfg)
	}
	s = New(cfg)
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- s.Serve(ctx, l) }()
	stopped := false
	var result error
	stop = func() error {
		if !stopped {
			stopped = true
			cancel()
			result = <-done
		}
		return result
	}
	t.Cleanup(func() {
		if err := stop(); err != nil {
			t.Errorf("Serve: %v", err)
		}
	})
	dial = func() peer {
		t.Helper()
		c, err := net.Dial("tcp", l.Addr().String())
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { c.Close() })
		c.SetDeadline(time.Now().Add(20 * time.Second)) //nolint:errcheck
		return peer{t, c}
	}
	return s, e, dial, stop
}
