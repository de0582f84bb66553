package main

import (
	"context"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"

	"github.com/rs/zerolog"

	"github.com/nfs-fleet/nfs-fleet/fleet/console"
	"github.com/nfs-fleet/nfs-fleet/replicator/source"
	"github.com/nfs-fleet/nfs-fleet/replicator/tree"
)

// uploaded is a directory of this machine whose tree a master holds.
type uploaded struct {
	*console.Uploader
	root     tree.Digest
	origin   string // host:/dir
	warnings []string
}

// end lets the master forget what was uploaded and not published. Failing that it does so by itself, later.
func (u *uploaded) end(ctx context.Context) { _ = u.End(ctx) }

// upload reads a directory and gives the master what it lacks of it.
func upload(ctx context.Context, c console.Control, shard, dir string, skip bool, m *meter) (*uploaded, error) {
	dir, err := filepath.Abs(dir)
	if err != nil {
		return nil, err
	}
	root, err := source.OpenRoot(dir)
	if err != nil {
		return nil, console.Errorf(console.ErrNotFound, "%w", err)
	}
	up, err := console.NewUploader(ctx, c, shard)
	if err != nil {
		closeSource(root)
		return nil, err
	}
	u := &uploaded{Uploader: up, origin: hostname() + ":" + dir}
	src, err := source.New(source.Config{Shard: shard, FS: root, Objects: up, Logger: zerolog.Nop()})
	if err != nil {
		u.end(ctx)
		closeSource(root)
		return nil, err
	}
	defer src.Close()
	progress := m.report
	if m.wanted() {
		n := startCount(ctx, dir)
		defer n.stop()
		progress = func(p console.Progress) { m.report(n.total(p)) }
	}
	if err := u.read(ctx, src, skip, progress); err != nil {
		u.end(ctx)
		return nil, err
	}
	return u, nil
}

func closeSource(root any) {
	if c, ok := root.(interface{ Close() error }); ok {
		_ = c.Close()
	}
}

func (u *uploaded) read(ctx context.Context, src *source.Source, skip bool, progress func(console.Progress)) error {
	scan, err := src.Scan(ctx, true, func(p source.Progress) {
		progress(console.Progress{Step: "upload", Files: p.Files, TotalFiles: p.TotalFiles, Bytes: p.Bytes, TotalBytes: p.TotalBytes, Path: p.Path})
	})
	if err != nil {
		return err
	}
	defer scan.Abort() // its memory ends with it
	// The numbers are the master's to give. Here they are the same every time, and so are then the directories of a
	// tree that has not changed: the master holds them.
	merged, err := tree.Merge(ctx, &kept{tree.NewMemory(), u.Uploader}, tree.Digest{}, scan, tree.MergeOptions{
		Generation: 1, NextIno: 1, Tag: func() uint64 { return 1 }, Root: scan.Root(),
	})
	if err != nil {
		return err
	}
	if len(merged.Dropped) > 0 && !skip {
		return unreadable(merged.Dropped)
	}
	if _, err := u.Flush(ctx); err != nil {
		return err
	}
	u.root, u.warnings = merged.Root, scan.Warnings()
	if s := scan.Skipped(); s.ACLs+s.Xattrs > 0 {
		u.warnings = append(u.warnings, fmt.Sprintf("%d files have ACLs and %d extended attributes, which NFSv3 cannot carry", s.ACLs, s.Xattrs))
	}
	return nil
}

// unreadable refuses an upload that would take files away from the shard only because they cannot be read here.
func unreadable(paths []string) error {
	others := ""
	if n := len(paths) - 1; n > 0 {
		others = " and " + plural(int64(n), "other", "others")
	}
	return fmt.Errorf("%s%s cannot be read, or keeps changing: try again as another user or when it is quiet, or leave it out with --skip-unreadable; nothing was published",
		quoted(paths[0]), others)
}

// kept is the objects of a merge, which reads again what it has written: small ones, directories all.
type kept struct {
	*tree.Memory
	up *console.Uploader
}

// Put keeps b and uploads it.
func (k *kept) Put(ctx context.Context, b []byte) (tree.Digest, error) {
	if _, err := k.Memory.Put(ctx, b); err != nil {
		return tree.Digest{}, err
	}
	return k.up.Put(ctx, b)
}

// counter counts what a directory holds, beside its upload, to say how long that takes.
type counter struct {
	files, bytes int64
	done         chan struct{} // closed when files and bytes are counted, or never will be
	cancel       context.CancelFunc
}

func startCount(ctx context.Context, dir string) *counter {
	ctx, cancel := context.WithCancel(ctx)
	c := &counter{done: make(chan struct{}), cancel: cancel}
	go func() {
		defer close(c.done)
		err := filepath.WalkDir(dir, func(_ string, d fs.DirEntry, err error) error {
			if err != nil || d.IsDir() {
				return ctx.Err() // what cannot be read is the upload's to report
			}
			c.files++
			if info, err := d.Info(); err == nil && d.Type().IsRegular() {
				c.bytes += info.Size()
			}
			return nil
		})
		if err != nil {
			c.files, c.bytes = 0, 0
		}
	}()
	return c
}

// total adds the totals to p once they are known.
func (c *counter) total(p console.Progress) console.Progress {
	select {
	case <-c.done:
		p.TotalFiles, p.TotalBytes = c.files, c.bytes
	default:
	}
	return p
}

func (c *counter) stop() {
	c.cancel()
	<-c.done
}

func hostname() string {
	name, err := os.Hostname()
	if err != nil {
		return "localhost"
	}
	return name
}
