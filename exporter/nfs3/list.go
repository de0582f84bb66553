package nfs3

import (
	"context"

	"github.com/nfs-fleet/nfs-fleet/exporter/export"
	"github.com/nfs-fleet/nfs-fleet/exporter/rpc"
	"github.com/nfs-fleet/nfs-fleet/exporter/volume"
)

// Cookies: 1 and 2 are "." and "..", an entry's is its slot + 2.
const (
	cookieSelf   = 1
	cookieParent = 2
)

// Sizes of the parts of a listing, in bytes of XDR.
const (
	listHeader  = 4 + postAttrSize + 8              // status, attributes, verifier
	listTrailer = 4 + 4                             // no more entries, eof
	entryFixed  = 4 + 8 + 4 + 8                     // an entry follows, fileid, the name's length, cookie
	entryNoPlus = 4 + 4                             // no attributes and no handle
	entryPlus   = postAttrSize + 4 + 4 + handleSize // both
)

// listing is the arguments of READDIR or READDIRPLUS and the result under way.
type listing struct {
	fh     []byte
	cookie uint64
	// dirCount bounds fileids, names and cookies, maxCount the whole resok; in bytes.
	dirCount, maxCount uint64
	plus               bool
	reveal             bool // the caller may search the directory: handles and attributes are told

	dst           []byte
	names, filled uint64 // bytes so far, as dirCount and maxCount count them
	entries       int
}

// decodeListing decodes READDIR3args or READDIRPLUS3args.
func decodeListing(args []byte, plus bool) (l listing, err error) {
	d := rpc.NewDecoder(args)
	l.fh = d.Opaque(maxHandle)
	l.cookie = d.Uint64()
	d.Fixed(8) // the verifier: every one is good
	l.plus = plus
	l.dirCount = uint64(d.Uint32())
	l.maxCount = l.dirCount
	if plus {
		l.maxCount = uint64(d.Uint32())
	} else {
		l.dirCount = 0
	}
	if l.dirCount == 0 { // a hint that was not given
		l.dirCount = maxTransfer
	}
	l.maxCount = min(l.maxCount, maxTransfer)
	return l, d.Err()
}

// readdir: sections 3.3.16 and 3.3.17. Needs read permission; handles and attributes need search permission besides, as
// stat needs it locally.
func (p *Program) readdir(ctx context.Context, c *rpc.Call, dst []byte) ([]byte, error) {
	l, err := decodeListing(c.Args, c.Proc == procReaddirplus)
	if err != nil {
		return nil, err
	}
	dir, s, err := p.directory(ctx, c, l.fh)
	if err != nil {
		return nil, err
	}
	var may uint32
	if s == statusOK {
		if may = dir.permits(c); may&export.Read == 0 {
			s = statusAcces
		}
	}
	if s != statusOK {
		return appendFailure(dst, s, &dir), nil
	}
	l.reveal = may&export.Exec != 0
	at := len(dst)
	dst = c.Grow(dst, int(l.maxCount)+listHeader+listTrailer)
	l.dst = appendFailure(dst, statusOK, &dir)
	l.dst = append(l.dst, 0, 0, 0, 0, 0, 0, 0, 0)
	l.filled = listHeader - 4 + listTrailer // resok begins after the status
	eof := l.fill(&dir)
	if l.filled > l.maxCount || l.entries == 0 && !eof {
		return appendFailure(dst[:at], statusTooSmall, &dir), nil
	}
	return rpc.AppendBool(append(l.dst, 0, 0, 0, 0), eof), nil
}

// fill appends the entries after the cookie for which there is room. It reports whether the last one is among them.
func (l *listing) fill(dir *object) (eof bool) {
	if l.cookie < cookieSelf && !l.entry(cookieSelf, dot[:1], dir.node) {
		return false
	}
	if l.cookie < cookieParent {
		parent, ok := dir.state.Lookup(dir.node, dot[:2])
		if !ok {
			parent = dir.node // it has left the tree
		}
		if !l.entry(cookieParent, dot[:2], parent) {
			return false
		}
	}
	after := uint64(0)
	if l.cookie > cookieParent {
		after = l.cookie - cookieParent
	}
	for cursor := dir.state.List(dir.node, after); ; {
		slot, name, n, ok := cursor.Next()
		if !ok {
			return true
		}
		if !l.entry(slot+cookieParent, name, n) {
			return false
		}
	}
}

var dot = []byte("..")

// entry appends an entry if there is room for it. However small dirCount is, one is appended when maxCount allows: a
// listing must get on.
func (l *listing) entry(cookie uint64, name []byte, n volume.Node) bool {
	padded := uint64(len(name) + -len(name)&3)
	names, size := entryFixed-4+padded, entryFixed+padded
	if l.plus {
		if l.reveal {
			size += entryPlus
		} else {
			size += entryNoPlus
		}
	}
	if l.filled+size > l.maxCount || l.plus && l.entries > 0 && l.names+names > l.dirCount {
		return false
	}
	l.filled += size
	l.names += names
	l.entries++
	l.dst = append(l.dst, 0, 0, 0, 1)
	l.dst = rpc.AppendUint64(l.dst, n.Ino())
	l.dst = rpc.AppendOpaque(l.dst, name)
	l.dst = rpc.AppendUint64(l.dst, cookie)
	if !l.plus {
		return true
	}
	if !l.reveal {
		l.dst = append(l.dst, 0, 0, 0, 0, 0, 0, 0, 0)
		return true
	}
	l.dst = append(append(l.dst, 0, 0, 0, 1), n.Attr()...)
	l.dst = append(l.dst, 0, 0, 0, 1)
	l.dst = n.AppendHandle(rpc.AppendUint32(l.dst, handleSize))
	return true
}
