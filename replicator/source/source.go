package source

import (
	"context"
	"errors"
	"fmt"
	"io"
	"runtime"
	"sync"
	"time"

	"github.com/go-git/go-billy/v5"
	"github.com/rs/zerolog"

	"github.com/nfs-fleet/nfs-fleet/replicator/tree"
)

var (
	// ErrVanished: the source directory is not there, or an empty one of another file system is there in its place. The
	// scan has failed; nothing may be published from it.
	ErrVanished = errors.New("source directory has vanished")
	// ErrBusy: another scan has not been committed or aborted yet.
	ErrBusy = errors.New("a scan is under way")
)

// Config says what a Source reads and where it puts it. Zero durations mean the defaults.
type Config struct {
	Shard   string           // for the log
	FS      billy.Filesystem // the source directory, from OpenRoot; the Source closes it
	Watch   string           // its host path, to watch it for changes; "": no watching
	State   string           // file for fingerprints; "": they are kept in memory
	Objects tree.Objects     // where content goes. With a Has(tree.Digest) bool, asking what is there is cheap
	Quiet   time.Duration    // a publish is due when nothing has changed for so long; 500 ms
	MaxWait time.Duration    // or when a change has waited for so long; 30 s
	Rescan  time.Duration    // a full rescan is due so long after the last; 10 min
	Racy    time.Duration    // what changed within this time of its scan is hashed again; 2 s
	Logger  zerolog.Logger
}

// The modes of a Source, for Status.
const (
	ModeWatching  = "watching"  // every change is noticed as it happens
	ModeRescan    = "rescan"    // watching has failed: full scans at short intervals find changes
	ModeUnwatched = "unwatched" // not asked to watch, or Run has not begun
)

// Status describes a Source to an administrator.
type Status struct {
	Watching  bool      // every directory is watched: an incremental scan sees every change
	Mode      string    // ModeWatching, ModeRescan or ModeUnwatched
	Reason    string    // why the next scan is a full one, or why the mode is ModeRescan; "" otherwise
	Dirty     int       // names that are known to have changed
	Watches   int       // directories that are watched
	LastScan  time.Time // when the last committed scan began
	LastFull  time.Time // when the last committed full scan began
	LastError string    // why the last scan failed; "" when it did not
}

// Source reads one source directory. It is safe for concurrent use.
type Source struct {
	cfg    Config
	log    zerolog.Logger
	reader *reader
	facts  *facts
	links  *links // owned by the scan under way
	due    chan struct{}
	kick   chan struct{} // tells Run that pending has changed

	// newNotifier is how Run starts watching.
	newNotifier func(dir string) (notifier, error)

	mu       sync.Mutex // guards what follows; never held during I/O
	fs       billy.Filesystem
	watch    *watcher // nil while Run does not watch
	watchErr error    // why it does not, although it was asked to
	scanning bool
	dirt     *dirt
	dirty    int    // nodes in dirt, about
	full     string // why the next scan must look at everything; "" when it need not
	pending  pending
	failures int // scans in a row that were not committed
	lastScan time.Time
	lastFull time.Time
	fullTook time.Duration // how long the last full scan took, publish included
	lastErr  string
}

// New returns a Source that has scanned nothing yet: its first scan is a full one. Close it after the last scan.
func New(c Config) (*Source, error) {
	for _, d := range []struct {
		value *time.Duration
		or    time.Duration
	}{{&c.Quiet, 500 * time.Millisecond}, {&c.MaxWait, 30 * time.Second}, {&c.Rescan, 10 * time.Minute}, {&c.Racy, 2 * time.Second}} {
		if *d.value <= 0 {
			*d.value = d.or
		}
	}
	f, err := openFacts(c.State)
	if err != nil {
		return nil, err
	}
	return &Source{
		cfg: c, log: c.Logger.With().Str("shard", c.Shard).Logger(),
		reader: newReader(c.Objects, min(2*runtime.GOMAXPROCS(0), 16)),
		facts:  f, links: newLinks(), fs: c.FS, dirt: &dirt{}, full: "first scan",
		due: make(chan struct{}, 1), kick: make(chan struct{}, 1),
		newNotifier: newInotify,
	}, nil
}

// Close writes what is known to the state file and closes it. Run must have returned, and no scan be under way.
func (s *Source) Close() error {
	s.mu.Lock()
	fs := s.fs
	s.mu.Unlock()
	return errors.Join(s.facts.close(), closeFS(fs))
}

func closeFS(fs billy.Filesystem) error {
	if c, ok := fs.(io.Closer); ok {
		return c.Close()
	}
	return nil
}

// Due receives when a publish should be tried: something has changed and it is quiet, or a rescan is due. It receives
// only while Run runs. A scan answers it; until then it is not repeated, unless something else changes.
func (s *Source) Due() <-chan struct{} { return s.due }

// MarkAll makes the next scan a full one, and due at once. The reason goes to the log and the status.
func (s *Source) MarkAll(reason string) {
	s.log.Info().Str("reason", reason).Msg("full rescan due")
	s.mu.Lock()
	defer s.mu.Unlock()
	s.markAll(reason)
	s.pending.urgent = true
}

// markAll is MarkAll after the quiet period. The caller holds mu.
func (s *Source) markAll(reason string) {
	if s.full == "" {
		s.full = reason
	}
	s.changed()
}

// changed notes that there is something to scan since now. The caller holds mu.
func (s *Source) changed() {
	s.pending.change(time.Now())
	poke(s.kick)
}

// mark makes one path dirty and returns its node. The caller holds mu.
func (s *Source) mark(path string) *dirt {
	node, made := s.dirt.add(path)
	s.dirty += made
	if s.dirty > maxDirt {
		s.dirt, s.dirty = &dirt{}, 0
		s.markAll(fmt.Sprintf("more than %d names have changed", maxDirt))
		return &dirt{}
	}
	s.changed()
	return node
}

// Tell has every object that later scans store told to fn, as soon as it is there, by several goroutines at once. It is
// called before the first scan.
func (s *Source) Tell(fn func(d tree.Digest, size int)) { s.reader.tell = fn }

// Status returns how the source is.
func (s *Source) Status() Status {
	s.mu.Lock()
	defer s.mu.Unlock()
	st := Status{
		Mode: ModeUnwatched, Reason: s.full, Dirty: s.dirty,
		LastScan: s.lastScan, LastFull: s.lastFull, LastError: s.lastErr,
	}
	err := s.watchErr
	if s.watch != nil {
		st.Watches, err = s.watch.health()
		st.Mode = ModeWatching
		st.Watching = err == nil && s.watch.complete
	}
	if err != nil {
		st.Mode, st.Reason = ModeRescan, err.Error()
	}
	return st
}

// poke sends on a channel of capacity one that means "look again".
func poke(c chan struct{}) {
	select {
	case c <- struct{}{}:
	default:
	}
}

// Scan takes what is dirty and returns a lister of it for tree.Merge, relative to the tree that the last committed
// scan was merged into; full, or the first of a Source, or one when events may have been missed, looks at everything.
// When it is watching, an incremental scan includes everything that was done before Scan was called. progress may be
// nil; it is called from several goroutines, one at a time. Commit or Abort must be called, after Merge has returned;
// ctx must last until then. ErrBusy: another scan has not ended. Any other error has been noted for Status, and the
// dirty set is as before.
func (s *Source) Scan(ctx context.Context, full bool, progress func(Progress)) (*Scan, error) {
	s.mu.Lock()
	if s.scanning {
		s.mu.Unlock()
		return nil, ErrBusy
	}
	s.scanning = true
	s.mu.Unlock()
	sc, err := s.begin(ctx, full, progress)
	if err != nil {
		sc.fail(err)
		sc.Abort()
		return nil, fmt.Errorf("scan source of %s: %w", s.cfg.Shard, err)
	}
	return sc, nil
}
