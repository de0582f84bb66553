package exporter_test

import (
	"bufio"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"slices"
	"testing"
	"time"
)

// Programs, procedures and status codes of RFC 1813 that the client uses. It has its own, and decodes by itself, so that a
// mistake in the server's cannot hide behind the same mistake here. The generated codecs that judge the golden transcripts
// do not serve: their strings are ASCII, and names here are not. Nor does go-nfs-client: it has no READDIR, asks by path
// only, and leaves goroutines behind.
const (
	nfsProgram   = 100003
	mountProgram = 100005

	mountMnt        = 1
	nfsGetattr      = 1
	nfsLookup       = 3
	nfsReadlink     = 5
	nfsRead         = 6
	nfsReaddir      = 16
	nfsReaddirplus  = 17
	nfsOK           = 0
	nfsErrAcces     = 13
	nfsErrIsDir     = 21
	nfsErrInval     = 22
	largestTransfer = 1 << 20 // more than this is never asked for
)

// attr is a fattr3 in the order of the wire.
type attr struct {
	Type, Mode, Nlink, UID, GID uint32
	Size, Used                  uint64
	Rdev                        [2]uint32
	FSID, FileID                uint64
	Atime, Mtime, Ctime         stamp
}

// stamp is an nfstime3.
type stamp struct{ Sec, Nsec uint32 }

// wireClient makes calls one at a time, as root, over a connection of its own.
type wireClient struct {
	conn  net.Conn
	in    *bufio.Reader
	xid   uint32
	reply []byte
}

func dialWire(t testing.TB, to net.Addr) *wireClient {
	t.Helper()
	conn, err := net.DialTimeout("tcp", to.String(), 10*time.Second)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { conn.Close() })
	return &wireClient{conn: conn, in: bufio.NewReaderSize(conn, 64<<10)}
}

// call returns the result of a procedure that was accepted; that of an NFS procedure begins with its status.
func (c *wireClient) call(program, proc uint32, args ...any) (*wire, error) {
	c.xid++
	// a call of RPC version 2, AUTH_SYS: stamp, machine, uid, gid and gids are all zero or empty; no verifier
	words := []uint32{0, c.xid, 0, 2, program, 3, proc, 1, 20, 0, 0, 0, 0, 0, 0, 0}
	b := make([]byte, 0, 512)
	for _, w := range words {
		b = binary.BigEndian.AppendUint32(b, w)
	}
	for _, a := range args {
		switch a := a.(type) {
		case uint32:
			b = binary.BigEndian.AppendUint32(b, a)
		case uint64:
			b = binary.BigEndian.AppendUint64(b, a)
		case string:
			b = binary.BigEndian.AppendUint32(b, uint32(len(a)))
			b = append(append(b, a...), make([]byte, -len(a)&3)...)
		default:
			panic(a)
		}
	}
	binary.BigEndian.PutUint32(b, 1<<31|uint32(len(b)-4))
	c.conn.SetDeadline(time.Now().Add(30 * time.Second)) //nolint:errcheck // the next line has the same error
	if _, err := c.conn.Write(b); err != nil {
		return nil, err
	}
	record, err := c.record()
	if err != nil {
		return nil, err
	}
	w := &wire{b: record}
	xid, reply, accepted, flavor, verifier, stat := w.uint32(), w.uint32(), w.uint32(), w.uint32(), w.opaque(), w.uint32()
	if w.short || xid != c.xid || reply != 1 || accepted != 0 || flavor != 0 || verifier != "" || stat != 0 {
		return nil, fmt.Errorf("call %d of program %d procedure %d: reply %.40x", c.xid, program, proc, record)
	}
	return w, nil
}

// record reads a record, of one fragment or more. It is valid until the next call.
func (c *wireClient) record() ([]byte, error) {
	record := c.reply[:0]
	for last := false; !last; {
		var mark [4]byte
		if _, err := io.ReadFull(c.in, mark[:]); err != nil {
			return nil, err
		}
		n := binary.BigEndian.Uint32(mark[:])
		last, n = n>>31 == 1, n&^(1<<31)
		if n > 2*largestTransfer {
			return nil, fmt.Errorf("a fragment of %d bytes", n)
		}
		at := len(record)
		record = slices.Grow(record, int(n))[:at+int(n)]
		if _, err := io.ReadFull(c.in, record[at:]); err != nil {
			return nil, err
		}
	}
	c.reply = record
	return record, nil
}

// mount returns the root's handle.
func (c *wireClient) mount(path string) (string, error) {
	w, err := c.call(mountProgram, mountMnt, path)
	if err != nil {
		return "", err
	}
	status, fh := w.uint32(), w.opaque()
	if status != 0 || w.short {
		return "", fmt.Errorf("MNT: status %d", status)
	}
	return fh, nil
}

func (c *wireClient) getattr(fh string) (attr, error) {
	w, err := c.call(nfsProgram, nfsGetattr, fh)
	if err != nil {
		return attr{}, err
	}
	if status := w.uint32(); status != nfsOK {
		return attr{}, fmt.Errorf("GETATTR: status %d", status)
	}
	a := w.attr()
	return a, w.done("GETATTR")
}

// found is what LOOKUP answers.
type found struct {
	status    uint32
	fh        string
	attr, dir attr
}

func (c *wireClient) lookup(dir, name string) (found, error) {
	w, err := c.call(nfsProgram, nfsLookup, dir, name)
	if err != nil {
		return found{}, err
	}
	f := found{status: w.uint32()}
	if f.status != nfsOK {
		return f, nil
	}
	f.fh, f.attr, f.dir = w.opaque(), w.postAttr(), w.postAttr()
	return f, w.done("LOOKUP")
}

func (c *wireClient) readlink(fh string) (status uint32, target string, a attr, err error) {
	w, err := c.call(nfsProgram, nfsReadlink, fh)
	if err != nil {
		return 0, "", a, err
	}
	if status = w.uint32(); status != nfsOK {
		return status, "", a, nil
	}
	a, target = w.postAttr(), w.opaque()
	return status, target, a, w.done("READLINK")
}

// piece is what READ answers. The data is valid until the next call.
type piece struct {
	status uint32
	attr   attr
	eof    bool
	data   []byte
}

func (c *wireClient) read(fh string, offset uint64, count uint32) (piece, error) {
	w, err := c.call(nfsProgram, nfsRead, fh, offset, count)
	if err != nil {
		return piece{}, err
	}
	p := piece{status: w.uint32()}
	if p.status != nfsOK {
		return p, nil
	}
	p.attr = w.postAttr()
	n := w.uint32()
	p.eof, p.data = w.bool(), w.bytes()
	if int(n) != len(p.data) {
		return p, fmt.Errorf("READ: count %d, but %d bytes", n, len(p.data))
	}
	return p, w.done("READ")
}

// named is an entry of a listing.
type named struct {
	fileID uint64
	name   string
	cookie uint64
	attr   attr   // of READDIRPLUS, when it is given
	fh     string // the same
}

// page is one answer of READDIR or READDIRPLUS.
type page struct {
	dir     attr
	entries []named
	eof     bool
}

// list asks for one page after a cookie: READDIRPLUS, or READDIR when dircount is 0.
func (c *wireClient) list(fh string, cookie, verifier uint64, dircount, maxcount uint32) (p page, next uint64, err error) {
	proc, args := uint32(nfsReaddir), []any{fh, cookie, verifier, maxcount}
	if dircount != 0 {
		proc, args = nfsReaddirplus, []any{fh, cookie, verifier, dircount, maxcount}
	}
	w, err := c.call(nfsProgram, proc, args...)
	if err != nil {
		return p, 0, err
	}
	if status := w.uint32(); status != nfsOK {
		return p, 0, fmt.Errorf("listing after cookie %d: status %d", cookie, status)
	}
	if len(w.b) > int(maxcount) {
		return p, 0, fmt.Errorf("listing after cookie %d: %d bytes, more than %d", cookie, len(w.b), maxcount)
	}
	p.dir, next = w.postAttr(), w.uint64()
	for w.bool() {
		e := named{fileID: w.uint64(), name: w.opaque(), cookie: w.uint64()}
		if dircount != 0 {
			if w.bool() {
				e.attr = w.attr()
			}
			if w.bool() {
				e.fh = w.opaque()
			}
		}
		p.entries = append(p.entries, e)
	}
	p.eof = w.bool()
	return p, next, w.done("listing")
}

// wire takes XDR values off the front of b. short is set when one is not whole.
type wire struct {
	b     []byte
	short bool
}

func (w *wire) take(n int) []byte {
	if n < 0 || n > len(w.b) {
		w.short, w.b = true, nil
		return nil
	}
	b := w.b[:n:n]
	w.b = w.b[n:]
	return b
}

func (w *wire) uint32() (v uint32) {
	if b := w.take(4); b != nil {
		v = binary.BigEndian.Uint32(b)
	}
	return v
}

func (w *wire) uint64() uint64 { return uint64(w.uint32())<<32 | uint64(w.uint32()) }

func (w *wire) bool() bool {
	v := w.uint32()
	w.short = w.short || v > 1
	return v == 1
}

func (w *wire) bytes() []byte {
	n := int(w.uint32())
	b := w.take(n)
	for _, pad := range w.take(-n & 3) {
		w.short = w.short || pad != 0
	}
	return b
}

func (w *wire) opaque() string { return string(w.bytes()) }

func (w *wire) stamp() stamp { return stamp{w.uint32(), w.uint32()} }

func (w *wire) attr() attr {
	return attr{
		Type: w.uint32(), Mode: w.uint32(), Nlink: w.uint32(), UID: w.uint32(), GID: w.uint32(),
		Size: w.uint64(), Used: w.uint64(), Rdev: [2]uint32{w.uint32(), w.uint32()},
		FSID: w.uint64(), FileID: w.uint64(), Atime: w.stamp(), Mtime: w.stamp(), Ctime: w.stamp(),
	}
}

// postAttr is a post_op_attr; there must be attributes in it.
func (w *wire) postAttr() attr {
	if !w.bool() {
		w.short = true
		return attr{}
	}
	return w.attr()
}

var errShape = errors.New("the result is not what its type says")

func (w *wire) done(what string) error {
	if w.short || len(w.b) != 0 {
		return fmt.Errorf("%s: %w (%d bytes left over)", what, errShape, len(w.b))
	}
	return nil
}
