package source

import (
	"bytes"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"go.etcd.io/bbolt"

	"github.com/nfs-fleet/nfs-fleet/replicator/tree"
)

func someFact(n byte) fact {
	return fact{check: check{n, 1}, content: tree.Content{Form: tree.Blob, Digest: tree.Sum([]byte{n})}, used: uint64(n)}
}

func mustFacts(t *testing.T, path string) *facts {
	t.Helper()
	f, err := openFacts(path)
	if err != nil {
		t.Fatal(err)
	}
	return f
}

func TestFactsOutliveTheProcess(t *testing.T) {
	path := filepath.Join(t.TempDir(), "state")
	f := mustFacts(t, path)
	id := tree.LinkID{Dev: 7, Ino: 1 << 40}
	if err := f.put(id, someFact(3)); err != nil {
		t.Fatal(err)
	}
	if v, ok := f.get(id); !ok || v != someFact(3) {
		t.Fatal("not known before it is written")
	}
	sum := summary{Dev: 7, Ino: 2, Files: 10, Bytes: 1000}
	if err := f.commit(sum, nil); err != nil {
		t.Fatal(err)
	}
	if err := f.close(); err != nil {
		t.Fatal(err)
	}
	f = mustFacts(t, path)
	defer f.close()
	if v, ok := f.get(id); !ok || v != someFact(3) {
		t.Fatalf("after a restart: %+v %v", v, ok)
	}
	if _, ok := f.get(tree.LinkID{Dev: 7, Ino: 5}); ok {
		t.Fatal("a fact about nothing")
	}
	if f.summary() != sum {
		t.Fatalf("summary %+v", f.summary())
	}
}

func TestFactsAreWrittenInBatches(t *testing.T) {
	f := mustFacts(t, filepath.Join(t.TempDir(), "state"))
	defer f.close()
	for i := range uint64(factBatch + 10) {
		if err := f.put(tree.LinkID{Dev: 1, Ino: i}, someFact(byte(i))); err != nil {
			t.Fatal(err)
		}
	}
	if n := len(f.fresh); n != 10 {
		t.Fatalf("%d facts are held in memory", n)
	}
	for _, i := range []uint64{0, 5, factBatch - 1, factBatch + 3} {
		if v, ok := f.get(tree.LinkID{Dev: 1, Ino: i}); !ok || v != someFact(byte(i)) {
			t.Fatalf("fact %d is lost", i)
		}
	}
}

func TestFactsOfVanishedFilesAreSwept(t *testing.T) {
	f := mustFacts(t, filepath.Join(t.TempDir(), "state"))
	defer f.close()
	for i := range uint64(5000) {
		f.put(tree.LinkID{Dev: 1, Ino: i}, someFact(1))
	}
	seen := []tree.LinkID{}
	for i := range uint64(100) {
		seen = append(seen, tree.LinkID{Dev: 1, Ino: i * 7})
	}
	if err := f.commit(summary{}, seen); err != nil {
		t.Fatal(err)
	}
	n := 0
	f.db.View(func(tx *bbolt.Tx) error { n = tx.Bucket(factBucket).Stats().KeyN; return nil })
	if n != len(seen) {
		t.Fatalf("%d facts are left, want %d", n, len(seen))
	}
	if _, ok := f.get(seen[99]); !ok {
		t.Fatal("a living file's fact was swept")
	}
}

func TestADamagedStateFileIsReplaced(t *testing.T) {
	for name, damage := range map[string][]byte{"garbage": bytes.Repeat([]byte("rot"), 10_000), "empty": {}, "short": []byte("x")} {
		t.Run(name, func(t *testing.T) {
			path := filepath.Join(t.TempDir(), "state")
			if err := os.WriteFile(path, damage, 0o600); err != nil {
				t.Fatal(err)
			}
			f := mustFacts(t, path)
			defer f.close()
			if err := f.put(tree.LinkID{Ino: 1}, someFact(1)); err != nil {
				t.Fatal(err)
			}
			if err := f.flush(); err != nil {
				t.Fatal(err)
			}
		})
	}
}

func TestAStateFileInUseIsNotReplaced(t *testing.T) {
	path := filepath.Join(t.TempDir(), "state")
	f := mustFacts(t, path)
	defer f.close()
	f.put(tree.LinkID{Ino: 1}, someFact(1))
	f.flush()
	if g, err := openFacts(path); err == nil {
		g.close()
		t.Fatal("opened twice")
	}
	if _, ok := f.get(tree.LinkID{Ino: 1}); !ok {
		t.Fatal("the owner's facts are gone")
	}
}

func FuzzDecodeFact(f *testing.F) {
	f.Add(someFact(1).encode())
	f.Add(fact{}.encode())
	f.Add(fact{content: tree.Content{Form: tree.Chunks, Digest: tree.Sum(nil)}}.encode())
	f.Add([]byte{})
	f.Add(make([]byte, factSize-1))
	f.Fuzz(func(t *testing.T, b []byte) {
		v, ok := decodeFact(b)
		if ok && !bytes.Equal(v.encode(), b) {
			t.Fatalf("%x is read as %+v", b, v)
		}
		if !ok && v != (fact{}) {
			t.Fatal("something was made of garbage")
		}
	})
}

func FuzzDecodeSummary(f *testing.F) {
	f.Add(summary{1, 2, 3, 4}.encode())
	f.Add([]byte("x"))
	f.Fuzz(func(t *testing.T, b []byte) {
		var s summary
		s.decode(b)
		if s != (summary{}) && !bytes.Equal(s.encode(), b) {
			t.Fatalf("%x is read as %+v", b, s)
		}
	})
}

// residentKiB returns how much of a mapped file is in this process's memory.
func residentKiB(t *testing.T, path string) (kib int) {
	t.Helper()
	b, err := os.ReadFile("/proc/self/smaps")
	if err != nil {
		t.Skip(err)
	}
	_, mine, ok := strings.Cut(string(b), path+"\n")
	if !ok {
		t.Fatalf("%s is not mapped", path)
	}
	_, rss, _ := strings.Cut(mine, "\nRss:")
	if _, err := fmt.Sscan(rss, &kib); err != nil {
		t.Fatal(err)
	}
	return kib
}

func TestFactsLeaveMemoryAfterAFullScan(t *testing.T) {
	path := filepath.Join(t.TempDir(), "state")
	f := mustFacts(t, path)
	defer f.close()
	var seen []tree.LinkID
	for i := range uint64(factBatch) {
		seen = append(seen, tree.LinkID{Dev: 1, Ino: i})
		if err := f.put(seen[i], someFact(byte(i))); err != nil {
			t.Fatal(err)
		}
	}
	lookAtAll := func() {
		t.Helper()
		for i, id := range seen {
			if v, ok := f.get(id); !ok || v != someFact(byte(i)) {
				t.Fatalf("fact %d is lost", i)
			}
		}
	}
	lookAtAll()
	before := residentKiB(t, path)
	if err := f.commit(summary{Files: factBatch}, seen); err != nil {
		t.Fatal(err)
	}
	if after := residentKiB(t, path); after > before/4 {
		t.Errorf("%d KiB of the file are resident after a full scan, %d before its end", after, before)
	}
	lookAtAll()
}
