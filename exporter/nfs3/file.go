package nfs3

import (
	"context"
	"errors"

	"github.com/nfs-fleet/nfs-fleet/exporter/export"
	"github.com/nfs-fleet/nfs-fleet/exporter/rpc"
	"github.com/nfs-fleet/nfs-fleet/exporter/volume"
	"github.com/nfs-fleet/nfs-fleet/replicator/tree"
)

const (
	typeRegular   = tree.Regular
	typeDirectory = tree.Directory
	typeSymlink   = tree.Symlink
)

// getattr: RFC 1813 section 3.3.1. Needs no permission.
func (p *Program) getattr(ctx context.Context, c *rpc.Call, dst []byte) ([]byte, error) {
	d := rpc.NewDecoder(c.Args)
	fh := d.Opaque(maxHandle)
	if err := d.Err(); err != nil {
		return nil, err
	}
	o, s, err := p.resolve(ctx, c, fh)
	if err != nil {
		return nil, err
	}
	dst = rpc.AppendUint32(dst, uint32(s))
	if s != statusOK {
		return dst, nil
	}
	return append(dst, o.node.Attr()...), nil
}

// lookup: section 3.3.3. Needs search permission.
func (p *Program) lookup(ctx context.Context, c *rpc.Call, dst []byte) ([]byte, error) {
	d := rpc.NewDecoder(c.Args)
	fh := d.Opaque(maxHandle)
	name := d.Opaque(len(c.Args))
	if err := d.Err(); err != nil {
		return nil, err
	}
	dir, s, err := p.directory(ctx, c, fh)
	if err != nil {
		return nil, err
	}
	if s == statusOK {
		s = dir.checkName(c, name)
	}
	if s != statusOK {
		return appendFailure(dst, s, &dir), nil
	}
	n, ok := dir.state.Lookup(dir.node, name)
	if !ok {
		return appendFailure(dst, statusNoEnt, &dir), nil
	}
	dst = append(dst, 0, 0, 0, 0)
	dst = n.AppendHandle(rpc.AppendUint32(dst, handleSize))
	dst = append(append(dst, 0, 0, 0, 1), n.Attr()...)
	return dir.appendPostAttr(dst), nil
}

// checkName says whether the caller may look name up in a directory, and whether it is one (section 3.2).
func (o *object) checkName(c *rpc.Call, name []byte) status {
	switch {
	case o.permits(c)&export.Exec == 0, len(name) == 0:
		return statusAcces
	case len(name) > maxName:
		return statusNameTooLong
	}
	return statusOK
}

// access: section 3.3.4. What would change something is never granted; DELETE, as RFC 1813 has it, is a matter of the
// directory.
func (p *Program) access(ctx context.Context, c *rpc.Call, dst []byte) ([]byte, error) {
	d := rpc.NewDecoder(c.Args)
	fh := d.Opaque(maxHandle)
	asked := d.Uint32()
	if err := d.Err(); err != nil {
		return nil, err
	}
	o, s, err := p.resolve(ctx, c, fh)
	if err != nil {
		return nil, err
	}
	dst = appendFailure(dst, s, &o)
	if s != statusOK {
		return dst, nil
	}
	may := o.permits(c)
	var granted uint32
	if may&export.Read != 0 {
		granted |= accessRead
	}
	if may&export.Exec != 0 {
		if o.node.Type() == typeDirectory {
			granted |= accessLookup
		} else {
			granted |= accessExecute
		}
	}
	return rpc.AppendUint32(dst, granted&asked), nil
}

// readlink: section 3.3.5. Needs no permission, as on a local file system.
func (p *Program) readlink(ctx context.Context, c *rpc.Call, dst []byte) ([]byte, error) {
	d := rpc.NewDecoder(c.Args)
	fh := d.Opaque(maxHandle)
	if err := d.Err(); err != nil {
		return nil, err
	}
	o, s, err := p.resolve(ctx, c, fh)
	if err != nil {
		return nil, err
	}
	if s == statusOK && o.node.Type() != typeSymlink {
		s = statusInval
	}
	dst = appendFailure(dst, s, &o)
	if s != statusOK {
		return dst, nil
	}
	target := o.node.Target()
	return rpc.AppendOpaque(c.Grow(dst, len(target)+8), target), nil
}

// readHeader is what comes before the data in the result of a READ: status, attributes, count, eof, length.
const readHeader = 4 + postAttrSize + 4 + 4 + 4

// read: section 3.3.6.
func (p *Program) read(ctx context.Context, c *rpc.Call, dst []byte) ([]byte, error) {
	d := rpc.NewDecoder(c.Args)
	fh := d.Opaque(maxHandle)
	offset, count := d.Uint64(), d.Uint32()
	if err := d.Err(); err != nil {
		return nil, err
	}
	o, s, err := p.resolve(ctx, c, fh)
	if err != nil {
		return nil, err
	}
	if s == statusOK {
		s = o.checkRead(c)
	}
	if s != statusOK {
		return appendFailure(dst, s, &o), nil
	}
	size := o.node.Size()
	want := 0
	if offset < size {
		want = int(min(uint64(count), size-offset, maxTransfer))
	}
	if want >= lendLeast && c.CanLend() {
		if out, ok := p.lend(c, &o, dst, offset, want); ok {
			return out, nil
		}
	}
	at := len(dst)
	dst = c.Grow(dst, readHeader+want+4)
	data := dst[at+readHeader : at+readHeader+want]
	n, eof, err := p.fetch(ctx, c, &o, data, offset)
	switch {
	case err == rpc.ErrDefer: //nolint:errorlint // made right here
		return nil, err
	case errors.Is(err, errHealing):
		return appendFailure(dst, statusJukebox, &o), nil
	case err != nil:
		p.failed.note(o.export.Name, o.node.Ino(), err)
		return appendFailure(dst, statusIO, &o), nil
	}
	dst = o.appendReadHeader(dst, n, eof)
	dst = dst[:len(dst)+n]
	return append(dst, padding[:-n&3]...), nil
}

var padding [4]byte

// appendReadHeader appends what comes before the n bytes of data.
func (o *object) appendReadHeader(dst []byte, n int, eof bool) []byte {
	dst = appendFailure(dst, statusOK, o)
	dst = rpc.AppendUint32(dst, uint32(n))
	dst = rpc.AppendBool(dst, eof)
	return rpc.AppendUint32(dst, uint32(n))
}

// fetch reads a file's bytes: at once, when they are in memory, else only in a call that may block, and then with a
// bounded number of others.
func (p *Program) fetch(ctx context.Context, c *rpc.Call, o *object, data []byte, offset uint64) (n int, eof bool, err error) {
	if len(data) == 0 {
		return 0, offset >= o.node.Size(), nil
	}
	v := o.export.Volume
	if !c.Blocking {
		n, eof, ok := v.ReadCached(o.node, data, offset)
		if !ok {
			c.Cost = readHeader + len(data)
			return 0, false, rpc.ErrDefer
		}
		return n, eof, nil
	}
	for range maxHeals {
		n, eof, err = p.fromDisk(ctx, v, o.node, data, offset)
		if err == nil || ctx.Err() != nil {
			return n, eof, err
		}
		if err := p.heal(ctx, v, err); err != nil {
			return 0, false, err
		}
	}
	return p.fromDisk(ctx, v, o.node, data, offset)
}

// fromDisk reads with a bounded number of others.
func (p *Program) fromDisk(ctx context.Context, v *volume.Volume, n volume.Node, data []byte, offset uint64) (int, bool, error) {
	select {
	case p.disk <- struct{}{}:
	case <-ctx.Done():
		return 0, false, ctx.Err()
	}
	defer func() { <-p.disk }()
	return v.Read(ctx, n, data, offset)
}

// maxHeals is how many objects one READ has brought back: a megabyte rarely is in more than two.
const maxHeals = 8

// errHealing says that what was lost is still being brought back.
var errHealing = errors.New("still being brought back")

// heal brings back the object for want of which a read has failed with err, without keeping others from the disk. When
// that takes longer than a client is to wait for one call, it goes on, and the client is told to come again: its reader
// is held up, and sees no error.
func (p *Program) heal(ctx context.Context, v *volume.Volume, err error) error {
	patience, cancel := context.WithTimeoutCause(ctx, p.cfg.Patience, errHealing)
	defer cancel()
	return v.Heal(patience, err)
}

// checkRead says whether the caller may read the object's bytes. The owner may whatever the mode, for on a client open and
// read are one act while here they are two; who may execute may read, for executing is reading to a server.
func (o *object) checkRead(c *rpc.Call) status {
	switch o.node.Type() {
	case typeRegular:
	case typeDirectory:
		return statusIsDir
	default:
		return statusInval
	}
	id := o.identity(c)
	if id.UID == o.node.UID() || id.Permits(o.node.Mode(), o.node.UID(), o.node.GID(), false)&(export.Read|export.Exec) != 0 {
		return statusOK
	}
	return statusAcces
}
