package e2e

import (
	"encoding/json"
	"flag"
	"fmt"
	"maps"
	"math/rand"
	"os"
	"path/filepath"
	"slices"
	"testing"
	"time"

	"github.com/nfs-fleet/nfs-fleet/e2e/wire"
)

var (
	crashRounds = flag.Int("rounds", 12, "rounds of the crash loop")
	crashSeed   = flag.Int64("seed", 0, "seed of the crash loop; 0: a new one")
)

// TestCrashLoop kills a master at random moments of a publish and of its start, again and again. What was acknowledged is
// never lost: in the end verify finds nothing wrong, and every generation is read back and compared.
func TestCrashLoop(t *testing.T) {
	seed := *crashSeed
	if seed == 0 {
		seed = time.Now().UnixNano()
	}
	t.Logf("make crashloop ROUNDS=%d SEED=%d", *crashRounds, seed)
	c := &crashLoop{random: rand.New(rand.NewSource(seed)), want: map[uint64]wire.Summary{}, roots: map[uint64]string{}}
	c.fixture = newFixture(t, ",mode=manual", c.fill, "--lease-ttl", "2s") // a killed master leads again when its lease has run out
	c.window = 200 * time.Millisecond
	c.note(c.WaitLeader("www"))
	for i := range *crashRounds {
		c.round(t, i)
		if t.Failed() {
			t.Fatalf("round %d of seed %d", i, seed)
		}
	}
	t.Logf("%d acknowledged, %d done but not acknowledged, %d not done", c.acked, c.silent, c.undone)
	c.verify(t)
	c.readBack(t)
}

// crashLoop is the loop's state and its model of what must be true.
type crashLoop struct {
	*fixture
	random *rand.Rand
	window time.Duration           // the kill comes within this time; steered so that it meets publishes in the middle
	head   uint64                  // the last generation that is known to be the head
	want   map[uint64]wire.Summary // what each generation holds
	roots  map[uint64]string       // its root

	acked, silent, undone int // what became of the publishes that a kill cut short
}

// note takes down a generation whose content is the source's present one.
func (c *crashLoop) note(g Generation) {
	c.head, c.want[g.Number], c.roots[g.Number] = g.Number, c.summary(c.source), g.Root
}

func (c *crashLoop) summary(root string) wire.Summary {
	return wire.Summarize(wire.Listing{Root: root, Contents: true})
}

// name picks one of the tree's paths, which need not exist.
func (c *crashLoop) name() string {
	if c.random.Intn(6) == 0 {
		return fmt.Sprintf("large/%d", c.random.Intn(3))
	}
	return fmt.Sprintf("d%d/f%d", c.random.Intn(6), c.random.Intn(12))
}

// write writes a file of the size that its path stands for.
func (c *crashLoop) write(source, name string) {
	size := c.random.Intn(20_000)
	if filepath.Dir(name) == "large" {
		size = 1<<20 + c.random.Intn(15<<20)
	}
	path := filepath.Join(source, name)
	if os.MkdirAll(filepath.Dir(path), 0o755) != nil || os.WriteFile(path, []byte(noise(c.random.Int63(), size)), 0o644) != nil {
		panic("cannot write " + path) // the file system of the test is broken
	}
}

func (c *crashLoop) fill(source string) {
	for range 60 {
		c.write(source, c.name())
	}
}

// mutate changes the source in up to ten places; one of them is large, so that there is a publish to meet.
func (c *crashLoop) mutate() {
	c.write(c.source, fmt.Sprintf("large/%d", c.random.Intn(3)))
	for range c.random.Intn(10) {
		name := filepath.Join(c.source, c.name())
		switch c.random.Intn(5) {
		case 0:
			os.Remove(name)
		case 1:
			os.Rename(name, filepath.Join(c.source, c.name()))
		case 2:
			os.Chmod(name, os.FileMode(0o400+c.random.Intn(0o400)))
		default:
			c.write(c.source, c.name())
		}
	}
}

// pause waits for a random part of d: the moment of the kill is the point of this test.
func (c *crashLoop) pause(d time.Duration) { time.Sleep(time.Duration(c.random.Int63n(int64(d)))) }

func (c *crashLoop) round(t *testing.T, i int) {
	c.mutate()
	publisher, out := c.background(c.bin, "publish", "www", "--note", fmt.Sprintf("round %d", i), "-o", "json")
	c.pause(c.window)
	c.Kill()
	acked := publisher.wait(t, time.Minute) == 0
	var g Generation
	if acked {
		if err := json.Unmarshal([]byte(out.String()), &g); err != nil || g.Number != c.head+1 {
			t.Errorf("round %d: acknowledged %+v over the head %d: %v in %s", i, g, c.head, err, out)
		}
	}
	if c.random.Intn(3) == 0 { // and while it starts
		c.Start()
		c.pause(time.Second)
		c.Kill()
	}
	c.Start()
	c.WaitReady()
	c.judge(t, i, acked, g)
	c.served(t, fmt.Sprintf("round %d", i), c.head)
	// What was cut short is published now, undisturbed.
	before := c.head
	if c.note(c.WaitLeader("www")); c.head > before+1 {
		t.Errorf("round %d: generation %d after %d", i, c.head, before)
	}
}

// judge compares the head after a kill with what the publisher was told.
func (c *crashLoop) judge(t *testing.T, i int, acked bool, g Generation) {
	now := c.Shard("www")
	switch {
	case acked:
		c.acked++
		c.window = c.window * 3 / 4
		if now.Generation != g.Number || now.Root != g.Root {
			t.Errorf("round %d: acknowledged generation %d (%s), after the kill %d (%s)", i, g.Number, g.Root, now.Generation, now.Root)
		}
	case now.Generation == c.head+1:
		c.silent++
	case now.Generation == c.head && now.Root == c.roots[c.head]:
		c.undone++
		c.window = c.window * 4 / 3
	default:
		t.Errorf("round %d: head %d (%s) became %d (%s) without an acknowledgement", i, c.head, c.roots[c.head], now.Generation, now.Root)
	}
	if now.Generation > c.head {
		c.note(Generation{Number: now.Generation, Root: now.Root})
	}
}

// served compares what the slave sees with what generation g holds.
func (c *crashLoop) served(t *testing.T, when string, g uint64) {
	t.Helper()
	c.slave.DropCaches()
	if got := c.slave.Summarize(wire.Listing{Root: c.mnt, Contents: true}); got != c.want[g] {
		t.Errorf("%s: the slave sees %+v, generation %d holds %+v", when, got, g, c.want[g])
	}
}

func (c *crashLoop) verify(t *testing.T) {
	var report struct {
		Objects int64
		Bad     []string
		Missing []any
	}
	c.JSON(&report, "verify")
	if report.Objects == 0 || len(report.Bad) > 0 || len(report.Missing) > 0 {
		t.Errorf("verify after the crashes: %+v", report)
	}
}

// readBack rolls back to every generation there was, and reads it.
func (c *crashLoop) readBack(t *testing.T) {
	var history []Generation
	c.JSON(&history, "history", "www")
	for i, g := range history {
		if g.Number != c.head-uint64(i) || g.Root != c.roots[g.Number] {
			t.Errorf("history holds generation %d (%s) where %d (%s) was", g.Number, g.Root, c.head-uint64(i), c.roots[c.head-uint64(i)])
		}
	}
	if len(history) != int(c.head) {
		t.Errorf("history holds %d generations of %d", len(history), c.head)
	}
	for _, g := range slices.Sorted(maps.Keys(c.want)) {
		c.MustCLI("rollback", "www", fmt.Sprint(g), "--wait")
		c.served(t, fmt.Sprintf("rolled back to %d", g), g)
	}
}
