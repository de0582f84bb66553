package nfs

import (
	"context"
	"encoding/binary"
	"errors"
	"io"
	"net"
	"strings"
	"testing"
	"time"
)

// peer answers each call with the next of answers: the results behind an accepted reply's header, in fragments of at most
// fragment bytes.
func peer(t *testing.T, fragment int, answers ...[]byte) *Conn {
	t.Helper()
	here, there := net.Pipe()
	t.Cleanup(func() { here.Close(); there.Close() })
	go func() {
		for _, a := range answers {
			var mark [4]byte
			if _, err := io.ReadFull(there, mark[:]); err != nil {
				return
			}
			call := make([]byte, binary.BigEndian.Uint32(mark[:])&(1<<31-1))
			if _, err := io.ReadFull(there, call); err != nil {
				return
			}
			reply := append(append([]byte{}, call[:4]...), AppendU32(nil, 1, 0, 0, 0, 0)...)
			reply = append(reply, a...)
			for len(reply) > 0 {
				n := min(fragment, len(reply))
				last := uint32(0)
				if n == len(reply) {
					last = 1 << 31
				}
				there.Write(append(AppendU32(nil, last|uint32(n)), reply[:n]...))
				reply = reply[n:]
			}
		}
		there.Close()
	}()
	dial := func(context.Context, string, string) (net.Conn, error) { return here, nil }
	c, err := Dial(t.Context(), dial, "", 10*time.Second)
	if err != nil {
		t.Fatal(err)
	}
	return c
}

// attributes of a file, or of a directory.
func attributes(kind uint32) []byte {
	b := AppendU32(nil, kind, 0o644, 2, 0, 0)
	for _, v := range []uint64{1000, 4096, 0, 77, 42} {
		b = binary.BigEndian.AppendUint64(b, v)
	}
	return AppendU32(b, 1, 1, 2, 20, 3, 30)
}

func TestCalls(t *testing.T) {
	read := append(AppendU32(nil, 0, 1), attributes(Reg)...)
	read = AppendOpaque(AppendU32(read, 5, 1), []byte("bytes"))
	list := append(AppendU32(nil, 0, 1), attributes(Dir)...)
	list = append(list, make([]byte, 8)...)
	for i, name := range []string{".", "file", "bare"} {
		list = binary.BigEndian.AppendUint64(AppendU32(list, 1), uint64(100+i))
		list = binary.BigEndian.AppendUint64(AppendOpaque(list, []byte(name)), uint64(i+1))
		if name == "bare" {
			list = AppendU32(list, 0, 0)
		} else {
			list = append(append(AppendU32(list, 1), attributes(Reg)...), AppendOpaque(AppendU32(nil, 1), []byte("handle"))...)
		}
	}
	list = AppendU32(list, 0, 1)
	lookup := append(AppendOpaque(AppendU32(nil, 0), []byte("handle")), AppendU32(nil, 1)...)
	lookup = append(lookup, attributes(Reg)...)
	c := peer(t, 7, nil, AppendOpaque(AppendU32(nil, 0), []byte("root")), append(AppendU32(nil, 0), attributes(Reg)...), lookup, read, list,
		AppendU32(nil, 70), AppendU32(nil, 13), AppendU32(nil, 0, 1))
	if err := c.Null(); err != nil {
		t.Error(err)
	}
	if h, err := c.Mount("/www"); h != "root" || err != nil {
		t.Errorf("mount: %q, %v", h, err)
	}
	want := Attr{Type: Reg, Mode: 0o644, Nlink: 2, Size: 1000, FSID: 77, Ino: 42, Mtime: time.Unix(2, 20), Ctime: time.Unix(3, 30)}
	if a, err := c.GetAttr("root"); a != want || err != nil {
		t.Errorf("getattr: %+v, %v", a, err)
	}
	if h, a, err := c.Lookup("root", "file"); h != "handle" || a != want || err != nil {
		t.Errorf("lookup: %q, %+v, %v", h, a, err)
	}
	if data, eof, err := c.Read("handle", 0, 10); string(data) != "bytes" || !eof || err != nil {
		t.Errorf("read: %q, %v, %v", data, eof, err)
	}
	entries, eof, err := c.ReadDirPlus("root", 0, 8192)
	if len(entries) != 2 || !eof || err != nil || entries[0] != (Entry{Name: "file", Ino: 101, Cookie: 2, Handle: "handle", Attr: want}) ||
		entries[1] != (Entry{Name: "bare", Ino: 102, Cookie: 3}) {
		t.Errorf("readdirplus: %+v, %v, %v", entries, eof, err)
	}
	if _, err := c.GetAttr("gone"); !errors.Is(err, Stale) || !strings.Contains(err.Error(), "NFS3ERR_STALE") {
		t.Errorf("a refusal: %v", err)
	}
	if _, err := c.Mount("/secret"); !errors.Is(err, Access) {
		t.Errorf("a refused mount: %v", err)
	}
	if _, _, err := c.Read("handle", 0, 10); !errors.Is(err, errShort) {
		t.Errorf("a reply that ends too early: %v", err)
	}
	if err := c.Null(); !errors.Is(err, io.EOF) && !errors.Is(err, io.ErrClosedPipe) {
		t.Errorf("a call on a connection that has ended: %v", err)
	}
}

// Whatever a reply holds, it is an error or an answer, and takes no more memory than it has bytes.
func FuzzReply(f *testing.F) {
	f.Add(append(AppendU32(nil, 1), attributes(Reg)...))
	f.Add([]byte{0xff, 0xff, 0xff, 0xff})
	f.Fuzz(func(t *testing.T, b []byte) {
		r := &reply{b: b}
		for range 3 {
			r.maybeAttr()
			if got := r.opaque(); len(got) > len(b) {
				t.Errorf("%d bytes out of %d", len(got), len(b))
			}
			r.bool()
		}
		if r.err == nil && len(r.b) > len(b) {
			t.Error("it grew")
		}
	})
}
