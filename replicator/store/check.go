package store

import (
	"crypto/sha256"
	"errors"
	"fmt"
	"hash/maphash"
	"sync"
	"sync/atomic"

	"github.com/nfs-fleet/nfs-fleet/replicator/tree"
)

// scratch is room for what must be read to be hashed, and is not what was asked for: a block, or an object in a pack.
var scratch = sync.Pool{New: func() any { b := make([]byte, 0, 256<<10); return &b }}

// borrow returns n bytes, and what gives them back.
func borrow(n int) (b []byte, giveBack func()) {
	p := scratch.Get().(*[]byte)
	if cap(*p) < n {
		*p = make([]byte, 0, n)
	}
	return (*p)[:n], func() { scratch.Put(p) }
}

// readChecked fills p, which the object has from off on, with bytes that were hashed. It may wait for the disk.
func (b Blob) readChecked(p []byte, off int64) error {
	if b.e.pack == 0 {
		return b.readLarge(p, off)
	}
	whole := p
	if int64(len(p)) < b.Size() {
		var giveBack func()
		whole, giveBack = borrow(int(b.Size()))
		defer giveBack()
	}
	n, err := b.readWhole(whole)
	if errors.Is(err, tree.ErrCorrupt) {
		err = b.condemn(whole[:n], err)
	}
	if err != nil {
		return err
	}
	if len(p) < len(whole) {
		copy(p, whole[off:])
	}
	return nil
}

// readWhole fills p with the object and hashes it. Together with an error it returns how many bytes could be read.
func (b Blob) readWhole(p []byte) (n int, err error) {
	var none uint32
	seal := &none
	if b.e.pack != 0 {
		seal = &b.e.seal
	}
	return b.check(p, 0, seal, func() bool { return tree.Sum(p) == b.e.digest })
}

// check fills p from off on, and seals it if it is good. Otherwise it reads p again, from the disk, before it says that p
// is damaged.
func (b Blob) check(p []byte, off int64, seal *uint32, good func() bool) (n int, err error) {
	x, sp := &b.s.seals, b.span(off, int64(len(p)))
	for again := range 2 {
		n, err = len(p), nil
		as := x.now(sp)
		hit := false
		if again == 0 && sp.n <= 2 {
			hit, _ = b.cached(p, off, sp) // what another counts later breaks the seal
		}
		if !hit {
			if again > 0 {
				b.file.dropCached(b.start()+off, int64(len(p)))
			}
			x.load(sp)
			as = x.now(sp)
			n, err = b.load(p, off)
		}
		if err == nil && good() {
			atomic.StoreUint32(seal, as)
			return n, nil
		}
	}
	if err == nil {
		err = tree.ErrCorrupt
	}
	return n, err
}

// fetch fills p from off on, hashing nothing.
func (b Blob) fetch(p []byte, off int64) (int, error) {
	sp := b.span(off, int64(len(p)))
	if sp.n <= 2 {
		if hit, _ := b.cached(p, off, sp); hit {
			return len(p), nil
		}
	}
	b.s.seals.load(sp)
	return b.load(p, off)
}

// load fills p from off on; its seals were broken.
func (b Blob) load(p []byte, off int64) (int, error) {
	if b.e.pack != 0 {
		b.readOn()
	} else {
		b.file.blocks.around.Store(false)
		if len(p) > 2*blockSize {
			b.file.readAhead(off, int64(len(p)))
		}
	}
	n, err := b.file.pread(p, b.start()+off)
	if err == nil && n < len(p) {
		err = fmt.Errorf("its file ends early: %w", tree.ErrCorrupt)
	}
	return n, err
}

const (
	// aheadBytes is how much of a pack is read beyond an object, when objects come from the disk one after the other.
	aheadBytes = 256 << 10
	// aheadGap is how far apart two of them may be for that.
	aheadGap = 64 << 10
)

// readOn makes the kernel read what follows the object b in its pack, when what is before it was the last that was loaded:
// a directory's files are put together, and read together. Their seals are broken.
func (b Blob) readOn() {
	start := b.start()
	ahead := b.file.loaded.Load()
	if start < ahead && start >= ahead-aheadBytes-aheadGap {
		return // it was read on from there
	}
	if start < ahead || start > ahead+aheadGap {
		b.file.loaded.Store(start + b.Size())
		return
	}
	end := (start + b.Size() + 1<<b.s.pageShift - 1) >> b.s.pageShift << b.s.pageShift
	sp := b.s.page(b.e.pack, end)
	sp.stride, sp.n = 1, aheadBytes>>b.s.pageShift
	b.s.seals.load(sp)
	b.file.readAhead(end, aheadBytes)
	b.file.loaded.Store(end + aheadBytes)
}

// readLarge is readChecked for a large object. The first to come hashes all of it; from then on a block is checked alone.
func (b Blob) readLarge(p []byte, off int64) error {
	k := b.file.blocks
	if k.sums.Load() == nil {
		if done, err := b.learn(p, off); done || err != nil {
			return err
		}
	}
	sums := *k.sums.Load()
	if first, last := off/blockSize, (off+int64(len(p))-1)/blockSize; last > first {
		b.loadBlocks(p[:1], off, first, last)
	}
	for len(p) > 0 {
		i := off / blockSize
		at := off - i*blockSize
		block := p[:min(int64(len(p)), blockSize-at)]
		whole, giveBack := block, func() {}
		if size := min(blockSize, b.Size()-i*blockSize); int64(len(block)) < size {
			whole, giveBack = borrow(int(size))
		}
		_, err := b.check(whole, i*blockSize, &sums[i].seal, func() bool { return maphash.Bytes(sumSeed, whole) == sums[i].sum })
		if err == nil && len(block) < len(whole) {
			copy(block, whole[at:])
		}
		giveBack()
		if errors.Is(err, tree.ErrCorrupt) {
			return b.condemn(nil, err)
		}
		if err != nil {
			return err
		}
		p, off = p[len(block):], off+int64(len(block))
	}
	return nil
}

// loadBlocks makes the kernel read blocks first to last, if they are not in memory, all at once rather than one after the
// other. Where any may be on loan, those that are in memory are left alone; else the byte at off, read into probe, tells for all.
func (b Blob) loadBlocks(probe []byte, off, first, last int64) {
	k := b.file.blocks
	if b.file.view.mem.Load() == nil {
		if hit, _ := b.cached(probe, off, k.span(first, first)); !hit {
			b.s.seals.load(k.span(first, last))
			b.file.readAhead(off, min((last+1)*blockSize, b.Size())-off)
		}
		return
	}
	for i := first; i <= last; i++ {
		off, end := i*blockSize, min((i+1)*blockSize, b.Size())
		if b.file.view.whole(off, end) {
			continue
		}
		b.s.seals.load(k.span(i, i))
		b.file.readAhead(off, end-off)
	}
}

// learn hashes the whole object, keeps the sums of its blocks, and fills p on the way. It has done nothing when another
// reader was first.
func (b Blob) learn(p []byte, off int64) (done bool, err error) {
	k := b.file.blocks
	k.mu.Lock()
	defer k.mu.Unlock()
	if k.bad.Load() {
		return false, tree.ErrCorrupt
	}
	if k.sums.Load() != nil {
		return false, nil
	}
	for again := range 2 {
		if again > 0 {
			b.file.dropCached(0, b.Size())
		}
		var sums []blockSum
		if sums, err = b.stream(p, off); err == nil {
			k.sums.Store(&sums)
			return true, nil
		}
	}
	if errors.Is(err, tree.ErrCorrupt) {
		err = b.condemn(nil, err)
	}
	return false, err
}

// stream reads and hashes the whole object, block by block, and copies what it has from off on to p.
func (b Blob) stream(p []byte, off int64) ([]blockSum, error) {
	x, all := &b.s.seals, b.span(0, b.Size())
	x.load(all)
	b.file.readAhead(0, b.Size())
	sums, hash := make([]blockSum, all.n), sha256.New()
	buf, giveBack := borrow(blockSize)
	defer giveBack()
	for i := range sums {
		from := int64(i) * blockSize
		block := buf[:min(blockSize, b.Size()-from)]
		sums[i].seal = x.now(b.span(from, int64(len(block))))
		if _, err := b.load(block, from); err != nil {
			return nil, err
		}
		hash.Write(block)
		sums[i].sum = maphash.Bytes(sumSeed, block)
		if from < off+int64(len(p)) && from+int64(len(block)) > off {
			copy(p[max(0, from-off):], block[max(0, off-from):])
		}
	}
	if tree.Digest(hash.Sum(nil)) != b.e.digest {
		return nil, tree.ErrCorrupt
	}
	return sums, nil
}

// condemn takes the damaged object, of which the bytes in read could be read, out of the store. It returns err, and what
// went wrong.
func (b Blob) condemn(read []byte, err error) error {
	s := b.s
	if s.closed.Load() {
		return err
	}
	if moved := s.quarantine(b, read); moved != nil {
		return errors.Join(err, moved)
	}
	s.log.Error().Str("event", "quarantined").Stringer("object", b.e.digest).Msg("an object is damaged on disk")
	s.reindex(b.e.pack)
	return err
}
