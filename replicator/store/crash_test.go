package store

import (
	"bufio"
	"bytes"
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"testing"

	"github.com/nfs-fleet/nfs-fleet/replicator/tree"
)

// copyStore copies a store's files as a crash would leave them: without Close.
func copyStore(t testing.TB, from string) string {
	t.Helper()
	to := t.TempDir()
	if err := os.CopyFS(to, os.DirFS(from)); err != nil {
		t.Fatal(err)
	}
	return to
}

// TestTornTail cuts and damages the one pack at every byte of what was not synced when the power went.
func TestTornTail(t *testing.T) {
	dir := t.TempDir()
	s := openStore(t, dir, Options{})
	var synced, unsynced [][]byte
	for i := range 4 {
		synced = append(synced, object(i, 30+i))
		mustPut(t, s, synced[i])
	}
	mustSync(t, s)
	from := s.active.size.Load()
	for i := range 3 {
		unsynced = append(unsynced, object(100+i, 9+i*5))
		mustPut(t, s, unsynced[i])
	}
	to := s.active.size.Load()
	path := s.pathOf(1)
	torn := map[string]func(b []byte, i int64) []byte{
		"cut":     func(b []byte, i int64) []byte { return b[:i] },
		"zeros":   func(b []byte, i int64) []byte { clear(b[i:]); return b },
		"flipped": func(b []byte, i int64) []byte { b[i] ^= 0x80; return b },
		"longer":  func(b []byte, i int64) []byte { return append(b, b[:i]...) },
	}
	whole, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	for name, tear := range torn {
		step := int64(1)
		if name == "zeros" || name == "longer" {
			step = 7 // much the same as a cut
		}
		for i := from; i < to; i += step {
			crashed := t.TempDir()
			writePack(t, crashed, tear(bytes.Clone(whole), i))
			checkTorn(t, crashed, fmt.Sprintf("%s at %d", name, i), synced, unsynced)
		}
	}
}

func writePack(t *testing.T, dir string, b []byte) {
	t.Helper()
	if err := os.MkdirAll(filepath.Join(dir, "packs"), 0o700); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(dir, "packs", packName(1)), b, 0o600); err != nil {
		t.Fatal(err)
	}
}

// checkTorn opens a crashed store: what was synced is whole, what was not is whole or missing, and it can be put again.
func checkTorn(t *testing.T, dir, what string, synced, unsynced [][]byte) {
	t.Helper()
	s := openStore(t, dir, Options{})
	for _, b := range synced {
		if got, err := s.Get(t.Context(), tree.Sum(b)); err != nil || !bytes.Equal(got, b) {
			t.Fatalf("%s: a synced object: %v", what, err)
		}
	}
	for _, b := range unsynced {
		if s.Has(tree.Sum(b)) {
			mustHold(t, s, b)
		}
		mustPut(t, s, b)
	}
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	s = openStore(t, dir, Options{})
	for _, b := range append(synced, unsynced...) {
		mustHold(t, s, b)
	}
	if r, err := s.Verify(t.Context(), nil); err != nil || len(r.Bad) > 0 {
		t.Fatalf("%s: verify: %+v, %v", what, r, err)
	}
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
}

// Damage to index files costs nothing; damage to a sealed pack costs what it hits.
func TestIndexFilesAreRebuilt(t *testing.T) {
	dir := t.TempDir()
	s := openStore(t, dir, small)
	for i := range 60 {
		mustPut(t, s, object(i, 400))
	}
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	spoil := map[string]func(path string) error{
		"removed": os.Remove,
		"emptied": func(path string) error { return os.Truncate(path, 0) },
		"cut":     func(path string) error { return os.Truncate(path, 50) },
		"another's": func(path string) error {
			return os.WriteFile(path, packIndex{id: 999, covered: packHeader}.encode(), 0o600)
		},
		"unreadable": func(path string) error {
			if err := os.Remove(path); err != nil {
				return err
			}
			return os.Mkdir(path, 0o700)
		},
	}
	for name, how := range spoil {
		crashed := copyStore(t, dir)
		paths, _ := filepath.Glob(filepath.Join(crashed, "packs", "*.idx"))
		if len(paths) < 3 {
			t.Fatalf("%d index files", len(paths))
		}
		for _, path := range paths {
			if err := how(path); err != nil {
				t.Fatal(err)
			}
		}
		for range 2 {
			s := openStore(t, crashed, small)
			if n := s.Stats().Objects; n != 60 {
				t.Errorf("%s: %d objects of 60", name, n)
			}
			for i := range 60 {
				mustHold(t, s, object(i, 400))
			}
			if err := s.Close(); err != nil {
				t.Fatal(err)
			}
		}
	}
}

// An index file without its pack, as a crash in a compaction leaves it, harms no pack that comes later.
func TestOrphanedIndexFile(t *testing.T) {
	dir := t.TempDir()
	s := openStore(t, dir, small)
	mustPut(t, s, object(1, 100))
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	x := packIndex{id: 2, sealed: true, covered: 300, records: []record{{tree.Sum(object(2, 10)), 16, 10}}}
	if err := os.WriteFile(s.indexPathOf(2), x.encode(), 0o600); err != nil {
		t.Fatal(err)
	}
	for range 2 {
		s = openStore(t, dir, small)
		mustLack(t, s, object(2, 10))
		for i := range 30 {
			mustPut(t, s, object(i+100, 400))
		}
		mustSync(t, s)
		s = openStore(t, copyStore(t, dir), small)
		for i := range 30 {
			mustHold(t, s, object(i+100, 400))
		}
		dir = s.dir
		if err := s.Close(); err != nil {
			t.Fatal(err)
		}
	}
}

// A sealed pack that lost its end lacks the objects there, and only them; they can be put again.
func TestShortenedPack(t *testing.T) {
	dir := t.TempDir()
	s := openStore(t, dir, small)
	for i := range 30 {
		mustPut(t, s, object(i, 400))
	}
	path := s.pathOf(1)
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	if err := os.Truncate(path, 2000); err != nil {
		t.Fatal(err)
	}
	s = openStore(t, dir, small)
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	s = openStore(t, dir, small)
	lost := 0
	for i := range 30 {
		if !s.Has(tree.Sum(object(i, 400))) {
			lost++
		}
		mustPut(t, s, object(i, 400))
		mustHold(t, s, object(i, 400))
	}
	if lost == 0 || lost > 6 {
		t.Errorf("%d objects were lost", lost)
	}
}

// What a killed process left unfinished in tmp is gone after the next Open.
func TestTmpIsEmptied(t *testing.T) {
	dir := t.TempDir()
	s := openStore(t, dir, small)
	mustPut(t, s, object(1, 5000))
	crashed := copyStore(t, dir)
	if names, _ := readNames(filepath.Join(crashed, "tmp")); len(names) != 1 {
		t.Fatalf("tmp before: %v", names)
	}
	s = openStore(t, crashed, small)
	mustLack(t, s, object(1, 5000))
	if names, _ := readNames(filepath.Join(crashed, "tmp")); len(names) > 0 {
		t.Errorf("tmp after: %v", names)
	}
}

const childDir = "NFS_FLEET_TEST_STORE"

// TestMain lets the test binary be the process that TestKill kills.
func TestMain(m *testing.M) {
	if dir := os.Getenv(childDir); dir != "" {
		if err := child(dir); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
	}
	os.Exit(m.Run())
}

// killed is the size of the i-th object that the child puts: small ones, large ones, some in a pack to itself.
func killed(i int) []byte { return object(i, []int{10, 700, 3000, 90, 1000}[i%5]+i%7) }

// child puts objects, syncs and collects for ever, and prints the number of those that are durable.
func child(dir string) error {
	s, err := Open(dir, small)
	if err != nil {
		return err
	}
	first := 0
	for s.Has(tree.Sum(killed(first))) {
		first++
	}
	ctx := context.Background()
	for i := first; ; i++ {
		if _, err := s.Put(ctx, killed(i)); err != nil {
			return err
		}
		if _, err := s.Put(ctx, object(1_000_000+i, 500)); err != nil { // garbage, for the collector
			return err
		}
		if i%5 == 0 {
			if err := s.Sync(ctx); err != nil {
				return err
			}
			fmt.Println(i + 1)
		}
		if i%40 == 0 {
			if _, err := s.Collect(ctx, keepKilled(i)); err != nil {
				return err
			}
		}
	}
}

// keepKilled marks what child wants to keep.
func keepKilled(last int) func(context.Context, func(tree.Digest) bool) error {
	return func(_ context.Context, live func(tree.Digest) bool) error {
		for i := range last + 1 {
			live(tree.Sum(killed(i)))
		}
		return nil
	}
}

// TestKill kills a writing process at some moment, again and again: what it said was durable is there and whole.
func TestKill(t *testing.T) {
	rounds := 12
	if testing.Short() {
		rounds = 3
	}
	dir := t.TempDir()
	durable := 0
	for round := range rounds {
		cmd := exec.Command(os.Args[0])
		cmd.Env = append(os.Environ(), childDir+"="+dir)
		cmd.Stderr = os.Stderr
		out, err := cmd.StdoutPipe()
		if err != nil {
			t.Fatal(err)
		}
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		lines := bufio.NewScanner(out)
		for n := 0; n < 1+round*5 && lines.Scan(); n++ {
			_, _ = fmt.Sscan(lines.Text(), &durable)
		}
		if err := cmd.Process.Kill(); err != nil {
			t.Fatal(err)
		}
		for lines.Scan() {
			_, _ = fmt.Sscan(lines.Text(), &durable)
		}
		_ = cmd.Wait() // killed
		s := openStore(t, dir, small)
		for i := range durable {
			if got, err := s.Get(t.Context(), tree.Sum(killed(i))); err != nil || !bytes.Equal(got, killed(i)) {
				t.Fatalf("round %d: object %d of %d durable ones: %v", round, i, durable, err)
			}
		}
		if r, err := s.Verify(t.Context(), nil); err != nil || len(r.Bad) > 0 {
			t.Fatalf("round %d: verify: %+v, %v", round, r, err)
		}
		if err := s.Close(); err != nil {
			t.Fatal(err)
		}
	}
	if durable < rounds {
		t.Fatalf("only %d objects came to be durable", durable)
	}
}
