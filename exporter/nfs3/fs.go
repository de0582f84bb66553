package nfs3

import (
	"context"
	"math"

	"github.com/nfs-fleet/nfs-fleet/exporter/rpc"
	"github.com/nfs-fleet/nfs-fleet/exporter/volume"
)

const handleSize = volume.HandleSize

// properties of FSINFO: FSF3_LINK, FSF3_SYMLINK, FSF3_HOMOGENEOUS. Not FSF3_CANSETTIME: nothing can be set.
const properties = 0x01 | 0x02 | 0x08

// head decodes the one handle of FSSTAT, FSINFO and PATHCONF and appends the part that their results share. ok is false
// when the result is complete already.
func (p *Program) head(ctx context.Context, c *rpc.Call, dst []byte) (o object, out []byte, ok bool, err error) {
	d := rpc.NewDecoder(c.Args)
	fh := d.Opaque(maxHandle)
	if err := d.Err(); err != nil {
		return o, nil, false, err
	}
	o, s, err := p.resolve(ctx, c, fh)
	if err != nil {
		return o, nil, false, err
	}
	return o, appendFailure(dst, s, &o), s == statusOK, nil
}

// fsstat: section 3.3.18. A read-only tree is full: nothing is free.
func (p *Program) fsstat(ctx context.Context, c *rpc.Call, dst []byte) ([]byte, error) {
	o, dst, ok, err := p.head(ctx, c, dst)
	if err != nil || !ok {
		return dst, err
	}
	dst = rpc.AppendUint64(dst, o.state.Bytes()) // tbytes
	dst = rpc.AppendUint64(dst, 0)               // fbytes
	dst = rpc.AppendUint64(dst, 0)               // abytes
	dst = rpc.AppendUint64(dst, o.state.Files()) // tfiles
	dst = rpc.AppendUint64(dst, 0)               // ffiles
	dst = rpc.AppendUint64(dst, 0)               // afiles
	return rpc.AppendUint32(dst, 0), nil         // invarsec: a publish may come any time
}

// fsinfo: section 3.3.19.
func (p *Program) fsinfo(ctx context.Context, c *rpc.Call, dst []byte) ([]byte, error) {
	_, dst, ok, err := p.head(ctx, c, dst)
	if err != nil || !ok {
		return dst, err
	}
	for _, v := range [...]uint32{
		maxTransfer, maxTransfer, 4096, // rtmax, rtpref, rtmult
		writeTransfer, writeTransfer, 4096, // wtmax, wtpref, wtmult
		listTransfer, // dtpref
	} {
		dst = rpc.AppendUint32(dst, v)
	}
	dst = rpc.AppendUint64(dst, math.MaxInt64) // maxfilesize
	dst = rpc.AppendUint32(dst, 0)             // time_delta: 1 ns
	dst = rpc.AppendUint32(dst, 1)
	return rpc.AppendUint32(dst, properties), nil
}

// pathconf: section 3.3.20.
func (p *Program) pathconf(ctx context.Context, c *rpc.Call, dst []byte) ([]byte, error) {
	_, dst, ok, err := p.head(ctx, c, dst)
	if err != nil || !ok {
		return dst, err
	}
	dst = rpc.AppendUint32(dst, math.MaxInt32) // linkmax
	dst = rpc.AppendUint32(dst, maxName)
	dst = rpc.AppendBool(dst, true)       // no_trunc
	dst = rpc.AppendBool(dst, true)       // chown_restricted
	dst = rpc.AppendBool(dst, false)      // case_insensitive
	return rpc.AppendBool(dst, true), nil // case_preserving
}
