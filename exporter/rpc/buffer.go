package rpc

import "sync"

const (
	// inputSize holds some 150 calls of the read side.
	inputSize = 32 << 10
	// smallOutput holds the replies to a batch of calls without data; flushAt is when a batch is written although more
	// calls are waiting. largeOutput adds the largest single reply: 1 MiB of data and its header.
	smallOutput = 64 << 10
	flushAt     = smallOutput - 2*Headroom
	largeOutput = smallOutput + 1<<20 + 2*Headroom
)

// buffer is a byte slice that a pool can hold without an allocation a time.
type buffer struct{ b []byte }

var (
	inputs = sync.Pool{New: func() any { return &buffer{b: make([]byte, inputSize)} }}
	smalls = sync.Pool{New: func() any { return &buffer{b: make([]byte, 0, smallOutput)} }}
	larges = sync.Pool{New: func() any { return &buffer{b: make([]byte, 0, largeOutput)} }}
)

// getBuffer returns an empty output buffer with room for n bytes.
func getBuffer(n int) *buffer {
	switch {
	case n <= smallOutput:
		return smalls.Get().(*buffer)
	case n <= largeOutput:
		return larges.Get().(*buffer)
	}
	return &buffer{b: make([]byte, 0, n)}
}

// putBuffer gives an output buffer back. What outgrew the pools is left to the collector.
func putBuffer(x *buffer) {
	x.b = x.b[:0]
	switch c := cap(x.b); {
	case c == smallOutput:
		smalls.Put(x)
	case c == largeOutput:
		larges.Put(x)
	}
}
