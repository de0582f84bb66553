package doctor

import (
	"bufio"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"os"
	"time"

	"github.com/nfs-fleet/nfs-fleet/exporter/mount3"
	"github.com/nfs-fleet/nfs-fleet/exporter/nfs3"
	"github.com/nfs-fleet/nfs-fleet/exporter/rpc"
)

// Bounds of what a master may answer.
const (
	maxReply   = 1 << 20
	maxHandle  = 64
	maxName    = 255
	maxExports = 1024
	maxEntries = 4096
)

// The procedures that are called, all of version 3.
const (
	nfsNull        = 0
	nfsLookup      = 3
	nfsRead        = 6
	nfsReadDirPlus = 17
	mountMnt       = 1
	mountExport    = 5
)

// errReply says that the peer's bytes are no answer.
var errReply = errors.New("the answer makes no sense")

// status is a nfsstat3 or mountstat3.
type status uint32

func (s status) Error() string {
	switch s {
	case 1, 13:
		return "permission denied"
	case 2:
		return "no such file or directory"
	case 5:
		return "I/O error"
	case 70:
		return "stale file handle"
	case 10008:
		return "not now (JUKEBOX)"
	}
	return fmt.Sprintf("status %d", uint32(s))
}

// client makes calls over one connection, one at a time.
type client struct {
	conn net.Conn
	in   *bufio.Reader
	xid  uint32
}

func newClient(conn net.Conn) *client {
	return &client{conn: conn, in: bufio.NewReader(conn), xid: rand.Uint32()}
}

// call makes a call and returns its results. ctx has a deadline.
func (c *client) call(ctx context.Context, prog, proc uint32, args []byte) (rpc.Decoder, error) {
	deadline, _ := ctx.Deadline()
	if err := c.conn.SetDeadline(deadline); err != nil {
		return rpc.Decoder{}, err
	}
	c.xid++
	const version, call, rpcVersion, last = 3, 0, 2, 1 << 31
	b := make([]byte, 4, 256)
	for _, v := range [...]uint32{c.xid, call, rpcVersion, prog, version, proc, rpc.AuthSys} {
		b = rpc.AppendUint32(b, v)
	}
	cred := rpc.AppendOpaque(rpc.AppendUint32(nil, 0), "doctor")
	cred = rpc.AppendUint32(cred, uint32(os.Getuid()))
	cred = rpc.AppendUint32(rpc.AppendUint32(cred, uint32(os.Getgid())), 0)
	b = rpc.AppendOpaque(b, cred)
	b = rpc.AppendUint32(rpc.AppendUint32(b, rpc.AuthNone), 0)
	b = append(b, args...)
	binary.BigEndian.PutUint32(b, last|uint32(len(b)-4))
	if _, err := c.conn.Write(b); err != nil {
		return rpc.Decoder{}, err
	}
	record, err := c.record()
	if err != nil {
		return rpc.Decoder{}, err
	}
	return c.judge(record)
}

// record reads one record.
func (c *client) record() ([]byte, error) {
	var out []byte
	for {
		var mark [4]byte
		if _, err := io.ReadFull(c.in, mark[:]); err != nil {
			return nil, err
		}
		m := binary.BigEndian.Uint32(mark[:])
		size := int(m &^ (1 << 31))
		if len(out)+size > maxReply {
			return nil, fmt.Errorf("%w: it is longer than %d bytes", errReply, maxReply)
		}
		part := make([]byte, size)
		if _, err := io.ReadFull(c.in, part); err != nil {
			return nil, err
		}
		if out = append(out, part...); m>>31 == 1 {
			return out, nil
		}
	}
}

// judge reads the header of a reply.
func (c *client) judge(record []byte) (rpc.Decoder, error) {
	d := rpc.NewDecoder(record)
	xid, kind, denied := d.Uint32(), d.Uint32(), d.Uint32()
	if d.Err() != nil || xid != c.xid || kind != 1 {
		return d, errReply
	}
	if denied != 0 {
		return d, errors.New("the call was denied")
	}
	d.Uint32()
	d.Opaque(400)
	switch accept := d.Uint32(); {
	case d.Err() != nil:
		return d, errReply
	case accept == 1:
		return d, errors.New("it does not know the program")
	case accept == 2:
		return d, errors.New("it does not know version 3")
	case accept != 0:
		return d, fmt.Errorf("the call was not accepted: status %d", accept)
	}
	return d, nil
}

// null makes the call that does nothing.
func (c *client) null(ctx context.Context) error {
	_, err := c.call(ctx, nfs3.Number, nfsNull, nil)
	return err
}

// exports lists the shards.
func (c *client) exports(ctx context.Context) ([]string, error) {
	d, err := c.call(ctx, mount3.Number, mountExport, nil)
	if err != nil {
		return nil, err
	}
	var out []string
	for d.Bool() && len(out) < maxExports {
		out = append(out, string(d.Opaque(1024)))
		for d.Bool() {
			d.Opaque(maxName)
		}
	}
	return out, decoded(d)
}

// mount asks for the handle of a path.
func (c *client) mount(ctx context.Context, path string) (string, error) {
	d, err := c.call(ctx, mount3.Number, mountMnt, rpc.AppendOpaque(nil, path))
	if err != nil {
		return "", err
	}
	if s := d.Uint32(); s != 0 {
		return "", status(s)
	}
	handle := string(d.Opaque(maxHandle))
	return handle, decoded(d)
}

// decoded translates a decoder's error.
func decoded(d rpc.Decoder) error {
	if d.Err() != nil {
		return errReply
	}
	return nil
}

// entry is a name of a directory.
type entry struct {
	name   string
	handle string
	kind   uint32 // 1: a plain file, 2: a directory
	size   uint64
}

// list returns the beginning of a directory.
func (c *client) list(ctx context.Context, dir string) ([]entry, error) {
	args := rpc.AppendUint64(rpc.AppendOpaque(nil, dir), 0)
	args = rpc.AppendUint32(rpc.AppendUint32(rpc.AppendUint64(args, 0), 32<<10), 64<<10)
	d, err := c.nfs(ctx, nfsReadDirPlus, args)
	if err != nil {
		return nil, err
	}
	attributes(&d)
	d.Uint64()
	var out []entry
	for d.Bool() && len(out) < maxEntries {
		d.Uint64()
		e := entry{name: string(d.Opaque(maxName))}
		d.Uint64()
		e.kind, e.size = attributes(&d)
		if d.Bool() {
			e.handle = string(d.Opaque(maxHandle))
		}
		if e.name != "." && e.name != ".." {
			out = append(out, e)
		}
	}
	return out, decoded(d)
}

// attributes takes a post_op_attr, and what is wanted of it.
func attributes(d *rpc.Decoder) (kind uint32, size uint64) {
	if !d.Bool() {
		return 0, 0
	}
	kind = d.Uint32()
	d.Fixed(16) // mode, nlink, uid, gid
	size = d.Uint64()
	d.Fixed(84 - 4 - 16 - 8)
	return kind, size
}

// lookup finds a name.
func (c *client) lookup(ctx context.Context, dir, name string) (string, error) {
	d, err := c.nfs(ctx, nfsLookup, rpc.AppendOpaque(rpc.AppendOpaque(nil, dir), name))
	if err != nil {
		return "", err
	}
	handle := string(d.Opaque(maxHandle))
	return handle, decoded(d)
}

// read reads the beginning of a file and returns how many bytes came.
func (c *client) read(ctx context.Context, file string, count uint32) (int, error) {
	d, err := c.nfs(ctx, nfsRead, rpc.AppendUint32(rpc.AppendUint64(rpc.AppendOpaque(nil, file), 0), count))
	if err != nil {
		return 0, err
	}
	attributes(&d)
	d.Uint32()
	d.Bool()
	data := d.Opaque(int(count))
	return len(data), decoded(d)
}

// nfs makes an NFS call and takes the status off its results.
func (c *client) nfs(ctx context.Context, proc uint32, args []byte) (rpc.Decoder, error) {
	d, err := c.call(ctx, nfs3.Number, proc, args)
	if err != nil {
		return d, err
	}
	if s := d.Uint32(); s != 0 && d.Err() == nil {
		return d, status(s)
	}
	return d, decoded(d)
}

// within returns a context for one step.
func within(ctx context.Context) (context.Context, context.CancelFunc) {
	return context.WithTimeout(ctx, stepTime)
}

// stepTime is how long each step with a master may take.
const stepTime = 3 * time.Second
