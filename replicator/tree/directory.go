package tree

import (
	"context"
	"errors"
	"iter"
)

// DirObject is a decoded directory object: what it says of the directory, and where its entries are.
type DirObject struct {
	NextSlot uint64    // the lowest slot not yet allotted in this directory
	Entries  uint64    // names in this directory
	Subdirs  uint64    // of them directories
	Files    uint64    // names in the whole subtree that are not directories
	Bytes    uint64    // sum of the sizes of the subtree's regular files, one count a name
	Pages    []PageRef // in ascending order of Number; pages without entries are not there
}

// PageRef is one page of a directory: the entries whose slots are Number*PageSlots+1 to (Number+1)*PageSlots.
type PageRef struct {
	Number uint64
	Count  uint64 // entries in the page, 1 to PageSlots
	Digest Digest // of the page object; zero when the entries are in the directory object itself

	inline []Entry // decoded, when Digest is zero
}

// LoadDirectory gets and decodes the directory object named d.
func LoadDirectory(ctx context.Context, objs Objects, d Digest) (*DirObject, error) {
	return nil, errors.ErrUnsupported
}

// DecodeDirectory decodes a directory object.
func DecodeDirectory(b []byte) (*DirObject, error) { return nil, errors.ErrUnsupported }

// Page returns the entries of dir.Pages[i] in slot order.
func (dir *DirObject) Page(ctx context.Context, objs Objects, i int) ([]Entry, error) {
	return nil, errors.ErrUnsupported
}

// All yields the directory's entries in slot order. After an error it stops.
func (dir *DirObject) All(ctx context.Context, objs Objects) iter.Seq2[Entry, error] {
	return func(yield func(Entry, error) bool) { yield(Entry{}, errors.ErrUnsupported) }
}

// DecodePage decodes a page object into its entries, in slot order.
func DecodePage(b []byte) ([]Entry, error) { return nil, errors.ErrUnsupported }
