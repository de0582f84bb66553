package nfs3

import (
	"context"
	"encoding/binary"
	"errors"
	"strings"
	"testing"
	"time"

	"github.com/rs/zerolog"

	"github.com/nfs-fleet/nfs-fleet/exporter/export"
	"github.com/nfs-fleet/nfs-fleet/exporter/export/exporttest"
	"github.com/nfs-fleet/nfs-fleet/exporter/rpc"
	"github.com/nfs-fleet/nfs-fleet/replicator/tree"
)

const testFSID = 0x1122334455667788

// items is the tree of most tests here.
func items() []exporttest.Item {
	dir := func(path string, mode, uid, gid uint32) exporttest.Item {
		return exporttest.Item{Path: path, Entry: tree.Entry{Type: tree.Directory, Mode: mode, UID: uid, GID: gid}}
	}
	file := func(path string, mode, uid, gid uint32, data string) exporttest.Item {
		return exporttest.Item{Path: path, Entry: tree.Entry{Mode: mode, UID: uid, GID: gid}, Data: []byte(data)}
	}
	return []exporttest.Item{
		file("hello", 0o644, 1000, 100, "hello, world\n"),
		file("empty", 0o444, 0, 0, ""),
		file("big", 0o644, 0, 0, strings.Repeat("0123456789abcdef", 100<<10)),
		file("private", 0o600, 1000, 100, "mine\n"),
		file("program", 0o711, 0, 0, "#!/bin/sh\n"),
		dir("dir", 0o755, 0, 0), file("dir/a", 0o644, 0, 0, "a"), file("dir/bb", 0o644, 0, 0, "bb"), file("dir/ccccc", 0o644, 0, 0, "c"),
		dir("list only", 0o744, 0, 0), file("list only/f", 0o644, 0, 0, "f"),
		dir("search only", 0o711, 0, 0), file("search only/f", 0o644, 0, 0, "f"),
		dir("group", 0o2750, 7, 100), file("group/f", 0o640, 7, 100, "f"),
		{Path: "link", Entry: tree.Entry{Type: tree.Symlink, Mode: 0o777, Target: "dir/a"}},
		{Path: "null", Entry: tree.Entry{Type: tree.Char, Mode: 0o666, Rdev: tree.Device{Major: 1, Minor: 3}}},
		{Path: "fifo", Entry: tree.Entry{Type: tree.FIFO, Mode: 0o600}},
	}
}

// bench is a Program over one volume, and the means to call it.
type bench struct {
	testing.TB
	*Program
	vol  *exporttest.Volume
	call rpc.Call
}

func newBench(t testing.TB, r export.Rules, change func(*Config), items ...exporttest.Item) *bench {
	t.Helper()
	v := exporttest.New(t, testFSID, items...)
	table := export.NewTable([]export.Export{{Name: "www", Volume: v.Volume, Rules: r}})
	c := Config{Exports: func() *export.Table { return table }, Log: zerolog.Nop(), Patience: 20 * time.Millisecond}
	if change != nil {
		change(&c)
	}
	b := &bench{TB: t, Program: New(c), vol: v}
	b.call = rpc.Call{Conn: new(rpc.Conn), Cred: rpc.Cred{Flavor: rpc.AuthSys, UID: 1000, GID: 1000}}
	return b
}

// open is the rules under which a bench without a port may call.
var open = export.Rules{Squash: export.SquashNone}

// as makes later calls come from a user.
func (b *bench) as(uid, gid uint32, gids ...uint32) *bench {
	b.call.Cred = rpc.Cred{Flavor: rpc.AuthSys, UID: uid, GID: gid, GIDs: gids}
	return b
}

// do makes a call as the engine does, postponing it when the program says so.
func (b *bench) do(proc uint32, args []byte) ([]byte, error) {
	b.call.Proc, b.call.Args, b.call.Blocking = proc, args, false
	dst, err := b.Append(context.Background(), &b.call, make([]byte, 0, rpc.Headroom))
	if errors.Is(err, rpc.ErrDefer) {
		b.call.Blocking = true
		dst, err = b.Append(context.Background(), &b.call, make([]byte, 0, rpc.Headroom))
	}
	return dst, err
}

// must is do for calls that get a result; it returns the status and what follows it.
func (b *bench) must(proc uint32, args []byte) (status, []byte) {
	b.Helper()
	out, err := b.do(proc, args)
	if err != nil || len(out) < 4 {
		b.Fatalf("%s: %d bytes, %v", ProcedureName(proc), len(out), err)
	}
	return status(binary.BigEndian.Uint32(out)), out[4:]
}

// handle returns the handle of a path, "." being the root.
func (b *bench) handle(path string) []byte {
	b.Helper()
	state := b.vol.State()
	n := state.Root()
	if path != "." {
		for name := range strings.SplitSeq(path, "/") {
			var ok bool
			if n, ok = state.Lookup(n, []byte(name)); !ok {
				b.Fatalf("no %q in %q", name, path)
			}
		}
	}
	return n.AppendHandle(nil)
}

// args builds arguments: uint32, uint64, strings and byte slices as variable-length opaques, bool; raw for the rest.
func args(parts ...any) []byte {
	var b []byte
	for _, p := range parts {
		switch p := p.(type) {
		case int:
			b = rpc.AppendUint32(b, uint32(p))
		case uint32:
			b = rpc.AppendUint32(b, p)
		case uint64:
			b = rpc.AppendUint64(b, p)
		case bool:
			b = rpc.AppendBool(b, p)
		case string:
			b = rpc.AppendOpaque(b, p)
		case []byte:
			b = rpc.AppendOpaque(b, p)
		case raw:
			b = append(b, p...)
		default:
			panic(p)
		}
	}
	return b
}

type raw []byte

// noAttrs is a sattr3 that sets nothing, allAttrs one that sets everything.
var (
	noAttrs  = raw(make([]byte, 24))
	allAttrs = raw(args(true, 0o600, true, 1, true, 2, true, uint64(3), 2, uint64(4), 1))
)
