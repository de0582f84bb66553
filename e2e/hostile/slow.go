package hostile

import (
	"context"
	"encoding/binary"
	"errors"
	"io"
	"math/rand/v2"
	"net"
	"os"
	"time"

	"github.com/nfs-fleet/nfs-fleet/e2e/nfs"
)

// neverRead asks for as much as the server takes in, and reads nothing.
func (c *campaign) neverRead(ctx context.Context, random *rand.Rand) error {
	conn, err := c.dial(ctx)
	if err != nil {
		return err
	}
	defer conn.Close()
	var batch []byte
	for i := range uint32(64) {
		read := binary.BigEndian.AppendUint64(nfs.AppendOpaque(nil, []byte(c.File)), uint64(random.Uint32()&0xff000))
		list := nfs.AppendU32(nfs.AppendOpaque(nil, []byte(c.Dir)), 0, 0, 0, 0, 1<<20, 1<<20)
		batch = nfs.AppendCall(batch, nfs.Call{XID: 2 * i, Program: nfs.ProgramNFS, Version: 3, Procedure: 6, Args: nfs.AppendU32(read, 1<<20)})
		batch = nfs.AppendCall(batch, nfs.Call{XID: 2*i + 1, Program: nfs.ProgramNFS, Version: 3, Procedure: 17, Args: list})
	}
	for {
		n, err := conn.Write(batch)
		c.done.Add(uint64(n))
		if err != nil {
			return nil //nolint:nilerr // the server has had enough: the next connection
		}
	}
}

// dribble sends a call byte by byte.
func (c *campaign) dribble(ctx context.Context, _ *rand.Rand) error {
	conn, err := c.dial(ctx)
	if err != nil {
		return err
	}
	defer conn.Close()
	call := nfs.AppendCall(nil, nfs.Call{XID: 1, Program: nfs.ProgramNFS, Version: 3, Procedure: 1, Args: nfs.AppendOpaque(nil, []byte(c.File))})
	for _, b := range call {
		if _, err := conn.Write([]byte{b}); err != nil {
			return nil //nolint:nilerr // the server has had enough: the next connection
		}
		c.done.Add(1)
		pause(ctx, time.Second)
	}
	return nil
}

// halfSent sends a part of a record that is as long as one may be, then waits until it is thrown out.
func (c *campaign) halfSent(ctx context.Context, random *rand.Rand) error {
	part := make([]byte, 4+random.IntN(127<<10))
	binary.BigEndian.PutUint32(part, 1<<31|127<<10)
	return c.offend(ctx, part, 2*time.Minute)
}

// hold opens a connection, makes a call on every other one, and keeps it for as long as it is let.
func (c *campaign) hold(ctx context.Context, random *rand.Rand) error {
	conn, err := c.dial(ctx)
	if err != nil {
		return err
	}
	defer conn.Close()
	c.done.Add(1)
	if random.IntN(2) == 0 {
		null := nfs.AppendCall(nil, nfs.Call{XID: 1, Program: nfs.ProgramNFS, Version: 3})
		if _, err := conn.Write(null); err != nil {
			return nil //nolint:nilerr // turned away
		}
	}
	_, _ = io.Copy(io.Discard, conn) // until its end, whatever that is
	pause(ctx, time.Duration(100+random.IntN(900))*time.Millisecond)
	return nil
}

// drained reads until the server closes the connection, which it must do within a time.
func (c *campaign) drained(ctx context.Context, conn net.Conn, limit time.Duration) error {
	_ = conn.SetReadDeadline(time.Now().Add(limit)) // shows below
	if _, err := io.Copy(io.Discard, conn); errors.Is(err, os.ErrDeadlineExceeded) && ctx.Err() == nil {
		return errors.New("a connection that is at fault was not closed")
	}
	return nil
}
