package tree

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"reflect"
	"runtime"
	"strings"
	"testing"
)

// samples are entries of every type, with the extremes of every field.
func samples() []Entry {
	base := Entry{Links: 1, Ino: 1, Tag: 1, Born: 1, Type: Regular}
	with := func(fn func(*Entry)) Entry {
		e := base
		fn(&e)
		return e
	}
	d := Sum([]byte("x"))
	entries := []Entry{
		base,
		with(func(e *Entry) { e.Size, e.Used, e.Content = 1, 1, Content{Blob, d} }),
		with(func(e *Entry) { e.Size, e.Used, e.Content = ChunkSize, 0, Content{Blob, d} }),
		with(func(e *Entry) { e.Size, e.Used, e.Content = ChunkSize+1, 1<<64-1, Content{Chunks, d} }),
		with(func(e *Entry) { e.Size, e.Used, e.Content = 1<<64-1, 3, Content{Chunks, d} }),
		with(func(e *Entry) { e.Type, e.Links, e.Size, e.Used, e.Content = Directory, 2, 4096, 4096, Content{Dir, d} }),
		with(func(e *Entry) { e.Type, e.Target, e.Size, e.Used = Symlink, "/a\xff\nbc", 6, 6 }),
		with(func(e *Entry) { e.Type, e.Target = Symlink, strings.Repeat("t", 4096); e.Size, e.Used = 4096, 4096 }),
		with(func(e *Entry) { e.Type, e.Rdev = Block, Device{8, 1} }),
		with(func(e *Entry) { e.Type, e.Rdev = Char, Device{1<<32 - 1, 1<<32 - 1} }),
		with(func(e *Entry) { e.Type = Socket }),
		with(func(e *Entry) { e.Type = FIFO }),
		with(func(e *Entry) { e.Mtime, e.Ctime = Time{-1 << 63, 0}, Time{1<<63 - 1, 999_999_999} }),
		with(func(e *Entry) { e.Mtime, e.Ctime = Time{-1, 1}, Time{1 << 32, 0} }),
		with(func(e *Entry) {
			e.Mode, e.UID, e.GID, e.Links, e.Ino, e.Tag, e.Born = 0o7777, 1<<32-1, 1<<32-1, 1<<32-1, MaxIno, 1<<64-1, MaxBorn
		}),
	}
	for i := range entries {
		entries[i].Name, entries[i].Slot = fmt.Sprintf("%d\xff\n", i), uint64(i*7+1)
	}
	entries[0].Name, entries[1].Name = strings.Repeat("n", 255), "..."
	return entries
}

// directoryOf returns an inline directory of entries.
func directoryOf(entries []Entry) *DirObject {
	dir := &DirObject{NextSlot: 1}
	if len(entries) == 0 {
		return dir
	}
	for _, e := range entries {
		dir.Entries++
		if e.Type == Directory {
			dir.Subdirs++
		} else {
			dir.Files, dir.Bytes = dir.Files+1, dir.Bytes+e.Size
		}
		dir.NextSlot = e.Slot + 1
	}
	dir.Pages = []PageRef{{Count: dir.Entries, inline: entries}}
	return dir
}

func paged() *DirObject {
	return &DirObject{NextSlot: MaxSlot + 1, Entries: PageSlots + 2, Files: PageSlots + 2, Pages: []PageRef{
		{Number: 0, Count: 1, Digest: Sum([]byte("0"))}, {Number: 1, Count: PageSlots, Digest: Sum([]byte("1"))},
		{Number: (MaxSlot - 1) / PageSlots, Count: 1, Digest: Sum([]byte("2"))},
	}}
}

func TestPageRoundTrip(t *testing.T) {
	for _, number := range []uint64{0, 1, 1 << 32, (MaxSlot - 1) / PageSlots} {
		entries := samples()
		for i := range entries {
			entries[i].Slot += number * PageSlots
		}
		got, err := DecodePage(appendPage(nil, number, entries))
		if err != nil || !reflect.DeepEqual(got, entries) {
			t.Errorf("page %d: %v\ngot  %+v\nwant %+v", number, err, got, entries)
		}
	}
}

func TestDirectoryRoundTrip(t *testing.T) {
	for name, dir := range map[string]*DirObject{"empty": {NextSlot: 1}, "emptied": {NextSlot: 1 << 50, Pages: []PageRef{}}, "inline": directoryOf(samples()), "paged": paged()} {
		got, err := DecodeDirectory(appendDirectory(nil, dir))
		if err != nil || !reflect.DeepEqual(got, dir) {
			t.Errorf("%s: %v\ngot  %+v\nwant %+v", name, err, got, dir)
		}
	}
}

func TestRootRoundTrip(t *testing.T) {
	e := Entry{Type: Directory, Mode: 0o1777, Links: 2, Ino: 1, Born: 1, Size: 4096, Used: 4096, Content: Content{Dir, Sum(nil)}}
	named := e
	named.Name, named.Slot = "ignored", 7
	got, err := DecodeRoot(EncodeRoot(named))
	if err != nil || got != e {
		t.Errorf("%v\ngot  %+v\nwant %+v", err, got, e)
	}
}

func TestChunksRoundTrip(t *testing.T) {
	a, b := Sum([]byte("a")), Sum([]byte("b"))
	hole := func(n uint64) Extent { return Extent{Length: n} }
	cases := []struct{ in, want []Extent }{
		{nil, []Extent{}},
		{[]Extent{hole(1), hole(2), {5, a}, {0, b}, hole(0), {7, b}, hole(1 << 62), hole(3)}, []Extent{hole(3), {5, a}, {7, b}, hole(1<<62 + 3)}},
		{[]Extent{{ChunkSize, a}, {ChunkSize, a}, {1, b}}, []Extent{{ChunkSize, a}, {ChunkSize, a}, {1, b}}},
		{[]Extent{hole(5), hole(0), hole(5)}, []Extent{hole(10)}},
	}
	for _, c := range cases {
		got, err := DecodeChunks(EncodeChunks(c.in))
		if err != nil || !reflect.DeepEqual(got, c.want) {
			t.Errorf("%v: %v\ngot  %v\nwant %v", c.in, err, got, c.want)
		}
	}
}

// The bytes are a format that other masters read: they may only change together with the version.
func TestFormatIsFixed(t *testing.T) {
	many := make([]Entry, 100)
	for i := range many {
		many[i] = samples()[i%len(samples())]
		many[i].Name, many[i].Slot = fmt.Sprint(i), uint64(i+1)
	}
	root := samples()[5]
	root.Name, root.Slot = "", 0
	for name, c := range map[string]struct {
		object []byte
		want   string
	}{
		"page":      {appendPage(nil, 3, shifted(samples(), 3*PageSlots)), "894c95011a7733ebc8190757647acd88e7a3386164945e6c7eb0ff8bb2505cef"},
		"inline":    {appendDirectory(nil, directoryOf(many)), "78a5fee30a3b3d93df80efffaeb293e464a8e82cfab4a83af7389bb0de99fd5f"},
		"paged":     {appendDirectory(nil, paged()), "001ef3ac0ad34b8eb82e4b35793d9cee14bf48ffba96ef7d6afd0548d52d88b9"},
		"root":      {EncodeRoot(root), "c6d04e6d1bdb23cc3bfd52170fde352406e3012b93255f817cc420fd60a16615"},
		"chunks":    {EncodeChunks([]Extent{{Length: 300}, {5, Sum([]byte("a"))}}), "f82cb20be9373fe6a4091ab26ca3a94104c63250a7991dcbf9b4fb96b815755b"},
		"no chunks": {EncodeChunks(nil), "650289356a7ca34980ab5313ce1faccd6184621f83d9bfa313de77277088c29f"},
	} {
		if got := Sum(c.object).String(); got != c.want {
			t.Errorf("%s: %s, want %s", name, got, c.want)
		}
	}
}

func shifted(entries []Entry, by uint64) []Entry {
	for i := range entries {
		entries[i].Slot += by
	}
	return entries
}

// decoders are all decoders of objects; each returns what its value encodes to.
var decoders = map[string]func(b []byte) ([]byte, error){
	"page": func(b []byte) ([]byte, error) {
		entries, err := DecodePage(b)
		if err != nil {
			return nil, err
		}
		return appendPage(nil, pageOf(entries[0].Slot), entries), nil
	},
	"directory": func(b []byte) ([]byte, error) {
		dir, err := DecodeDirectory(b)
		if err != nil {
			return nil, err
		}
		return appendDirectory(nil, dir), nil
	},
	"root": func(b []byte) ([]byte, error) {
		e, err := DecodeRoot(b)
		return EncodeRoot(e), err
	},
	"chunks": func(b []byte) ([]byte, error) {
		x, err := DecodeChunks(b)
		return EncodeChunks(x), err
	},
}

func sampleObjects() map[string][][]byte {
	entries := samples()
	root := entries[5]
	entries[7].Target, entries[7].Size, entries[7].Used = "short", 5, 5 // every byte is damaged in turn
	return map[string][][]byte{
		"page":      {appendPage(nil, 0, entries), appendPage(nil, 1<<40, shifted(samples()[:1], 1<<52))},
		"directory": {appendDirectory(nil, directoryOf(entries)), appendDirectory(nil, paged()), appendDirectory(nil, directoryOf(nil))},
		"root":      {EncodeRoot(root)},
		"chunks":    {EncodeChunks([]Extent{{Length: 300}, {5, Sum([]byte("a"))}}), EncodeChunks(nil)},
	}
}

// Every change of a byte, and every cut, is either refused or another value's own encoding.
func TestDamagedObjectsAreRefused(t *testing.T) {
	for kind, objects := range sampleObjects() {
		decode := decoders[kind]
		for _, b := range objects {
			for n := range b {
				if _, err := decode(b[:n]); !errors.Is(err, ErrCorrupt) {
					t.Fatalf("%s cut to %d bytes: %v", kind, n, err)
				}
				for _, v := range []byte{0, 1, 0x7f, 0x80, 0xff, b[n] + 1, b[n] ^ 0x80} {
					bad := bytes.Clone(b)
					bad[n] = v
					again, err := decode(bad)
					if err != nil && !errors.Is(err, ErrCorrupt) || err == nil && !bytes.Equal(again, bad) {
						t.Fatalf("%s with byte %d %#x: %v", kind, n, v, err)
					}
				}
			}
			if _, err := decode(append(bytes.Clone(b), 0)); !errors.Is(err, ErrCorrupt) {
				t.Fatalf("%s with a byte more: %v", kind, err)
			}
		}
		for other, objects := range sampleObjects() {
			if _, err := decode(objects[0]); other != kind && !errors.Is(err, ErrCorrupt) {
				t.Errorf("%s taken for %s: %v", other, kind, err)
			}
		}
		next := bytes.Clone(objects[0])
		next[3] = 2
		if _, err := decode(next); !errors.Is(err, ErrCorrupt) || !strings.Contains(err.Error(), "version 2") {
			t.Errorf("%s of another version: %v", kind, err)
		}
	}
}

func TestValuesThatNoMergeWritesAreRefused(t *testing.T) {
	one := func(fn func(*Entry)) []byte {
		e := text("a")
		e.Name, e.Links, e.Ino, e.Born, e.Slot = "a", 1, 1, 1, 1
		fn(&e)
		return appendPage(nil, 0, []Entry{e})
	}
	many := func(n int) []Entry {
		entries := make([]Entry, n)
		for i := range entries {
			entries[i] = Entry{Name: fmt.Sprint(i), Type: FIFO, Links: 1, Ino: 1, Born: 1, Slot: uint64(i + 1)}
		}
		return entries
	}
	twice := many(100)
	twice[99].Name = twice[3].Name
	fewTwice := many(3)
	fewTwice[2].Name = fewTwice[0].Name
	for name, page := range map[string][]byte{
		"no entries":   appendPage(nil, 0, nil),
		"slash":        one(func(e *Entry) { e.Name = "a/b" }),
		"NUL":          one(func(e *Entry) { e.Name = "a\x00b" }),
		"dot":          one(func(e *Entry) { e.Name = "." }),
		"dot dot":      one(func(e *Entry) { e.Name = ".." }),
		"no name":      one(func(e *Entry) { e.Name = "" }),
		"type 0":       one(func(e *Entry) { e.Type = 0 }),
		"type 8":       one(func(e *Entry) { e.Type = 8 }),
		"mode":         one(func(e *Entry) { e.Mode = 0o10000 }),
		"no links":     one(func(e *Entry) { e.Links = 0 }),
		"ino 0":        one(func(e *Entry) { e.Ino = 0 }),
		"ino too high": one(func(e *Entry) { e.Ino = MaxIno + 1 }),
		"born 0":       one(func(e *Entry) { e.Born = 0 }),
		"born high":    one(func(e *Entry) { e.Born = MaxBorn + 1 }),
		"nanoseconds":  one(func(e *Entry) { e.Ctime.Nsec = 1e9 }),
		"zero digest":  one(func(e *Entry) { e.Content.Digest = Digest{} }),
		"dir links":    one(func(e *Entry) { e.Type = Directory }),
		"no target":    one(func(e *Entry) { e.Type = Symlink }),
		"NUL target":   one(func(e *Entry) { e.Type, e.Target = Symlink, "\x00" }),
		"twice":        appendPage(nil, 0, twice),
		"few twice":    appendPage(nil, 0, fewTwice),
		"other page":   appendPage(nil, 0, shifted(many(1), PageSlots)),
		"over the end": appendPage(nil, 0, shifted(many(2), PageSlots-1)),
	} {
		if entries, err := DecodePage(page); !errors.Is(err, ErrCorrupt) {
			t.Errorf("%s: %+v, %v", name, entries, err)
		}
	}
}

func TestDirectoryHeadersThatLieAreRefused(t *testing.T) {
	for name, fn := range map[string]func(inline, paged *DirObject){
		"next slot 0":    func(a, b *DirObject) { a.NextSlot, b.NextSlot = 0, 0 },
		"next too low":   func(a, b *DirObject) { a.NextSlot--; b.NextSlot = MaxSlot - PageSlots },
		"next too high":  func(a, b *DirObject) { a.NextSlot, b.NextSlot = MaxSlot+2, MaxSlot+2 },
		"entries":        func(a, b *DirObject) { a.Entries++; b.Entries++; a.Files++; b.Files++ },
		"subdirectories": func(a, b *DirObject) { a.Subdirs++; b.Subdirs = b.Entries + 1 },
		"files":          func(a, b *DirObject) { a.Files--; b.Files++ },
		"page order":     func(a, b *DirObject) { a.Entries = 0; b.Pages[0], b.Pages[1] = b.Pages[1], b.Pages[0] },
		"empty page":     func(a, b *DirObject) { a.Subdirs = 0; b.Pages[0].Count, b.Pages[1].Count = 0, PageSlots+1 },
		"zero digest":    func(a, b *DirObject) { a.Pages[0].inline[1].Content.Digest = Digest{}; b.Pages[1].Digest = Digest{} },
	} {
		a, b := directoryOf(samples()), paged()
		fn(a, b)
		for _, dir := range []*DirObject{a, b} {
			if got, err := DecodeDirectory(appendDirectory(nil, dir)); !errors.Is(err, ErrCorrupt) {
				t.Errorf("%s: %+v, %v", name, got, err)
			}
		}
	}
	small := directoryOf([]Entry{samples()[1]})
	small.Bytes++
	if _, err := DecodeDirectory(appendDirectory(nil, small)); !errors.Is(err, ErrCorrupt) {
		t.Errorf("bytes: %v", err)
	}
}

func TestChunkListsThatLieAreRefused(t *testing.T) {
	d := Sum(nil)
	list := func(n uint64, parts ...[]byte) []byte {
		return append(binary.AppendUvarint(appendMagic(nil, kindChunks), n), bytes.Join(parts, nil)...)
	}
	hole := func(n uint64) []byte { return binary.AppendUvarint([]byte{extentHole}, n) }
	data := func(n uint64) []byte { return append(binary.AppendUvarint([]byte{extentData}, n), d[:]...) }
	for name, b := range map[string][]byte{
		"adjacent holes": list(2, hole(1), hole(1)), "empty hole": list(1, hole(0)), "empty data": list(1, data(0)),
		"large chunk": list(1, data(ChunkSize+1)), "overflow": list(3, hole(1<<63-1), data(1), hole(1<<63-1)), "too few": list(2, hole(1)),
		"kind": list(1, []byte{2, 1}), "a great many": list(1<<60, hole(1)),
	} {
		if x, err := DecodeChunks(b); !errors.Is(err, ErrCorrupt) {
			t.Errorf("%s: %v, %v", name, x, err)
		}
	}
}

// A page whose header and bytes disagree with the directory that names it is not taken.
func TestPageOfAnotherDirectoryIsRefused(t *testing.T) {
	objs := NewMemory()
	entries := []Entry{{Name: "a", Type: FIFO, Links: 1, Ino: 1, Born: 1, Slot: PageSlots + 5}}
	d, _ := objs.Put(t.Context(), appendPage(nil, 1, entries))
	for name, dir := range map[string]DirObject{
		"count":  {NextSlot: 1 << 20, Pages: []PageRef{{Number: 1, Count: 2, Digest: d}}},
		"number": {NextSlot: 1 << 20, Pages: []PageRef{{Number: 2, Count: 1, Digest: d}}},
		"slots":  {NextSlot: PageSlots + 5, Pages: []PageRef{{Number: 1, Count: 1, Digest: d}}},
	} {
		if _, err := dir.Page(t.Context(), objs, 0); !errors.Is(err, ErrCorrupt) {
			t.Errorf("%s: %v", name, err)
		}
		for _, err := range dir.All(t.Context(), objs) {
			if !errors.Is(err, ErrCorrupt) {
				t.Errorf("%s: %v", name, err)
			}
		}
	}
	missing := DirObject{NextSlot: 1 << 20, Pages: []PageRef{{Number: 1, Count: 2, Digest: Sum(nil)}}}
	if _, err := missing.Page(t.Context(), objs, 0); !errors.Is(err, ErrMissing) {
		t.Errorf("missing page: %v", err)
	}
}

// A few bytes that claim to be much must not be paid for in memory.
func TestHostileCountsAllocateNothing(t *testing.T) {
	huge := func(kind byte, before ...uint64) []byte {
		b := appendMagic(nil, kind)
		for _, v := range append(before, 1<<40) {
			b = binary.AppendUvarint(b, v)
		}
		return append(b, make([]byte, 100)...)
	}
	objects := map[string][]byte{
		"page": huge(kindPage, 0), "chunks": huge(kindChunks), "directory": huge(kindDirectory, 1<<60, 1<<50, 0, 1<<50, 0),
	}
	for kind, b := range objects {
		var before, after runtime.MemStats
		runtime.ReadMemStats(&before)
		if _, err := decoders[kind](b); !errors.Is(err, ErrCorrupt) {
			t.Errorf("%s: %v", kind, err)
		}
		runtime.ReadMemStats(&after)
		if n := after.TotalAlloc - before.TotalAlloc; n > 100_000 {
			t.Errorf("%s: %d bytes allocated", kind, n)
		}
	}
}

// fuzz holds a decoder to: never panic, refuse with ErrCorrupt, and take only what the encoder writes.
func fuzz(f *testing.F, kind string) {
	for _, b := range sampleObjects()[kind] {
		f.Add(b)
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		again, err := decoders[kind](b)
		if err != nil && !errors.Is(err, ErrCorrupt) || err == nil && !bytes.Equal(again, b) {
			t.Fatalf("%v\ngot  %x\nfrom %x", err, again, b)
		}
	})
}

func FuzzDecodePage(f *testing.F)      { fuzz(f, "page") }
func FuzzDecodeDirectory(f *testing.F) { fuzz(f, "directory") }
func FuzzDecodeRoot(f *testing.F)      { fuzz(f, "root") }
func FuzzDecodeChunks(f *testing.F)    { fuzz(f, "chunks") }

func TestDigestText(t *testing.T) {
	d := Sum([]byte("abc"))
	b, err := d.MarshalText()
	if err != nil || string(b) != "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad" {
		t.Errorf("%s, %v: not what sha256sum prints", b, err)
	}
	var back, zero Digest
	if err := back.UnmarshalText(b); err != nil || back != d {
		t.Errorf("%s, %v", back, err)
	}
	if err := back.UnmarshalText(nil); err != nil || back != zero {
		t.Errorf("empty text: %s, %v", back, err)
	}
	for _, bad := range []string{"ab", strings.Repeat("g", 64), strings.Repeat("a", 66)} {
		if err := back.UnmarshalText([]byte(bad)); err == nil {
			t.Errorf("%q is taken", bad)
		}
	}
	if b, err := zero.MarshalText(); err != nil || len(b) != 0 {
		t.Errorf("zero digest: %q, %v", b, err)
	}
}
