package tree

import (
	"crypto/sha256"
	"encoding/binary"

	"golang.org/x/sys/cpu"
)

// lanes is how many objects are hashed side by side. A lane by itself is about four times slower than crypto/sha256.
const lanes = 16

// wide reports whether the processor can.
func wide() bool { return cpu.X86.HasAVX512F && cpu.X86.HasAVX512BW }

// maxBlocks bounds the time that the scheduler has to wait for one call.
const maxBlocks = 1024

// blocks16 brings the states of 16 hashes n blocks of 64 bytes further; lane i reads from data[i]. It is in assembly.
//
//go:noescape
func blocks16(state *[8][lanes]uint32, data *[lanes]*byte, n int, k *[64]uint32)

// roundConstants and initialState are those of SHA-256 (FIPS 180-4, sections 4.2.2 and 5.3.3).
var roundConstants = [64]uint32{
	0x428a2f98, 0x71374491, 0xb5c0fbcf, 0xe9b5dba5, 0x3956c25b, 0x59f111f1, 0x923f82a4, 0xab1c5ed5,
	0xd807aa98, 0x12835b01, 0x243185be, 0x550c7dc3, 0x72be5d74, 0x80deb1fe, 0x9bdc06a7, 0xc19bf174,
	0xe49b69c1, 0xefbe4786, 0x0fc19dc6, 0x240ca1cc, 0x2de92c6f, 0x4a7484aa, 0x5cb0a9dc, 0x76f988da,
	0x983e5152, 0xa831c66d, 0xb00327c8, 0xbf597fc7, 0xc6e00bf3, 0xd5a79147, 0x06ca6351, 0x14292967,
	0x27b70a85, 0x2e1b2138, 0x4d2c6dfc, 0x53380d13, 0x650a7354, 0x766a0abb, 0x81c2c92e, 0x92722c85,
	0xa2bfe8a1, 0xa81a664b, 0xc24b8b70, 0xc76c51a3, 0xd192e819, 0xd6990624, 0xf40e3585, 0x106aa070,
	0x19a4c116, 0x1e376c08, 0x2748774c, 0x34b0bcb5, 0x391c0cb3, 0x4ed8aa4a, 0x5b9cca4f, 0x682e6ff3,
	0x748f82ee, 0x78a5636f, 0x84c87814, 0x8cc70208, 0x90befffa, 0xa4506ceb, 0xbef9a3f7, 0xc67178f2,
}

var initialState = [8]uint32{0x6a09e667, 0xbb67ae85, 0x3c6ef372, 0xa54ff53a, 0x510e527f, 0x9b05688c, 0x1f83d9ab, 0x5be0cd19}

const block = sha256.BlockSize

// lane is one of the hashes under way: what is left of an object, and then its tail.
type lane struct {
	object int // -1: none
	rest   []byte
	blocks int // of rest that are to be hashed
	ended  bool

	tail       [2 * block]byte
	tailBlocks int
}

// hasher hashes objects in lanes.
type hasher struct {
	state [8][lanes]uint32
	data  [lanes]*byte
	lanes [lanes]lane
}

// begin makes lane i hash an object.
func (h *hasher) begin(i, object int, b []byte) {
	l := &h.lanes[i]
	l.object, l.rest, l.blocks, l.ended = object, b, len(b)/block, false
	for j := range h.state {
		h.state[j][i] = initialState[j]
	}
	// The tail is what follows the last whole block, a one bit, zeros, and the length in bits at the end of a block.
	clear(l.tail[:])
	n := copy(l.tail[:], b[l.blocks*block:])
	l.tail[n] = 0x80
	l.tailBlocks = 1
	if n+1+8 > block {
		l.tailBlocks = 2
	}
	binary.BigEndian.PutUint64(l.tail[l.tailBlocks*block-8:], uint64(len(b))*8)
	if l.blocks == 0 {
		l.end()
	}
}

// end goes on to the tail.
func (l *lane) end() { l.ended, l.rest, l.blocks = true, l.tail[:], l.tailBlocks }

// step hashes as many blocks as all lanes have. At least one lane has an object.
func (h *hasher) step() {
	n, shortest := maxBlocks, -1
	for i := range h.lanes {
		if l := &h.lanes[i]; l.object >= 0 && (shortest < 0 || l.blocks < n) {
			n, shortest = min(n, l.blocks), i
		}
	}
	for i := range h.lanes {
		l := &h.lanes[i]
		if l.object < 0 {
			l = &h.lanes[shortest] // somebody's bytes, for nothing
		}
		h.data[i] = &l.rest[0]
	}
	blocks16(&h.state, &h.data, n, &roundConstants)
	for i := range h.lanes {
		l := &h.lanes[i]
		if l.object < 0 {
			continue
		}
		l.rest, l.blocks = l.rest[n*block:], l.blocks-n
		if l.blocks == 0 && !l.ended {
			l.end()
		}
	}
}

// take returns the object that lane i has finished, with its digest; -1 when it has not.
func (h *hasher) take(i int) (object int, d Digest) {
	l := &h.lanes[i]
	if l.object < 0 || l.blocks > 0 {
		return -1, d
	}
	for j := range h.state {
		binary.BigEndian.PutUint32(d[4*j:], h.state[j][i])
	}
	object, l.object, l.rest = l.object, -1, nil
	return object, d
}

// sumWide hashes the objects side by side, in the given order.
func sumWide(digests []Digest, objects [][]byte, order []int) {
	var h hasher
	for i := range h.lanes {
		h.lanes[i].object = -1
	}
	for busy := 0; ; {
		for i := range h.lanes {
			if h.lanes[i].object < 0 && len(order) > 0 {
				h.begin(i, order[0], objects[order[0]])
				order = order[1:]
				busy++
			}
		}
		if busy == 0 {
			return
		}
		h.step()
		for i := range h.lanes {
			if object, d := h.take(i); object >= 0 {
				digests[object] = d
				busy--
			}
		}
	}
}
