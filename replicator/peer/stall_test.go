package peer

import (
	"bytes"
	"context"
	"errors"
	"io"
	"net"
	"net/http"
	"testing"
	"testing/synctest"
	"time"

	"github.com/rs/zerolog"

	"github.com/nfs-fleet/nfs-fleet/replicator/store"
	"github.com/nfs-fleet/nfs-fleet/replicator/tree"
)

// pipes is a network of masters in memory, for tests in which time is not real.
type pipes map[string]*pipeListener

type pipeListener struct {
	conns chan net.Conn
	done  chan struct{}
}

func (l *pipeListener) Accept() (net.Conn, error) {
	select {
	case c := <-l.conns:
		return c, nil
	case <-l.done:
		return nil, net.ErrClosed
	}
}

func (l *pipeListener) Close() error   { close(l.done); return nil }
func (l *pipeListener) Addr() net.Addr { return &net.UnixAddr{Name: "pipe"} }

// serve adds a master and returns a function that ends it.
func (p pipes) serve(name string, h http.Handler) (stop func()) {
	l := &pipeListener{make(chan net.Conn), make(chan struct{})}
	p[name] = l
	s := &http.Server{Handler: h}
	ended := make(chan struct{})
	go func() { defer close(ended); _ = s.Serve(l) }()
	return func() { _ = s.Close(); <-ended }
}

// fetcher returns a Fetcher on these masters, and a function that ends its connections.
func (p pipes) fetcher(t *testing.T, s *store.Store) (*Fetcher, func()) {
	tr := NewTransport(nil)
	tr.DialContext = func(ctx context.Context, _, addr string) (net.Conn, error) {
		name, _, _ := net.SplitHostPort(addr)
		a, b := net.Pipe()
		select {
		case p[name].conns <- b:
			return a, nil
		case <-ctx.Done():
			return nil, ctx.Err()
		}
	}
	c := Config{
		Store:  s,
		Client: func(m string) (*http.Client, string, error) { return &http.Client{Transport: tr}, "http://" + m, nil },
		Masters: func() []string {
			var names []string
			for name := range p {
				names = append(names, name)
			}
			return names
		},
		Logger: zerolog.New(zerolog.NewTestWriter(t)),
	}
	return NewFetcher(c), tr.CloseIdleConnections
}

// dripping lets pass so many bytes of an answer at full speed, and then one a second.
func dripping(next http.Handler, fast int) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		sent := 0
		next.ServeHTTP(filter{w, func(w http.ResponseWriter, p []byte) int {
			n := min(len(p), max(0, fast-sent))
			sent += n
			_, _ = w.Write(p[:n])
			for i := n; i < len(p); i++ {
				_ = http.NewResponseController(w).Flush()
				select {
				case <-time.After(time.Second):
				case <-r.Context().Done():
					panic(http.ErrAbortHandler)
				}
				_, _ = w.Write(p[i : i+1])
			}
			return written
		}}, r)
	})
}

func stallFiles() files {
	return files{"large": noise(1, 3<<20), "small": noise(2, 5000), "other": noise(3, 200<<10), "dir/x": noise(4, 3000)}
}

// TestSlowMasterHoldsNothingUp: the preferred master gives a byte a second, from the beginning or after a while.
func TestSlowMasterHoldsNothingUp(t *testing.T) {
	for _, fast := range []int{0, 10, 600, 300 << 10} {
		from, to := openStore(t, store.Options{}), openStore(t, store.Options{})
		head := publish(t, from, tree.Merged{}, stallFiles())
		synctest.Test(t, func(t *testing.T) {
			p := make(pipes)
			defer p.serve("slow", dripping(Server(from), fast))()
			defer p.serve("good", Server(from))()
			f, end := p.fetcher(t, to)
			defer end()
			start := time.Now()
			if err := f.Fetch(t.Context(), head.Root, tree.Digest{}, "slow", nil); err != nil {
				t.Fatal(err)
			}
			if took := time.Since(start); took > 2*stallTime {
				t.Errorf("%d bytes fast: took %s", fast, took)
			}
		})
		mustBeWhole(t, to, head.Root)
	}
}

// TestOnlySlowMaster: nobody else is there, so there is an end with an error, and what kind of error.
func TestOnlySlowMaster(t *testing.T) {
	from, to := openStore(t, store.Options{}), openStore(t, store.Options{})
	head := publish(t, from, tree.Merged{}, stallFiles())
	synctest.Test(t, func(t *testing.T) {
		p := make(pipes)
		defer p.serve("slow", dripping(Server(from), 0))()
		f, end := p.fetcher(t, to)
		defer end()
		start := time.Now()
		err := f.Fetch(t.Context(), head.Root, tree.Digest{}, "slow", nil)
		if !errors.Is(err, ErrUnreachable) || !errors.Is(err, errStalled) || errors.Is(err, tree.ErrMissing) {
			t.Errorf("got %v", err)
		}
		if took := time.Since(start); took > 2*time.Minute {
			t.Errorf("took %s", took)
		}
	})
}

// TestSlowIsBetterThanNothing: a master that gives 40 KiB a second is no faster when it is asked again and again.
func TestSlowIsBetterThanNothing(t *testing.T) {
	from, to := openStore(t, store.Options{}), openStore(t, store.Options{})
	head := publish(t, from, tree.Merged{}, stallFiles())
	synctest.Test(t, func(t *testing.T) {
		p := make(pipes)
		next := Server(from)
		defer p.serve("slow", http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			next.ServeHTTP(filter{w, func(w http.ResponseWriter, p []byte) int {
				for ; len(p) > 4096; p = p[4096:] {
					_, _ = w.Write(p[:4096])
					_ = http.NewResponseController(w).Flush()
					select {
					case <-time.After(100 * time.Millisecond):
					case <-r.Context().Done():
						panic(http.ErrAbortHandler)
					}
				}
				_, _ = w.Write(p)
				return written
			}}, r)
		}))()
		f, end := p.fetcher(t, to)
		defer end()
		if err := f.Fetch(t.Context(), head.Root, tree.Digest{}, "slow", nil); err != nil {
			t.Error(err)
		}
	})
	mustBeWhole(t, to, head.Root)
}

// TestSilentMaster: it accepts connections and says nothing.
func TestSilentMaster(t *testing.T) {
	from, to := openStore(t, store.Options{}), openStore(t, store.Options{})
	head := publish(t, from, tree.Merged{}, stallFiles())
	synctest.Test(t, func(t *testing.T) {
		p := make(pipes)
		defer p.serve("silent", http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) {
			_, _ = io.Copy(io.Discard, r.Body) // else nobody notices that the other side has gone
			<-r.Context().Done()
		}))()
		defer p.serve("good", Server(from))()
		f, end := p.fetcher(t, to)
		defer end()
		start := time.Now()
		if err := f.Fetch(t.Context(), head.Root, tree.Digest{}, "silent", nil); err != nil {
			t.Fatal(err)
		}
		if took := time.Since(start); took > stallTime {
			t.Errorf("took %s", took)
		}
	})
	mustBeWhole(t, to, head.Root)
}

// TestPressure: while the disk is needed for something else a fetch goes on, but slowly.
func TestPressure(t *testing.T) {
	from, to := openStore(t, store.Options{}), openStore(t, store.Options{})
	f := make(files)
	for i := range 40 {
		f[string(rune('a'+i%26))+string(rune('a'+i/26))] = noise(uint64(i), 100<<10)
	}
	head := publish(t, from, tree.Merged{}, f)
	synctest.Test(t, func(t *testing.T) {
		p := make(pipes)
		defer p.serve("a", Server(from))()
		f, end := p.fetcher(t, to)
		defer end()
		f.cfg.Pressure = func() bool { return true }
		start := time.Now()
		if err := f.Fetch(t.Context(), head.Root, tree.Digest{}, "a", nil); err != nil {
			t.Fatal(err)
		}
		if took := time.Since(start); took < 2*time.Second || took > time.Minute {
			t.Errorf("4 MB took %s", took)
		}
	})
	mustBeWhole(t, to, head.Root)
}

// TestReceiverThatDoesNotRead loses its stream, and the next one is served.
func TestReceiverThatDoesNotRead(t *testing.T) {
	from := openStore(t, store.Options{})
	d := mustPut(t, from, noise(1, 900<<10))
	synctest.Test(t, func(t *testing.T) {
		p := make(pipes)
		stop := p.serve("a", Server(from))
		defer stop()
		a, b := net.Pipe()
		p["a"].conns <- b
		defer a.Close()
		req, err := batchRequest(t.Context(), "http://a", make([]item, 40))
		if err != nil {
			t.Fatal(err)
		}
		body := make([]tree.Digest, 40)
		for i := range body {
			body[i] = d
		}
		req.Body = io.NopCloser(bytes.NewReader(appendDigests(nil, body)))
		if err := req.Write(a); err != nil {
			t.Fatal(err)
		}
		start := time.Now()
		_ = a.SetReadDeadline(time.Now().Add(time.Hour))
		time.Sleep(2 * writeTimeout)
		n := 0
		for buf := make([]byte, 64<<10); ; {
			m, err := a.Read(buf)
			if n += m; err != nil {
				break
			}
		}
		if n > 10<<20 || time.Since(start) > 10*writeTimeout {
			t.Errorf("%d bytes after %s", n, time.Since(start))
		}
	})
}
