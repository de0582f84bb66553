package store

import (
	"bytes"
	"errors"
	"os"
	"slices"
	"testing"

	"github.com/nfs-fleet/nfs-fleet/replicator/tree"
)

// packOf returns the bytes of a pack with these objects, and its records.
func packOf(id uint32, objects ...[]byte) ([]byte, []record) {
	b := appendPackHeader(nil, id)
	var records []record
	for _, o := range objects {
		r := record{tree.Sum(o), uint32(len(b)), uint32(len(o))}
		b = append(appendRecordHeader(b, id, r), o...)
		records = append(records, r)
	}
	return b, records
}

// TestPackFormat pins the format: what an old version wrote must be read by every later one.
func TestPackFormat(t *testing.T) {
	b, records := packOf(7, []byte("hello"))
	want := "NFFPACK1" + "\x07\x00\x00\x00" + "\x07\x76\x7f\x3f" +
		"nFr1" + "\x05\x00\x00\x00" +
		"\x2c\xf2\x4d\xba\x5f\xb0\xa3\x0e\x26\xe8\x3b\x2a\xc5\xb9\xe2\x9e\x1b\x16\x1e\x5c\x1f\xa7\x42\x5e\x73\x04\x33\x62\x93\x8b\x98\x24" +
		"\xa1g'T" + "hello"
	if string(b) != want {
		t.Errorf("pack:\n%q, want\n%q", b, want)
	}
	if r, ok := decodeRecordHeader(b[16:], 7, 16); !ok || r != records[0] {
		t.Errorf("header: %v, %v", r, ok)
	}
	// A header is good in its own place only.
	for _, other := range []struct {
		id  uint32
		off int64
	}{{8, 16}, {7, 17}, {7, 0}, {7, 1<<32 + 16}} {
		if _, ok := decodeRecordHeader(b[16:], other.id, other.off); ok {
			t.Errorf("header is good in pack %d at %d", other.id, other.off)
		}
	}
}

func TestScanStepsOverDamage(t *testing.T) {
	objects := [][]byte{object(1, 50), object(2, 0), object(3, 300), object(4, 20)}
	inner, _ := packOf(1, objects[0]) // an object that looks like a pack
	objects = append(objects, inner)
	whole, records := packOf(1, objects...)
	for i := packHeader; i < len(whole); i++ {
		b := bytes.Clone(whole)
		b[i] ^= 0x41
		got, err := scanPack(bytes.NewReader(b), 1, packHeader, int64(len(b)))
		if err != nil {
			t.Fatal(err)
		}
		want := slices.DeleteFunc(slices.Clone(records), func(r record) bool { return int(r.off) <= i && i < int(r.end()) })
		if !slices.Equal(got.records, want) {
			t.Fatalf("byte %d damaged: %v, want %v", i, got.records, want)
		}
	}
}

// A record header that straddles two windows of the search is found.
func TestScanFindsRecordsFarBehindDamage(t *testing.T) {
	for _, garbage := range []int{256<<10 - 60, 256<<10 - 44, 256<<10 - 20, 256 << 10, 600 << 10} {
		b := appendPackHeader(nil, 1)
		b = append(b, bytes.Repeat([]byte("nFr1"), garbage/4)...)
		r := record{tree.Sum([]byte("x")), uint32(len(b)), 1}
		b = append(appendRecordHeader(b, 1, r), 'x')
		got, err := scanPack(bytes.NewReader(b), 1, packHeader, int64(len(b)))
		if err != nil || !slices.Equal(got.records, []record{r}) || got.damaged != int64(garbage/4*4) || got.end != int64(len(b)) {
			t.Errorf("after %d bytes of garbage: %+v, %v", garbage, got, err)
		}
	}
}

func TestScanTellsOfReadErrors(t *testing.T) {
	b, _ := packOf(1, object(1, 100))
	if _, err := scanPack(bytes.NewReader(b[:80]), 1, packHeader, int64(len(b))); err == nil {
		t.Error("a pack that cannot be read to its size is no error")
	}
}

func TestPackIndexRoundTrip(t *testing.T) {
	_, records := packOf(1, object(1, 10), object(2, 0), object(3, 99))
	for _, x := range []packIndex{
		{id: 1, covered: packHeader, records: []record{}},
		{id: 9, covered: records[2].end(), records: records, sealed: true},
		{id: 9, covered: records[2].end() + 100, records: []record{records[0], records[2]}},
	} {
		b := x.encode()
		got, err := decodePackIndex(b)
		if err != nil || got.id != x.id || got.sealed != x.sealed || got.covered != x.covered || !slices.Equal(got.records, x.records) {
			t.Errorf("%+v came out as %+v, %v", x, got, err)
		}
		for i := range b {
			bad := bytes.Clone(b)
			bad[i] ^= 1
			if _, err := decodePackIndex(bad); !errors.Is(err, tree.ErrCorrupt) {
				t.Errorf("byte %d damaged: %v", i, err)
			}
			if _, err := decodePackIndex(b[:i]); !errors.Is(err, tree.ErrCorrupt) {
				t.Errorf("cut at %d: %v", i, err)
			}
		}
	}
}

// Whatever an index file's checksum says, its records must fit the pack.
func TestPackIndexRefusesNonsense(t *testing.T) {
	_, r := packOf(1, object(1, 10), object(2, 20))
	for name, x := range map[string]packIndex{
		"covered below the header": {covered: 3},
		"covered over 4 GiB":       {covered: 1<<32 + 1},
		"record before the header": {covered: 500, records: []record{{off: 3, size: 1}}},
		"record beyond covered":    {covered: r[1].end() - 1, records: r},
		"records overlap":          {covered: 500, records: []record{r[0], {off: r[0].off + 10, size: 1}}},
		"records in no order":      {covered: 500, records: []record{r[1], r[0]}},
		"record too large":         {covered: 1 << 32, records: []record{{off: 16, size: MaxObject + 1}}},
	} {
		if _, err := decodePackIndex(x.encode()); !errors.Is(err, tree.ErrCorrupt) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func TestLargeNames(t *testing.T) {
	d := tree.Sum([]byte("x"))
	if r, ok := parseLargeName(largeName(d, 77)); !ok || r.digest != d || r.size != 77 {
		t.Errorf("%v, %v", r, ok)
	}
	for _, name := range []string{"", "x", d.String(), d.String() + "-", d.String() + "-077", d.String() + "-99999999999",
		"-5", d.String()[1:] + "-5", d.String() + "-+5", largeName(d, MaxObject+1), largeName(d, 5) + "~"} {
		if _, ok := parseLargeName(name); ok {
			t.Errorf("%q is taken for a large object", name)
		}
	}
}

func FuzzScanPack(f *testing.F) {
	whole, _ := packOf(1, object(1, 50), object(2, 0), object(3, 300), []byte("nFr1nFr1"))
	f.Add(whole[packHeader:])
	f.Add(whole[packHeader:120])
	f.Add(bytes.Repeat([]byte("nFr1"), 30))
	damaged := bytes.Clone(whole[packHeader:])
	damaged[60]++
	f.Add(damaged)
	f.Fuzz(func(t *testing.T, b []byte) {
		b = append(appendPackHeader(nil, 1), b...)
		got, err := scanPack(bytes.NewReader(b), 1, packHeader, int64(len(b)))
		if err != nil {
			t.Fatal(err)
		}
		end := int64(packHeader)
		for _, r := range got.records {
			if int64(r.off) < end || r.end() > got.end || tree.Sum(b[r.off+recordHeader:r.end()]) != r.digest {
				t.Fatalf("no such object: %v", r)
			}
			end = r.end()
		}
		if got.end != end || got.end > int64(len(b)) || got.damaged < 0 || got.damaged > end {
			t.Fatalf("end %d, want %d; damaged %d", got.end, end, got.damaged)
		}
	})
}

func FuzzPackIndex(f *testing.F) {
	_, records := packOf(1, object(1, 10), object(2, 0), object(3, 99))
	f.Add(packIndex{id: 1, covered: packHeader}.encode())
	f.Add(packIndex{id: 9, covered: records[2].end(), records: records, sealed: true}.encode())
	f.Fuzz(func(t *testing.T, b []byte) {
		x, err := decodePackIndex(b)
		if err != nil {
			if !errors.Is(err, tree.ErrCorrupt) {
				t.Fatal(err)
			}
			return
		}
		if !bytes.Equal(x.encode(), b) {
			t.Fatal("two encodings of one index")
		}
	})
}

// memoryDir is t.TempDir where an fsync costs nothing, if there is such a place.
func memoryDir(t *testing.T) string {
	dir, err := os.MkdirTemp("/dev/shm", "store")
	if err != nil {
		return t.TempDir()
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	return dir
}

// FuzzOpen opens a store whose one pack and index file hold anything.
func FuzzOpen(f *testing.F) {
	whole, records := packOf(1, object(1, 50), object(2, 0), object(3, 300))
	f.Add(whole, packIndex{id: 1, covered: records[1].end(), records: records[:2]}.encode())
	f.Add(whole[:200], packIndex{id: 1, covered: records[2].end(), records: records, sealed: true}.encode())
	f.Add(whole[:9], []byte{})
	f.Fuzz(func(t *testing.T, pack, index []byte) {
		dir := memoryDir(t)
		s := openStore(t, dir, small)
		if err := s.Close(); err != nil {
			t.Fatal(err)
		}
		for path, b := range map[string][]byte{s.pathOf(1): pack, s.indexPathOf(1): index} {
			if err := os.WriteFile(path, b, 0o600); err != nil {
				t.Fatal(err)
			}
		}
		s = openStore(t, dir, small)
		s.index.each(func(d *tree.Digest, _ place) {
			if _, err := s.Get(t.Context(), *d); err != nil && !errors.Is(err, tree.ErrCorrupt) {
				t.Fatal(err)
			}
		})
		b := object(9, 77)
		mustPut(t, s, b)
		mustSync(t, s)
		mustHold(t, s, b)
	})
}
