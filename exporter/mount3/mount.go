// Package mount3 answers the MOUNT protocol (RFC 1813 appendix I): how a client turns the name of an export, or of a
// directory inside one, into its first handle, and how people ask what is exported and mounted. Versions 1 and 2 are
// answered too, for tools that ask nothing newer; but they mount nothing, since their handles are NFS version 2's.
//
// A mount never waits for anything but the first generation of its volume. Who has mounted what is told to a [Mounts]
// and asked of it; nothing here depends on the answer.
package mount3

import (
	"context"
	"net/netip"
	"path"
	"strings"
	"time"

	"github.com/rs/zerolog"

	"github.com/nfs-fleet/nfs-fleet/exporter/export"
	"github.com/nfs-fleet/nfs-fleet/exporter/rpc"
	"github.com/nfs-fleet/nfs-fleet/exporter/volume"
	"github.com/nfs-fleet/nfs-fleet/replicator/tree"
)

// Number, LowVersion and Version name the protocol to RPC.
const (
	Number     = 100005
	LowVersion = 1
	Version    = 3
)

const (
	procNull = iota
	procMnt
	procDump
	procUmnt
	procUmntAll
	procExport
)

// mountstat3, and where they agree the errno of version 1.
const (
	statusOK          = 0
	statusNoEnt       = 2
	statusAcces       = 13
	statusNotDir      = 20
	statusInval       = 22
	statusNameTooLong = 63
	statusServerFault = 10006
)

const (
	maxPath = 1024 // MNTPATHLEN
	maxName = 255  // MNTNAMLEN
)

// Mount is a client's mount of an export or of a directory in it.
type Mount struct {
	Shard  string
	Path   string // what the client asked for, cleaned: "/www/sub"
	Client netip.Addr
	Since  time.Time
}

// Mounts keeps account of who has mounted what. It is asked from many goroutines and must not block.
type Mounts interface {
	// Mounted says that a client has mounted a path of a shard, Unmounted that it no longer does; a shard of "" stands
	// for all that the client has mounted. machine is what the client calls itself, any bytes; "" when it does not say.
	Mounted(shard, path string, client netip.Addr, machine string)
	Unmounted(shard, path string, client netip.Addr)
	// List returns the mounts of the whole fleet.
	List() []Mount
}

// Config is what a Program needs.
type Config struct {
	Exports func() *export.Table // what is exported now
	Mounts  Mounts               // nil: nothing is kept
	Log     zerolog.Logger
	// Patience is how long a mount waits for a volume's first generation; 0: 2 s.
	Patience time.Duration
}

// Program answers MOUNT. It is an rpc.Program.
type Program struct {
	cfg     Config
	refused zerolog.Logger // anybody can be refused, as often as he likes
}

// refusals is how many refused mounts are logged a second, at the most.
const refusals = 5

// New returns a Program.
func New(c Config) *Program {
	if c.Patience == 0 {
		c.Patience = 2 * time.Second
	}
	return &Program{c, c.Log.Sample(&zerolog.BurstSampler{Burst: refusals, Period: time.Second})}
}

// Number implements rpc.Program.
func (p *Program) Number() uint32 { return Number }

// Versions implements rpc.Program.
func (p *Program) Versions() (low, high uint32) { return LowVersion, Version }

// Append implements rpc.Program.
func (p *Program) Append(ctx context.Context, c *rpc.Call, dst []byte) ([]byte, error) {
	switch c.Proc {
	case procNull:
		return dst, nil
	case procMnt:
		return p.mnt(ctx, c, dst)
	case procDump:
		return p.dump(dst), nil
	case procUmnt:
		return p.umnt(c, dst)
	case procUmntAll:
		p.forget("", "", c)
		return dst, nil
	case procExport:
		return p.export(dst), nil
	}
	return nil, rpc.ErrProcUnavail
}

// mnt answers MNT with the handle of a directory.
func (p *Program) mnt(ctx context.Context, c *rpc.Call, dst []byte) ([]byte, error) {
	dir, err := decodePath(c.Args)
	if err != nil {
		return nil, err
	}
	node, status, err := p.find(ctx, c, dir)
	if err != nil {
		return nil, err
	}
	log := p.cfg.Log.Debug()
	if status != statusOK {
		log = p.refused.Info()
	}
	log.Stringer("client", c.Conn.Remote().Addr()).Str("path", clip(dir, maxPath)).Uint32("status", status).Msg("mount")
	dst = rpc.AppendUint32(dst, status)
	if status != statusOK {
		return dst, nil
	}
	if p.cfg.Mounts != nil {
		p.cfg.Mounts.Mounted(shardOf(dir), dir, c.Conn.Remote().Addr(), string(c.Cred.Machine))
	}
	dst = node.AppendHandle(rpc.AppendUint32(dst, volume.HandleSize))
	return append(dst, 0, 0, 0, 1, 0, 0, 0, byte(rpc.AuthSys)), nil // one flavor
}

// decodePath takes a dirpath and cleans it.
func decodePath(args []byte) (string, error) {
	d := rpc.NewDecoder(args)
	raw := d.Opaque(len(args))
	if err := d.Err(); err != nil {
		return "", err
	}
	if len(raw) > 0 && raw[0] == '/' {
		return path.Clean(string(raw)), nil
	}
	return string(raw), nil
}

// shardOf returns the first component of a clean path.
func shardOf(dir string) string {
	shard, _, _ := strings.Cut(strings.TrimPrefix(dir, "/"), "/")
	return shard
}

// find returns the directory that a path names.
func (p *Program) find(ctx context.Context, c *rpc.Call, dir string) (n volume.Node, status uint32, err error) {
	switch {
	case c.Vers != Version:
		return n, statusAcces, nil
	case len(dir) > maxPath:
		return n, statusNameTooLong, nil
	case !strings.HasPrefix(dir, "/") || strings.IndexByte(dir, 0) >= 0:
		return n, statusInval, nil
	}
	shard := shardOf(dir)
	e := p.cfg.Exports().ByName(shard)
	if e == nil {
		return n, statusNoEnt, nil
	}
	if !e.Rules.Admits(c.Conn.Remote()) {
		return n, statusAcces, nil
	}
	state := e.Volume.State()
	if state == nil {
		if !c.Blocking {
			return n, 0, rpc.ErrDefer
		}
		ctx, cancel := context.WithTimeout(ctx, p.cfg.Patience)
		defer cancel()
		if state, err = e.Volume.Await(ctx, 1); err != nil {
			return n, statusServerFault, nil
		}
	}
	n, status = walk(state, strings.TrimPrefix(dir[1:], shard))
	return n, status, nil
}

// walk follows the components of a path from the root. Symbolic links are not followed.
func walk(state *volume.State, rest string) (n volume.Node, status uint32) {
	n = state.Root()
	for name := range strings.SplitSeq(rest, "/") {
		if name == "" {
			continue
		}
		if len(name) > maxName {
			return n, statusNameTooLong
		}
		if n.Type() != tree.Directory {
			return n, statusNotDir
		}
		var ok bool
		if n, ok = state.Lookup(n, []byte(name)); !ok {
			return n, statusNoEnt
		}
	}
	if n.Type() != tree.Directory {
		return n, statusNotDir
	}
	return n, statusOK
}

// dump answers DUMP: the list of mounts, as far as it fits.
func (p *Program) dump(dst []byte) []byte {
	if p.cfg.Mounts != nil {
		for _, m := range p.cfg.Mounts.List() {
			if len(dst) > maxList {
				break
			}
			dst = rpc.AppendBool(dst, true)
			dst = rpc.AppendOpaque(dst, clip(m.Client.String(), maxName))
			dst = rpc.AppendOpaque(dst, clip(m.Path, maxPath))
		}
	}
	return rpc.AppendBool(dst, false)
}

// maxList is where a list ends early, in bytes: clients allot the reply.
const maxList = 1 << 20

func clip(s string, n int) string { return s[:min(len(s), n)] }

func (p *Program) umnt(c *rpc.Call, dst []byte) ([]byte, error) {
	dir, err := decodePath(c.Args)
	if err != nil {
		return nil, err
	}
	if shard := shardOf(dir); shard != "" {
		p.forget(shard, dir, c)
	}
	return dst, nil
}

func (p *Program) forget(shard, dir string, c *rpc.Call) {
	if p.cfg.Mounts != nil {
		p.cfg.Mounts.Unmounted(shard, dir, c.Conn.Remote().Addr())
	}
}

// export answers EXPORT: every export with the networks it is for; none stands for everyone.
func (p *Program) export(dst []byte) []byte {
	for _, e := range p.cfg.Exports().All() {
		if len(dst) > maxList {
			break
		}
		dst = rpc.AppendBool(dst, true)
		dst = rpc.AppendOpaque(dst, clip("/"+e.Name, maxPath))
		for _, n := range e.Rules.Networks {
			dst = rpc.AppendBool(dst, true)
			dst = rpc.AppendOpaque(dst, n.String())
		}
		dst = rpc.AppendBool(dst, false)
	}
	return rpc.AppendBool(dst, false)
}
