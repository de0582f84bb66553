package store

import (
	"math/bits"
	"os"
	"runtime"
	"sync/atomic"

	"golang.org/x/sys/unix"
)

// The page cache is trusted with what was hashed, and for as long as it has not gone back to the disk for it. Nothing in
// the kernel tells that, so it is counted: every load of pages from the disk that this process causes counts up a word for
// the pages, before it begins, and what is hashed gets a seal that says how far the words had counted. Bytes that were
// read from the cache are good when the seal still says the same after they were read.
//
// One kind of load cannot be counted before it begins: a preadv2 with RWF_NOWAIT that misses returns at once, but has
// asked for the pages already. Who makes one enters the words first, and leaves them when he has counted; bytes read
// while another was in there are not trusted.

const (
	sealWords = 1 << 16
	// blockWords is more, for blocks of large objects: chance is to break the seal of one that is being lent rarely (see Lend).
	blockWords = 1 << 19
	// A word is two counts of who is in it, which of them newcomers join, and the count of loads.
	readerBits = 14
	readerMask = 1<<readerBits - 1
	joinSecond = 1 << (2 * readerBits)
	oneLoad    = joinSecond << 1
)

// seals are the words, for all files of a store. Pages share a word by chance: that costs a hash now and then.
type seals struct {
	words  [sealWords]atomic.Uint64
	blocks []atomic.Uint64 // of large objects; blockWords
}

// span names words: those of the first and the last page of an object in a pack, which it shares with its neighbours, or
// those of some blocks of a large object.
type span struct {
	first, stride uint64
	n             int
	blocks        bool
}

func (x *seals) word(sp span, i int) *atomic.Uint64 {
	if sp.blocks {
		return &x.blocks[(sp.first+uint64(i)*sp.stride)%blockWords]
	}
	return &x.words[(sp.first+uint64(i)*sp.stride)%sealWords]
}

// enter says that a read of these pages begins which may ask the kernel for some of them. There are two words at most.
func (x *seals) enter(sp span) (joined [2]uint64) {
	for i := range sp.n {
		w := x.word(sp, i)
		for {
			old := w.Load()
			joined[i] = 1
			if old&joinSecond != 0 {
				joined[i] = 1 << readerBits
			}
			if w.CompareAndSwap(old, old+joined[i]) {
				break
			}
		}
	}
	return joined
}

// leave says that it has ended and found all of them in the cache. It reports whether nobody else was in there.
func (x *seals) leave(sp span, joined [2]uint64) (alone bool) {
	alone = true
	for i := range sp.n {
		if x.word(sp, i).Add(-joined[i])%joinSecond != 0 {
			alone = false
		}
	}
	return alone
}

// missed says that it has ended, and did not.
func (x *seals) missed(sp span, joined [2]uint64) {
	for i := range sp.n {
		x.word(sp, i).Add(oneLoad - joined[i])
	}
}

// load says that these pages are about to be read from the disk.
func (x *seals) load(sp span) {
	for i := range sp.n {
		x.word(sp, i).Add(oneLoad)
	}
}

// patience is how often a read looks whether others, who read the same pages, have ended.
const patience = 200

// settle waits a little for those who are in there now to leave, and reports whether they have.
func (x *seals) settle(sp span) bool {
	for i := range sp.n {
		if !settle(x.word(sp, i)) {
			return false
		}
	}
	return true
}

// settle sees both counts at nought, one after the other. Newcomers are made to join the one that was, so that the other
// comes down.
func settle(w *atomic.Uint64) bool {
	first, second := false, false
	for range patience {
		v := w.Load()
		none, noneSecond := v&readerMask == 0, v>>readerBits&readerMask == 0
		first, second = first || none, second || noneSecond
		if first && second {
			return true
		}
		if joins := v&joinSecond != 0; joins && none && !second || !joins && noneSecond && !first {
			w.CompareAndSwap(v, v^joinSecond)
		}
		runtime.Gosched()
	}
	return false
}

// now returns the seal for bytes that are read from here on; it is good if they are hashed. Never 0 but once in 2^32.
func (x *seals) now(sp span) uint32 {
	seal := uint64(1)
	for i := range sp.n {
		seal += x.word(sp, i).Load() / oneLoad
	}
	return uint32(seal)
}

// pageShift returns the power of two of the bytes that the page cache takes from the disk, at the least, for a file in dir:
// a page, or a block of the file system if that is more.
func pageShift(dir string) int {
	size := int64(os.Getpagesize())
	var st unix.Stat_t
	if unix.Stat(dir, &st) == nil && st.Blksize <= 64<<10 {
		size = max(size, int64(st.Blksize))
	}
	return bits.Len64(uint64(size) - 1)
}
