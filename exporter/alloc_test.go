//go:build !race

package exporter

import (
	"encoding/binary"
	"io"
	"runtime"
	"testing"

	"github.com/nfs-fleet/nfs-fleet/exporter/nfs3"
	"github.com/nfs-fleet/nfs-fleet/exporter/rpc"
)

// From the socket and back, the calls that a reader makes all day allocate nothing. Not under the race detector, which throws
// away what is in pools.
func TestCallsOverASocketAllocateNothing(t *testing.T) {
	_, addr := serve(t, Config{}, Export{Name: "www", Volume: www(t).Volume, Rules: Rules{Insecure: true}})
	c := dial(t, addr)
	_, root := c.mount("/www")
	_, found := c.call(nfs3.Number, nfs3.Version, 3, rpc.AppendOpaque(rpc.AppendOpaque(nil, root), "hello.txt"))
	d := rpc.NewDecoder(found[4:])
	file := rpc.AppendOpaque(nil, d.Opaque(64))
	if err := d.Err(); err != nil {
		t.Fatal(err)
	}
	for _, call := range []struct {
		name string
		proc uint32
		args []byte
	}{
		{"GETATTR", 1, file},
		{"LOOKUP", 3, rpc.AppendOpaque(rpc.AppendOpaque(nil, root), "hello.txt")},
		{"ACCESS", 4, rpc.AppendUint32(file[:len(file):len(file)], 0x3f)},
		{"READ", 6, rpc.AppendUint32(rpc.AppendUint64(file[:len(file):len(file)], 0), 4096)},
	} {
		record := rpc.AppendUint32(nil, 0)
		for _, v := range []uint32{1, 0, 2, nfs3.Number, nfs3.Version, call.proc, 0, 0, 0, 0} {
			record = rpc.AppendUint32(record, v)
		}
		record = append(record, call.args...)
		binary.BigEndian.PutUint32(record, 1<<31|uint32(len(record)-4))
		reply := make([]byte, 4096)
		trip := func() {
			if _, err := c.Write(record); err != nil {
				t.Fatal(err)
			}
			if _, err := io.ReadFull(c.Conn, reply[:4]); err != nil {
				t.Fatal(err)
			}
			if _, err := io.ReadFull(c.Conn, reply[4:4+binary.BigEndian.Uint32(reply)&^(1<<31)]); err != nil {
				t.Fatal(err)
			}
		}
		trip()
		if status := binary.BigEndian.Uint32(reply[28:]); status != 0 {
			t.Fatalf("%s: status %d", call.name, status)
		}
		const trips = 2000
		var before, after runtime.MemStats
		runtime.ReadMemStats(&before)
		for range trips {
			trip()
		}
		runtime.ReadMemStats(&after)
		// pools are emptied by a collection, which may happen
		if n := after.Mallocs - before.Mallocs; n > trips/20 {
			t.Errorf("%s: %d allocations in %d calls", call.name, n, trips)
		}
	}
}
