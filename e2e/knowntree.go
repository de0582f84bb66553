package e2e

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"sync/atomic"
	"testing"
	"time"

	"github.com/nfs-fleet/nfs-fleet/e2e/known"
	"github.com/nfs-fleet/nfs-fleet/e2e/wire"
)

// Files of a knownTree.
const (
	bigFile   = "big"   // of several chunks; a new version now and then
	stampFile = "stamp" // one block; a new version with every publish

	bigBlocks = 2048
	bigEvery  = 8 // publishes a new version of bigFile
)

// knownTree is a directory of known files (package known) that is published again and again, each time as a new version, by
// whichever master is there.
type knownTree struct {
	fleet   *Fleet
	shard   string
	dir     string
	version atomic.Uint64 // the last that was written; every file's is at most that

	published, refused atomic.Int64
}

// newKnownTree makes a shard and publishes its first version.
func newKnownTree(t testing.TB, f *Fleet, shard string) *knownTree {
	t.Helper()
	k := &knownTree{fleet: f, shard: shard, dir: t.TempDir()}
	f.createShard(shard)
	if err := k.write(); err != nil {
		t.Fatal(err)
	}
	f.WaitServed(shard, f.publishAnywhere(shard, k.dir, "").Number, restLimit)
	return k
}

// write puts the next version of the files in place, as a deployment does.
func (k *knownTree) write() error {
	v := k.version.Add(1)
	files := map[string]int{stampFile: 1}
	if v%bigEvery == 1 {
		files[bigFile] = bigBlocks
	}
	for name, blocks := range files {
		path := filepath.Join(k.dir, name)
		if err := os.WriteFile(path+".new", known.File(name, v, blocks), 0o644); err != nil {
			return fmt.Errorf("write a new version: %w", err)
		}
		if err := os.Rename(path+".new", path); err != nil {
			return fmt.Errorf("write a new version: %w", err)
		}
	}
	return nil
}

// publish publishes new versions until ctx ends, at a pace that leaves a small machine something to do besides.
func (k *knownTree) publish(ctx context.Context, pace time.Duration) error {
	for i := 0; ctx.Err() == nil; i++ {
		if err := k.write(); err != nil {
			return err
		}
		m := k.fleet.Masters[i%len(k.fleet.Masters)]
		if m.Down() {
			continue
		}
		r, err := run(m.Host, attemptLimit, m.env(), m.bin, "publish", k.shard, k.dir)
		if err == nil && r.Code == 0 {
			k.published.Add(1)
		} else {
			k.refused.Add(1) // what a publisher is told is what other tests look at
		}
		wait(ctx, pace)
	}
	return nil
}

// judge demands that a slave's reader saw nothing but what was published, without an error.
func (k *knownTree) judge(t testing.TB, what string, w wire.Window) {
	t.Helper()
	faultless(t, what, w)
	last := k.version.Load()
	for v := range w.Versions {
		if v == 0 || v > last {
			t.Errorf("%s saw version %d; %d is the last", what, v, last)
		}
	}
}
