package e2e

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"sync"
	"testing"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/nfs-fleet/nfs-fleet/e2e/known"
	"github.com/nfs-fleet/nfs-fleet/e2e/nfs"
)

// routesPerAgent is how many light slaves share an agent; it has a bound for the SRV names of one host.
const routesPerAgent = 25

// lightSlaves are many slaves on few hosts, to show what a fleet does with many. Each has a relay of its own, by its own SRV
// name, in an agent of the product; instead of a kernel a client in user space reads through it, and comes back with its
// unanswered call when its connection ends, as Linux does.
type lightSlaves struct {
	fleet  *Fleet
	slaves []*lightSlave

	stop context.CancelFunc
	done errgroup.Group
}

// lightSlave is one of them. Its goroutine owns conn and handle.
type lightSlave struct {
	name string
	host *Host
	addr string // of its relay

	conn   *nfs.Conn
	handle nfs.Handle

	mu    sync.Mutex // guards what follows
	last  time.Time  // when it last read
	worst time.Duration
	wrong []string
}

// lightPace is between two reads of one light slave: a hundred of them make a thousand reads a second.
const lightPace = 100 * time.Millisecond

// newLightSlaves starts agents with so many relays and a reader behind each.
func newLightSlaves(t testing.TB, f *Fleet, count int, shard string) *lightSlaves {
	t.Helper()
	l := &lightSlaves{fleet: f}
	var starting errgroup.Group
	for first := 0; first < count; first += routesPerAgent {
		host := f.LAN.Host(t, fmt.Sprintf("s%d", first/routesPerAgent))
		dir := t.TempDir()
		startAgent(t, f, host, dir)
		// Whoever mounts before it listens would start an agent of its own, which lets in privileged ports only.
		eventually(t, homeLimit, "the agent listens", func() bool {
			_, err := os.Stat(filepath.Join(dir, "agent.sock"))
			return err == nil
		})
		for i := first; i < min(count, first+routesPerAgent); i++ {
			l.slaves = append(l.slaves, &lightSlave{name: fmt.Sprintf("light%d", i), host: host})
		}
		mine := l.slaves[first:]
		starting.Go(func() error { return routes(f, product(t), mine, dir, shard) })
	}
	if err := starting.Wait(); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	l.stop = cancel
	t.Cleanup(func() { cancel(); l.done.Wait() })
	for _, s := range l.slaves {
		l.done.Go(func() error { s.run(ctx, shard); return nil })
	}
	return l
}

// startAgent starts an agent that lets every port in. A worker goes on in the place of a keeper that is killed, as this one is
// when the test ends; so they have a process namespace, which ends with its first process.
func startAgent(t testing.TB, f *Fleet, host *Host, dir string) {
	t.Helper()
	t.Cleanup(func() {
		eventually(t, restLimit, "the agent has ended with its worker", func() bool { return len(processesOf(t, dir)) == 0 })
	})
	log := &procLog{}
	start(t, "agent", host, log, []string{
		"unshare", "--pid", "--fork", "--kill-child", "--mount-proc",
		product(t), "agent", "--run-dir", dir, "--state-dir", dir, "--dns", f.DNS(), "--insecure",
	}, nil)
	t.Cleanup(func() {
		if t.Failed() {
			t.Logf("log of the agent on %s:\n%s", host.Addr, log.tail(10))
		}
	})
}

var routeSaid = regexp.MustCompile(`reads from \S+ at (127\.0\.0\.1:\d+)`)

// routes has an agent make a relay for each slave: all of a mount but the mount.
func routes(f *Fleet, bin string, slaves []*lightSlave, dir, shard string) error {
	for _, s := range slaves {
		for try := 0; s.addr == ""; try++ {
			r, err := run(s.host, time.Minute, nil, bin, "mount", "--fake", "-v", "--run-dir", dir, "--dns", f.DNS(), f.SRV(s.name)+":/"+shard, filepath.Clean(dir))
			if err != nil {
				return err
			}
			if m := routeSaid.FindStringSubmatch(r.Stderr); m != nil {
				s.addr = m[1]
			} else if try == 20 { // at first the agent may not have begun to listen
				return fmt.Errorf("no relay for %s: %v", s.name, r)
			}
		}
	}
	return nil
}

// run reads until ctx ends.
func (s *lightSlave) run(ctx context.Context, shard string) {
	s.mu.Lock()
	s.last = time.Now()
	s.mu.Unlock()
	for ctx.Err() == nil {
		began := time.Now()
		err := s.read(ctx, shard)
		for lost := error(nil); err != nil && ctx.Err() == nil; err = s.read(ctx, shard) {
			var refused nfs.Status
			if errors.As(err, &refused) || errors.Is(err, known.ErrWrong) || errors.Is(err, nfs.ErrProtocol) {
				s.complain(err)
			}
			if lost == nil {
				lost = err
			}
			s.conn = nil
			wait(ctx, 5*time.Millisecond)
		}
		s.mu.Lock()
		s.last = time.Now()
		s.worst = max(s.worst, s.last.Sub(began))
		s.mu.Unlock()
		wait(ctx, lightPace)
	}
	if s.conn != nil {
		s.conn.Close()
	}
}

func (s *lightSlave) complain(err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.wrong = append(s.wrong, err.Error())
}

// read makes one read, over the connection that there is or a new one, with the handle that it has.
func (s *lightSlave) read(ctx context.Context, shard string) (err error) {
	if s.conn == nil {
		if s.conn, err = nfs.Dial(ctx, s.host.dial, s.addr, homeLimit); err != nil {
			return err
		}
	}
	defer func() {
		if err != nil && s.conn != nil {
			s.conn.Close()
		}
	}()
	if s.handle == "" {
		root, err := s.conn.Mount("/" + shard)
		if err == nil {
			s.handle, _, err = s.conn.Lookup(root, stampFile)
		}
		if err != nil {
			return err
		}
	}
	data, _, err := s.conn.Read(s.handle, 0, known.Size)
	if err == nil {
		_, err = known.Check(data, stampFile, 0)
	}
	return err
}

// window returns the longest that any slave had to wait for a read since the last window, once all have read since then, and
// whatever was wrong.
func (l *lightSlaves) window(limit time.Duration) (worst time.Duration) {
	t := l.fleet.t
	t.Helper()
	since := time.Now()
	eventually(t, limit, "every light slave reads", func() bool {
		for _, s := range l.slaves {
			s.mu.Lock()
			reads := s.last.After(since)
			s.mu.Unlock()
			if !reads {
				return false
			}
		}
		return true
	})
	for _, s := range l.slaves {
		s.mu.Lock()
		worst, s.worst = max(worst, s.worst), 0
		for _, w := range s.wrong {
			t.Errorf("%s: %s", s.name, w)
		}
		s.wrong = nil
		s.mu.Unlock()
	}
	return worst
}

// loads counts the slaves that are at home at each master, and those that read from each, as a master says.
func (l *lightSlaves) loads(by *Master) (home, reads map[string]int) {
	t := l.fleet.t
	t.Helper()
	var list []struct{ Name, Master, Reads string }
	out := by.MustCLI("slave", "list", "-o", "json")
	if err := json.Unmarshal([]byte(out), &list); err != nil {
		t.Fatalf("slave list: %v in %s", err, clip(out))
	}
	home, reads = map[string]int{}, map[string]int{}
	for _, s := range list {
		home[s.Master]++
		reads[s.Reads]++
	}
	return home, reads
}
