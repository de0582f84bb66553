package hello

import (
	"context"
	"errors"
	"net/netip"
	"time"

	"github.com/nfs-fleet/nfs-fleet/exporter/rpc"
)

// Greet answers a greeting that came from an address, which is not in the greeting and cannot be made up. It is called
// from many goroutines, each of which is not a connection's reader, and may take its time as long as it heeds ctx, which
// ends after a second: by then nobody waits any more. Who the slave is, the name's form included, is for Greet to judge. An
// error is answered SYSTEM_ERR and logged by the RPC engine, so it is for bugs; what is wrong with the master is an
// Answer. The time is added to an Answer that has none.
type Greet func(ctx context.Context, from netip.AddrPort, g Greeting) (Answer, error)

// Program returns the program that answers HELLO with what greet says, for exporter.Config.Programs.
func Program(greet Greet) rpc.Program {
	return &program{greet: greet, busy: make(chan struct{}, maxBusy)}
}

const (
	// maxBusy is how many greetings are being answered at once. Anybody who reaches the port can greet.
	maxBusy = 256
	// patience is what an answer may take.
	patience = time.Second
)

type program struct {
	greet Greet
	busy  chan struct{} // a token for each greeting being answered
}

// Number implements rpc.Program.
func (p *program) Number() uint32 { return Number }

// Versions implements rpc.Program.
func (p *program) Versions() (low, high uint32) { return Version, Version }

// Append implements rpc.Program.
func (p *program) Append(ctx context.Context, c *rpc.Call, dst []byte) ([]byte, error) {
	switch c.Proc {
	case procNull:
		return dst, nil
	case procHello:
	default:
		return nil, rpc.ErrProcUnavail
	}
	if len(c.Args) > MaxGreeting {
		return nil, rpc.ErrGarbageArgs
	}
	if !c.Blocking {
		c.Cost = MaxAnswer
		return nil, rpc.ErrDefer
	}
	g, err := DecodeGreeting(c.Args)
	if err != nil {
		return nil, err
	}
	select {
	case p.busy <- struct{}{}:
		defer func() { <-p.busy }()
	default:
		// who gets no answer asks again, or elsewhere
		return nil, rpc.ErrDrop
	}
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	a, err := p.greet(ctx, c.Conn.Remote(), g)
	if err != nil {
		if ctx.Err() != nil && errors.Is(err, ctx.Err()) {
			return nil, rpc.ErrDrop
		}
		return nil, err
	}
	if a.Now.IsZero() {
		a.Now = time.Now()
	}
	return AppendAnswer(c.Grow(dst, MaxAnswer), a), nil
}
