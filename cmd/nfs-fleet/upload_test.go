package main

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/nfs-fleet/nfs-fleet/fleet/console"
	"github.com/nfs-fleet/nfs-fleet/replicator/tree"
)

// site makes a directory with a few files, links and an odd name.
func site(t *testing.T) string {
	t.Helper()
	dir := t.TempDir()
	for name, content := range map[string]string{"index.html": "hello", "a/b/deep": strings.Repeat("x", 100_000), "odd \xff\n": "odd", "empty": ""} {
		path := filepath.Join(dir, name)
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, []byte(content), 0o640); err != nil {
			t.Fatal(err)
		}
	}
	if err := errors.Join(os.Symlink("index.html", filepath.Join(dir, "link")), os.Link(filepath.Join(dir, "index.html"), filepath.Join(dir, "hard"))); err != nil {
		t.Fatal(err)
	}
	return dir
}

// publish SHARD DIR gives the master the whole tree, and the second time only what is new.
func TestPublishDirectory(t *testing.T) {
	b, dir := newBench(t), site(t)
	if s := b.command(t, "publish", "www", dir, "--note", "n"); s.code != 0 || !strings.Contains(s.out, "generation 42") {
		t.Fatalf("%+v", s)
	}
	if want := []string{"begin www", `publish www note="n" wait=false root=true upload="u1" origin=true`, "end www u1"}; strings.Join(b.asked, "; ") != strings.Join(want, "; ") {
		t.Errorf("the master was asked %q", b.asked)
	}
	for path, want := range map[string]string{"index.html": "hello", "hard": "hello", "a/b/deep": strings.Repeat("x", 100_000), "odd \xff\n": "odd"} {
		e, err := tree.Lookup(t.Context(), b.objects, b.root, path)
		if err != nil {
			t.Fatalf("%q: %v", path, err)
		}
		content, err := b.objects.Get(t.Context(), e.Content.Digest)
		if err != nil || string(content) != want || e.Mode != 0o640 {
			t.Errorf("%q: %d bytes, mode %o, %v", path, len(content), e.Mode, err)
		}
	}
	if e, err := tree.Lookup(t.Context(), b.objects, b.root, "link"); err != nil || e.Target != "index.html" {
		t.Errorf("link: %+v, %v", e, err)
	}
	if e, err := tree.Lookup(t.Context(), b.objects, b.root, "hard"); err != nil || e.Links != 2 {
		t.Errorf("hard link: %+v, %v", e, err)
	}
	before, root := b.puts, b.root
	if s := b.command(t, "publish", "www", dir); s.code != 0 || b.puts != before || b.root != root {
		t.Errorf("again, unchanged: %d objects sent, root %s then %s, %+v", b.puts-before, root, b.root, s)
	}
	if err := os.WriteFile(filepath.Join(dir, "a/new"), []byte("new"), 0o644); err != nil {
		t.Fatal(err)
	}
	if s := b.command(t, "publish", "www", dir); s.code != 0 || b.puts == before || b.puts > before+5 {
		t.Errorf("one file more: %d objects sent, %+v", b.puts-before, s)
	}
}

// An upload that fails is ended, and nothing is published.
func TestPublishDirectoryThatFails(t *testing.T) {
	b := newBench(t)
	b.fail = console.Errorf(console.ErrNotFound, "no shard www")
	if s := b.command(t, "publish", "www", site(t)); s.code != 3 || s.err != "nfs-fleet: no shard www\n" {
		t.Errorf("%+v", s)
	}
	b.fail = nil
	file := filepath.Join(site(t), "index.html")
	if s := b.command(t, "publish", "www", file); s.code == 0 || !strings.Contains(s.err, "index.html") {
		t.Errorf("a file: %+v", s)
	}
	for _, asked := range b.asked {
		if strings.HasPrefix(asked, "publish") {
			t.Errorf("the master was asked to %s", asked)
		}
	}
}

func TestUnreadableFilesAreNamed(t *testing.T) {
	err := unreadable([]string{"a\nb", "c", "d"})
	if !strings.Contains(err.Error(), `"a\nb" and 2 others`) || !strings.Contains(err.Error(), "--skip-unreadable") || !strings.Contains(err.Error(), "nothing was published") {
		t.Error(err)
	}
}

// On a terminal an upload knows its totals, for the time left.
func TestCounter(t *testing.T) {
	c := startCount(t.Context(), site(t))
	<-c.done
	if p := c.total(console.Progress{Files: 1}); p.Files != 1 || p.TotalFiles != 6 || p.TotalBytes != 100_013 {
		t.Errorf("%+v", p)
	}
	c.stop()
	c = &counter{done: make(chan struct{})}
	if p := c.total(console.Progress{}); p.TotalFiles != 0 {
		t.Errorf("not counted yet: %+v", p)
	}
}
