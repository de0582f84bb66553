package rpc

import (
	"context"
	"errors"
)

// Program answers the calls of one RPC program. Its methods are called from many goroutines at once.
type Program interface {
	// Number is the program number, Versions the lowest and the highest version that are answered; calls of any other
	// version get PROG_MISMATCH with these two.
	Number() uint32
	Versions() (low, high uint32)
	// Append appends the XDR result of c to dst, which already ends in the reply's header, and returns it. dst has at
	// least Headroom bytes of spare capacity; a result that may need more asks c.Grow first. On an error what was
	// appended is dropped: ErrGarbageArgs, ErrProcUnavail, ErrDefer, ErrDrop and ErrClose mean what they say, any other
	// is logged and answered SYSTEM_ERR. c and its slices are valid until Append returns.
	Append(ctx context.Context, c *Call, dst []byte) ([]byte, error)
}

// What a Program answers instead of a result.
var (
	ErrGarbageArgs = errors.New("arguments cannot be decoded")           // accept_stat GARBAGE_ARGS
	ErrProcUnavail = errors.New("no such procedure")                     // accept_stat PROC_UNAVAIL
	ErrDefer       = errors.New("would block")                           // call again with Blocking set; never returned when it is
	ErrDrop        = errors.New("call is not to be answered")            // no reply at all
	ErrClose       = errors.New("connection is to be closed unanswered") // replies before it still go out
	ErrDrained     = errors.New("server is draining")                    // why a Gate or a call's context ended
)

// Headroom is the spare capacity, in bytes, that a Program finds in the buffer it appends to.
const Headroom = 4096

// Cred is who a call says it comes from (RFC 5531 section 8.2 and appendix A).
type Cred struct {
	Flavor   uint32 // AuthNone or AuthSys; the engine refuses all others
	Stamp    uint32
	UID, GID uint32
	GIDs     []uint32 // at most 16
	Machine  []byte
}

// The authentication flavors that are let in.
const (
	AuthNone uint32 = 0
	AuthSys  uint32 = 1
)

// Call is one call being answered.
type Call struct {
	XID, Prog, Vers, Proc uint32
	Cred                  Cred
	Args                  []byte // undecoded XDR
	Conn                  *Conn  // who asks; for UDP a Conn of this one packet
	// Blocking is set when the call may take its time: it is not being made from a connection's reader.
	Blocking bool
	// Cost is what a program expects its reply to weigh, in bytes, when it defers: it bounds the memory that the late
	// replies of one connection take together.
	Cost int

	out  *buffer
	body body
	gids [maxGIDs]uint32
	// The credential last decoded, as it came: a client sends the same one with almost every call.
	rawCred []byte
}

// Grow returns dst with room for n more bytes, from the engine's pool when it must be moved.
func (c *Call) Grow(dst []byte, n int) []byte {
	if cap(dst)-len(dst) >= n {
		return dst
	}
	next := getBuffer(len(dst) + n)
	next.b = append(next.b[:0], dst...)
	if c.out != nil {
		c.out.b, next.b = next.b, c.out.b[:0]
		dst = c.out.b
		putBuffer(next)
		return dst
	}
	return next.b
}
