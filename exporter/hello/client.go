package hello

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"math/rand/v2"
	"net"
	"os"
	"slices"
	"time"

	"github.com/nfs-fleet/nfs-fleet/exporter/rpc"
)

// Patience is how long Hello waits for an answer when its context has no deadline.
const Patience = 500 * time.Millisecond

// What a Hello can fail with, besides the errors of the connection and of the context. After the first three the client
// can be used again.
var (
	// ErrNoHello says that the server has no HELLO program: it is no master of a fleet.
	ErrNoHello = errors.New("server does not know HELLO: it is no nfs-fleet master")
	// ErrVersion says that the master speaks other versions of HELLO than this one.
	ErrVersion = errors.New("master speaks another version of HELLO")
	// ErrFailed says that the master could not make sense of the call, or that answering it failed.
	ErrFailed = errors.New("master cannot answer HELLO")
	// ErrProtocol says that what came is no answer to HELLO.
	ErrProtocol = errors.New("peer does not speak HELLO")
	// ErrBehind says that the peer owes too many answers.
	ErrBehind = errors.New("peer leaves HELLO unanswered")
)

// maxOwed is how many calls may have been given up without the client giving up too.
const maxOwed = 16

// maxReply is the longest record that a master sends: an answer and what RPC puts before it.
const maxReply = MaxAnswer + 512

// Client says HELLO over one connection. A call that was given up can be followed by another: an answer that comes late is
// told from the next one by its number, and dropped. It is not safe for concurrent use, but for Close.
type Client struct {
	conn   net.Conn
	xid    uint32
	owed   []uint32 // calls that were given up and may yet be answered
	in     []byte   // what has come and is no whole record yet
	out    []byte
	broken error // why no more can be said
}

// NewClient returns a client over conn, which is the client's from now on.
func NewClient(conn net.Conn) *Client { return &Client{conn: conn, xid: rand.Uint32()} }

// Close closes the connection. A Hello under way fails.
func (c *Client) Close() error { return c.conn.Close() }

// Hello says g and returns what the master says, as DecodeAnswer does. It returns when ctx ends, or after Patience when ctx
// has no deadline, with an error that is context.DeadlineExceeded or ctx's cause.
func (c *Client) Hello(ctx context.Context, g Greeting) (Answer, error) {
	if c.broken != nil {
		return Answer{}, c.broken
	}
	if _, ok := ctx.Deadline(); !ok {
		var cancel context.CancelFunc
		ctx, cancel = context.WithTimeout(ctx, Patience)
		defer cancel()
	}
	if err := context.Cause(ctx); err != nil {
		return Answer{}, fmt.Errorf("say HELLO: %w", err)
	}
	reply, err := c.exchange(ctx, g)
	if err != nil {
		if errors.Is(err, os.ErrDeadlineExceeded) && ctx.Err() != nil {
			err = context.Cause(ctx)
		} else {
			c.broken = err
		}
		return Answer{}, fmt.Errorf("say HELLO: %w", err)
	}
	a, err := c.judge(reply)
	if err != nil {
		return Answer{}, fmt.Errorf("say HELLO: %w", err)
	}
	return a, nil
}

// exchange sends the call and returns the reply to it from behind the xid.
func (c *Client) exchange(ctx context.Context, g Greeting) (reply rpc.Decoder, err error) {
	if len(c.owed) == maxOwed {
		return reply, ErrBehind
	}
	if err := c.conn.SetDeadline(time.Time{}); err != nil {
		return reply, err
	}
	ended := make(chan struct{})
	stop := context.AfterFunc(ctx, func() {
		defer close(ended)
		c.conn.SetDeadline(time.Unix(1, 0)) //nolint:errcheck // fails only when closed
	})
	defer func() {
		if !stop() {
			<-ended // it must not end the next call
		}
	}()
	c.xid++
	c.out = appendCall(c.out[:0], c.xid, g)
	if n, err := c.conn.Write(c.out); err != nil {
		if n > 0 { // the rest would be taken for another call
			c.broken = fmt.Errorf("HELLO was cut short: %w", err)
		}
		return reply, err
	}
	for {
		reply, err = c.record()
		if err != nil {
			if c.broken == nil {
				c.owed = append(c.owed, c.xid)
			}
			return reply, err
		}
		xid := reply.Uint32()
		if reply.Err() != nil {
			return reply, ErrProtocol
		}
		if xid == c.xid {
			return reply, nil
		}
		i := slices.Index(c.owed, xid)
		if i < 0 {
			return reply, fmt.Errorf("%w: it answers what was not asked", ErrProtocol)
		}
		c.owed = slices.Delete(c.owed, i, i+1)
	}
}

// appendCall appends the call as one record, with AUTH_NONE: a master goes by the address.
func appendCall(dst []byte, xid uint32, g Greeting) []byte {
	dst = append(dst, 0, 0, 0, 0)
	for _, v := range [...]uint32{xid, msgCall, rpcVersion, Number, Version, procHello, rpc.AuthNone, 0, rpc.AuthNone, 0} {
		dst = rpc.AppendUint32(dst, v)
	}
	dst = AppendGreeting(dst, g)
	binary.BigEndian.PutUint32(dst, lastFragment|uint32(len(dst)-4))
	return dst
}

// record returns the next record, which is valid until the next call. What a deadline cuts in two is kept for then.
func (c *Client) record() (rpc.Decoder, error) {
	for {
		if len(c.in) >= 4 {
			mark := binary.BigEndian.Uint32(c.in)
			size := int(mark &^ lastFragment)
			if mark&lastFragment == 0 || size > maxReply {
				return rpc.Decoder{}, ErrProtocol
			}
			if len(c.in) >= 4+size {
				rec := slices.Clone(c.in[4 : 4+size])
				c.in = append(c.in[:0], c.in[4+size:]...)
				return rpc.NewDecoder(rec), nil
			}
		}
		c.in = slices.Grow(c.in, 1024)
		n, err := c.conn.Read(c.in[len(c.in):cap(c.in)])
		c.in = c.in[:len(c.in)+n]
		if n == 0 && err != nil {
			return rpc.Decoder{}, err
		}
	}
}

// Numbers of RFC 5531, section 9.
const (
	lastFragment = 1 << 31
	msgCall      = 0
	msgReply     = 1
	rpcVersion   = 2
	maxVerifier  = 400

	replyAccepted = 0

	acceptSuccess      = 0
	acceptProgUnavail  = 1
	acceptProgMismatch = 2
)

// judge reads a reply from behind the xid.
func (c *Client) judge(d rpc.Decoder) (Answer, error) {
	kind, stat := d.Uint32(), d.Uint32()
	if d.Err() == nil && kind == msgReply && stat != replyAccepted {
		return Answer{}, fmt.Errorf("%w: the call was denied", ErrFailed)
	}
	d.Uint32()
	d.Opaque(maxVerifier)
	accept := d.Uint32()
	if d.Err() != nil || kind != msgReply {
		c.broken = ErrProtocol
		return Answer{}, ErrProtocol
	}
	switch accept {
	case acceptSuccess:
		a, err := DecodeAnswer(d.Fixed(d.Len()))
		if err != nil {
			c.broken = ErrProtocol
			return Answer{}, ErrProtocol
		}
		return a, nil
	case acceptProgUnavail:
		return Answer{}, ErrNoHello
	case acceptProgMismatch:
		low, high := d.Uint32(), d.Uint32()
		return Answer{}, fmt.Errorf("%w: %d to %d", ErrVersion, low, high)
	}
	return Answer{}, fmt.Errorf("%w: accept_stat %d", ErrFailed, accept)
}
