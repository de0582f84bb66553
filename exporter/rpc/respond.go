package rpc

import (
	"context"
	"errors"
	"fmt"
	"runtime/debug"
	"sync"

	"github.com/rs/zerolog"
)

// responder turns one record into the record that answers it. It is safe for concurrent use.
type responder struct {
	programs []Program
	log      zerolog.Logger
	bugs     sync.Map // of procedure: already logged
}

// procedure names a procedure of a program.
type procedure struct{ prog, proc uint32 }

// errNotRPC ends a connection whose peer sends records that are no calls.
var errNotRPC = errors.New("record is no RPC call")

// respond appends the answer to rec, a whole record, to c.out. It returns nil, or ErrDefer (not when c.Blocking) or
// another reason for there being no answer yet or ever.
func (r *responder) respond(ctx context.Context, c *Call, rec []byte) error {
	if v := c.parse(rec); v != headerOK {
		if v == headerNoCall {
			return errNotRPC
		}
		c.out.b = appendDenial(c.out.b, c.XID, v)
		return nil
	}
	at := len(c.out.b)
	p := r.find(c.Prog)
	if p == nil {
		return c.accept(at, acceptProgUnavail)
	}
	if low, high := p.Versions(); c.Vers < low || c.Vers > high {
		c.out.b = appendAccepted(c.out.b, c.XID, acceptProgMismatch)
		c.out.b = AppendUint32(c.out.b, low)
		c.out.b = AppendUint32(c.out.b, high)
		finishRecord(c.out.b, at, 0)
		return nil
	}
	dst, err := r.invoke(ctx, p, c, appendAccepted(c.out.b, c.XID, acceptSuccess))
	if err == nil {
		finishRecord(dst, at, c.body.size)
		c.out.b = dst
		return nil
	}
	c.body = body{} // the program's again
	// Grow may have moved what was there: only the length is known
	c.out.b = c.out.b[:at]
	return r.failed(c, at, err)
}

// find returns the program with a number, or nil. There are a handful, the busiest first.
func (r *responder) find(number uint32) Program {
	for _, p := range r.programs {
		if p.Number() == number {
			return p
		}
	}
	return nil
}

// invoke makes the call and turns a panic into an error.
func (r *responder) invoke(ctx context.Context, p Program, c *Call, dst []byte) (out []byte, err error) {
	defer func() {
		if v := recover(); v != nil {
			c.body.drop() // nobody else will
			err = &panicError{v, debug.Stack()}
		}
	}()
	return p.Append(ctx, c, dst)
}

// panicError is a bug in a program.
type panicError struct {
	value any
	stack []byte
}

func (e *panicError) Error() string { return fmt.Sprintf("panic: %v", e.value) }

// failed answers a call whose program returned err.
func (r *responder) failed(c *Call, at int, err error) error {
	switch {
	case errors.Is(err, ErrGarbageArgs):
		return c.accept(at, acceptGarbageArgs)
	case errors.Is(err, ErrProcUnavail):
		return c.accept(at, acceptProcUnavail)
	case errors.Is(err, ErrDrop), errors.Is(err, ErrClose):
		return err
	case errors.Is(err, ErrDefer) && !c.Blocking:
		return err
	}
	r.report(c, err)
	return c.accept(at, acceptSystemErr)
}

// report logs an error that no program should return; a panic once a procedure, with its stack.
func (r *responder) report(c *Call, err error) {
	event := r.log.Error().Uint32("program", c.Prog).Uint32("procedure", c.Proc)
	if c.Conn != nil {
		event = event.Stringer("client", c.Conn.Remote())
	}
	var p *panicError
	if errors.As(err, &p) {
		if _, known := r.bugs.LoadOrStore(procedure{c.Prog, c.Proc}, true); known {
			event.Discard()
			return
		}
		event.Bytes("stack", p.stack).Err(err).Msg("bug: a call made its handler panic; further ones of this procedure are not logged")
		return
	}
	event.Err(err).Msg("call failed")
}

// accept makes the reply at c.out.b[at:] an empty one with an accept_stat.
func (c *Call) accept(at int, stat uint32) error {
	c.out.b = appendAccepted(c.out.b[:at], c.XID, stat)
	finishRecord(c.out.b, at, 0)
	return nil
}
