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
type loan struct{ volume.Loan }

var loans = sync.Pool{New: func() any { return new(loan) }}

// GiveBack implements rpc.Body.
func (l *loan) GiveBack() {
	l.Loan.GiveBack()
	l.Loan = volume.Loan{}
	loans.Put(l)
}

// lend appends the result of a READ of n bytes, which the file has, if they can be written from where they are.
func (o *object) lend(c *rpc.Call, dst []byte, offset uint64, n int) (out []byte, ok bool) {
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
	l.Loan = from
	c.Attach(out, l, n-lendEnd)
	return append(out[:at+lendEnd], padding[:-n&3]...), true
}
