package tree

import (
	"context"
	"errors"
)

// Lister tells Merge what the wanted tree holds.
type Lister interface {
	// List says what the wanted tree has in directory dir: "." is the root, others are slash-separated without a
	// leading "./". prev is the directory's entry in the previous generation, nil when there was none or it was no
	// directory. Merge calls it from one goroutine, a directory before those in it, each at most once.
	List(ctx context.Context, dir string, prev *Entry) (Listing, error)
}

// Listing is what a directory of the wanted tree holds: all of it, or what has changed.
type Listing struct {
	Complete bool       // Names is everything the directory holds; what is not in it is gone
	Names    []Observed // in any order, each name once
	Gone     []string   // names that are no more; only when not Complete
}

// Observed is a wanted entry. Ino, Tag, Slot, Born and Ctime are ignored, and a directory's Size, Used, Links and
// Content; Links is a hint.
type Observed struct {
	Entry
	Link    LinkID // not zero for a file with several names: equal ids are one file. A Lister that lists one such name lists all.
	Keep    bool   // the content could not be read: the previous entry of this name is kept whole, or the name left out when there was none
	Descend bool   // a directory whose inside is to be listed; otherwise it is as before. A new directory always is
}

// LinkID identifies a file with several names: the device and inode numbers of its source.
type LinkID struct{ Dev, Ino uint64 }

// MergeOptions are what Merge needs beside the trees.
type MergeOptions struct {
	Generation uint64        // the new generation's number
	NextIno    uint64        // the lowest ino not yet allotted, at least 1
	Now        Time          // for ctime
	Tag        func() uint64 // draws a tag
	Root       Observed      // the wanted attributes of the root directory
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
// keeps them. prev is the previous root object, zero when there is none.
func Merge(ctx context.Context, objs Objects, prev Digest, l Lister, o MergeOptions) (Merged, error) {
	return Merged{}, errors.ErrUnsupported
}

// FromTree returns a Lister that wants exactly the tree root, and that tree's root entry, for MergeOptions.Root. Merging
// it onto current costs what differs between the two: subtrees that are the same object are not listed.
func FromTree(objs Objects, root, current Digest) (Lister, Entry, error) {
	return nil, Entry{}, errors.ErrUnsupported
}
