package replicator

import (
	"fmt"

	"github.com/nfs-fleet/nfs-fleet/replicator/source"
	"github.com/nfs-fleet/nfs-fleet/replicator/tree"
)

// SourceState says what a shard's source on this master does.
type SourceState string

// The states of a source.
const (
	SourceNone     SourceState = "none"     // this master has no source for the shard
	SourceWatching SourceState = "watching" // changes are published by themselves
	SourceManual   SourceState = "manual"   // configured to wait for `publish`
	SourcePaused   SourceState = "paused"   // until `source resume`
	SourceHolding  SourceState = "holding"  // the head came from elsewhere: waits for `publish`
)

// Status is a snapshot of a Replica. It is never modified.
type Status struct {
	Head        tree.Generation // what is served; zero when nothing is
	Confirmed   bool            // etcd has named it since the start; false: stale
	Problem     error           // why etcd's head is not served
	Undecided   bool            // a move may or may not have happened, and etcd has not been asked since
	Epoch       int64           // of this master's present term; 0: it does not lead
	Source      SourceState
	Reason      string // why the source does not publish by itself
	SourceError error  // of the last publish from the source
	Warnings    []string
	Scanner     source.Status
	Generations []tree.Generation // retained, oldest first
	Maxima      Maxima
	Wanted      uint64  // the head as etcd named it last; above Head.Number while this master is catching up
	Fetched     Fetched // by the catching up that is under way
	term        Term
	Unreadable  bool // the disk does not give Head back: it is not served
}

// Serves is the generation that readers get; 0: none.
func (s Status) Serves() uint64 {
	if s.Unreadable {
		return 0
	}
	return s.Head.Number
}

// InStep reports whether this master serves the shard's head and may lead it.
func (s Status) InStep() bool { return s.Confirmed && s.Problem == nil && s.Wanted == s.Head.Number }

// Status returns the latest snapshot.
func (r *Replica) Status() Status {
	s := *r.status.Load()
	if r.cfg.Source != nil {
		s.Scanner = r.cfg.Source.Status()
	}
	if s.term != nil && s.term.Check() == nil { // asked now: a term can end while nothing else happens
		s.Epoch = s.term.Epoch()
	}
	return s
}

// inStep is Status.InStep as it is now.
func (r *Replica) inStep() bool {
	return r.confirmed && r.problem == nil && r.wanted.generation.Number <= r.head().Number
}

// Identity is what a head that came from this master's source carries: "master:/path".
func (r *Replica) Identity() string {
	if r.cfg.Source == nil {
		return ""
	}
	return r.identity()
}

func (r *Replica) publishStatus() {
	s := Status{
		Head: r.head(), Confirmed: r.confirmed, Problem: r.problem, SourceError: r.sourceError, Warnings: r.warnings,
		Generations: r.generations, Maxima: r.maxima, Undecided: r.undecided, Wanted: max(r.wanted.generation.Number, r.head().Number),
		term: r.term, Unreadable: r.unreadable != nil,
	}
	if r.chase != nil {
		s.Fetched = r.chase.got.sum()
	}
	s.Source, s.Reason = decide(r.sourceView())
	if before := r.status.Swap(&s); s.Reason != "" && (before == nil || before.Reason != s.Reason) {
		r.log.Info().Str("source", r.identity()).Str("state", string(s.Source)).Str("reason", s.Reason).Msg("the source does not publish by itself")
	}
}

// sourceView is what decide needs to know.
type sourceView struct {
	has, manual, paused bool
	identity            string
	head                tree.Generation
}

func (r *Replica) sourceView() sourceView {
	return sourceView{r.cfg.Source != nil, r.cfg.Manual, r.settings.Paused, r.identity(), r.head()}
}

// decide says whether a source may publish by itself, and if not, why.
func decide(v sourceView) (SourceState, string) {
	to, rolledBack := rolledBackTo(v.head.Source)
	switch {
	case !v.has:
		return SourceNone, ""
	case v.paused:
		return SourcePaused, "paused by `source pause`; `source resume` goes on"
	case rolledBack:
		return SourcePaused, fmt.Sprintf("rolled back to generation %s; `source resume` goes on", to)
	case v.head.Number != 0 && v.head.Source != v.identity:
		return SourceHolding, fmt.Sprintf("the head came from %s; `publish` makes this source its origin", v.head.Source)
	case v.manual:
		return SourceManual, "mode=manual: `publish` publishes"
	}
	return SourceWatching, ""
}
