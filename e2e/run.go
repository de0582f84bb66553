package e2e

import (
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"testing"
)

// runPrefix begins the name of everything that outlives a process: namespaces and temporary directories.
const runPrefix = "nff."

// testRun is what all tests of one test binary share.
type testRun struct {
	id  string // runPrefix, process id and start time: unique on this machine, and tells whether its owner still lives
	dir string // everything on disk, t.TempDir too
}

// theRun is set by Main before any test runs.
var theRun testRun

// Main wraps m.Run with what all tests share: a directory of its own, and the sweep of what dead runs left.
func Main(m *testing.M) (code int) {
	start, err := startTime(os.Getpid())
	if err != nil {
		fmt.Fprintln(os.Stderr, "e2e:", err)
		return 1
	}
	theRun.id = fmt.Sprintf("%s%d.%s", runPrefix, os.Getpid(), start)
	sweep()
	theRun.dir = filepath.Join(os.TempDir(), theRun.id)
	if err := os.Mkdir(theRun.dir, 0o755); err != nil {
		fmt.Fprintln(os.Stderr, "e2e:", err)
		return 1
	}
	defer os.RemoveAll(theRun.dir)
	os.Setenv("TMPDIR", theRun.dir)
	return m.Run()
}

// startTime returns when a process began, in the kernel's ticks: with the process id it names a process for ever.
func startTime(pid int) (string, error) {
	fields, err := statFields(pid)
	if err != nil {
		return "", fmt.Errorf("read start time: %w", err)
	}
	return fields[19], nil // field 22
}

// abandoned says whether a name that begins with a run's id belongs to a test binary that is no more.
func abandoned(name string) bool {
	parts := strings.SplitN(strings.TrimPrefix(name, runPrefix), ".", 3)
	if !strings.HasPrefix(name, runPrefix) || len(parts) < 2 {
		return false
	}
	pid, err := strconv.Atoi(parts[0])
	if err != nil {
		return false
	}
	start, err := startTime(pid)
	return err != nil || start != parts[1]
}

// underAbandoned says whether a path is in the temporary directory of a run that is no more.
func underAbandoned(path string) bool {
	rest, ok := strings.CutPrefix(path, os.TempDir()+"/")
	top, _, _ := strings.Cut(rest, "/")
	return ok && abandoned(top)
}

// sweep removes what killed test binaries left behind. Their processes died with them.
func sweep() {
	spaces, _ := os.ReadDir("/run/netns")
	for _, s := range spaces {
		if abandoned(s.Name()) {
			exec.Command("ip", "netns", "delete", s.Name()).Run()
		}
	}
	mounts, _ := os.ReadFile("/proc/self/mounts")
	for line := range strings.Lines(string(mounts)) {
		if fields := strings.Fields(line); len(fields) > 1 && underAbandoned(fields[1]) {
			exec.Command("umount", "-l", fields[1]).Run()
		}
	}
	dirs, _ := os.ReadDir(os.TempDir())
	for _, d := range dirs {
		if abandoned(d.Name()) {
			removeAll(filepath.Join(os.TempDir(), d.Name()))
		}
	}
}

// removeAll removes a tree in which a test may have made directories that their owner cannot write.
func removeAll(dir string) {
	filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		if err == nil && d.IsDir() {
			os.Chmod(path, 0o700)
		}
		return nil
	})
	os.RemoveAll(dir)
}

// built builds a command of this module, static as it ships, once a run, and returns the binary's path.
func built(t testing.TB, pkg string) string {
	t.Helper()
	buildMu.Lock()
	defer buildMu.Unlock()
	if path, ok := builds[pkg]; ok {
		return path
	}
	path := filepath.Join(theRun.dir, filepath.Base(pkg))
	cmd := exec.Command("go", "build", "-buildvcs=false", "-trimpath", "-ldflags=-X main.version=e2e", "-o", path, pkg)
	cmd.Dir = ".." // tests run in their package's directory
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("build %s: %v\n%s", pkg, err, out)
	}
	builds[pkg] = path
	return path
}

var (
	buildMu sync.Mutex // guards builds
	builds  = map[string]string{}
)

// product returns the product under test: NFS_FLEET_BIN, or one built from this tree.
func product(t testing.TB) string {
	if path := os.Getenv("NFS_FLEET_BIN"); path != "" {
		return path
	}
	return built(t, "./cmd/nfs-fleet")
}

// takePrecedence has the test's processes run before those of others on this machine, until the test ends. Where Linux shares its
// processors out by session (autogroup), nice values compare processes of one session only, and every slave is one of its own:
// each gets no more than any other session of the machine. leaders are the processes whose sessions are to come first.
func takePrecedence(t testing.TB, leaders ...int) {
	t.Helper()
	for _, pid := range leaders {
		file := fmt.Sprintf("/proc/%d/autogroup", pid)
		if err := os.WriteFile(file, []byte("-15"), 0); err != nil {
			t.Logf("no precedence before other sessions: %v", err)
			continue
		}
		t.Cleanup(func() { os.WriteFile(file, []byte("0"), 0) })
	}
}

// needRoot skips a test that cannot do without namespaces, devices or privileged ports.
func needRoot(t testing.TB) {
	t.Helper()
	if os.Getuid() != 0 {
		skip(t, "needs root for network namespaces")
	}
	needCommands(t, "ip")
	if _, err := os.Stat("/dev/net/tun"); err != nil {
		skip(t, "needs /dev/net/tun: "+err.Error())
	}
}

// needCommands skips a test whose tools are not installed.
func needCommands(t testing.TB, names ...string) {
	t.Helper()
	for _, n := range names {
		if _, err := exec.LookPath(n); err != nil {
			skip(t, "needs the command "+n+" (make deps installs it)")
		}
	}
}

// skip skips the test by name, except in CI, where a suite that did not run shows nothing.
func skip(t testing.TB, reason string) {
	t.Helper()
	if os.Getenv("CI") == "true" {
		t.Fatalf("%s cannot run: %s; CI=true does not accept that", t.Name(), reason)
	}
	t.Skipf("%s skipped: %s", t.Name(), reason)
}
