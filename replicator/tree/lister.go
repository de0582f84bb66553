package tree

import "context"

// Lister tells Merge what the wanted tree holds.
type Lister interface {
	// List says what the wanted tree has in directory dir: "." is the root, others are slash-separated without a
	// leading "./". prev is the directory's entry in the previous generation, nil when there was none or it was no
	// directory. Merge calls it from one goroutine, a directory before those in it, each at most once; it does not
	// modify the Listing, which is its own until the next call.
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

	// exact is set by FromTree: the entry is from a whole tree, so Links counts all its names there. Those that are not
	// listed are in directories that both trees have, with the ino that the entry has.
	exact bool
}

// LinkID identifies a file with several names: the device and inode numbers of its source.
type LinkID struct{ Dev, Ino uint64 }
