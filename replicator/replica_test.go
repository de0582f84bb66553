package replicator

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/rs/zerolog"

	"github.com/nfs-fleet/nfs-fleet/replicator/source"
	"github.com/nfs-fleet/nfs-fleet/replicator/store"
	"github.com/nfs-fleet/nfs-fleet/replicator/tree"
)

var (
	errFenced = errors.New("fenced")
	errLost   = errors.New("no answer")
)

// fakeHeads is a shard's head in memory, fenced by an epoch, with faults named by operation.
type fakeHeads struct {
	mu       sync.Mutex // guards what follows
	head     tree.Generation
	revision int64
	epoch    int64
	oldest   uint64
	moves    int
	staged   []tree.Generation
	history  []tree.Generation
	fail     map[string]error // by operation: head, move (before it happens), answer (after it happened)
}

func (f *fakeHeads) Head(context.Context) (tree.Generation, int64, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.head, f.revision, f.fail["head"]
}

func (f *fakeHeads) Move(_ context.Context, epoch, seen int64, next tree.Generation, oldest uint64) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	if err := f.fail["move"]; err != nil {
		return err
	}
	if epoch != f.epoch || seen != f.revision {
		return errFenced
	}
	f.head, f.revision, f.moves = next, f.revision+1, f.moves+1
	f.oldest, f.history = oldest, append(f.history, next)
	return f.fail["answer"]
}

func (f *fakeHeads) Stage(_ context.Context, epoch, seen int64, next tree.Generation) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	if err := f.fail["stage"]; err != nil {
		return err
	}
	if epoch != f.epoch || seen != f.revision {
		return errFenced
	}
	f.staged = append(f.staged, next)
	return nil
}

func (f *fakeHeads) History(context.Context) ([]tree.Generation, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.history, f.fail["history"]
}

func (f *fakeHeads) set(op string, err error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.fail[op] = err
}

// fakeTerm is a leadership that a test ends.
type fakeTerm struct {
	epoch  int64
	ctx    context.Context
	cancel context.CancelCauseFunc
}

func newTerm(epoch int64) *fakeTerm {
	ctx, cancel := context.WithCancelCause(context.Background())
	return &fakeTerm{epoch, ctx, cancel}
}

func (t *fakeTerm) Epoch() int64             { return t.epoch }
func (t *fakeTerm) Context() context.Context { return t.ctx }
func (t *fakeTerm) Check() error             { return context.Cause(t.ctx) }

// fakeVolume records what it is told.
type fakeVolume struct {
	mu       sync.Mutex // guards what follows
	served   []uint64
	forgot   uint64
	restored []uint64
	fail     error
}

func (v *fakeVolume) Flip(_ context.Context, g tree.Generation) error {
	v.mu.Lock()
	defer v.mu.Unlock()
	if v.fail == nil {
		v.served = append(v.served, g.Number)
	}
	return v.fail
}

func (v *fakeVolume) Restore(_ context.Context, all []tree.Generation) error {
	v.mu.Lock()
	defer v.mu.Unlock()
	for _, g := range all {
		v.restored = append(v.restored, g.Number)
	}
	return v.fail
}

func (v *fakeVolume) set(err error) {
	v.mu.Lock()
	defer v.mu.Unlock()
	v.fail = err
}

func (v *fakeVolume) Forget(_ context.Context, before uint64) error {
	v.mu.Lock()
	defer v.mu.Unlock()
	v.forgot = before
	return nil
}

// bench is a Replica with everything around it.
type bench struct {
	*testing.T
	dir     string // the source
	data    string
	heads   *fakeHeads
	term    *fakeTerm
	volume  *fakeVolume
	store   *store.Store
	ledger  *Ledger
	replica *Replica
	flipped chan struct{}
	stop    func()
}

func newBench(t *testing.T, change ...func(*Config)) *bench {
	t.Helper()
	b := &bench{T: t, dir: t.TempDir(), data: t.TempDir(), heads: &fakeHeads{epoch: 1, fail: map[string]error{}}, term: newTerm(1)}
	b.start(change...)
	return b
}

func (b *bench) start(change ...func(*Config)) {
	b.Helper()
	var err error
	if b.store, err = store.Open(filepath.Join(b.data, "store"), store.Options{Logger: zerolog.Nop()}); err != nil {
		b.Fatal(err)
	}
	if b.ledger, err = OpenLedger(filepath.Join(b.data, "ledger")); err != nil {
		b.Fatal(err)
	}
	records, err := b.ledger.Read()
	if err != nil {
		b.Fatal(err)
	}
	root, err := source.OpenRoot(b.dir)
	if err != nil {
		b.Fatal(err)
	}
	src, err := source.New(source.Config{Shard: "www", FS: root, Watch: b.dir, Objects: b.store, Quiet: 10 * time.Millisecond, Logger: zerolog.Nop()})
	if err != nil {
		b.Fatal(err)
	}
	b.volume, b.flipped = &fakeVolume{}, make(chan struct{}, 100)
	c := Config{
		Shard: "www", Master: "m1", Store: b.store, Ledger: b.ledger, Heads: b.heads, Volume: b.volume, Source: src, Directory: b.dir, Manual: true,
		Record: records["www"], Logger: zerolog.Nop(), Flipped: func() { b.flipped <- struct{}{} },
		Settings: Settings{MinCopies: 2, Expired: func(g []tree.Generation, _ time.Time) int { return max(0, len(g)-3) }},
	}
	for _, f := range change {
		f(&c)
	}
	b.replica = New(b.Context(), c)
	ctx, cancel := context.WithCancel(context.Background())
	var wg sync.WaitGroup
	wg.Go(func() { b.replica.Run(ctx) })
	wg.Go(func() { src.Run(ctx) })
	b.stop = sync.OnceFunc(func() {
		cancel()
		wg.Wait()
		if err := errors.Join(src.Close(), b.ledger.Close(), b.store.Close()); err != nil {
			b.Error(err)
		}
	})
	b.Cleanup(func() { b.stop() })
}

// lead gives the replica its term and the head as etcd would.
func (b *bench) lead() {
	g, rev, _ := b.heads.Head(b.Context())
	b.replica.SetHead(g, rev)
	b.replica.SetTerm(b.term)
}

// write makes or replaces a file in one step: a source that publishes by itself must not meet half of it.
func (b *bench) write(name, content string) {
	b.Helper()
	whole := filepath.Join(b.data, "whole")
	if err := errors.Join(os.WriteFile(whole, []byte(content), 0o644), os.Rename(whole, filepath.Join(b.dir, name))); err != nil {
		b.Fatal(err)
	}
}

func (b *bench) publish() Result {
	b.Helper()
	res, err := b.replica.Publish(b.Context(), Publication{})
	if err != nil {
		b.Fatal(err)
	}
	return res
}

func (b *bench) content(root tree.Digest, path string) string {
	b.Helper()
	e, err := tree.Lookup(b.Context(), b.store, root, path)
	if err != nil {
		b.Fatal(err)
	}
	text, err := b.store.Get(b.Context(), e.Content.Digest)
	if err != nil {
		b.Fatal(err)
	}
	return string(text)
}

func TestPublish(t *testing.T) {
	b := newBench(t)
	b.write("a", "one")
	b.write("b", "two")
	b.lead()
	first := b.publish()
	g := first.Generation
	if !first.Changed || g.Number != 1 || g.Files != 2 || g.Bytes != 6 || g.Epoch != 1 || g.By != "m1" || g.Source != "m1:"+b.dir || g.Copies != 1 {
		t.Errorf("first publish: %+v", first)
	}
	if b.heads.head != g {
		t.Errorf("the head is %+v, want %+v", b.heads.head, g)
	}
	if again := b.publish(); again.Changed || again.Generation != g || b.heads.moves != 1 {
		t.Errorf("nothing changed, yet: %+v after %d moves", again, b.heads.moves)
	}
	b.write("a", "three")
	second := b.publish()
	if second.Generation.Number != 2 || second.Modified == 0 || second.Generation.NextIno <= g.NextIno {
		t.Errorf("second publish: %+v", second)
	}
	if got := b.content(second.Generation.Root, "a"); got != "three" {
		t.Errorf("a is %q", got)
	}
	if got := b.content(g.Root, "a"); got != "one" {
		t.Errorf("a in the first generation is %q", got)
	}
	if !slices.Equal(b.volume.served, []uint64{1, 2}) {
		t.Errorf("served %v, want 1 and 2", b.volume.served)
	}
}

func TestSourcePublishesByItself(t *testing.T) {
	b := newBench(t, func(c *Config) { c.Manual = false })
	b.write("a", "one")
	b.lead()
	<-b.flipped
	b.write("a", "two")
	<-b.flipped
	for b.content(b.replica.Status().Head.Root, "a") != "two" {
		<-b.flipped // a scan may have met the directory after the change and the file before it
	}
}

// A master that leads says so before it reads its source, which can take a while.
func TestStatusDoesNotWaitForAPublish(t *testing.T) {
	b := newBench(t, func(c *Config) { c.Manual = false })
	b.write("a", "one")
	b.heads.mu.Lock() // a publish begins by reading the head, and gets no further
	b.replica.SetHead(tree.Generation{}, 0)
	b.replica.SetTerm(b.term)
	for deadline := time.Now().Add(10 * time.Second); b.replica.Status().Epoch == 0; runtime.Gosched() {
		if time.Now().After(deadline) {
			t.Error("the term shows only after the first publish")
			break
		}
	}
	b.heads.mu.Unlock()
	<-b.flipped
}

func TestNoTermNoPublish(t *testing.T) {
	b := newBench(t)
	b.write("a", "one")
	if _, err := b.replica.Publish(t.Context(), Publication{}); !errors.Is(err, ErrNoTerm) {
		t.Errorf("before any term: %v, want ErrNoTerm", err)
	}
	b.lead()
	b.publish()
	b.term.cancel(errLost)
	b.write("a", "two")
	if _, err := b.replica.Publish(t.Context(), Publication{}); !errors.Is(err, ErrNoTerm) || !errors.Is(err, errLost) {
		t.Errorf("after the term: %v, want ErrNoTerm and its cause", err)
	}
	if b.heads.moves != 1 {
		t.Errorf("the head moved %d times", b.heads.moves)
	}
	if b.replica.Status().Epoch != 0 {
		t.Error("status says that this master leads")
	}
}

// hangingHeads answers when the context ends, as etcd does when it is gone.
type hangingHeads struct {
	*fakeHeads
	asked chan struct{}
}

func (h *hangingHeads) Head(ctx context.Context) (tree.Generation, int64, error) {
	h.asked <- struct{}{}
	<-ctx.Done()
	return tree.Generation{}, 0, ctx.Err()
}

func TestTermThatEndsUnderAPublishSaysSo(t *testing.T) {
	hanging := &hangingHeads{asked: make(chan struct{})}
	b := newBench(t, func(c *Config) { hanging.fakeHeads = c.Heads.(*fakeHeads); c.Heads = hanging })
	b.replica.SetTerm(b.term)
	ended := make(chan error)
	go func() {
		_, err := b.replica.Publish(context.Background(), Publication{})
		ended <- err
	}()
	<-hanging.asked
	b.term.cancel(errLost)
	if err := <-ended; !errors.Is(err, ErrNoTerm) || !errors.Is(err, errLost) {
		t.Errorf("%v, want ErrNoTerm and the cause of the term's end", err)
	}
}

func TestFencedPublishMovesNothing(t *testing.T) {
	b := newBench(t)
	b.write("a", "one")
	b.lead()
	b.publish()
	b.heads.epoch = 2 // another master leads, and this one does not know
	b.write("a", "two")
	if _, err := b.replica.Publish(t.Context(), Publication{}); !errors.Is(err, errFenced) {
		t.Fatalf("a deposed leader's publish: %v", err)
	}
	if got := b.replica.Status().Head.Number; got != 1 || len(b.volume.served) != 1 {
		t.Errorf("generation %d is served, %v", got, b.volume.served)
	}
	b.term = newTerm(2)
	b.lead()
	res := b.publish()
	if res.Generation.Number != 2 || res.Generation.Epoch != 2 {
		t.Errorf("with the next term: %+v, want generation 2 of epoch 2", res.Generation)
	}
}

func TestLostAnswer(t *testing.T) {
	b := newBench(t)
	b.write("a", "one")
	b.lead()
	b.heads.set("answer", errLost)
	if res, err := b.replica.Publish(t.Context(), Publication{}); err != nil || res.Generation.Number != 1 {
		t.Errorf("the head has moved, but publish says %+v, %v", res, err)
	}
	b.heads.set("answer", nil)
	b.heads.set("move", errLost)
	b.write("a", "two")
	if _, err := b.replica.Publish(t.Context(), Publication{}); !errors.Is(err, errLost) {
		t.Errorf("the head has not moved, but publish says %v", err)
	}
	b.heads.set("move", nil)
	if res := b.publish(); res.Generation.Number != 2 {
		t.Errorf("the next publish made %+v", res.Generation)
	}
}

func TestInosAreNeverIssuedTwice(t *testing.T) {
	b := newBench(t)
	b.write("a", "one")
	b.lead()
	b.publish()
	b.heads.set("move", errLost)
	b.write("b", "two")
	if _, err := b.replica.Publish(t.Context(), Publication{}); err == nil {
		t.Fatal("the move failed, publish did not")
	}
	tried := mustRead(t, b.ledger)["www"].Maxima.NextIno
	b.heads.set("move", nil)
	res := b.publish()
	e, err := tree.Lookup(t.Context(), b.store, res.Generation.Root, "b")
	if err != nil {
		t.Fatal(err)
	}
	if e.Ino < tried {
		t.Errorf("b has ino %d; a publish that may have happened went up to %d", e.Ino, tried)
	}
}

func TestRollbackPausesTheSource(t *testing.T) {
	b := newBench(t, func(c *Config) { c.Manual = false })
	b.write("a", "one")
	b.lead()
	<-b.flipped
	b.write("a", "two")
	<-b.flipped
	back, err := b.replica.Rollback(t.Context(), 0, Publication{Note: "oops"})
	<-b.flipped
	if err != nil || back.Generation.Number != 3 || back.Generation.Source != "rollback:1" || back.Generation.Note != "oops" {
		t.Fatalf("rollback: %+v, %v", back, err)
	}
	if got := b.content(back.Generation.Root, "a"); got != "one" {
		t.Errorf("a is %q after the rollback", got)
	}
	if st := b.replica.Status(); st.Source != SourcePaused || !strings.Contains(st.Reason, "generation 1") {
		t.Errorf("the source is %s (%s), want paused", st.Source, st.Reason)
	}
	b.publish()
	<-b.flipped
	st := b.replica.Status()
	if got := b.content(st.Head.Root, "a"); got != "two" || st.Source != SourceWatching {
		t.Errorf("after the next publish a is %q and the source %s", got, st.Source)
	}
	if _, err := b.replica.Rollback(t.Context(), 77, Publication{}); !errors.Is(err, ErrNoGeneration) {
		t.Errorf("rollback to what never was: %v", err)
	}
}

func TestUploadedTreeAndHoldingSource(t *testing.T) {
	b := newBench(t, func(c *Config) { c.Manual = false })
	b.write("a", "one")
	b.lead()
	<-b.flipped
	one := b.replica.Status().Head
	b.write("a", "two")
	<-b.flipped
	up, err := b.replica.Publish(t.Context(), Publication{Root: one.Root, Origin: "laptop:/tmp/x"})
	if err != nil || up.Generation.Number != 3 || up.Generation.Source != "upload:laptop:/tmp/x" {
		t.Fatalf("upload: %+v, %v", up, err)
	}
	if st := b.replica.Status(); st.Source != SourceHolding {
		t.Errorf("the source is %s, want holding", st.Source)
	}
	if res := b.publish(); res.Generation.Number != 4 || res.Generation.Source != "m1:"+b.dir {
		t.Errorf("publish does not take the shard back to its source: %+v", res.Generation)
	}
	if _, err := b.replica.Publish(t.Context(), Publication{Root: tree.Sum([]byte("nothing"))}); !errors.Is(err, tree.ErrMissing) {
		t.Errorf("a root that was never uploaded: %v", err)
	}
}

func TestRetention(t *testing.T) {
	b := newBench(t)
	b.lead()
	for _, content := range []string{"1", "2", "3", "4", "5"} {
		b.write("a", content)
		b.publish()
	}
	if st := b.replica.Status(); len(st.Generations) != 3 || st.Generations[0].Number != 3 {
		t.Errorf("retained %+v, want 3 to 5", st.Generations)
	}
	if b.volume.forgot != 3 || b.heads.oldest != 3 {
		t.Errorf("the volume forgot what is below %d, etcd below %d; want 3", b.volume.forgot, b.heads.oldest)
	}
	if got := len(mustRead(t, b.ledger)["www"].Generations); got != 3 {
		t.Errorf("the ledger keeps %d generations", got)
	}
}

func TestRestartServesTheLastHead(t *testing.T) {
	b := newBench(t)
	b.write("a", "one")
	b.lead()
	b.publish()
	b.write("a", "two")
	head := b.publish().Generation
	b.stop()
	b.start()
	if st := b.replica.Status(); st.Head != head || st.Confirmed {
		t.Errorf("after a restart without etcd: %+v", st)
	}
	if !slices.Equal(b.volume.restored, []uint64{1, 2}) {
		t.Errorf("the volume was restored with %v", b.volume.restored)
	}
	b.lead()
	if res := b.publish(); res.Changed || res.Generation != head {
		t.Errorf("nothing changed over the restart, yet %+v", res)
	}
	if st := b.replica.Status(); !st.Confirmed {
		t.Error("etcd has confirmed the head, and status does not say so")
	}
}

func TestOlderEtcdIsRefusedUntilRecovered(t *testing.T) {
	b := newBench(t)
	b.write("a", "one")
	b.lead()
	first := b.publish().Generation
	b.write("a", "two")
	second := b.publish().Generation
	b.heads.head = first // restored from a backup
	b.lead()
	b.write("a", "three")
	if _, err := b.replica.Publish(t.Context(), Publication{}); !errors.Is(err, ErrRegressed) {
		t.Fatalf("publish onto an older etcd: %v, want ErrRegressed", err)
	}
	if st := b.replica.Status(); st.Head != second || !errors.Is(st.Problem, ErrRegressed) {
		t.Errorf("status: serves %d, problem %v", st.Head.Number, st.Problem)
	}
	before, after, err := b.replica.Recover(t.Context(), Recovery{})
	if err != nil || before != first || after.Number != 3 || after.Root != second.Root || after.NextIno < second.NextIno {
		t.Fatalf("recover: %+v to %+v, %v", before, after, err)
	}
	if res := b.publish(); res.Generation.Number != 4 || b.content(res.Generation.Root, "a") != "three" {
		t.Errorf("after the recovery: %+v", res.Generation)
	}
}

func TestSecondGenerationUnderTheSameNumberIsRefused(t *testing.T) {
	b := newBench(t)
	b.write("a", "one")
	b.lead()
	g := b.publish().Generation
	other := g
	other.Root = tree.Sum([]byte("other"))
	b.replica.SetHead(other, 9)
	if _, err := b.replica.Publish(t.Context(), Publication{}); err != nil {
		t.Fatalf("etcd is right again: %v", err) // publish reads the head itself
	}
	b.heads.head = other
	if _, err := b.replica.Publish(t.Context(), Publication{}); !errors.Is(err, ErrRegressed) {
		t.Errorf("another generation 1: %v, want ErrRegressed", err)
	}
}

func TestStrictShardNeedsItsCopies(t *testing.T) {
	b := newBench(t, func(c *Config) { c.Settings.Strict = true })
	b.write("a", "one")
	b.lead()
	if _, err := b.replica.Publish(t.Context(), Publication{}); !errors.Is(err, ErrTooFewCopies) {
		t.Errorf("%v, want ErrTooFewCopies", err)
	}
}

func TestVanishedSourcePublishesNothing(t *testing.T) {
	b := newBench(t)
	b.write("a", "one")
	b.lead()
	b.publish()
	if err := os.RemoveAll(b.dir); err != nil {
		t.Fatal(err)
	}
	if _, err := b.replica.Publish(t.Context(), Publication{}); !errors.Is(err, source.ErrVanished) {
		t.Errorf("%v, want ErrVanished", err)
	}
	if st := b.replica.Status(); st.Head.Number != 1 || st.SourceError == nil {
		t.Errorf("serves %d, source error %v", st.Head.Number, st.SourceError)
	}
}

// A move that failed must not pass for one that happened because the trees are the same.
func TestFailedMoveOfAnIdenticalTree(t *testing.T) {
	b := newBench(t)
	b.write("a", "one")
	b.lead()
	g := b.publish().Generation
	b.heads.set("move", errLost)
	if res, err := b.replica.Publish(t.Context(), Publication{Root: g.Root, Origin: "h:/x"}); !errors.Is(err, errLost) {
		t.Errorf("the head did not move, but publish says %+v, %v", res.Generation, err)
	}
	if got := b.replica.Status().Head.Number; got != 1 {
		t.Errorf("generation %d is served, etcd has 1", got)
	}
}

func TestUploadWithoutItsContentIsRefused(t *testing.T) {
	b := newBench(t)
	b.write("a", "one")
	b.lead()
	b.publish()
	objs := tree.NewMemory()
	d, err := objs.Put(t.Context(), []byte("content that stays at the client"))
	if err != nil {
		t.Fatal(err)
	}
	file := tree.Observed{Entry: tree.Entry{Name: "f", Type: tree.Regular, Mode: 0o644, Size: 32, Used: 32, Content: tree.Content{Form: tree.Blob, Digest: d}}}
	m, err := tree.Merge(t.Context(), &both{objs, b.store}, tree.Digest{}, lister{file}, tree.MergeOptions{
		Generation: 1, NextIno: 1, Tag: randomTag, Root: tree.Observed{Entry: tree.Entry{Type: tree.Directory, Mode: 0o755}},
	})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := b.replica.Publish(t.Context(), Publication{Root: m.Root}); !errors.Is(err, tree.ErrMissing) {
		t.Errorf("a tree whose content was never uploaded: %v, want ErrMissing", err)
	}
}

// both puts into a store as well as into memory.
type both struct {
	*tree.Memory
	store *store.Store
}

func (b *both) Put(ctx context.Context, object []byte) (tree.Digest, error) {
	if _, err := b.store.Put(ctx, object); err != nil {
		return tree.Digest{}, err
	}
	return b.Memory.Put(ctx, object)
}

// lister wants one directory with these names.
type lister []tree.Observed

func (l lister) List(context.Context, string, *tree.Entry) (tree.Listing, error) {
	return tree.Listing{Complete: true, Names: l}, nil
}

func TestUnreadableHeadIsAProblemNotTheEnd(t *testing.T) {
	b := newBench(t)
	b.write("a", "one")
	b.write("same", "same")
	b.lead()
	first := b.publish().Generation
	before, err := tree.Lookup(t.Context(), b.store, first.Root, "same")
	if err != nil {
		t.Fatal(err)
	}
	b.write("a", "two")
	head := b.publish().Generation
	_, err = b.store.Collect(t.Context(), func(ctx context.Context, live func(tree.Digest) bool) error {
		return tree.Reach(ctx, b.store, first.Root, func(d tree.Digest) bool { return !live(d) }, func(tree.Digest, tree.Form, uint64) error { return nil })
	}) // the second generation's objects are lost
	if err != nil {
		t.Fatal(err)
	}
	b.stop()
	b.start(func(c *Config) { b.volume.fail = errLost; c.Volume = b.volume })
	b.lead()
	if _, err := b.replica.Publish(t.Context(), Publication{}); err == nil {
		t.Error("a publish onto a tree that cannot be read was acknowledged")
	}
	if st := b.replica.Status(); st.Problem == nil || !strings.Contains(st.Problem.Error(), "--repair") {
		t.Errorf("problem %v, want one that names --repair", st.Problem)
	}
	b.volume.set(nil)
	if err := b.replica.Repair(t.Context()); err != nil {
		t.Fatal(err)
	}
	st := b.replica.Status()
	if st.Problem != nil || st.Head.Number != head.Number+1 || b.content(st.Head.Root, "a") != "two" {
		t.Errorf("after the repair: generation %d, problem %v", st.Head.Number, st.Problem)
	}
	if after, err := tree.Lookup(t.Context(), b.store, st.Head.Root, "same"); err != nil || after.Ino != before.Ino {
		t.Errorf("the file that was never damaged has ino %d, %v; it had %d", after.Ino, err, before.Ino)
	}
}

func TestLedgerComesFirst(t *testing.T) {
	b := newBench(t)
	b.write("a", "one")
	b.lead()
	b.publish()
	b.write("a", "two")
	b.volume.set(errLost)
	if _, err := b.replica.Publish(t.Context(), Publication{}); !errors.Is(err, errLost) {
		t.Fatalf("the flip failed, publish says %v", err)
	}
	if st := b.replica.Status(); st.Head.Number != 1 || st.Problem == nil {
		t.Errorf("serves %d, problem %v; want 1 and a problem", st.Head.Number, st.Problem)
	}
	if rec := mustRead(t, b.ledger)["www"]; rec.Maxima.Generation != 2 {
		t.Errorf("the ledger does not know of generation 2: %+v", rec.Maxima)
	}
	b.volume.set(nil)
	g, rev, _ := b.heads.Head(t.Context())
	b.replica.SetHead(g, rev)                                                   // the periodic re-read
	if err := b.replica.do(t.Context(), func(context.Context) {}); err != nil { // after what it was told
		t.Fatal(err)
	}
	if st := b.replica.Status(); st.Head.Number != 2 || st.Problem != nil {
		t.Errorf("serves %d, problem %v; want 2 and none", st.Head.Number, st.Problem)
	}
}

func TestDecide(t *testing.T) {
	from := func(source string) tree.Generation { return tree.Generation{Number: 1, Source: source} }
	for _, tc := range []struct {
		name string
		view sourceView
		want SourceState
	}{
		{"no source", sourceView{}, SourceNone},
		{"nothing published yet", sourceView{has: true, identity: "m1:/a"}, SourceWatching},
		{"the head is ours", sourceView{has: true, identity: "m1:/a", head: from("m1:/a")}, SourceWatching},
		{"told to wait", sourceView{has: true, manual: true, identity: "m1:/a", head: from("m1:/a")}, SourceManual},
		{"paused", sourceView{has: true, paused: true, identity: "m1:/a", head: from("m1:/a")}, SourcePaused},
		{"rolled back", sourceView{has: true, identity: "m1:/a", head: from("rollback:3")}, SourcePaused},
		{"another directory", sourceView{has: true, identity: "m1:/a", head: from("m1:/b")}, SourceHolding},
		{"an upload", sourceView{has: true, identity: "m1:/a", head: from("upload:h:/x")}, SourceHolding},
	} {
		got, reason := decide(tc.view)
		if got != tc.want {
			t.Errorf("%s: %s, want %s", tc.name, got, tc.want)
		}
		if (got == SourceWatching || got == SourceNone) != (reason == "") {
			t.Errorf("%s: %s with reason %q", tc.name, got, reason)
		}
	}
}
