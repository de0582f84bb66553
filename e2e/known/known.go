// Package known makes files whose every block tells which file, which version of it and which place in it the block belongs
// to, and is wrong in every bit if it is wrong in one. Who reads a block anywhere can judge it without being told what to
// expect: a test that writes such files and a slave that reads them share nothing but the files' names.
package known

import (
	"encoding/binary"
	"errors"
	"fmt"
	"hash/fnv"
)

// Size is a block's length: what O_DIRECT reads at least.
const Size = 4096

// ErrWrong is what bytes are that no version of the file has in this place.
var ErrWrong = errors.New("not the file's bytes")

// key is the seed of a block's noise.
func key(file string, version uint64, block int64) uint64 {
	h := fnv.New64a()
	h.Write([]byte(file))
	return mix(mix(h.Sum64()+version) + uint64(block))
}

// mix is the finalizer of splitmix64.
func mix(x uint64) uint64 {
	x = (x ^ x>>30) * 0xbf58476d1ce4e5b9
	x = (x ^ x>>27) * 0x94d049bb133111eb
	return x ^ x>>31
}

// fill makes b, of Size bytes, that block of that version: the version, and then noise that follows from everything.
func fill(b []byte, file string, version uint64, block int64) {
	binary.BigEndian.PutUint64(b, version)
	for k, i := key(file, version, block), 8; i < Size; i += 8 {
		k += 0x9e3779b97f4a7c15
		binary.LittleEndian.PutUint64(b[i:], mix(k))
	}
}

// File returns the whole of a version of a file of so many blocks.
func File(file string, version uint64, blocks int) []byte {
	all := make([]byte, blocks*Size)
	for i := range blocks {
		fill(all[i*Size:][:Size], file, version, int64(i))
	}
	return all
}

// Check says of which version of the file b holds the blocks from the given one on; all must be of one. ErrWrong: of none. b
// is whole blocks.
func Check(b []byte, file string, block int64) (version uint64, err error) {
	if len(b) == 0 || len(b)%Size != 0 {
		return 0, fmt.Errorf("%w: %d bytes are no blocks", ErrWrong, len(b))
	}
	version = binary.BigEndian.Uint64(b)
	for ; len(b) > 0; b, block = b[Size:], block+1 {
		if got := binary.BigEndian.Uint64(b); got != version {
			return 0, fmt.Errorf("%w: block %d says version %d beside %d", ErrWrong, block, got, version)
		}
		for k, i := key(file, version, block), 8; i < Size; i += 8 {
			k += 0x9e3779b97f4a7c15
			if binary.LittleEndian.Uint64(b[i:]) != mix(k) {
				return 0, fmt.Errorf("%w: block %d of %s, version %d, byte %d", ErrWrong, block, file, version, i)
			}
		}
	}
	return version, nil
}
