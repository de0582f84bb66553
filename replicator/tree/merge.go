package tree

import (
	"context"
	"fmt"
)

// MergeOptions are what Merge needs beside the trees.
type MergeOptions struct {
	Generation uint64        // the new generation's number, at least 1
	NextIno    uint64        // the lowest ino not yet allotted; 0 is taken as 1
	Now        Time          // for ctime
	Tag        func() uint64 // draws a tag
	Root       Observed      // the wanted attributes of the root directory, whose inside is always listed
}

// Merged is the outcome of a Merge.
type Merged struct {
	Root    Digest // of the root object
	Entry   Entry  // the root directory
	NextIno uint64
	Files   uint64
	Bytes   uint64
	Changed bool     // false: Root is the previous root
	Dropped []string // paths wanted with Keep that had no previous entry
}

// Merge makes the next generation: what l wants, with the numbers of the previous generation where DESIGN section 5
// keeps them. prev is the previous root object, zero when there is none. It is deterministic: the same trees and options
// give the same objects, in whatever order l lists names. It refuses options that would issue a number again that it comes
// across in the previous tree.
//
// It works in two passes. The first lists, and writes each directory as soon as everything in it is known. What is not
// known until the end is how many names a file with several has, so directories with such files, and those above them,
// wait for the second.
func Merge(ctx context.Context, objs Objects, prev Digest, l Lister, o MergeOptions) (Merged, error) {
	if o.Generation == 0 || o.Generation > MaxBorn {
		return Merged{}, fmt.Errorf("merge: generation %d out of range", o.Generation)
	}
	if o.Root.Type != Directory {
		return Merged{}, fmt.Errorf("merge: root of type %d is no directory", o.Root.Type)
	}
	m := &merger{
		objs: objs, lister: l, opts: o, nextIno: max(o.NextIno, 1),
		byLink: make(map[LinkID]*file), seen: make(map[uint64]*sighting), claimed: make(map[uint64]bool),
	}
	var before *Entry
	if !prev.IsZero() {
		root, err := LoadRoot(ctx, objs, prev)
		if err != nil {
			return Merged{}, fmt.Errorf("merge: %w", err)
		}
		before = &root
	}
	out, err := m.run(ctx, before)
	if err != nil {
		return Merged{}, fmt.Errorf("merge: %w", err)
	}
	if before != nil && out.Entry == *before {
		out.Root = prev
		return out, nil
	}
	out.Changed = true
	if out.Root, err = objs.Put(ctx, EncodeRoot(out.Entry)); err != nil {
		return Merged{}, fmt.Errorf("merge: put root: %w", err)
	}
	return out, nil
}

// merger is one Merge at work.
type merger struct {
	objs    Objects
	lister  Lister
	opts    MergeOptions
	nextIno uint64
	buf     []byte // what the last object was encoded into
	dropped []string

	files   []*file              // whose numbers are decided at the end, in the order of their first names
	byLink  map[LinkID]*file     // of them those with a LinkID
	seen    map[uint64]*sighting // by previous ino: names of files with several names that this Merge has come across
	claimed map[uint64]bool      // previous inos of files with several names that a file of the new tree has
	gone    []Digest             // directory objects that leave the tree and have not been looked into for such names
}

func (m *merger) run(ctx context.Context, before *Entry) (Merged, error) {
	e, err := wanted(&m.opts.Root)
	if err != nil {
		return Merged{}, fmt.Errorf("root directory: %w", err)
	}
	e.Name, e.Slot = "", 0
	if before == nil {
		err = m.allot(&e, nil)
	} else {
		err = m.known(before)
	}
	if err != nil {
		return Merged{}, err
	}
	n, err := m.plan(ctx, ".", 0, e, before)
	if err != nil {
		return Merged{}, err
	}
	if err := m.decide(ctx); err != nil {
		return Merged{}, err
	}
	b, err := m.build(ctx, n)
	if err != nil {
		return Merged{}, err
	}
	return Merged{Entry: b.entry, NextIno: m.nextIno, Files: b.files, Bytes: b.bytes, Dropped: m.dropped}, nil
}

// allot gives e the numbers of a new file. before, when not nil, is what had its name.
func (m *merger) allot(e *Entry, before *Entry) error {
	if m.nextIno > MaxIno {
		return fmt.Errorf("the shard has used up its %d inos", uint64(MaxIno))
	}
	e.Ino, e.Tag, e.Born, e.Ctime = m.nextIno, m.opts.Tag(), m.opts.Generation, m.opts.Now
	m.nextIno++
	if before != nil {
		e.Ctime = m.after(before.Ctime)
	}
	return nil
}

// inherit gives e the numbers of before.
func inherit(e, before *Entry) {
	e.Ino, e.Tag, e.Born, e.Ctime = before.Ino, before.Tag, before.Born, before.Ctime
}

// after returns the ctime of a change now to what had this ctime.
func (m *merger) after(ctime Time) Time {
	if next := ctime.Next(); m.opts.Now.Less(next) {
		return next
	}
	return m.opts.Now
}

// sameFile reports whether e has the bytes of before, so that it keeps its ino.
func sameFile(e, before *Entry) bool {
	return e.Type == before.Type && e.Content == before.Content && e.Size == before.Size && e.Target == before.Target && e.Rdev == before.Rdev
}

// wanted returns the entry that o asks for, without its numbers and, for a directory, without what its inside says.
func wanted(o *Observed) (Entry, error) {
	e := Entry{Name: o.Name, Type: o.Type, Mode: o.Mode, UID: o.UID, GID: o.GID, Mtime: o.Mtime, Links: 1}
	if e.Mode > 0o7777 || e.Mtime.Nsec >= 1e9 {
		return e, fmt.Errorf("mode %#o, %d nanoseconds", e.Mode, e.Mtime.Nsec)
	}
	switch e.Type {
	case Regular:
		e.Size, e.Used, e.Content = o.Size, o.Used, o.Content
		if form := formOf(Regular, e.Size); e.Content.Form != form || e.Content.Digest.IsZero() != (form == NoContent) {
			return e, fmt.Errorf("file of %d bytes with content of form %d, want %d, digest %s", e.Size, e.Content.Form, form, e.Content.Digest)
		}
	case Symlink:
		e.Target, e.Size, e.Used = o.Target, uint64(len(o.Target)), uint64(len(o.Target))
		return e, checkTarget(e.Target)
	case Block, Char:
		e.Rdev = o.Rdev
	case Directory, Socket, FIFO:
	default:
		return e, fmt.Errorf("type %d", e.Type)
	}
	return e, nil
}
