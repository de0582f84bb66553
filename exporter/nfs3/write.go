package nfs3

import (
	"context"

	"github.com/nfs-fleet/nfs-fleet/exporter/rpc"
)

// Values of the unions in the write side's arguments.
const (
	createUnchecked = 0
	createGuarded   = 1
	createExclusive = 2

	setToClient = 2 // time_how SET_TO_CLIENT_TIME, the last
	stableMax   = 2 // stable_how FILE_SYNC

	mknodBlock  = 3
	mknodChar   = 4
	mknodSocket = 6
	mknodFIFO   = 7
	mknodMax    = 7
)

// refusal is the objects that a call of the write side would have changed, or, of LINK, told the attributes of.
type refusal struct {
	link   []byte // the file of a LINK: its result begins with a post_op_attr
	isLink bool
	change [2][]byte // a wcc_data each
	n      int
}

func (r *refusal) changes(fh []byte) {
	r.change[r.n] = fh
	r.n++
}

// refuse answers the write side: sections 3.3.2, 3.3.7 to 3.3.15 and 3.3.21. A handle that is no good says so first; all
// else is NFS3ERR_ROFS. Nothing changed, so that the attributes before and after are the same.
func (p *Program) refuse(ctx context.Context, c *rpc.Call, dst []byte) ([]byte, error) {
	r, err := decodeRefusal(c.Proc, c.Args)
	if err != nil {
		return nil, err
	}
	s := statusROFS
	see := func(fh []byte) (object, error) {
		o, bad, err := p.resolve(ctx, c, fh)
		if bad != statusOK && s == statusROFS {
			s = bad
		}
		return o, err
	}
	at := len(dst)
	dst = append(dst, 0, 0, 0, 0)
	if r.isLink {
		o, err := see(r.link)
		if err != nil {
			return nil, err
		}
		dst = o.appendPostAttr(dst)
	}
	for _, fh := range r.change[:r.n] {
		o, err := see(fh)
		if err != nil {
			return nil, err
		}
		dst = o.appendWcc(dst)
	}
	rpc.AppendUint32(dst[:at], uint32(s))
	return dst, nil
}

// appendWcc appends a wcc_data of an object that did not change.
func (o *object) appendWcc(dst []byte) []byte {
	if !o.found {
		return append(dst, 0, 0, 0, 0, 0, 0, 0, 0)
	}
	// wcc_attr is size, mtime and ctime: where they are in a fattr3
	attr := o.node.Attr()
	dst = append(append(dst, 0, 0, 0, 1), attr[20:28]...)
	dst = append(dst, attr[68:84]...)
	return o.appendPostAttr(dst)
}

// decodeRefusal decodes the arguments of a procedure of the write side, all of them: garbage is told from what could have
// been meant.
func decodeRefusal(proc uint32, args []byte) (r refusal, err error) {
	d := rpc.NewDecoder(args)
	rest := len(args) // no limit on names but the record's: too long is not garbage
	first := d.Opaque(maxHandle)
	switch proc {
	case procSetattr:
		decodeSattr(&d)
		if d.Bool() { // guard
			d.Uint64()
		}
	case procWrite:
		d.Uint64()
		d.Uint32()
		if d.Uint32() > stableMax {
			d.Fail()
		}
		d.Opaque(rest)
	case procCreate:
		d.Opaque(rest)
		decodeCreateHow(&d)
	case procMkdir:
		d.Opaque(rest)
		decodeSattr(&d)
	case procSymlink:
		d.Opaque(rest)
		decodeSattr(&d)
		d.Opaque(rest)
	case procMknod:
		d.Opaque(rest)
		decodeMknod(&d)
	case procRemove, procRmdir:
		d.Opaque(rest)
	case procRename:
		d.Opaque(rest)
		r.changes(first)
		first = d.Opaque(maxHandle)
		d.Opaque(rest)
	case procLink:
		r.link, r.isLink = first, true
		first = d.Opaque(maxHandle)
		d.Opaque(rest)
	case procCommit:
		d.Uint64()
		d.Uint32()
	}
	r.changes(first)
	return r, d.Err()
}

// decodeSattr takes a sattr3 (section 2.5.3).
func decodeSattr(d *rpc.Decoder) {
	for range 3 { // mode, uid, gid
		if d.Bool() {
			d.Uint32()
		}
	}
	if d.Bool() { // size
		d.Uint64()
	}
	for range 2 { // atime, mtime
		switch how := d.Uint32(); {
		case how == setToClient:
			d.Uint64()
		case how > setToClient:
			d.Fail()
		}
	}
}

func decodeCreateHow(d *rpc.Decoder) {
	switch d.Uint32() {
	case createUnchecked, createGuarded:
		decodeSattr(d)
	case createExclusive:
		d.Uint64()
	default:
		d.Fail()
	}
}

func decodeMknod(d *rpc.Decoder) {
	switch kind := d.Uint32(); kind {
	case mknodBlock, mknodChar:
		decodeSattr(d)
		d.Uint64()
	case mknodSocket, mknodFIFO:
		decodeSattr(d)
	default:
		if kind > mknodMax {
			d.Fail()
		}
	}
}
