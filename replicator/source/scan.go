package source

import (
	"context"
	"errors"

	"github.com/nfs-fleet/nfs-fleet/replicator/tree"
)

// Scan is one look at the source: a tree.Lister.
type Scan struct{}

func (s *Source) begin(ctx context.Context, full bool, progress func(Progress)) (*Scan, error) {
	return &Scan{}, errors.ErrUnsupported
}
func (sc *Scan) fail(error) {}

// Root returns the root directory's attributes, for tree.MergeOptions.
func (sc *Scan) Root() tree.Observed { return tree.Observed{} }

// Full reports whether the scan looks at everything.
func (sc *Scan) Full() bool { return false }

// List is tree.Lister's.
func (sc *Scan) List(ctx context.Context, dir string, prev *tree.Entry) (tree.Listing, error) {
	return tree.Listing{}, errors.ErrUnsupported
}

// Commit ends the scan: the head has moved to what it was merged into, or nothing had changed.
func (sc *Scan) Commit() error { return errors.ErrUnsupported }

// Abort ends the scan and gives the dirty set back.
func (sc *Scan) Abort() {}

// Warnings says what could not be read as it should have been.
func (sc *Scan) Warnings() []string { return nil }

// Skipped counts the files read that have what NFSv3 cannot carry.
func (sc *Scan) Skipped() Skipped { return Skipped{} }

// Skipped counts files.
type Skipped struct {
	Xattrs int // files with extended attributes
	ACLs   int // files with access control lists
}

// Run watches the source until ctx ends.
func (s *Source) Run(ctx context.Context) error { return errors.ErrUnsupported }
