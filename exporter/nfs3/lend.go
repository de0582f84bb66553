package nfs3

import (
	"sync"

	"github.com/nfs-fleet/nfs-fleet/exporter/rpc"
	"github.com/nfs-fleet/nfs-fleet/exporter/volume"
)

const (
	// lendLeast is how many bytes a READ must have for it to pay that they are written from where they are.
	lendLeast = 64 << 10
	// lendEnd is how many of them are copied all the same: the reply's last, which are written when the others are known to
	// have been good.
	lendEnd = 64
)

// loan is a part of a file that is lent to the engine. It is an rpc.Body.
type loan struct {
	volume.Loan
	p *Program
}

var loans = sync.Pool{New: func() any { return new(loan) }}

// GiveBack implements rpc.Body.
func (l *loan) GiveBack() {
	l.Loan.GiveBack()
	*l = loan{}
	loans.Put(l)
}

// Read implements rpc.Body: what can be lent no more is read with as many others as any READ, and seen as one that waits.
func (l *loan) Read(b []byte, off int) error {
	if l.p.cfg.Waits != nil {
		defer l.p.cfg.Waits()()
	}
	l.p.disk <- struct{}{}
	defer func() { <-l.p.disk }()
	return l.Loan.Read(b, off)
}

// lend appends the result of a READ of n bytes, which the file has, if they can be written from where they are.
func (p *Program) lend(c *rpc.Call, o *object, dst []byte, offset uint64, n int) (out []byte, ok bool) {
	from, ok := o.export.Volume.Borrow(o.node, offset, n)
	if !ok {
		return nil, false
	}
	out = o.appendReadHeader(dst, n, offset+uint64(n) >= o.node.Size())
	at := len(out)
	end := out[at : at+lendEnd] // within the Headroom
	if !from.ReadCached(end, n-lendEnd) {
		from.GiveBack()
		return nil, false
	}
	l := loans.Get().(*loan)
	l.Loan, l.p = from, p
	c.Attach(out, l, n-lendEnd)
	return append(out[:at+lendEnd], padding[:-n&3]...), true
}
