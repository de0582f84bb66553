package nfs3

import (
	"context"
	"errors"
	"time"

	"github.com/rs/zerolog"

	"github.com/nfs-fleet/nfs-fleet/exporter/export"
	"github.com/nfs-fleet/nfs-fleet/exporter/rpc"
	"github.com/nfs-fleet/nfs-fleet/exporter/volume"
)

// Config is what a Program needs.
type Config struct {
	// Exports returns what is exported now; it is asked on every call.
	Exports func() *export.Table
	// Elsewhere reports whether another master is in step: a client that cannot be answered here is then sent there by
	// closing its connection. nil: there is none, and the client is told to come again (NFS3ERR_JUKEBOX).
	Elsewhere func() bool
	Log       zerolog.Logger
	// Patience is how long a call waits for the generation that its handle is from, or for lost content to be brought
	// back; 0: 2 s.
	Patience time.Duration
	// Readers is how many reads wait for the disk at once; 0: 64.
	Readers int
	// Waits is called when a READ that was not deferred begins to wait for the disk all the same, and what it returns when that
	// has ended. It may be nil.
	Waits func() (ended func())
}

// Program answers NFSv3. It is an rpc.Program.
type Program struct {
	cfg    Config
	disk   chan struct{} // a token a read that waits for the disk
	failed failureLog
}

// New returns a Program.
func New(c Config) *Program {
	if c.Patience == 0 {
		c.Patience = 2 * time.Second
	}
	if c.Readers == 0 {
		c.Readers = 64
	}
	return &Program{cfg: c, disk: make(chan struct{}, c.Readers), failed: failureLog{log: c.Log}}
}

// Number implements rpc.Program.
func (p *Program) Number() uint32 { return Number }

// Versions implements rpc.Program.
func (p *Program) Versions() (low, high uint32) { return Version, Version }

// Append implements rpc.Program.
func (p *Program) Append(ctx context.Context, c *rpc.Call, dst []byte) ([]byte, error) {
	switch c.Proc {
	case procNull:
		return dst, nil
	case procGetattr:
		return p.getattr(ctx, c, dst)
	case procLookup:
		return p.lookup(ctx, c, dst)
	case procAccess:
		return p.access(ctx, c, dst)
	case procReadlink:
		return p.readlink(ctx, c, dst)
	case procRead:
		return p.read(ctx, c, dst)
	case procReaddir, procReaddirplus:
		return p.readdir(ctx, c, dst)
	case procFsstat:
		return p.fsstat(ctx, c, dst)
	case procFsinfo:
		return p.fsinfo(ctx, c, dst)
	case procPathconf:
		return p.pathconf(ctx, c, dst)
	}
	if c.Proc < procedures {
		return p.refuse(ctx, c, dst)
	}
	return nil, rpc.ErrProcUnavail
}

// object is what a handle in a call stands for, and the one who asks for it.
type object struct {
	export *export.Export
	state  *volume.State
	node   volume.Node
	found  bool // node is valid: its attributes may be told, whatever the status
}

// identity is whom the call acts for.
func (o *object) identity(c *rpc.Call) export.Identity { return o.export.Rules.Identify(&c.Cred) }

// permits is what the caller may do to the object: export.Read, Write, Exec.
func (o *object) permits(c *rpc.Call) uint32 {
	id := o.identity(c)
	return id.Permits(o.node.Mode(), o.node.UID(), o.node.GID(), o.node.Type() == typeDirectory)
}

// resolve finds what a handle stands for, if the caller's address may see it. A status other than OK is the answer to the
// call; an error ends it: rpc.ErrDefer, or ErrClose when another master can do better.
func (p *Program) resolve(ctx context.Context, c *rpc.Call, fh []byte) (o object, s status, err error) {
	fsid, born, ok := volume.ParseHandle(fh)
	if !ok {
		return o, statusBadHandle, nil
	}
	if o.export = p.cfg.Exports().ByFSID(fsid); o.export == nil {
		return o, statusBadHandle, nil
	}
	if !o.export.Rules.Admits(c.Conn.Remote()) {
		return o, statusAcces, nil
	}
	o.state = o.export.Volume.State()
	if o.state == nil || born > o.state.Generation() {
		if s, err = p.await(ctx, c, &o, born); s != statusOK || err != nil {
			return o, s, err
		}
	}
	o.node, err = o.state.Resolve(fh)
	if err == nil {
		o.found = true
		return o, statusOK, nil
	}
	return o, handleStatus(err), nil
}

// handleStatus is the table from the volume's errors to nfsstat3.
func handleStatus(err error) status {
	switch {
	case errors.Is(err, volume.ErrStale):
		return statusStale
	case errors.Is(err, volume.ErrBadHandle):
		return statusBadHandle
	case errors.Is(err, volume.ErrFuture):
		return statusJukebox
	}
	return statusServerFault
}

// await waits for the volume to serve the generation that a handle is from, and sets the object's state.
func (p *Program) await(ctx context.Context, c *rpc.Call, o *object, born uint64) (status, error) {
	if !c.Blocking {
		return 0, rpc.ErrDefer
	}
	ctx, cancel := context.WithTimeout(ctx, p.cfg.Patience)
	defer cancel()
	state, err := o.export.Volume.Await(ctx, max(born, 1))
	if err == nil {
		o.state = state
		return statusOK, nil
	}
	if p.cfg.Elsewhere != nil && p.cfg.Elsewhere() {
		return 0, rpc.ErrClose
	}
	return statusJukebox, nil
}

// directory is resolve for a handle that must be a directory's.
func (p *Program) directory(ctx context.Context, c *rpc.Call, fh []byte) (object, status, error) {
	o, s, err := p.resolve(ctx, c, fh)
	if s == statusOK && err == nil && o.node.Type() != typeDirectory {
		s = statusNotDir
	}
	return o, s, err
}

// appendFailure appends a status and a post_op_attr: the failure arm of most results.
func appendFailure(dst []byte, s status, o *object) []byte {
	return o.appendPostAttr(rpc.AppendUint32(dst, uint32(s)))
}

// appendPostAttr appends a post_op_attr.
func (o *object) appendPostAttr(dst []byte) []byte {
	if !o.found {
		return append(dst, 0, 0, 0, 0)
	}
	return append(append(dst, 0, 0, 0, 1), o.node.Attr()...)
}
