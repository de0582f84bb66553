package store

import (
	"encoding/binary"
	"hash/maphash"
	"sync"
	"sync/atomic"

	"github.com/nfs-fleet/nfs-fleet/replicator/tree"
)

const (
	// blockSize is what of a large object is read and checked at a time, once the whole was hashed.
	blockSize = 128 << 10
	// maxChecked is how many large objects' sums are kept, at about 400 bytes for 4 MiB.
	maxChecked = 32 << 10
)

// blocks is what is known of the content of a large object's file: that it was hashed as a whole, and a sum of each block
// from then, so that a block that comes from the disk again is checked without the rest.
type blocks struct {
	id   uint64 // of its words in seals; the same for every file of the object, lest one of two does not see the other's loads
	mu   sync.Mutex
	sums atomic.Pointer[[]blockSum] // nil until the object was hashed; that is done with mu held
	bad  atomic.Bool                // the file is in quarantine

	around atomic.Bool // its bytes went past the page cache, and nobody has had them read into it since
}

// blockSum is the sum of a block, and the seal of its pages.
type blockSum struct {
	sum  uint64
	seal uint32 // atomic
}

// sumSeed makes the sums of this process unlike those of any other: nobody can prepare bytes for them.
var sumSeed = maphash.MakeSeed()

func newBlocks(d tree.Digest) *blocks { return &blocks{id: binary.LittleEndian.Uint64(d[16:])} }

// blocksOf returns what is known of the file of d that is in its place now. l.mu is held.
func (l *large) blocksOf(d tree.Digest) *blocks {
	b := l.checked[d]
	if b == nil {
		b = newBlocks(d)
		l.keepBlocks(d, b)
	}
	return b
}

// keepBlocks keeps what is known of the file of d, at the cost of any other. l.mu is held.
func (l *large) keepBlocks(d tree.Digest, b *blocks) {
	for other := range l.checked {
		if len(l.checked) < maxChecked {
			break
		}
		delete(l.checked, other)
	}
	l.checked[d] = b
}

// sum returns the sums of an object that is in memory, sealed for the pages that it is about to be written to.
func (b *blocks) sum(x *seals, object []byte) []blockSum {
	sums := make([]blockSum, (len(object)+blockSize-1)/blockSize)
	for i := range sums {
		block := object[i*blockSize : min(len(object), (i+1)*blockSize)]
		sums[i] = blockSum{maphash.Bytes(sumSeed, block), x.now(b.span(int64(i), int64(i)))}
	}
	return sums
}

// span returns the words of blocks first to last.
func (b *blocks) span(first, last int64) span {
	return span{first: b.id + uint64(first), stride: 1, n: int(last - first + 1), blocks: true}
}
