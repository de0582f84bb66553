// Command bare answers NFSv3 calls from memory with as little as that takes: bare ADDRESS. Nothing is checked, every
// directory has the same names, and every file the same bytes; one goroutine a connection, the replies to all calls of one
// read in one write. What another server costs beyond this is its own.
package main

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"strings"
)

const (
	mountProgram = 100005
	fileSize     = 256 << 20
	files        = 32 // in every directory
	inline       = 16 << 10
)

var (
	be      = binary.BigEndian
	content = make([]byte, 2<<20)
	// Handles are a word: 1 is every directory, 2 every file.
	attrs = [][]byte{1: attributes(2, 4096), 2: attributes(1, fileSize)}
)

func main() {
	if len(os.Args) != 2 {
		fmt.Fprintln(os.Stderr, "usage: bare ADDRESS")
		os.Exit(2)
	}
	l, err := net.Listen("tcp", os.Args[1])
	for err == nil {
		var c net.Conn
		if c, err = l.Accept(); err == nil {
			go serve(c) // until the other end closes, or the process ends
		}
	}
	fmt.Fprintln(os.Stderr, "bare:", err)
	os.Exit(1)
}

var errCall = errors.New("a call that no load sends")

// serve answers one connection until it ends, or sends what cannot be understood.
func serve(c net.Conn) {
	defer c.Close()
	in, have := make([]byte, 256<<10), 0
	out := make([]byte, 0, 256<<10)
	for {
		n, err := c.Read(in[have:])
		if err != nil {
			return
		}
		have += n
		used := 0
		out = out[:0]
		for have-used >= 4 {
			size := int(be.Uint32(in[used:]) &^ (1 << 31))
			if have-used < 4+size {
				break
			}
			var data []byte
			if out, data, err = answer(out, in[used+4:used+4+size]); err != nil {
				fmt.Fprintln(os.Stderr, "bare:", err)
				return
			}
			used += 4 + size
			if data == nil {
				continue
			}
			if _, err := (&net.Buffers{out, data}).WriteTo(c); err != nil {
				return
			}
			out = out[:0]
		}
		if _, err := c.Write(out); err != nil {
			return
		}
		have = copy(in, in[used:have])
	}
}

// answer appends the reply to one call; data, if there is any, goes after it.
func answer(out, call []byte) (_, data []byte, err error) {
	defer func() {
		if recover() != nil { // beyond the call's end
			err = io.ErrUnexpectedEOF
		}
	}()
	xid, program, procedure := be.Uint32(call), be.Uint32(call[12:]), be.Uint32(call[20:])
	args := call[24:]
	for range 2 { // credential and verifier
		args = args[8+be.Uint32(args[4:])+-be.Uint32(args[4:])&3:]
	}
	mark := len(out)
	out = words(out, 0, xid, 1, 0, 0, 0, 0)
	switch kind := procedure; {
	case kind == 0:
	case program == mountProgram && kind == 1:
		out = words(out, 0, 4, 1, 1, 1)
	case kind == 1:
		out = append(words(out, 0), attrs[handle(args)]...)
	case kind == 3:
		name := args[12 : 12+be.Uint32(args[8:])]
		child := uint32(1)
		if string(name) == "large" || strings.HasPrefix(string(name), "file") {
			child = 2
		}
		out = append(words(out, 0, 4, child, 1), attrs[child]...)
		out = append(words(out, 1), attrs[1]...)
	case kind == 4:
		out = append(words(out, 0, 1), attrs[handle(args)]...)
		out = words(out, 0x3f)
	case kind == 6:
		count := min(be.Uint32(args[16:]), uint32(len(content)))
		out = append(words(out, 0, 1), attrs[2]...)
		out = words(out, count, 0, count)
		if data = content[:count]; count <= inline {
			out, data = append(out, data...), nil
		}
	case kind == 17:
		out = list(out)
	case kind == 19:
		out = append(words(out, 0, 1), attrs[1]...)
		out = words(out, 1<<20, 1<<20, 4096, 1<<20, 1<<20, 4096, 65536, 0, fileSize, 0, 1, 0x1b)
	default:
		return out, nil, fmt.Errorf("%w: procedure %d of %d", errCall, procedure, program)
	}
	be.PutUint32(out[mark:], 1<<31|uint32(len(out)-mark-4+len(data)))
	return out, data, nil
}

// handle takes the file handle that args begin with.
func handle(args []byte) uint32 { return be.Uint32(args[4:]) }

// list appends the listing that every directory has.
func list(out []byte) []byte {
	out = append(words(out, 0, 1), attrs[1]...)
	out = words(out, 0, 0)
	for i := range files {
		out = words(out, 1, 0, uint32(i+3), 8)
		out = fmt.Appendf(out, "file%04d", i)
		out = append(words(out, 0, uint32(i+1), 1), attrs[2]...)
		out = words(out, 1, 4, 2)
	}
	return words(out, 0, 1)
}

func words(out []byte, values ...uint32) []byte {
	for _, v := range values {
		out = be.AppendUint32(out, v)
	}
	return out
}

// attributes makes an fattr3 (RFC 1813, 2.5).
func attributes(kind, size uint32) []byte {
	a := words(nil, kind, 0o755, 1, 0, 0, 0, size, 0, size, 0, 0, 0, 1, 0, kind)
	return append(a, make([]byte, 84-len(a))...)
}
