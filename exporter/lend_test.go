package exporter

import (
	"bytes"
	"encoding/binary"
	"io"
	"runtime"
	"runtime/debug"
	"slices"
	"testing"

	"github.com/nfs-fleet/nfs-fleet/exporter/nfs3"
	"github.com/nfs-fleet/nfs-fleet/exporter/rpc"
)

// READs that are lent have the file's bytes, padded and with the end marked, and allocate nothing.
func TestLargeReads(t *testing.T) {
	v := www(t)
	s, addr := serve(t, Config{}, Export{Name: "www", Volume: v.Volume, Rules: Rules{Insecure: true}})
	c := dial(t, addr)
	_, dir := c.mount("/www/dir/deep")
	_, found := c.call(nfs3.Number, 3, 3, rpc.AppendOpaque(rpc.AppendOpaque(nil, dir), "file"))
	d := rpc.NewDecoder(found)
	d.Uint32()
	fh := d.Opaque(64)
	read := func(off, count int) []byte {
		return rpc.AppendUint32(rpc.AppendUint64(rpc.AppendOpaque(nil, fh), uint64(off)), uint32(count))
	}
	want := bytes.Repeat([]byte("0123456789"), 30000)
	reads := []struct{ off, count int }{{0, 64 << 10}, {1, 65_537}, {131_072, 131_072}, {200_001, 1 << 20}, {0, 1 << 20}}
	for _, r := range reads {
		_, got := c.call(nfs3.Number, 3, 6, read(r.off, r.count))
		n := min(r.count, len(want)-r.off)
		const header = 4 + 4 + 84 + 4 + 4 + 4
		if len(got) != header+n+-n&3 || !bytes.Equal(got[header:header+n], want[r.off:r.off+n]) {
			t.Errorf("READ of %d at %d: %d bytes, or others than the file's", r.count, r.off, len(got))
			continue
		}
		if eof := binary.BigEndian.Uint32(got[96:]) != 0; eof != (r.off+n == len(want)) {
			t.Errorf("READ of %d at %d: eof %v", r.count, r.off, eof)
		}
	}
	if n := s.Stats().Lent; n != uint64(len(reads)) {
		t.Errorf("%d READs were lent, want %d", n, len(reads))
	}
	if n := allocations(t, c, read(0, 100_000)); n > 50 && !raceDetector() {
		t.Errorf("%d allocations in 1000 READs", n)
	}
}

// allocations returns how many a thousand calls take.
func allocations(t *testing.T, c client, read []byte) uint64 {
	var b []byte
	for _, v := range []uint32{0, 9, 0, 2, nfs3.Number, 3, 6, 1, 20, 0, 0, 0, 0, 0, 0, 0} {
		b = rpc.AppendUint32(b, v)
	}
	b = append(b, read...)
	binary.BigEndian.PutUint32(b, 1<<31|uint32(len(b)-4))
	reply := make([]byte, 4+24+104+100_000)
	trip := func() {
		if _, err := c.Write(b); err != nil {
			t.Fatal(err)
		}
		if _, err := io.ReadFull(c.Conn, reply); err != nil { // c would be copied each time
			t.Fatal(err)
		}
	}
	trip()
	var before, after runtime.MemStats
	runtime.ReadMemStats(&before)
	for range 1000 {
		trip()
	}
	runtime.ReadMemStats(&after)
	return after.Mallocs - before.Mallocs
}

// raceDetector reports whether it is on: pools forget things then.
func raceDetector() bool {
	info, _ := debug.ReadBuildInfo()
	return info != nil && slices.Contains(info.Settings, debug.BuildSetting{Key: "-race", Value: "true"})
}
