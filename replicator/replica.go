package replicator

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"sync/atomic"
	"time"

	"github.com/rs/zerolog"

	"github.com/nfs-fleet/nfs-fleet/replicator/source"
	"github.com/nfs-fleet/nfs-fleet/replicator/store"
	"github.com/nfs-fleet/nfs-fleet/replicator/tree"
)

// Sentinels of this package, tested with errors.Is.
var (
	// ErrNoTerm: this master does not lead the shard now.
	ErrNoTerm = errors.New("this master does not lead the shard")
	// ErrTooFewCopies: the shard is strict and too few masters are alive.
	ErrTooFewCopies = errors.New("too few masters to hold the copies that the shard asks for")
	// ErrNoSource: this master has no source for the shard.
	ErrNoSource = errors.New("no source configured")
	// ErrHolding: the source does not publish by itself now.
	ErrHolding = errors.New("the source is on hold")
	// ErrNoGeneration: the generation is not retained, or never was.
	ErrNoGeneration = errors.New("no such generation")
	// ErrRegressed: etcd names a lower head than this master has served.
	ErrRegressed = errors.New("etcd is older than this master's disk")
	// ErrBehind: this master does not hold the shard's head yet.
	ErrBehind = errors.New("this master is still catching up")
	// ErrOlderEpoch: whoever asks led the shard once and does not any more.
	ErrOlderEpoch = errors.New("a later leader has been seen")
	// ErrDeclined: a master has answered that it cannot hold a generation. Asking again is of no use before something changes there.
	ErrDeclined = errors.New("declined")
	// ErrStopped: the replica is not running any more.
	ErrStopped = errors.New("shard stopped")
)

// Term is one leadership of the shard by this master. Its context ends with it; Check compares the clock with the
// deadline and must be asked before anything that only a leader may do.
type Term interface {
	Epoch() int64
	Context() context.Context
	Check() error
}

// Heads is the shard's head as the fleet knows it. Calls are bounded by their context.
type Heads interface {
	// Head returns the head and the revision to pass to Move: zero values before the first publish.
	Head(ctx context.Context) (tree.Generation, int64, error)
	// Move makes next the head if the epoch still leads and the head is still at revision seen, and drops the
	// generations below oldest from the history. After an error the head may have moved nevertheless: ask Head.
	Move(ctx context.Context, epoch, seen int64, next tree.Generation, oldest uint64) error
	// Stage says which generation the other masters are asked to fetch, under the same conditions as Move.
	Stage(ctx context.Context, epoch, seen int64, next tree.Generation) error
	// History returns the retained generations, oldest first.
	History(ctx context.Context) ([]tree.Generation, error)
}

// Peers is the other masters. Calls are safe for concurrent use and bounded by their context.
type Peers interface {
	// Others names the other living masters.
	Others() []string
	// Fetch brings everything that the tree root needs into the store and makes it durable. base is a tree that is whole
	// there already, zero for none; prefer is the master to ask first, "" for any. An error wraps tree.ErrMissing when all
	// living masters have answered that they do not have something.
	Fetch(ctx context.Context, root, base tree.Digest, prefer string, progress func(Fetched)) error
	// Hold returns nil once the named master has the whole of g on its disk. It wraps ErrDeclined when that master says no,
	// and ErrOlderEpoch when it has seen a later leader. beat is called as long as the master makes progress.
	Hold(ctx context.Context, master, shard string, g tree.Generation, beat func()) error
	// Announce tells a master what this one, the shard's leader, stores, for it to fetch ahead: what comes from feed until it
	// is closed. It returns when the master has fetched it. It is of no use when a later leader has been seen.
	Announce(ctx context.Context, master, shard string, era int, epoch int64, feed <-chan []tree.Part) error
	// FetchAhead brings what a master announces into the store: the blobs that come from feed, until it is closed.
	FetchAhead(ctx context.Context, master string, feed <-chan []tree.Part, progress func(Fetched)) error
	// Offer has the shard's leader fetch a tree from this master and publish it.
	Offer(ctx context.Context, shard string, o Offer) (Result, error)
}

// Fetched is how far a fetch is.
type Fetched struct {
	Objects int64
	Bytes   int64
}

// Volume serves the shard's generations to readers. Flip, Restore and Forget are never called concurrently.
type Volume interface {
	Restore(ctx context.Context, retained []tree.Generation) error
	Flip(ctx context.Context, g tree.Generation) error
	Forget(ctx context.Context, before uint64) error
}

// Settings are what an operator can change while the shard runs.
type Settings struct {
	MinCopies int
	Strict    bool
	Paused    bool // the source is paused
	// Expired returns how many of the generations, oldest first, are past retention at now.
	Expired func(generations []tree.Generation, now time.Time) int
}

// Config describes one shard on this master.
type Config struct {
	Shard     string
	Master    string
	Store     *store.Store
	Ledger    *Ledger
	Heads     Heads
	Volume    Volume
	Peers     Peers          // nil: there are no other masters
	Era       func() int     // of the fleet now: see tree.Generation; nil: 0
	Source    *source.Source // nil: this master has no source for the shard
	Directory string         // the source's directory, for its identity
	Manual    bool           // the source publishes only when told to
	Settings  Settings
	Record    Record              // what the ledger holds of the shard
	Published func(time.Duration) // told how long each publish took; nil: nobody asks
	Pruned    func()              // told that a generation went past retention; nil: nobody asks
	Flipped   func()              // told that another generation is served; nil: nobody asks
	Now       func() time.Time    // nil: time.Now
	Tag       func() uint64       // nil: random
	Logger    zerolog.Logger
}

// Replica is one shard on one master. Make it with New, run it with Run.
type Replica struct {
	cfg  Config
	log  zerolog.Logger
	jobs chan job
	wake chan struct{} // something new in inputs
	done chan struct{} // closed when Run has returned

	status     atomic.Pointer[Status]
	announcing atomic.Pointer[announcer] // of the publish under way; nil: nothing is announced

	// mu guards inputs: what others have told the Replica and Run has not looked at yet.
	mu     sync.Mutex
	inputs inputs

	// The rest belongs to the goroutine of Run.
	term        Term
	settings    Settings
	maxima      Maxima
	generations []tree.Generation // retained, oldest first; the last one is served
	wanted      seenHead          // the head that etcd named last
	life        context.Context   // Run's
	led         bool              // the shard has a leader, as far as this master knows
	chase       *chase            // the catching up that is under way; nil: none
	caught      chan caught       // what it has brought
	held        tree.Digest       // the root of a tree that is whole in the store, and is served next
	moving      uint64            // the generation that this master is making the head
	confirmed   bool              // etcd has named the served generation as its head since the start
	undecided   bool              // a move may or may not have happened: etcd has not been asked since
	problem     error             // why the head in etcd is not served
	unreadable  error             // why generations' last is not served: the disk does not give it back
	base        tree.Digest       // the root that the source's dirty names are relative to
	due         bool              // the source has something to publish, or has never been asked
	failures    int               // automatic publishes that failed in a row
	misses      int               // attempts at catching up that failed in a row
	lacking     bool              // the store does not have the roots of all retained generations
	mends       int               // attempts at mending the disk that failed in a row
	cramped     uint64            // the head for which the disk had no room; 0: none since the last that was served
	sourceError error             // of the last one
	warnings    []string          // of the last publish
	notBefore   time.Time         // of the next automatic publish, after one that failed
	retry       *time.Timer
	again       *time.Timer    // for the next attempt at catching up
	work        sync.WaitGroup // the chase

	// Guarded by mu, too.
	fence fence  // the latest leader that this master has been told of
	ahead *ahead // the fetching of what a leader announces; nil: none
}

// inputs are the latest values; an older one that was never looked at is of no interest.
type inputs struct {
	term     Term
	head     *seenHead
	settings *Settings
	held     tree.Digest
	led      *bool
}

type seenHead struct {
	generation tree.Generation
	revision   int64
}

type job struct {
	run  func(ctx context.Context)
	done chan struct{}
}

// New prepares a Replica and restores its volume from what the ledger holds, so that the last head can be served
// before etcd answers. A disk that does not give it back is a problem for Status and for a repair, not the master's end.
func New(ctx context.Context, c Config) *Replica {
	if c.Now == nil {
		c.Now = time.Now
	}
	if c.Tag == nil {
		c.Tag = randomTag
	}
	if c.Era == nil {
		c.Era = func() int { return 0 }
	}
	if c.Peers == nil {
		c.Peers = alone{}
	}
	r := &Replica{
		cfg: c, log: c.Logger.With().Str("shard", c.Shard).Logger(), jobs: make(chan job), wake: make(chan struct{}, 1),
		done: make(chan struct{}), settings: c.Settings, maxima: c.Record.Maxima, generations: c.Record.Generations,
		due: c.Source != nil, retry: stoppedTimer(), again: stoppedTimer(), caught: make(chan caught),
	}
	if c.Source != nil {
		c.Source.Tell(r.stored)
	}
	r.fence = fence{c.Record.Maxima.Era, c.Record.Maxima.Epoch}
	for _, g := range r.generations {
		r.lacking = r.lacking || !c.Store.Has(g.Root)
	}
	if len(r.generations) > 0 {
		if err := c.Volume.Restore(ctx, r.generations); err != nil {
			r.unreadable = fmt.Errorf("generation %d cannot be read back from disk: %w: run `nfs-fleet verify %s --repair`", r.head().Number, err, c.Shard)
			r.setProblem(r.unreadable)
		}
	}
	r.publishStatus()
	return r
}

// SetTerm tells that this master's leadership of the shard began; a later term replaces an earlier one.
func (r *Replica) SetTerm(t Term) {
	r.tell(func(in *inputs) { in.term = t })
}

// SetHead tells what etcd says the head is: the zero Generation and revision 0 before the first publish.
func (r *Replica) SetHead(g tree.Generation, revision int64) {
	r.tell(func(in *inputs) { in.head = &seenHead{g, revision} })
}

// SetSettings tells the shard's settings.
func (r *Replica) SetSettings(s Settings) { r.tell(func(in *inputs) { in.settings = &s }) }

func (r *Replica) tell(set func(*inputs)) {
	r.mu.Lock()
	set(&r.inputs)
	r.mu.Unlock()
	select {
	case r.wake <- struct{}{}:
	default:
	}
}

// Run owns the shard until ctx ends.
func (r *Replica) Run(ctx context.Context) error {
	defer close(r.done)
	defer r.stopChase()
	defer r.retry.Stop()
	defer r.again.Stop()
	r.life = ctx
	var due <-chan struct{}
	if r.cfg.Source != nil {
		due = r.cfg.Source.Due()
	}
	for {
		select {
		case <-ctx.Done():
			return context.Cause(ctx)
		case <-r.wake:
			r.take(ctx)
		case j := <-r.jobs:
			r.take(ctx)
			j.run(ctx)
			r.publishStatus() // whoever asked sees what it has done
			close(j.done)
		case <-due:
			r.take(ctx)
			r.due = true
			r.publishIfAllowed(ctx)
		case <-r.retry.C:
			r.publishIfAllowed(ctx)
		case c := <-r.caught:
			r.arrive(ctx, c)
			r.publishIfAllowed(ctx)
		case <-r.again.C:
			r.observe(ctx, r.wanted)
		}
		r.publishStatus()
	}
}

// do runs fn in Run's goroutine and waits for it.
func (r *Replica) do(ctx context.Context, fn func(ctx context.Context)) error {
	j := job{run: fn, done: make(chan struct{})}
	select {
	case r.jobs <- j:
	case <-ctx.Done():
		return context.Cause(ctx)
	case <-r.done:
		return fmt.Errorf("shard %s: %w", r.cfg.Shard, ErrStopped)
	}
	<-j.done
	return nil
}

// ask runs fn in Run's goroutine, under a context that ends with Run's and with the caller's, and returns its error.
func (r *Replica) ask(ctx context.Context, fn func(ctx context.Context) error) error {
	var err error
	if doErr := r.do(ctx, func(run context.Context) {
		both, cancel := join(run, ctx)
		defer cancel()
		err = fn(both)
	}); doErr != nil {
		return doErr
	}
	return err
}

// take looks at what others have told, and publishes what may be published now.
func (r *Replica) take(ctx context.Context) {
	if r.listen(ctx) {
		r.publishIfAllowed(ctx)
	}
}

// listen looks at what others have told, and reports whether there was anything that decides over a publish.
func (r *Replica) listen(ctx context.Context) (news bool) {
	r.mu.Lock()
	in := r.inputs
	r.inputs = inputs{}
	r.mu.Unlock()
	if in.settings != nil {
		r.settings = *in.settings
	}
	if !in.held.IsZero() {
		r.held = in.held
	}
	if in.led != nil {
		r.led = *in.led
	}
	if in.head != nil {
		if h, ok := r.confirm(ctx, *in.head); ok {
			r.observe(ctx, h)
		}
	}
	if in.term != nil {
		r.term, r.led = in.term, true
		r.log.Info().Int64("epoch", in.term.Epoch()).Msg("leading")
	}
	r.publishStatus() // what follows may read a whole source
	return in.term != nil || in.head != nil || in.settings != nil || in.led != nil
}

func stoppedTimer() *time.Timer {
	t := time.NewTimer(time.Hour)
	t.Stop()
	return t
}
