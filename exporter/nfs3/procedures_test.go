package nfs3

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/nfs-fleet/nfs-fleet/exporter/export"
	"github.com/nfs-fleet/nfs-fleet/exporter/export/exporttest"
	"github.com/nfs-fleet/nfs-fleet/exporter/rpc"
	"github.com/nfs-fleet/nfs-fleet/replicator/tree"
)

func TestWhoMayDoWhat(t *testing.T) {
	b := newBench(t, open, nil, items()...)
	read := func(path string) func() status {
		return func() status { s, _ := b.must(procRead, args(b.handle(path), uint64(0), 10)); return s }
	}
	lookup := func(dir string) func() status {
		return func() status { s, _ := b.must(procLookup, args(b.handle(dir), "f")); return s }
	}
	list := func(dir string) func() status {
		return func() status {
			s, _ := b.must(procReaddir, args(b.handle(dir), uint64(0), uint64(0), 4096))
			p, _ := b.must(procReaddirplus, args(b.handle(dir), uint64(0), uint64(0), 4096, 4096))
			if s != p {
				t.Errorf("%s: READDIR says %d, READDIRPLUS %d", dir, s, p)
			}
			return s
		}
	}
	for _, c := range []struct {
		what     string
		uid, gid uint32
		gids     []uint32
		do       func() status
		want     status
	}{
		{"read as the owner", 1000, 5, nil, read("private"), statusOK},
		{"read as another", 1001, 5, nil, read("private"), statusAcces},
		{"read as one of the group that may not", 1001, 100, nil, read("private"), statusAcces},
		{"read as root", 0, 0, nil, read("private"), statusOK},
		{"read what may only be executed", 1001, 5, nil, read("program"), statusOK},
		{"read by a supplementary group", 8, 8, []uint32{3, 100}, read("group/f"), statusOK},
		{"read by the group", 8, 100, nil, read("group/f"), statusOK},
		{"read as another than the group", 8, 8, []uint32{3}, read("group/f"), statusAcces},
		{"look up without search", 1000, 1000, nil, lookup("list only"), statusAcces},
		{"look up with search", 1000, 1000, nil, lookup("search only"), statusOK},
		{"look up by a group", 8, 8, []uint32{100}, lookup("group"), statusOK},
		{"look up without the group", 8, 8, nil, lookup("group"), statusAcces},
		{"look up as root", 0, 0, nil, lookup("list only"), statusOK},
		{"list without read", 1000, 1000, nil, list("search only"), statusAcces},
		{"list with read", 1000, 1000, nil, list("list only"), statusOK},
		{"list as root", 0, 0, nil, list("group"), statusOK},
	} {
		b.as(c.uid, c.gid, c.gids...)
		if got := c.do(); got != c.want {
			t.Errorf("%s: status %d, want %d", c.what, got, c.want)
		}
	}
}

func TestAccessBits(t *testing.T) {
	b := newBench(t, open, nil, items()...)
	const file, dir = accessRead | accessExecute, accessRead | accessLookup
	for _, c := range []struct {
		path string
		uid  uint32
		want uint32
	}{
		{"hello", 1000, accessRead}, {"hello", 4, accessRead}, {"private", 4, 0}, {"private", 1000, accessRead},
		{"hello", 0, accessRead}, // nobody may execute it, nor may root
		{"program", 0, file}, {"program", 4, accessExecute},
		{"dir", 4, dir}, {"list only", 4, accessRead}, {"search only", 4, accessLookup}, {"group", 4, 0}, {"group", 0, dir},
		{"null", 4, accessRead}, {"link", 4, file},
	} {
		for _, asked := range []uint32{0x3f, accessRead, 0, 0xffffffff} {
			s, rest := b.as(c.uid, c.uid).must(procAccess, args(b.handle(c.path), asked))
			if got := binary.BigEndian.Uint32(rest[len(rest)-4:]); s != statusOK || got != c.want&asked {
				t.Errorf("%s as %d, asked %#x: status %d, %#x, want %#x", c.path, c.uid, asked, s, got, c.want&asked)
			}
		}
	}
}

func TestSquash(t *testing.T) {
	for _, c := range []struct {
		rules        export.Rules
		flavor       uint32
		uid          uint32
		mine, anyone status // reading "private", which is 1000's, and "dir/a"
	}{
		{export.Rules{}, rpc.AuthSys, 0, statusAcces, statusOK},
		{export.Rules{}, rpc.AuthSys, 1000, statusOK, statusOK},
		{export.Rules{}, rpc.AuthNone, 1000, statusAcces, statusOK},
		{export.Rules{AnonUID: 1000}, rpc.AuthNone, 0, statusOK, statusOK},
		{export.Rules{AnonUID: 1000}, rpc.AuthSys, 0, statusOK, statusOK},
		{open, rpc.AuthSys, 0, statusOK, statusOK},
		{open, rpc.AuthNone, 0, statusAcces, statusOK},
		{export.Rules{Squash: export.SquashAll}, rpc.AuthSys, 1000, statusAcces, statusOK},
		{export.Rules{Squash: export.SquashAll, AnonUID: 1000}, rpc.AuthSys, 5, statusOK, statusOK},
	} {
		b := newBench(t, c.rules, nil, items()...).as(c.uid, c.uid)
		b.call.Cred.Flavor = c.flavor
		mine, _ := b.must(procRead, args(b.handle("private"), uint64(0), 1))
		anyone, _ := b.must(procRead, args(b.handle("dir/a"), uint64(0), 1))
		if mine != c.mine || anyone != c.anyone {
			t.Errorf("%+v, flavor %d, uid %d: %d and %d, want %d and %d", c.rules, c.flavor, c.uid, mine, anyone, c.mine, c.anyone)
		}
	}
}

func TestHandlesThatAreNoGood(t *testing.T) {
	b := newBench(t, open, nil, items()...)
	flip := func(at int) []byte { h := b.handle("hello"); h[at] ^= 0x40; return h }
	for name, fh := range map[string][]byte{
		"empty": {}, "short": b.handle("hello")[:27], "long": append(b.handle("hello"), 0, 0, 0, 0), "version": flip(0), "fsid": flip(15), "tag": flip(27),
	} {
		for _, proc := range []uint32{procGetattr, procReadlink, procFsinfo, procFsstat, procPathconf} {
			if s, _ := b.must(proc, args(fh)); s != statusBadHandle {
				t.Errorf("%s of a handle wrong in its %s: status %d, want %d", ProcedureName(proc), name, s, statusBadHandle)
			}
		}
	}
	if _, err := b.do(procGetattr, args(make([]byte, 65))); !errors.Is(err, rpc.ErrGarbageArgs) {
		t.Errorf("a handle of 65 bytes: %v, want garbage arguments", err)
	}
}

func TestHandleFromTheFuture(t *testing.T) {
	fh := func(b *bench) []byte { // born in a generation that is not served yet
		h := b.handle("hello")
		h[5] += 9
		return h
	}
	b := newBench(t, open, nil, items()...)
	if s, _ := b.must(procGetattr, args(fh(b))); s != statusJukebox {
		t.Errorf("nobody else is in step: status %d, want %d", s, statusJukebox)
	}
	b = newBench(t, open, func(c *Config) { c.Elsewhere = func() bool { return true } }, items()...)
	if _, err := b.do(procGetattr, args(fh(b))); !errors.Is(err, rpc.ErrClose) {
		t.Errorf("another is in step: %v, want the connection closed", err)
	}
	b.call.Proc, b.call.Args, b.call.Blocking = procGetattr, args(fh(b)), false
	if _, err := b.Append(t.Context(), &b.call, nil); !errors.Is(err, rpc.ErrDefer) {
		t.Errorf("from a reader: %v, want the call postponed", err)
	}
}

// A call that came too early for its handle is answered when the generation is there.
func TestHandleOfTheNextGeneration(t *testing.T) {
	b := newBench(t, open, func(c *Config) { c.Patience = 20 * time.Second }, items()...)
	other := exporttest.New(t, testFSID, items()...)
	next := append(items(), exporttest.Item{Path: "zzz", Data: []byte("later")})
	other.Publish(t, next...)
	n, ok := other.State().Lookup(other.State().Root(), []byte("zzz"))
	if !ok {
		t.Fatal("the other master has no zzz")
	}
	got := make(chan status)
	go func() { s, _ := b.must(procGetattr, args(n.AppendHandle(nil))); got <- s }()
	b.vol.Publish(t, next...)
	if s := <-got; s != statusOK {
		t.Errorf("status %d, want OK", s)
	}
}

func TestNothingServedYet(t *testing.T) {
	b := newBench(t, open, nil)
	other := exporttest.New(t, testFSID, items()...)
	if s, _ := b.must(procGetattr, args(other.State().Root().AppendHandle(nil))); s != statusJukebox {
		t.Errorf("status %d, want %d", s, statusJukebox)
	}
}

func TestReadWholeFileInPieces(t *testing.T) {
	for _, cold := range []bool{false, true} {
		b := newBench(t, open, nil, items()...)
		b.vol.Cold.Store(cold)
		want := bytes.Repeat([]byte("0123456789abcdef"), 100<<10)
		for _, piece := range []int{4096, 99_999, 1 << 20, 4 << 20} {
			var got []byte
			for eof := false; !eof; {
				s, rest := b.must(procRead, args(b.handle("big"), uint64(len(got)), piece))
				if s != statusOK {
					t.Fatalf("status %d", s)
				}
				d := rpc.NewDecoder(rest)
				d.Fixed(postAttrSize)
				count := d.Uint32()
				eof = d.Bool()
				data := d.Opaque(maxTransfer)
				if d.Err() != nil || d.Len() != 0 || int(count) != len(data) || count == 0 {
					t.Fatalf("cold %t, pieces of %d: count %d, %d bytes, %v", cold, piece, count, len(data), d.Err())
				}
				got = append(got, data...)
			}
			if !bytes.Equal(got, want) {
				t.Errorf("cold %t, pieces of %d: %d bytes differ from the %d wanted", cold, piece, len(got), len(want))
			}
		}
	}
}

func TestReadThatFails(t *testing.T) {
	b := newBench(t, open, nil, items()...)
	b.vol.Broken.Store(true)
	if s, rest := b.must(procRead, args(b.handle("hello"), uint64(0), 10)); s != statusIO || len(rest) != postAttrSize {
		t.Errorf("status %d and %d bytes, want %d and attributes", s, len(rest), statusIO)
	}
}

// What a read lacks is brought back before it is answered, and while that lasts others read from the disk.
func TestReadWaitsForLostContent(t *testing.T) {
	b := newBench(t, open, func(c *Config) { c.Patience, c.Readers = 20*time.Second, 1 }, items()...)
	began, finish := make(chan struct{}), make(chan struct{})
	mend := func(context.Context, tree.Digest) error {
		close(began)
		<-finish
		return nil
	}
	b.vol.Mend.Store(&mend)
	b.vol.Cold.Store(true)
	b.vol.Broken.Store(true)
	type answer struct {
		status status
		rest   []byte
	}
	answered := make(chan answer)
	healing := *b
	go func() {
		s, rest := healing.must(procRead, args(b.handle("hello"), uint64(0), 100))
		answered <- answer{s, rest}
	}()
	<-began
	b.vol.Broken.Store(false)
	if s, _ := b.must(procRead, args(b.handle("dir/bb"), uint64(0), 10)); s != statusOK {
		t.Errorf("another file: status %d", s)
	}
	close(finish)
	if a := <-answered; a.status != statusOK || !bytes.Contains(a.rest, []byte("hello, world")) {
		t.Errorf("after it was brought back: status %d, %q", a.status, a.rest)
	}
}

func TestReadOfLostContent(t *testing.T) {
	for what, c := range map[string]struct {
		mend func(context.Context, tree.Digest) error
		want status
	}{
		"that is nowhere":                 {func(context.Context, tree.Digest) error { return tree.ErrMissing }, statusIO},
		"that is still not good":          {func(context.Context, tree.Digest) error { return nil }, statusIO},
		"that takes long to bring back":   {func(ctx context.Context, _ tree.Digest) error { <-ctx.Done(); return context.Cause(ctx) }, statusJukebox},
		"that failed for want of another": {func(context.Context, tree.Digest) error { return context.DeadlineExceeded }, statusIO},
	} {
		b := newBench(t, open, nil, items()...)
		b.vol.Broken.Store(true)
		b.vol.Mend.Store(&c.mend)
		if s, rest := b.must(procRead, args(b.handle("hello"), uint64(0), 10)); s != c.want || len(rest) != postAttrSize {
			t.Errorf("content %s: status %d and %d bytes, want %d and attributes", what, s, len(rest), c.want)
		}
	}
}

// entries decodes a listing.
type listed struct {
	cookie uint64
	name   string
	plus   bool
}

func decodeEntries(t *testing.T, plus bool, rest []byte) (all []listed, eof bool, names int) {
	t.Helper()
	d := rpc.NewDecoder(rest)
	d.Fixed(postAttrSize + 8)
	for d.Bool() {
		d.Uint64()
		e := listed{name: string(d.Opaque(maxName))}
		e.cookie = d.Uint64()
		names += 8 + 4 + (len(e.name)+3)/4*4 + 8
		if plus && d.Bool() {
			d.Fixed(attrSize)
			e.plus = d.Bool() && len(d.Opaque(maxHandle)) == handleSize
		} else if plus {
			d.Bool()
		}
		all = append(all, e)
	}
	eof = d.Bool()
	if d.Err() != nil || d.Len() != 0 {
		t.Fatalf("listing cannot be decoded: %v, %d bytes left", d.Err(), d.Len())
	}
	return all, eof, names
}

// Whatever sizes a client asks for, it gets every name once, in slot order, in replies as full as they may be and no fuller.
func TestListingRespectsItsLimits(t *testing.T) {
	tree := items()
	var want []string
	for i := range 60 {
		name := fmt.Sprintf("%0*d", 1+i*4, i)
		want = append(want, name)
		tree = append(tree, exporttest.Item{Path: "many/" + name})
	}
	slices.Sort(want) // new names get their slots in order
	b := newBench(t, open, nil, tree...)
	fh := b.handle("many")
	for _, plus := range []bool{false, true} {
		largest := 24 + 240
		if plus {
			largest += entryPlus
		}
		for _, size := range []int{listHeader + listTrailer - 4 + largest, 700, 1001, 4096, 65536} {
			for _, dircount := range []int{0, 1, 100, 777, 65536} {
				proc, call := uint32(procReaddir), func(cookie uint64) []byte { return args(fh, cookie, uint64(0), size) }
				if plus {
					proc, call = procReaddirplus, func(cookie uint64) []byte { return args(fh, cookie, uint64(0), dircount, size) }
				}
				var got []string
				var cookie uint64
				for eof := false; !eof; {
					s, rest := b.must(proc, call(cookie))
					if s != statusOK || len(rest) > size {
						t.Fatalf("plus %t, size %d: status %d, %d bytes", plus, size, s, len(rest))
					}
					var page []listed
					var names int
					page, eof, names = decodeEntries(t, plus, rest)
					if plus && dircount > 0 && names > dircount && len(page) > 1 {
						t.Fatalf("dircount %d: %d bytes of names", dircount, names)
					}
					for _, e := range page {
						if e.cookie <= cookie || plus && !e.plus {
							t.Fatalf("cookie %d after %d, attributes %t", e.cookie, cookie, e.plus)
						}
						cookie = e.cookie
						got = append(got, e.name)
					}
				}
				if !slices.Equal(got, append([]string{".", ".."}, want...)) {
					t.Fatalf("plus %t, size %d, dircount %d: %d names, want %d", plus, size, dircount, len(got), len(want)+2)
				}
			}
		}
	}
}

// A byte less than an entry needs is one entry less, or TOOSMALL when it was the only one.
func TestListingIsFullToTheByte(t *testing.T) {
	b := newBench(t, open, nil, items()...)
	fh := b.handle("dir")
	const empty = postAttrSize + 8 + 8
	for _, c := range []struct {
		size, entries int
		want          status
	}{
		{empty - 1, 0, statusTooSmall}, {empty, 0, statusTooSmall}, {empty + 27, 0, statusTooSmall}, {empty + 28, 1, statusOK}, {empty + 55, 1, statusOK},
		{empty + 56, 2, statusOK}, {empty + 4*28 + 31, 4, statusOK}, {empty + 4*28 + 32, 5, statusOK},
	} {
		s, rest := b.must(procReaddir, args(fh, uint64(0), uint64(0), c.size))
		if s != c.want {
			t.Errorf("count %d: status %d, want %d", c.size, s, c.want)
		}
		if s != statusOK {
			continue
		}
		all, eof, _ := decodeEntries(t, false, rest)
		if len(all) != c.entries || eof != (c.entries == 5) {
			t.Errorf("count %d: %d entries, eof %t, want %d", c.size, len(all), eof, c.entries)
		}
	}
}

// A listing that was begun before a publish goes on after it.
func TestListingAcrossAPublish(t *testing.T) {
	b := newBench(t, open, nil, items()...)
	_, rest := b.must(procReaddir, args(b.handle("dir"), uint64(0), uint64(0), 1000))
	all, _, _ := decodeEntries(t, false, rest)
	at := slices.IndexFunc(all, func(e listed) bool { return e.name == "a" })
	next := slices.DeleteFunc(items(), func(it exporttest.Item) bool { return it.Path == "dir/a" || it.Path == "dir/bb" })
	b.vol.Publish(t, append(next, exporttest.Item{Path: "dir/new"})...)
	_, rest = b.must(procReaddir, args(b.handle("dir"), all[at].cookie, uint64(77), 1000))
	var names []string
	got, eof, _ := decodeEntries(t, false, rest)
	for _, e := range got {
		names = append(names, e.name)
	}
	if want := []string{"ccccc", "new"}; !slices.Equal(names, want) || !eof {
		t.Errorf("%v after the publish, want %v", names, want)
	}
}

func TestUnknownProcedure(t *testing.T) {
	b := newBench(t, open, nil, items()...)
	for _, proc := range []uint32{procedures, 1000, 1 << 31} {
		if _, err := b.do(proc, nil); !errors.Is(err, rpc.ErrProcUnavail) || ProcedureName(proc) != "UNKNOWN" {
			t.Errorf("procedure %d: %v", proc, err)
		}
	}
}

// Arguments cut short anywhere are garbage, in every procedure.
func TestTruncatedArguments(t *testing.T) {
	b := newBench(t, open, nil, items()...)
	for proc := uint32(1); proc < procedures; proc++ {
		for _, g := range goldens[proc] {
			if strings.Contains(g.name, "no handle") {
				continue
			}
			whole := g.args(b)
			for n := range whole {
				if _, err := b.do(proc, whole[:n]); !errors.Is(err, rpc.ErrGarbageArgs) {
					t.Fatalf("%s, %s: %d of %d bytes: %v, want garbage arguments", ProcedureName(proc), g.name, n, len(whole), err)
				}
			}
		}
	}
}

func TestArgumentsThatMeanNothing(t *testing.T) {
	b := newBench(t, open, nil, items()...)
	root := b.handle(".")
	for name, c := range map[string]struct {
		proc uint32
		args []byte
	}{
		"stable_how":    {procWrite, args(root, uint64(0), 0, 3, "")},
		"createmode":    {procCreate, args(root, "n", 3, noAttrs)},
		"type of node":  {procMknod, args(root, "n", 8, noAttrs)},
		"time_how":      {procMkdir, args(root, "n", raw(make([]byte, 16)), 3, 0)},
		"boolean":       {procSetattr, args(root, 2, 0, noAttrs, false)},
		"length of all": {procWrite, args(root, uint64(0), 0, 0, 0xffffffff)},
	} {
		if _, err := b.do(c.proc, c.args); !errors.Is(err, rpc.ErrGarbageArgs) {
			t.Errorf("%s: %v, want garbage arguments", name, err)
		}
	}
}

// What was lent and has left memory is read with the bounded number of others, and seen to wait.
func TestALoanThatMustBeReadWaitsItsTurn(t *testing.T) {
	began, ended := make(chan struct{}), make(chan struct{})
	b := newBench(t, open, func(c *Config) {
		c.Readers = 1
		c.Waits = func() func() {
			close(began)
			return func() { close(ended) }
		}
	}, items()...)
	o, s, err := b.resolve(t.Context(), &b.call, b.handle("big"))
	if err != nil || s != statusOK {
		t.Fatal(s, err)
	}
	from, ok := b.vol.Borrow(o.node, 16, 100_000)
	if !ok {
		t.Fatal("not lent")
	}
	l := &loan{Loan: from, p: b.Program}
	defer l.GiveBack()
	b.disk <- struct{}{} // the only reader
	p := make([]byte, 5)
	done := make(chan error, 1)
	go func() { done <- l.Read(p, 3) }()
	<-began
	select {
	case err := <-done:
		t.Fatalf("read out of turn: %v", err)
	case <-time.After(10 * time.Millisecond):
	}
	<-b.disk
	if err := <-done; err != nil || string(p) != "34567" {
		t.Errorf("read %q, %v", p, err)
	}
	<-ended
	if len(b.disk) != 0 {
		t.Error("its place is still taken")
	}
}
