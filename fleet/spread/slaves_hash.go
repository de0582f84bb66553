package spread

import "math/bits"

// Rendezvous hashing: a slave has a number for each master that depends on the two names alone, and goes to the lowest.
// When a master goes, the slaves that had drawn it are spread over all others, and nobody else is concerned. The numbers
// are drawn so that a master with twice the slots has the lowest one twice as often: they are exponentially distributed,
// divided by the slots. All is done in integers, so that masters on different machines agree to the bit.

// ticket is a master's part in the drawing.
type ticket struct {
	hash    uint64
	inverse uint64 // of the slots
}

// maxSlots keeps draw within 64 bits: a logarithm takes 38, the inverse 24.
const maxSlots = 1 << 16

func newTicket(h Host) ticket { return ticket{hashOf(h.Name), 1 << 24 / uint64(slotsOf(h))} }

// draw is the number that a slave has for the master of t: the lower the better.
func (t ticket) draw(slave uint64) uint64 { return logarithm(t.meet(slave)) * t.inverse }

// meet hashes two hashes.
func (t ticket) meet(slave uint64) uint64 {
	high, low := bits.Mul64(slave, t.hash)
	return high ^ low
}

// logarithm is about -log2(h / 2^64), in units of 2^-32. It falls with h, and is off by a hundredth at the most.
func logarithm(h uint64) uint64 {
	h |= 1
	zeros := bits.LeadingZeros64(h)
	f := h << zeros << 1 >> 32 // h is 2^(63-zeros) times 1 + f/2^32
	// log2(1+f) is near f + 0.344 f(1-f)
	return uint64(zeros+1)<<32 - f - f*(1<<32-f)>>32*88/256
}

// hashOf is the FNV-1a hash of a name, mixed.
func hashOf(name string) uint64 {
	h := uint64(14695981039346656037)
	for i := range len(name) {
		h = (h ^ uint64(name[i])) * 1099511628211
	}
	return mix(h)
}

// mix makes every bit of the result depend on every bit of x (the finalizer of splitmix64).
func mix(x uint64) uint64 {
	x += 0x9e3779b97f4a7c15
	x = (x ^ x>>30) * 0xbf58476d1ce4e5b9
	x = (x ^ x>>27) * 0x94d049bb133111eb
	return x ^ x>>31
}
