package hostile

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"os"
	"time"

	"github.com/nfs-fleet/nfs-fleet/e2e/nfs"
)

// programs are what may be asked, and how many procedures and versions there are, each with one more that is not.
var programs = []struct{ number, versions, procedures uint32 }{
	{nfs.ProgramNFS, 4, 23}, {nfs.ProgramNFS, 4, 23}, {nfs.ProgramNFS, 4, 23}, {nfs.ProgramMount, 4, 8}, {nfs.ProgramHello, 2, 3},
	{100000, 5, 14}, {100227, 4, 4}, {100021, 5, 24}, {0, 1, 1},
}

// calls makes whole calls whose arguments are nonsense, some at a time. Each is answered, or the connection is closed.
func (c *campaign) calls(ctx context.Context, random *rand.Rand) error {
	conn, err := c.dial(ctx)
	if err != nil {
		return err
	}
	defer conn.Close()
	for range 64 {
		var batch []byte
		n := uint32(1 + random.IntN(8))
		for xid := range n {
			batch = append(batch, c.call(random, xid)...)
		}
		if _, err := conn.Write(batch); err != nil {
			return nil //nolint:nilerr // thrown out
		}
		for range n {
			switch err := reply(conn); {
			case errors.Is(err, os.ErrDeadlineExceeded) && ctx.Err() == nil:
				return fmt.Errorf("no answer to % x", batch)
			case errors.Is(err, errReply):
				return fmt.Errorf("%w to % x", err, batch)
			case err != nil:
				return nil
			}
			c.done.Add(1)
		}
	}
	return nil
}

var errReply = errors.New("an answer that is none")

// reply reads one reply and looks at its header.
func reply(conn net.Conn) error {
	_ = conn.SetReadDeadline(time.Now().Add(Patience)) // shows below
	var head [16]byte
	if _, err := io.ReadFull(conn, head[:]); err != nil {
		return err
	}
	mark := binary.BigEndian.Uint32(head[:])
	size := int64(mark &^ (1 << 31))
	if mark>>31 == 0 || size < 16 || size > 2<<20 || binary.BigEndian.Uint32(head[4:]) >= 8 || binary.BigEndian.Uint32(head[8:]) != 1 {
		return fmt.Errorf("%w: % x", errReply, head)
	}
	_, err := io.CopyN(io.Discard, conn, size-12)
	return err
}

// call returns a call: of any procedure, mostly with arguments that begin as they should.
func (c *campaign) call(random *rand.Rand, xid uint32) []byte {
	p := programs[random.IntN(len(programs))]
	call := nfs.Call{
		XID: xid, Program: p.number, Version: p.versions - 1 - random.Uint32N(2)*random.Uint32N(p.versions), Procedure: random.Uint32N(p.procedures),
		Args: c.arguments(random),
	}
	b := nfs.AppendCall(nil, call)
	switch random.IntN(16) {
	case 0: // another version of RPC
		b[15] = byte(random.Uint32())
	case 1: // another credential, longer than it may be
		b = nfs.AppendU32(b[:28], random.Uint32N(8))
		b = nfs.AppendOpaque(b, noise(random, random.IntN(900)))
		b = append(nfs.AppendU32(b, random.Uint32N(2), 0), call.Args...)
	case 2: // a length or a flavor that is not one
		binary.BigEndian.PutUint32(b[28+4*random.IntN(4):], random.Uint32()|1<<uint(random.IntN(32)))
	case 3: // the arguments end early
		b = b[:28+random.IntN(len(b)-28)]
	}
	binary.BigEndian.PutUint32(b, 1<<31|uint32(len(b)-4))
	return b
}

// arguments returns a handle and names and numbers of all sizes.
func (c *campaign) arguments(random *rand.Rand) (b []byte) {
	if random.IntN(8) == 0 {
		return noise(random, random.IntN(4000))
	}
	b = nfs.AppendOpaque(b, c.handle(random))
	for range random.IntN(10) {
		switch random.IntN(6) {
		case 0:
			b = nfs.AppendOpaque(b, noise(random, random.IntN(300)))
		case 1:
			b = nfs.AppendOpaque(b, c.handle(random))
		case 2:
			b = nfs.AppendU32(b, 0xffffffff>>random.IntN(32))
		case 3:
			b = nfs.AppendU32(b, 0xffffffff, 0xffffffff-random.Uint32N(3))
		default:
			b = nfs.AppendU32(b, random.Uint32N(3))
		}
	}
	return b
}

// handle returns a handle: a good one, one with a wrong bit, or noise.
func (c *campaign) handle(random *rand.Rand) []byte {
	h := []byte(c.File)
	if random.IntN(2) == 0 {
		h = []byte(c.Dir)
	}
	switch random.IntN(4) {
	case 0:
		return noise(random, random.IntN(70))
	case 1:
		if len(h) > 0 {
			h[random.IntN(len(h))] ^= 1 << random.IntN(8)
		}
	}
	return h
}

func noise(random *rand.Rand, size int) []byte {
	b := make([]byte, size)
	for i := range b {
		b[i] = byte(random.Uint32())
	}
	return b
}

// records sends one thing that is no call, or none that may be, and waits for what comes of it.
func (c *campaign) records(ctx context.Context, random *rand.Rand) error {
	b, fatal := c.record(random)
	if fatal {
		return c.offend(ctx, b, Patience)
	}
	return c.offend(ctx, b, 0) // it goes away in the middle
}

// offend sends bytes on a connection of their own, and waits for as long as the server may take to close it; 0: not at all.
func (c *campaign) offend(ctx context.Context, b []byte, limit time.Duration) error {
	conn, err := c.dial(ctx)
	if err != nil {
		return err
	}
	defer conn.Close()
	n, err := conn.Write(b)
	c.done.Add(uint64(n))
	if err != nil || limit == 0 {
		return nil //nolint:nilerr // thrown out already
	}
	return c.drained(ctx, conn, limit)
}

// record returns bytes, and whether the server must close a connection that they came on.
func (c *campaign) record(random *rand.Rand) (b []byte, fatal bool) {
	call := c.call(random, 1)
	switch random.IntN(8) {
	case 0: // as long as can be said
		return append(nfs.AppendU32(nil, 0xffffffff), call...), true
	case 1: // too long, in fragments
		for range 400 {
			b = append(nfs.AppendU32(b, 1000), noise(random, 1000)...)
		}
		return b, true
	case 2: // no bytes, and no end
		return make([]byte, 4*(1+random.IntN(100_000))), false
	case 3: // a record of no bytes
		return nfs.AppendU32(nil, 1<<31), true
	case 4: // a reply
		call[11] = 1
		return call, true
	case 5: // another protocol
		return []byte("GET / HTTP/1.1\r\nHost: localhost\r\nContent-Length: 1000000\r\n\r\n"), true
	case 6: // a call that does not end
		return call[:random.IntN(len(call))], false
	}
	return noise(random, random.IntN(20_000)), false
}
