package volume

import "github.com/nfs-fleet/nfs-fleet/replicator/tree"

// Lender is what a Blob may be besides: one whose bytes can be written to a socket from where they are.
type Lender interface {
	// Lendable reports whether n bytes from off on are in memory and good, so that Lend is worth trying. It does not wait.
	Lendable(off, n int64) bool
	// Lend calls use with up to n bytes from off on, and returns how many; 0 when it cannot. use may give them to the system,
	// but not look at them. good means that they were what the object has; otherwise nobody must come to use them.
	Lend(off, n int64, use func(mem []byte)) (lent int, good bool)
}

// Loan is a part of a file that is lent. It must be given back.
type Loan struct {
	o    *opened
	from Lender
	off  int64 // in the blob
}

// Borrow lends the n bytes that a regular file has from off on, if they are in one piece, in memory and good. n is one at the
// least. It does not wait.
func (v *Volume) Borrow(f Node, off uint64, n int) (l Loan, ok bool) {
	o := v.contents.openCached(f.Ino(), 0, f.content(), f.Size())
	if o == nil {
		return Loan{}, false
	}
	if o.list != nil {
		list := o
		if o, off = v.contents.part(list, off, n); o == nil {
			list.release()
			return Loan{}, false
		}
		list.release()
	}
	from, ok := o.blob.(Lender)
	if !ok || off+uint64(n) > uint64(o.blob.Size()) || !from.Lendable(int64(off), int64(n)) {
		o.release()
		return Loan{}, false
	}
	return Loan{o: o, from: from, off: int64(off)}, true
}

// part returns the blob that has all n bytes from off on of a list's file, and where; nil when none has, or it would have to
// be waited for.
func (c *contents) part(list *opened, off uint64, n int) (*opened, uint64) {
	at, _ := list.list.at(off, nil)
	if at.digest.IsZero() || at.size-at.off < uint64(n) {
		return nil, 0
	}
	return c.openCached(list.ino, uint32(at.i)+1, tree.Content{Form: tree.Blob, Digest: at.digest}, at.size), at.off
}

// Lend is Lender.Lend, with off counted from where the loan begins.
func (l *Loan) Lend(off, n int, use func(mem []byte)) (lent int, good bool) {
	return l.from.Lend(l.off+int64(off), int64(n), use)
}

// ReadCached fills p from off on, if that takes no waiting.
func (l *Loan) ReadCached(p []byte, off int) bool {
	n, ok := l.o.blob.ReadCached(p, l.off+int64(off))
	return ok && n == len(p)
}

// Read fills p from off on. It may wait for the disk.
func (l *Loan) Read(p []byte, off int) error {
	n, err := l.o.blob.ReadAt(p, l.off+int64(off))
	if n == len(p) {
		return nil
	}
	return err
}

// GiveBack ends the loan.
func (l *Loan) GiveBack() { l.o.release() }
