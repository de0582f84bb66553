package rpc

import (
	"context"
	"encoding/binary"
	"errors"
	"io"
	"net"
	"os"
	"testing"
	"time"
)

// FuzzConversation says anything over a connection, in pieces of any size, and hangs up: the server answers in whole records,
// or closes the connection, and is done with it.
func FuzzConversation(f *testing.F) {
	null, later := record(call(1, echoNull), 0), record(call(2, echoLater, opaque("later")...), 7)
	f.Add(null, uint16(3))
	f.Add(append(null[:len(null):len(null)], later...), uint16(1))
	f.Add(record(callWith(3, echoCred, sys("m", 1, 2, 3), nil), 0), uint16(100))
	f.Add(append(AppendUint32(nil, 0xffffffff), null...), uint16(9))
	f.Add(make([]byte, 4096), uint16(5))
	f.Add([]byte("GET / HTTP/1.1\r\n\r\n"), uint16(4))
	e := newEcho()
	close(e.let) // nothing waits
	go func() {
		for range e.began {
		}
	}()
	s := New(Config{Programs: []Program{e}, MaxRecord: 64 << 10})
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		f.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- s.Serve(ctx, l) }()
	f.Cleanup(func() {
		cancel()
		if err := <-done; err != nil {
			f.Errorf("Serve: %v", err)
		}
		close(e.began)
	})
	f.Fuzz(func(t *testing.T, said []byte, piece uint16) {
		conn, err := net.Dial("tcp", l.Addr().String())
		if err != nil {
			t.Fatal(err)
		}
		defer conn.Close()
		conn.SetDeadline(time.Now().Add(20 * time.Second)) //nolint:errcheck // shows below
		go say(conn.(*net.TCPConn), said, max(int(piece), 1+len(said)/100))
		heard, err := io.ReadAll(conn)
		if errors.Is(err, os.ErrDeadlineExceeded) {
			t.Fatal("the conversation has no end")
		}
		for len(heard) >= 8 && err == nil {
			size := int(binary.BigEndian.Uint32(heard) &^ lastFragment)
			if size < 20 || 4+size > len(heard) || binary.BigEndian.Uint32(heard)&lastFragment == 0 {
				t.Fatalf("% x is no record", heard)
			}
			heard = heard[4+size:]
		}
	})
}

// say sends b in pieces, and then no more.
func say(c *net.TCPConn, b []byte, piece int) {
	for len(b) > 0 {
		n, err := c.Write(b[:min(piece, len(b))])
		if err != nil {
			return // the server has heard enough
		}
		b = b[n:]
	}
	c.CloseWrite() //nolint:errcheck // then it is closed
}
