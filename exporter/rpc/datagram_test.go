package rpc

import (
	"context"
	"errors"
	"net"
	"os"
	"sync/atomic"
	"testing"
	"time"
)

// A socket that listens on all addresses answers from the one that was asked, or the client would not take the answer.
func TestPacketsAreAnsweredFromTheAddressAsked(t *testing.T) {
	for _, on := range []struct{ network, listen, ask string }{
		{"udp4", "0.0.0.0:0", "127.0.0.1"},
		{"udp4", "0.0.0.0:0", "127.0.0.7"},
		{"udp", "[::]:0", "127.0.0.7"}, // IPv4 to a socket of both
		{"udp", "[::]:0", "::1"},
	} {
		t.Run(on.listen+" asked at "+on.ask, func(t *testing.T) {
			pc, err := net.ListenPacket(on.network, on.listen)
			if err != nil {
				t.Skip(err) // no IPv6 here
			}
			var asked whereTo
			s := New(Config{Programs: []Program{&asked}})
			ctx, cancel := context.WithCancel(t.Context())
			done := make(chan error, 1)
			go func() { done <- s.ServePacket(ctx, pc) }()
			_, port, err := net.SplitHostPort(pc.LocalAddr().String())
			if err != nil {
				t.Fatal(err)
			}
			c, err := net.Dial("udp", net.JoinHostPort(on.ask, port))
			if err != nil {
				t.Skip(err)
			}
			defer c.Close()
			// a packet that comes before the server has begun is answered from anywhere
			err = os.ErrDeadlineExceeded
			for try := 0; try < 20 && (errors.Is(err, os.ErrDeadlineExceeded) || asked.Load() != on.ask); try++ {
				if _, err := c.Write(call(1, echoNull)); err != nil {
					t.Fatal(err)
				}
				c.SetReadDeadline(time.Now().Add(100 * time.Millisecond)) //nolint:errcheck // the read would tell
				_, err = c.Read(make([]byte, 100))
			}
			if err != nil {
				t.Errorf("no answer from %s: %v", on.ask, err)
			}
			if got := asked.Load(); got != on.ask {
				t.Errorf("the program heard that %v was asked, want %s", got, on.ask)
			}
			cancel()
			if err := <-done; err != nil {
				t.Errorf("ServePacket: %v", err)
			}
		})
	}
}

// whereTo is a program that notes which address of this host was asked.
type whereTo struct{ atomic.Value }

func (*whereTo) Number() uint32             { return echoNumber }
func (*whereTo) Versions() (uint32, uint32) { return 2, 3 }

func (w *whereTo) Append(_ context.Context, c *Call, dst []byte) ([]byte, error) {
	w.Store(c.Conn.Local().Addr().String())
	return dst, nil
}

// What the kernel says of a packet is decoded whatever it is.
func FuzzSourceFor(f *testing.F) {
	f.Add([]byte(nil))
	f.Add(make([]byte, 28))
	f.Add([]byte{28, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 8, 0, 0, 0, 1, 0, 0, 0, 127, 0, 0, 7, 127, 0, 0, 7, 0, 0, 0, 0})
	f.Fuzz(func(t *testing.T, oob []byte) {
		if addr, source := sourceFor(oob); addr.IsValid() != (source != nil) {
			t.Errorf("address %v with source %x", addr, source)
		}
	})
}
