package e2e

import (
	"crypto/sha256"
	"fmt"
	"hash/fnv"
	"maps"
	"math/rand"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/nfs-fleet/nfs-fleet/e2e/history"
)

// listing is the path that stands for the names of the directory "list" in a manifest.
const listing = "list/"

// states is a directory that goes from state to state, each one known by what a reader must see: files whose bytes follow
// from their path and version, and a directory whose names say which state it is.
type states struct {
	dir      string
	seed     string // makes the bytes of this directory its own
	versions map[string]int
	digests  map[string]string // of the present versions
	names    map[string]bool   // of the directory "list"
	last     string            // the name in it that changes every time
}

// The paths that every state has. The first changes every time, the last, which is several chunks long, now and then.
var statePaths = func() []string {
	paths := []string{"stamp"}
	for d := range 4 {
		for f := range 5 {
			paths = append(paths, fmt.Sprintf("d%d/f%d", d, f))
		}
	}
	return append(paths, "big")
}()

// newStates fills dir with the first state.
func newStates(dir, seed string) (*states, error) {
	s := &states{dir: dir, seed: seed, versions: map[string]int{}, digests: map[string]string{}, names: map[string]bool{}}
	for _, d := range []string{"d0", "d1", "d2", "d3", "list"} {
		if err := os.MkdirAll(filepath.Join(dir, d), 0o755); err != nil {
			return nil, err
		}
	}
	for _, p := range statePaths {
		if err := s.write(p); err != nil {
			return nil, err
		}
	}
	for i := range 24 {
		s.names[fmt.Sprintf("stays-%02d", i)] = true
	}
	for n := range s.names {
		if err := s.touch(n, true); err != nil {
			return nil, err
		}
	}
	return s, nil
}

// stateSize is the size of a file's version.
func stateSize(path string, version int) int {
	if path == "big" {
		return 5<<20 + version%7*100_001
	}
	h := fnv.New32a()
	fmt.Fprint(h, path, version)
	switch n := int(h.Sum32()); n % 4 {
	case 0:
		return n % 300
	case 1:
		return n % 8192
	default:
		return n % 80_000
	}
}

// content is what a version of a file holds: a line that says so, and noise.
func (s *states) content(path string, version int) []byte {
	h := fnv.New64a()
	head := fmt.Sprintf("%s %s version %d\n", s.seed, path, version)
	h.Write([]byte(head))
	return append([]byte(head), noise(int64(h.Sum64()), stateSize(path, version))...)
}

// noise is content that repeats nowhere.
func noise(seed int64, size int) string {
	b := make([]byte, size)
	rand.New(rand.NewSource(seed)).Read(b)
	return string(b)
}

// write puts the next version of a file in place, as a deployment does: a new file renamed over the old one.
func (s *states) write(path string) error {
	s.versions[path]++
	full := filepath.Join(s.dir, path)
	content := s.content(path, s.versions[path])
	s.digests[path] = digest(content)
	if err := os.WriteFile(full+".new", content, 0o644); err != nil {
		return err
	}
	return os.Rename(full+".new", full)
}

// touch makes or removes a name in the directory "list".
func (s *states) touch(name string, there bool) error {
	full := filepath.Join(s.dir, "list", name)
	if !there {
		delete(s.names, name)
		return os.Remove(full)
	}
	s.names[name] = true
	return os.WriteFile(full, []byte(name), 0o644)
}

// advance goes to the next state; mark is in its listing.
func (s *states) advance(random *rand.Rand, mark string) error {
	change := []string{"stamp"}
	for range 1 + random.Intn(4) {
		change = append(change, statePaths[random.Intn(len(statePaths)-1)])
	}
	if random.Intn(8) == 0 {
		change = append(change, "big")
	}
	for _, p := range change {
		if err := s.write(p); err != nil {
			return err
		}
	}
	if s.last != "" {
		if err := s.touch(s.last, false); err != nil {
			return err
		}
	}
	s.last = "at-" + mark
	if err := s.touch(s.last, true); err != nil {
		return err
	}
	other := fmt.Sprintf("comes-and-goes-%d", random.Intn(8))
	return s.touch(other, !s.names[other])
}

// manifest says what the present state holds.
func (s *states) manifest() history.Manifest {
	m := history.Manifest{listing: digestNames(slices.Collect(maps.Keys(s.names)))}
	maps.Copy(m, s.digests)
	return m
}

// digest is how manifests and readers name bytes.
func digest(b []byte) string { return fmt.Sprintf("%x", sha256.Sum256(b)) }

// digestNames is how they name a set of names.
func digestNames(names []string) string {
	slices.Sort(names)
	return digest([]byte(strings.Join(names, "\n")))
}
