package source

import (
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/nfs-fleet/nfs-fleet/replicator/tree"
)

func TestDueAfterQuietButNotLaterThanMaxWait(t *testing.T) {
	t0 := time.Unix(1000, 0)
	at := func(s float64) time.Time { return t0.Add(time.Duration(s * float64(time.Second))) }
	for _, c := range []struct {
		name    string
		changes []float64
		before  float64 // notBefore
		urgent  bool
		want    float64
	}{
		{name: "one change", changes: []float64{0}, want: 0.5},
		{name: "a burst", changes: []float64{0, 0.3, 0.6}, want: 1.1},
		{name: "never quiet", changes: []float64{0, 10, 20, 29.9}, want: 30},
		{name: "after a failure", changes: []float64{0}, before: 4, want: 4},
		{name: "asked for after a failure", changes: []float64{0}, before: 4, urgent: true, want: 0},
	} {
		t.Run(c.name, func(t *testing.T) {
			p := pending{notBefore: at(c.before), urgent: c.urgent}
			for _, s := range c.changes {
				p.change(at(s))
			}
			got, ok := p.due(500*time.Millisecond, 30*time.Second)
			if !ok || !got.Equal(at(c.want)) {
				t.Fatalf("due at %v (%v), want %v", got.Sub(t0), ok, c.want)
			}
		})
	}
	if _, ok := (pending{}).due(time.Second, time.Second); ok {
		t.Error("due without a change")
	}
	p := pending{}
	p.change(t0)
	p.fired = true
	if _, ok := p.due(time.Second, time.Second); ok {
		t.Error("due twice for one change")
	}
	p.change(at(1))
	if _, ok := p.due(time.Second, time.Second); !ok {
		t.Error("not due for a change after the last signal")
	}
}

func TestBackoffGrowsToMaxWait(t *testing.T) {
	last := time.Duration(0)
	for n := range 100 {
		d := backoff(n, 500*time.Millisecond, 30*time.Second)
		if d < last || d > 30*time.Second || n == 0 && d != 0 || n > 10 && d != 30*time.Second {
			t.Fatalf("after %d failures: %v", n, d)
		}
		last = d
	}
}

func TestUnwatchedRescansTakeATwentiethOfTheTime(t *testing.T) {
	for _, c := range []struct {
		watching   bool
		took, want time.Duration
	}{
		{true, time.Second, 10 * time.Minute},
		{false, 10 * time.Millisecond, 30 * time.Second},
		{false, 5 * time.Second, 100 * time.Second},
		{false, time.Hour, 10 * time.Minute},
	} {
		if got := rescanAfter(c.watching, c.took, 10*time.Minute, 30*time.Second); got != c.want {
			t.Errorf("watching %v, took %v: next after %v, want %v", c.watching, c.took, got, c.want)
		}
	}
}

func TestDirt(t *testing.T) {
	var d dirt
	total := 0
	for _, p := range []string{"a/b/c", "a/b", "a/x", "z", "."} {
		_, n := d.add(p)
		total += n
	}
	if total != 5 || d.size() != 6 {
		t.Fatalf("made %d nodes, size %d", total, d.size())
	}
	if got := d.names(); !slices.Equal(got, []string{"a", "z"}) {
		t.Fatalf("names %q", got)
	}
	if !d.kids["a"].kids["b"].below() || d.kids["z"].below() {
		t.Fatal("only a directory above something dirty is to be entered")
	}
	var o dirt
	n, _ := o.add("a/b/new")
	n.deep = true
	o.add("z")
	if made := d.merge(&o); made != 1 {
		t.Fatalf("merge made %d", made)
	}
	if !d.kids["a"].kids["b"].kids["new"].deep || d.kids["a"].kids["b"].kids["c"] == nil {
		t.Fatal("merge lost something")
	}
}

func TestCutAlignsDataAndKeepsHoles(t *testing.T) {
	const c = tree.ChunkSize
	for _, x := range []struct {
		name  string
		spans []span
		size  uint64
		want  []uint64 // lengths
		holes []bool
	}{
		{"all data", []span{{0, 2*c + 10}}, 2*c + 10, []uint64{c, c, 10}, []bool{false, false, false}},
		{"all hole", nil, 10 << 30, []uint64{10 << 30}, []bool{true}},
		{"hole first", []span{{5 << 20, 10 << 20}}, 10 << 20, []uint64{5 << 20, 3 << 20, 2 << 20}, []bool{true, false, false}},
		{"hole last", []span{{0, 100}}, 1000, []uint64{100, 900}, []bool{false, true}},
		{"adjacent spans", []span{{0, 100}, {100, 200}}, 200, []uint64{100, 100}, []bool{false, false}},
	} {
		t.Run(x.name, func(t *testing.T) {
			extents, offsets := cut(x.spans, x.size)
			if len(extents) != len(x.want) {
				t.Fatalf("%d extents, want %d", len(extents), len(x.want))
			}
			var at int64
			for i, e := range extents {
				if e.Length != x.want[i] || (offsets[i] == hole) != x.holes[i] || offsets[i] != hole && offsets[i] != at {
					t.Errorf("extent %d: %d bytes at %d, want %d at %d, hole %v", i, e.Length, offsets[i], x.want[i], at, x.holes[i])
				}
				at += int64(e.Length)
			}
			if uint64(at) != x.size {
				t.Errorf("extents cover %d of %d", at, x.size)
			}
		})
	}
}

func TestFillJoinsSmallHoles(t *testing.T) {
	got := fill([]span{{0, 10}, {15, 20}, {100, 110}, {111, 120}}, 10)
	if !slices.Equal(got, []span{{0, 20}, {100, 120}}) {
		t.Fatal(got)
	}
}

func TestDataSpansOfASparseFile(t *testing.T) {
	f, err := os.Create(filepath.Join(t.TempDir(), "sparse"))
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	const size = 10 << 30
	for _, off := range []int64{0, 1 << 30, size - 5} {
		if _, err := f.WriteAt([]byte("data!"), off); err != nil {
			t.Fatal(err)
		}
	}
	spans, err := dataSpans(f, size)
	if err != nil {
		t.Fatal(err)
	}
	var total int64
	for _, s := range spans {
		total += s.to - s.from
	}
	if len(spans) != 3 && total != size { // a file system without holes says that all is data
		t.Fatalf("%d spans, %d bytes", len(spans), total)
	}
	if last := spans[len(spans)-1]; last.to != size {
		t.Fatalf("data ends at %d", last.to)
	}
}

// noHoles is a file on a file system that knows no SEEK_DATA.
type noHoles struct{}

func (noHoles) Seek(int64, int) (int64, error) {
	return 0, &os.PathError{Op: "seek", Err: syscall.EINVAL}
}

func TestDataSpansWhereTheFileSystemCannotTell(t *testing.T) {
	spans, err := dataSpans(noHoles{}, 77)
	if err != nil || !slices.Equal(spans, []span{{0, 77}}) {
		t.Fatal(spans, err)
	}
}

func TestSettleWaitsOutTheClockTick(t *testing.T) {
	now := time.Unix(5000, 500_000_000)
	st := func(age time.Duration) *syscall.Stat_t {
		c := now.Add(-age)
		return &syscall.Stat_t{Ctim: syscall.Timespec{Sec: c.Unix(), Nsec: int64(c.Nanosecond())}}
	}
	for age, want := range map[time.Duration]time.Duration{
		time.Millisecond:        tick - time.Millisecond,
		tick:                    0,
		time.Hour:               0,
		-time.Hour:              0, // another machine's clock
		500 * time.Millisecond:  1500*time.Millisecond + tick,
		2500 * time.Millisecond: 0,
	} {
		if got := settle(st(age), 0, now); got != want {
			t.Errorf("changed %v ago: wait %v, want %v", age, got, want)
		}
	}
}

func TestLinksFindGroupsBelowADirectory(t *testing.T) {
	l := newLinks()
	a, b := tree.LinkID{Dev: 1, Ino: 1}, tree.LinkID{Dev: 1, Ino: 2}
	l.add("x/1", a, 3)
	l.add("y/z/1", a, 3)
	l.add("xy/2", b, 2)
	if g := l.groups[a]; g.outside != 1 || len(g.paths) != 2 {
		t.Fatalf("%+v", g)
	}
	for _, c := range []struct {
		dir  string
		want string
	}{{"x", "x/1"}, {"y", "y/z/1"}, {"y/z", "y/z/1"}, {"y/z/1", ""}, {".", "x/1 xy/2 y/z/1"}, {"q", ""}} {
		got := l.below(map[string]struct{}{c.dir: {}})
		slices.Sort(got)
		if strings.Join(got, " ") != c.want {
			t.Errorf("below %s: %q, want %s", c.dir, got, c.want)
		}
	}
	l.drop("x/1")
	l.drop("y/z/1")
	l.drop("never")
	if len(l.groups) != 1 || len(l.byPath) != 1 {
		t.Fatal("dropped names are still known")
	}
	l.add("xy/2", a, 2) // the name is another file now
	if _, ok := l.groups[b]; ok {
		t.Fatal("a name in two groups")
	}
}
