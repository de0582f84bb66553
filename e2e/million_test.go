package e2e

import (
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"testing"
	"time"
)

// manyFiles is a tree of small files, and what a change in it may take.
type manyFiles struct {
	name        string
	dirs, files int           // files in all
	change      time.Duration // from the end of the quiet period until the change is served
}

// The trees of issue 5, and its bounds.
var manyFilesTrees = []manyFiles{
	{"100k", 1000, 100_000, 150 * time.Millisecond},
	{"flat", 1, 100_000, 300 * time.Millisecond},
	{"1M", 10_000, 1_000_000, 300 * time.Millisecond},
}

const (
	manyFilesRSS   = 400 << 20       // of the process at rest with the largest tree, beyond one with a single file
	manyFilesStart = 3 * time.Second // until it is ready
	addedLatency   = 5 * time.Millisecond
)

// Trees of many small files: what a master takes to publish one, to see a change, and to start, how much memory it needs, and
// what a reader sees of a change. Prints a table.
func TestManyFiles(t *testing.T) {
	tool, base := buildTool(t, "./load/nfsload"), 0
	for _, c := range append([]manyFiles{{"one file", 1, 1, time.Minute}}, manyFilesTrees...) {
		t.Run(c.name, func(t *testing.T) {
			if !*targets {
				c.files, c.dirs = (c.files+99)/100, (c.dirs+99)/100
			}
			rss := c.measure(t, tool)
			if base == 0 {
				base = rss
			}
			t.Logf("resident: %d MB, %d MB beyond a process with one file, target %d MB", rss>>20, (rss-base)>>20, manyFilesRSS>>20)
			if rss-base > manyFilesRSS {
				t.Errorf("%d MB are resident beyond a process with one file, want %d at most", (rss-base)>>20, manyFilesRSS>>20)
			}
		})
	}
}

// measure publishes the tree, changes it, and restarts its master. It returns how much was resident at rest.
func (c manyFiles) measure(t *testing.T, tool string) (rss int) {
	const quiet = 500 * time.Millisecond
	rounds := c.rounds()
	source := t.TempDir()
	for i := range c.files {
		path := c.path(source, i)
		if i < c.dirs {
			if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
				t.Fatal(err)
			}
		}
		if err := os.WriteFile(path, fmt.Appendf(nil, "%0200d", i), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	began := time.Now()
	m := StartMaster(t, MasterConfig{Sources: []string{"www=" + source}, Flags: []string{"--insecure", "--scan-quiet", quiet.String()}})
	waitServed := func(generation uint64) time.Time {
		var at time.Time
		eventually(t, 5*time.Minute, fmt.Sprintf("generation %d is served", generation), func() bool {
			for _, l := range m.logged("flipped") {
				if l.Generation == generation {
					at = l.Time
				}
			}
			return !at.IsZero()
		})
		return at
	}
	t.Logf("first publish: %v from the start of the process", waitServed(1).Sub(began).Round(time.Millisecond))

	var took []time.Duration
	for i := range rounds {
		changed := time.Now()
		writeFile(t, c.path(source, i*c.files/rounds), fmt.Sprint("changed ", i))
		took = append(took, waitServed(uint64(i)+2).Sub(changed)-quiet)
	}
	slices.Sort(took)
	t.Logf("one changed file: %v to %v after the quiet period", took[0].Round(time.Millisecond), took[len(took)-1].Round(time.Millisecond))
	target(t, "one changed file", median(took), c.change)
	began = time.Now()
	m.MustCLI("publish", "--wait", "www")
	t.Logf("a publish with nothing changed: %v, with the command's own start", time.Since(began).Round(time.Millisecond))
	c.readers(t, tool, m, source)

	rss = m.settledRSS()
	m.Stop()
	began = time.Now()
	m.Start()
	m.WaitReady()
	target(t, "from the start of the process until it serves", time.Since(began), manyFilesStart)
	return rss
}

// rounds is how often something is measured.
func (c manyFiles) rounds() int {
	if *targets {
		return 8
	}
	return 2
}

// path is where the i-th file is.
func (c manyFiles) path(source string, i int) string {
	return fmt.Sprintf("%s/d%05d/f%07d", source, i%c.dirs, i)
}

// readers compares what a reader waits at the most in times with a change with what it does in times without.
func (c manyFiles) readers(t *testing.T, tool string, m *Master, source string) {
	var longest [2][]time.Duration
	for i := range 2 * c.rounds() {
		if i%2 == 1 {
			writeFile(t, c.path(source, 0), fmt.Sprint("changed while somebody reads ", i))
		}
		r := runOn(t, nil, time.Minute, nil, tool, benchURL("www", m.NFS, m.NFS), "getattr", "1", "1", "1")
		longest[i%2] = append(longest[i%2], time.Duration(keyed(r.Stdout, "max_us"))*time.Microsecond)
	}
	t.Logf("the longest that a reader waited: %v without changes, %v with one", longest[0], longest[1])
	target(t, "what a change adds", median(longest[1])-median(longest[0]), addedLatency)
}

// settledRSS returns the resident memory of the master when it has given back what its work left.
func (m *Master) settledRSS() int {
	m.t.Helper()
	least, since := m.rss(), time.Now()
	eventually(m.t, 2*time.Minute, "the master's memory has settled", func() bool {
		if now := m.rss(); now < least-least/50 {
			least, since = now, time.Now()
		}
		return !*targets || time.Since(since) > 15*time.Second
	})
	return least
}

// rss returns what is resident of the master, in bytes.
func (m *Master) rss() int {
	m.t.Helper()
	n, err := residentOf(m.proc.cmd.Process.Pid, "VmRSS")
	if err != nil {
		m.t.Fatal(err)
	}
	return n
}
