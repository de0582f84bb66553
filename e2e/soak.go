package e2e

import (
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/nfs-fleet/nfs-fleet/e2e/known"
	"github.com/nfs-fleet/nfs-fleet/e2e/nfs"
)

// hostileFrom is the address that hostile clients come from: another host's, as far as a server can tell.
const hostileFrom = "127.0.0.2"

// soakLimit is how long a client that means well waits for a reply, at most. Machines of tests are small, and shared.
const soakLimit = 20 * time.Second

// soaked is a master that hostile clients and others are let loose on, and the tree that it publishes meanwhile.
type soaked struct {
	*Master
	t       testing.TB
	dir     string
	version atomic.Uint64 // the last that was written; every file's is at most that
	portmap string

	mu      sync.Mutex    // guards what follows
	wrong   []string      // what clients that mean well have seen
	worst   time.Duration // of a call
	slowest time.Duration // to connect
	visits  int
	calls   int
}

func startSoaked(t testing.TB) *soaked {
	t.Helper()
	s := &soaked{t: t, dir: t.TempDir(), portmap: freePorts(t, 1)[0]}
	if err := s.write(); err != nil {
		t.Fatal(err)
	}
	s.Master = StartMaster(t, MasterConfig{
		Sources: []string{"www=" + s.dir + ",mode=manual"}, Flags: []string{"--insecure", "--listen-portmap", s.portmap},
	})
	s.Publish("www")
	return s
}

// write puts the next version of the files in place; of the big one not every time.
func (s *soaked) write() error {
	v := s.version.Add(1)
	files := map[string]int{stampFile: 1}
	if v%bigEvery == 1 {
		files[bigFile] = bigBlocks
	}
	for name, blocks := range files {
		path := filepath.Join(s.dir, name)
		if err := errors.Join(os.WriteFile(path+".new", known.File(name, v, blocks), 0o644), os.Rename(path+".new", path)); err != nil {
			return fmt.Errorf("write a new version: %w", err)
		}
	}
	return nil
}

// publish publishes new versions until ctx ends.
func (s *soaked) publish(ctx context.Context, pace time.Duration) error {
	for wait(ctx, pace); ctx.Err() == nil; wait(ctx, pace) {
		if err := s.write(); err != nil {
			return err
		}
		r, err := run(nil, time.Minute, s.env(), s.bin, "publish", "www")
		if err != nil || r.Code != 0 {
			return fmt.Errorf("publish: %w, %v", err, r)
		}
	}
	return nil
}

// fault records what a client that means well must not see.
func (s *soaked) fault(format string, args ...any) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.wrong = append(s.wrong, fmt.Sprintf(format, args...))
}

// visit is what a client does that means well, on a connection that it keeps and on one of its own each time, until ctx ends.
func (s *soaked) visit(ctx context.Context, number int64) error {
	random, name := rand.New(rand.NewSource(number)), fmt.Sprintf("soak%d", number)
	kept, err := nfs.Dial(ctx, (&net.Dialer{}).DialContext, s.NFS, soakLimit)
	if err != nil {
		return err
	}
	defer kept.Close()
	for ctx.Err() == nil {
		if err := s.once(kept, random, name); err != nil {
			s.fault("on a connection that is kept: %v", err)
			return nil // one connection fails once
		}
		began := time.Now()
		fresh, err := nfs.Dial(context.WithoutCancel(ctx), (&net.Dialer{}).DialContext, s.NFS, soakLimit)
		if err == nil {
			s.connected(time.Since(began))
			err = s.once(fresh, random, name)
			fresh.Close()
		}
		if err != nil {
			s.fault("on a new connection, begun %v ago: %v", time.Since(began), err)
		}
		wait(ctx, 20*time.Millisecond)
	}
	return nil
}

// connected records how long a new connection took.
func (s *soaked) connected(took time.Duration) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.slowest = max(s.slowest, took)
}

// once mounts, looks around, reads both files, and unmounts.
func (s *soaked) once(c *nfs.Conn, random *rand.Rand, name string) error {
	last := time.Now()
	step := func() {
		s.mu.Lock()
		defer s.mu.Unlock()
		s.calls++
		s.worst = max(s.worst, time.Since(last))
		last = time.Now()
	}
	root, err := c.Mount("/www")
	if err != nil {
		return err
	}
	step()
	entries, eof, err := c.ReadDirPlus(root, 0, 64<<10)
	if err != nil || !eof || len(entries) != 2 {
		return fmt.Errorf("listing: %+v, %v, %w", entries, eof, err)
	}
	step()
	for file, blocks := range map[string]int64{stampFile: 1, bigFile: bigBlocks} {
		h, attr, err := c.Lookup(root, file)
		if err != nil {
			return err
		}
		step()
		if attr, err = c.GetAttr(h); err != nil || attr.Size != uint64(blocks*known.Size) {
			return fmt.Errorf("attributes of %s: %+v, %w", file, attr, err)
		}
		step()
		block := random.Int63n(blocks)
		data, _, err := c.Read(h, uint64(block*known.Size), uint32(min(blocks-block, 1+random.Int63n(32))*known.Size))
		if err != nil {
			return err
		}
		step()
		if v, err := known.Check(data, file, block); err != nil || v == 0 || v > s.version.Load() {
			return fmt.Errorf("%s, version %d, %w", file, v, err)
		}
	}
	if err := errors.Join(c.Null(), c.Greet(name), c.Unmount("/www")); err != nil {
		return err
	}
	step()
	s.mu.Lock()
	defer s.mu.Unlock()
	s.visits++
	return nil
}

// attackers are hostile clients, each a process, and what is to be closed for each to end.
type attackers struct {
	t    testing.TB
	all  []*proc
	ends []io.Closer
}

// attack starts a hostile client of a kind (package hostile). It is the least important process of this machine, as one is that
// runs elsewhere.
func (a *attackers) attack(s *soaked, tool, kind string, flags ...string) {
	a.t.Helper()
	argv := append([]string{"nice", "-n", "19", tool, "-from", hostileFrom}, flags...)
	argv = append(argv, s.url("www"), kind, bigFile)
	a.all = append(a.all, start(a.t, "hostile "+kind, nil, &procLog{}, argv, func(c *exec.Cmd) {
		end, err := c.StdinPipe()
		if err != nil {
			a.t.Fatal(err)
		}
		a.ends = append(a.ends, end)
	}))
}

// retire ends them, and returns what they have to say. One that has found a fault fails the test.
func (a *attackers) retire() (said []string) {
	a.t.Helper()
	for _, end := range a.ends {
		end.Close()
	}
	for _, p := range a.all {
		code := p.wait(a.t, time.Minute)
		said = append(said, strings.TrimSpace(p.log.String()))
		if code != 0 {
			a.t.Errorf("%s: exit code %d: %s", p.name, code, clip(p.log.String()))
		}
	}
	a.all, a.ends = nil, nil
	return said
}

// burden is what a process costs at a moment.
type burden struct {
	rss, processor       float64 // MiB, seconds
	goroutines, conns    int
	fds, sockets, stored int // open files, but for those of the store, which holds what has been published
	logged, refusals     int
}

func (b burden) String() string {
	return fmt.Sprintf("%.1f MiB resident, %d goroutines, %d connections, %d files of which %d sockets, and %d in the store, %.1f s of processor time, %d turned away, %d lines of log",
		b.rss, b.goroutines, b.conns, b.fds, b.sockets, b.stored, b.processor, b.refusals, b.logged)
}

// burden looks at the master from outside and asks it for its metrics.
func (s *soaked) burden() (b burden, err error) {
	pid := s.proc.cmd.Process.Pid
	if b.rss, b.processor, err = residentAndProcessor(pid); err != nil {
		return b, err
	}
	dir := fmt.Sprintf("/proc/%d/fd/", pid)
	open, err := os.ReadDir(dir)
	if err != nil {
		return b, err
	}
	for _, f := range open {
		to, err := os.Readlink(dir + f.Name())
		switch {
		case err != nil: // closed meanwhile
		case strings.HasPrefix(to, s.DataDir+"/store/"):
			b.stored++
		default:
			b.fds++
		}
		if strings.HasPrefix(to, "socket:") {
			b.sockets++
		}
	}
	b.logged = strings.Count(s.log.String(), "\n")
	code, text := s.Get("/metrics")
	if code != 200 {
		return b, fmt.Errorf("metrics: %d, %s", code, clip(text))
	}
	for name, into := range map[string]*int{"go_goroutines": &b.goroutines, "nfs_fleet_connections": &b.conns, "nfs_fleet_connections_refused_total": &b.refusals} {
		for line := range strings.Lines(text) {
			if value, ok := strings.CutPrefix(line, name+" "); ok {
				n, err := strconv.ParseFloat(strings.TrimSpace(value), 64)
				if err != nil {
					return b, err
				}
				*into = int(n)
			}
		}
	}
	return b, nil
}

// residentAndProcessor returns the MiB that a process has in memory of its own, files that it has mapped not counted, and the
// seconds that it has computed.
func residentAndProcessor(pid int) (rss, processor float64, err error) {
	own, err := residentOf(pid, "RssAnon")
	if err != nil {
		return 0, 0, err
	}
	used, err := processorTimeOf(pid)
	return float64(own) / (1 << 20), (used.user + used.system).Seconds(), err
}

// watchPeak returns the most memory that the master has had when ctx ends.
func (s *soaked) watchPeak(ctx context.Context) (peak float64, err error) {
	for ctx.Err() == nil {
		rss, _, err := residentAndProcessor(s.proc.cmd.Process.Pid)
		if err != nil {
			return peak, err
		}
		peak = max(peak, rss)
		wait(ctx, 100*time.Millisecond)
	}
	return peak, nil
}

// mix lets so many clients that mean well do their work for some time while versions are published, and returns the most
// memory that the master had.
func (s *soaked) mix(clients int, period, pace time.Duration) (peak float64) {
	s.t.Helper()
	ctx, cancel := context.WithTimeout(s.t.Context(), period)
	defer cancel()
	var all errgroup.Group
	for i := range clients {
		all.Go(func() error { return s.visit(ctx, int64(i)) })
	}
	all.Go(func() error { return s.publish(ctx, pace) })
	all.Go(func() (err error) { peak, err = s.watchPeak(ctx); return err })
	if err := all.Wait(); err != nil {
		s.t.Errorf("while all were at work: %v", err)
	}
	return peak
}
