package load

import (
	"testing"
	"time"
)

func TestDelays(t *testing.T) {
	var d delays
	for i := range int64(1000) {
		d.add((i + 1) * 1000)
	}
	for share, want := range map[float64]time.Duration{0.5: 500 * time.Microsecond, 0.99: 990 * time.Microsecond, 1: time.Millisecond} {
		if got := d.at(share); got < want || got > want+want/8 {
			t.Errorf("%v of the calls took at most %v, want %v and no more than an eighth above", share, got, want)
		}
	}
}

func TestParseURL(t *testing.T) {
	op, err := ParseURL("nfs://127.0.0.1/www/sub?nfsport=1&version=3&mountport=2")
	if err != nil || op.Addr != "127.0.0.1:1" || op.MountAddr != "127.0.0.1:2" || op.Export != "/www/sub" {
		t.Errorf("%+v, %v", op, err)
	}
	for _, bad := range []string{"", "http://h/x", "nfs://h", "nfs://h/x?nfsport=many"} {
		if op, err := ParseURL(bad); err == nil {
			t.Errorf("%q is taken for %+v", bad, op)
		}
	}
}

// A listing that ends too early, wherever it does, is an error and nothing worse.
func TestListingsThatEndEarly(t *testing.T) {
	listing := func(r *run, b []byte) (bool, uint64, error) { return (&conn{run: r}).listing(b) }
	attr := make([]byte, attrSize)
	attr[3] = 2
	whole := append(u32(nil, 0, 0), make([]byte, 8)...) // status, no attributes, cookieverf
	whole = u64(opaque(u64(u32(whole, 1), 9), "name"), 7)
	whole = opaque(u32(append(u32(whole, 1), attr...), 1), "handle")
	whole = u32(whole, 0, 1)
	r := &run{op: Op{Name: Slurp}}
	if more, cookie, err := listing(r, whole); more || cookie != 7 || err != nil || len(r.queue) != 1 || r.queue[0].handle != "handle" {
		t.Fatalf("%v %d %v, %+v", more, cookie, err, r.queue)
	}
	for n := range whole {
		if _, _, err := listing(&run{op: Op{Name: Slurp}}, whole[:n]); err == nil {
			t.Errorf("%d of %d bytes are a listing", n, len(whole))
		}
	}
}
