package console

import (
	"bufio"
	"context"
	"errors"
	"io"
	"log"
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/nfs-fleet/nfs-fleet/fleet/trust"
	"github.com/nfs-fleet/nfs-fleet/replicator/tree"
)

// refusing is an address at which nothing listens.
func refusing(t *testing.T) string {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	return l.Addr().String()
}

// hangingUp is an address that takes connections, reads a request and closes. It counts requests.
func hangingUp(t *testing.T) (address string, requests func() int) {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	counts := make(chan int, 1)
	counts <- 0
	done := make(chan struct{})
	go func() {
		defer close(done)
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			if _, err := http.ReadRequest(bufio.NewReader(c)); err == nil {
				counts <- <-counts + 1
			}
			c.Close()
		}
	}()
	t.Cleanup(func() { l.Close(); <-done })
	return l.Addr().String(), func() int { n := <-counts; counts <- n; return n }
}

func TestTheNextMasterIsAsked(t *testing.T) {
	f := newFake()
	_, base, stop := serve(t, f)
	broken, asked := hangingUp(t)
	c, err := NewClient(refusing(t) + ", " + broken + "," + base)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := c.Status(t.Context()); err != nil || c.Server() != base {
		t.Errorf("status: %v at %s", err, c.Server())
	}
	before := asked()
	if _, err := c.Publish(t.Context(), "www", PublishRequest{}, nil); err != nil || asked() != before {
		t.Errorf("publish: %v; who did not answer was asked again", err)
	}
	stop()
	_, err = c.Status(t.Context())
	if !errors.Is(err, ErrUnreachable) || strings.Count(err.Error(), "connection refused") != 2 || !strings.Contains(err.Error(), broken) {
		t.Errorf("%v", err)
	}
}

// What may have been done is not asked for once more elsewhere.
func TestAPublishIsAskedForOnce(t *testing.T) {
	f := newFake()
	_, base, _ := serve(t, f)
	broken, asked := hangingUp(t)
	c, err := NewClient(broken + "," + base)
	if err != nil {
		t.Fatal(err)
	}
	_, err = c.Publish(t.Context(), "www", PublishRequest{}, nil)
	if !errors.Is(err, ErrUnreachable) || !strings.Contains(err.Error(), "broke off") || !strings.Contains(err.Error(), "whether it was done") || f.last() != "" || asked() != 1 {
		t.Errorf("%v; asked %q", err, f.last())
	}
	if id, err := c.BeginUpload(t.Context(), "www"); err != nil || id == "" {
		t.Errorf("what does no harm twice: %v", err)
	}
	c, err = NewClient(refusing(t) + "," + base)
	if err != nil {
		t.Fatal(err)
	}
	if err := c.PutObjects(t.Context(), "www", "u", objectStream("one")); err != nil || f.objects[tree.Sum([]byte("one"))] == nil {
		t.Errorf("a stream that nobody has read yet: %v", err)
	}
}

func TestConnectWithAToken(t *testing.T) {
	s := newSite(t)
	f := newFake()
	url, _ := s.start("m1", f)
	token := s.grant(trust.Publish, tomorrow, "www") // it knows m1
	if _, err := s.client(token).History(t.Context(), "www"); err != nil {
		t.Errorf("where the token says: %v", err)
	}
	if _, err := s.client(token, strings.TrimPrefix(url, "https://")).History(t.Context(), "www"); err != nil {
		t.Errorf("without a scheme: %v", err)
	}
	other := newSite(t).grant(trust.Publish, tomorrow, "www") // of another fleet, with another CA
	_, err := s.client(other, url).History(t.Context(), "www")
	if !errors.Is(err, ErrUnreachable) || strings.Contains(err.Error(), other.Secret) {
		t.Errorf("another fleet's token: %v", err)
	}
	_, plain, _ := serve(t, f)
	for name, tc := range map[string]struct {
		cfg  ClientConfig
		says string
	}{
		"over plain HTTP":   {ClientConfig{Token: token.String(), Servers: []string{plain}}, "over https only"},
		"not a token":       {ClientConfig{Token: "x"}, "--token: not a token"},
		"for joining":       {ClientConfig{Token: s.grant(trust.Join, tomorrow).String()}, "a join token"},
		"without addresses": {ClientConfig{Token: trust.NewToken(trust.Publish, s.ca.Fingerprint(), nil).String()}, "names no master"},
	} {
		if _, err := Connect(tc.cfg); !errors.Is(err, ErrInvalid) || !strings.Contains(err.Error(), tc.says) {
			t.Errorf("%s: %v", name, err)
		}
	}
	if c, err := Connect(ClientConfig{}); err != nil || c.Server() != DefaultServer {
		t.Errorf("nothing given: %v, %v", c, err)
	}
}

// A stream that says nothing for too long has lost its other end; one that is slow has not.
func TestVigil(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r, w := io.Pipe()
		ctx, cancel := context.WithCancelCause(t.Context())
		v := newVigil(silence, cancel)
		defer v.stop()
		go func() {
			for range 10 {
				time.Sleep(silence - time.Second)
				_, _ = w.Write([]byte("\n"))
			}
		}()
		in, buf := v.reader(r), make([]byte, 1)
		for range 10 {
			if _, err := in.Read(buf); err != nil {
				t.Fatal(err)
			}
			time.Sleep(2 * silence) // the reader may take its time
		}
		if ctx.Err() != nil {
			t.Fatal("given up while it was alive")
		}
		began := time.Now()
		go func() { <-ctx.Done(); w.CloseWithError(context.Cause(ctx)) }()
		if _, err := in.Read(buf); !errors.Is(err, errSilent) || time.Since(began) != silence {
			t.Errorf("%v after %s", err, time.Since(began))
		}
	})
}

// A stream that has nothing to say shows that it is alive.
func TestHeartbeat(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := &patientWriter{header: http.Header{}}
		s := newStream(w)
		time.Sleep(heartbeat + time.Millisecond)
		for range 10 { // somebody who has news needs no heart
			s.progress(Progress{Step: "scan"})
			time.Sleep(heartbeat / 2)
		}
		time.Sleep(2 * heartbeat)
		if err := s.end(diffed{1}, nil); err != nil {
			t.Error(err)
		}
		time.Sleep(10 * heartbeat)
		lines := strings.Split(w.String(), "\n")
		progress := strings.Count(w.String(), "progress")
		if lines[0] != "" || progress != 10 || len(lines) > 10+6 || lines[len(lines)-2] != `{"result":{"changes":1}}` {
			t.Errorf("%q", lines)
		}
	})
	synctest.Test(t, func(t *testing.T) {
		w := &patientWriter{header: http.Header{}}
		s := newStream(w)
		if err := s.end(nil, ErrNotFound); !errors.Is(err, ErrNotFound) || w.Len() > 0 {
			t.Errorf("an error at once: %v, %q", err, w.String())
		}
	})
}

// patientWriter is a ResponseWriter in memory with the controls of a connection.
type patientWriter struct {
	strings.Builder
	header http.Header
}

func (w *patientWriter) Header() http.Header              { return w.header }
func (w *patientWriter) WriteHeader(int)                  {}
func (w *patientWriter) Flush()                           {}
func (w *patientWriter) SetWriteDeadline(time.Time) error { return nil }

func TestATLSAddressWithoutATokenSaysWhatIsMissing(t *testing.T) {
	server := httptest.NewUnstartedServer(http.NotFoundHandler())
	server.Config.ErrorLog = log.New(io.Discard, "", 0)
	server.StartTLS()
	defer server.Close()
	c, err := NewClient(server.URL)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := c.Status(t.Context()); !errors.Is(err, ErrUnauthorized) || !strings.Contains(err.Error(), "token create") {
		t.Errorf("%v: want ErrUnauthorized and what to do", err)
	}
}
