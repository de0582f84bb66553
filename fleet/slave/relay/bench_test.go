package relay

import (
	"encoding/binary"
	"io"
	"net"
	"net/netip"
	"testing"
)

// startSink starts a server that answers each call with a reply of the size that it asks for, as fast as it can.
func startSink(b *testing.B) netip.AddrPort {
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		b.Fatal(err)
	}
	b.Cleanup(func() { ln.Close() })
	go func() {
		for {
			c, err := ln.Accept()
			if err != nil {
				return
			}
			go func() {
				defer c.Close()
				reply := make([]byte, 2<<20)
				call := make([]byte, 48)
				for {
					if _, err := io.ReadFull(c, call); err != nil {
						return
					}
					n := 24 + int(binary.BigEndian.Uint32(call[44:]))
					binary.BigEndian.PutUint32(reply, lastFragment|uint32(n))
					copy(reply[4:], call[4:8])
					if _, err := c.Write(reply[:4+n]); err != nil {
						return
					}
				}
			}()
		}
	}()
	return ln.Addr().(*net.TCPAddr).AddrPort()
}

// drive makes b.N calls, some at a time, over one connection.
func drive(b *testing.B, to netip.AddrPort, size, depth int) {
	c, err := Dialer{}.Dial(b.Context(), to)
	if err != nil {
		b.Fatal(err)
	}
	defer reset(c)
	call := appendCall(nil, 1, progNFS, procRead, uint32(size))
	sink := make([]byte, 256<<10)
	b.SetBytes(int64(size))
	b.ResetTimer()
	for range min(depth, b.N) {
		if _, err := c.Write(call); err != nil {
			b.Fatal(err)
		}
	}
	for i := range b.N {
		for left := size + 28; left > 0; {
			n, err := c.Read(sink[:min(left, len(sink))])
			if err != nil {
				b.Fatal(err)
			}
			left -= n
		}
		if i+depth < b.N {
			if _, err := c.Write(call); err != nil {
				b.Fatal(err)
			}
		}
	}
}

func BenchmarkReads(b *testing.B) {
	for _, c := range []struct {
		name        string
		size, depth int
	}{{"4K-by-one", 4096, 1}, {"4K-by-8", 4096, 8}, {"128K-by-4", 128 << 10, 4}, {"1M-by-4", 1 << 20, 4}} {
		b.Run(c.name+"/direct", func(b *testing.B) { drive(b, startSink(b), c.size, c.depth) })
		b.Run(c.name+"/relay", func(b *testing.B) {
			r, addr := startRelay(b)
			r.Switch(startSink(b))
			drive(b, addr, c.size, c.depth)
		})
	}
}
