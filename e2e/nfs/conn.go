package nfs

import (
	"bufio"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"time"
)

// Programs, with the one version that is spoken.
const (
	ProgramNFS   = 100003
	ProgramMount = 100005
	ProgramHello = 0x2F1EE702 // of which there is version 1 only
	version      = 3
)

// maxReply bounds a reply; the largest READ that is asked for is far below.
const maxReply = 4 << 20

// ErrProtocol: the peer's bytes are no answer to what was asked.
var ErrProtocol = errors.New("nfs: not an answer")

// Conn is a connection to a master.
type Conn struct {
	conn  net.Conn
	in    *bufio.Reader
	limit time.Duration // of one call
	xid   uint32
	buf   []byte
}

// Dial connects to addr with dial and gives each call limit to be answered.
func Dial(
	ctx context.Context, dial func(ctx context.Context, network, addr string) (net.Conn, error), addr string, limit time.Duration,
) (*Conn, error) {
	ctx, cancel := context.WithTimeout(ctx, limit)
	defer cancel()
	conn, err := dial(ctx, "tcp", addr)
	if err != nil {
		return nil, fmt.Errorf("nfs: connect: %w", err)
	}
	return &Conn{conn: conn, in: bufio.NewReaderSize(conn, 64<<10), limit: limit, xid: uint32(time.Now().UnixNano())}, nil
}

// Close ends the connection, and with it a call that waits in another goroutine.
func (c *Conn) Close() { c.conn.Close() }

// call sends one call and returns its results; they are good until the next call.
func (c *Conn) call(program, procedure uint32, args []byte) (*reply, error) {
	return c.exchange(Call{Program: program, Version: version, Procedure: procedure, Args: args})
}

func (c *Conn) exchange(call Call) (*reply, error) {
	c.xid++
	call.XID = c.xid
	c.conn.SetDeadline(time.Now().Add(c.limit))
	b := AppendCall(make([]byte, 0, 128+len(call.Args)), call)
	if _, err := c.conn.Write(b); err != nil {
		return nil, fmt.Errorf("nfs: send: %w", err)
	}
	if err := c.receive(); err != nil {
		return nil, fmt.Errorf("nfs: receive: %w", err)
	}
	r := &reply{b: c.buf}
	if xid, kind := r.u32(), r.u32(); xid != c.xid || kind != 1 {
		return nil, fmt.Errorf("%w: xid %d, want %d", ErrProtocol, xid, c.xid)
	}
	if denied := r.u32(); denied != 0 {
		return nil, fmt.Errorf("%w: the call is denied", ErrProtocol)
	}
	r.u32()
	r.opaque()
	if accepted := r.u32(); accepted != 0 || r.err != nil {
		return nil, fmt.Errorf("%w: accept status %d, %v", ErrProtocol, accepted, r.err)
	}
	return r, nil
}

// Call is a call as it goes over the wire. The credential is root's.
type Call struct {
	XID, Program, Version, Procedure uint32
	Args                             []byte
}

// AppendCall appends the record of a call, in one fragment.
func AppendCall(b []byte, c Call) []byte {
	at := len(b)
	b = AppendU32(b, 0, c.XID, 0, 2, c.Program, c.Version, c.Procedure)
	cred := AppendU32(nil, 0)
	cred = AppendOpaque(cred, []byte("e2e"))
	cred = AppendU32(cred, 0, 0, 0) // without more groups
	b = AppendU32(b, 1)
	b = AppendOpaque(b, cred)
	b = AppendU32(b, 0, 0)
	b = append(b, c.Args...)
	binary.BigEndian.PutUint32(b[at:], 1<<31|uint32(len(b)-at-4))
	return b
}

// receive reads one record into buf.
func (c *Conn) receive() error {
	c.buf = c.buf[:0]
	for last := false; !last; {
		var mark [4]byte
		if _, err := io.ReadFull(c.in, mark[:]); err != nil {
			return err
		}
		m := binary.BigEndian.Uint32(mark[:])
		last = m>>31 == 1
		n, have := int(m&(1<<31-1)), len(c.buf)
		if have+n > maxReply {
			return fmt.Errorf("%w: a record of more than %d bytes", ErrProtocol, maxReply)
		}
		if cap(c.buf) < have+n {
			c.buf = append(make([]byte, 0, have+n), c.buf...)
		}
		c.buf = c.buf[:have+n]
		if _, err := io.ReadFull(c.in, c.buf[have:]); err != nil {
			return err
		}
	}
	return nil
}
