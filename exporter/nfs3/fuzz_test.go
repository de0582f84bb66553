package nfs3

import (
	"bytes"
	"context"
	"errors"
	"testing"

	"github.com/nfs-fleet/nfs-fleet/exporter/rpc"
)

// FuzzProcedures gives every procedure any arguments: it answers something that an independent decoder can read, or says
// that they are garbage.
func FuzzProcedures(f *testing.F) {
	b := newBench(f, open, nil, items()...)
	for proc := range uint32(procedures) {
		for _, g := range goldens[proc] {
			f.Add(proc, g.args(b))
		}
	}
	f.Add(uint32(procRead), args(b.handle("hello"), uint64(1<<64-1), 0xffffffff))
	f.Add(uint32(procReaddir), args(b.handle("dir"), uint64(1<<64-1), uint64(0), 0xffffffff))
	f.Fuzz(func(t *testing.T, proc uint32, in []byte) {
		proc %= procedures
		c := rpc.Call{Conn: new(rpc.Conn), Proc: proc, Args: in, Blocking: true}
		out, err := b.Append(context.Background(), &c, []byte("before"))
		switch {
		case err == nil && !bytes.HasPrefix(out, []byte("before")):
			t.Fatal("what was in the buffer is gone")
		case err == nil && proc != procNull:
			decoded(t, proc, out[len("before"):])
		case err != nil && !errors.Is(err, rpc.ErrGarbageArgs):
			t.Fatal(err)
		}
	})
}
