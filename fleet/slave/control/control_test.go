package control

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/netip"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"syscall"
	"testing"
	"time"
)

// paperAgent answers as it is told.
type paperAgent struct {
	route    func(ctx context.Context, w Want) (Route, error)
	released *Want // what was; nil: it does not matter
	status   Status
}

func (p paperAgent) Release(w Want) {
	if p.released != nil {
		*p.released = w
	}
}

func (p paperAgent) Route(ctx context.Context, w Want) (Route, error) { return p.route(ctx, w) }
func (p paperAgent) Status() Status                                   { return p.status }

func serve(t *testing.T, a Agent) (*Client, string) {
	t.Helper()
	path := filepath.Join(t.TempDir(), "agent.sock")
	ln, err := Listen(path)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- Serve(ctx, ln, a) }()
	t.Cleanup(func() {
		cancel()
		if err := <-done; err != nil {
			t.Errorf("Serve: %v", err)
		}
	})
	return NewClient(path), path
}

func TestWhatIsSaidIsHeard(t *testing.T) {
	want := Want{Name: "_nfs._tcp.x", Via: Direct, Dir: "/srv", DNS: []string{"a:53"}, Masters: []string{"b:2049"}, Slave: "w", Wait: 3 * time.Second}
	route := Route{Addr: netip.MustParseAddrPort("127.0.0.1:300"), Master: "m1"}
	status := Status{Version: "1", Mounts: []Mount{{Name: "_nfs._tcp.x", Dir: "/srv", Order: []string{"m1", "m2"}, Reattach: &Change{TookMS: 1.5, From: "m2"}}}}
	var released Want
	c, path := serve(t, paperAgent{status: status, released: &released, route: func(ctx context.Context, w Want) (Route, error) {
		if !reflect.DeepEqual(w, want) {
			t.Errorf("it heard %+v", w)
		}
		if end, ok := ctx.Deadline(); !ok || time.Until(end) > want.Wait {
			t.Errorf("it has until %v", end)
		}
		return route, nil
	}})
	if got, err := c.Route(t.Context(), want); err != nil || got != route {
		t.Errorf("%+v, %v", got, err)
	}
	if err := c.Release(t.Context(), want); err != nil || !reflect.DeepEqual(released, want) {
		t.Errorf("released %+v, %v", released, err)
	}
	if got, err := c.Status(t.Context()); err != nil || !reflect.DeepEqual(got, status) {
		t.Errorf("%+v, %v", got, err)
	}
	if info, err := os.Stat(path); err != nil || info.Mode().Perm() != 0o600 {
		t.Errorf("the socket is %v, %v", info.Mode(), err)
	}
}

func TestErrorsKeepTheirKind(t *testing.T) {
	for name, kind := range kinds {
		c, _ := serve(t, paperAgent{route: func(context.Context, Want) (Route, error) { return Route{}, fmt.Errorf("so it is: %w", kind) }})
		_, err := c.Route(t.Context(), Want{Wait: time.Second})
		if !errors.Is(err, kind) || !strings.HasPrefix(err.Error(), "so it is") {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func TestNoAgent(t *testing.T) {
	_, err := NewClient(filepath.Join(t.TempDir(), "none")).Status(t.Context())
	if !errors.Is(err, ErrNoAgent) {
		t.Errorf("%v", err)
	}
}

// Who may not look whether an agent runs is not told that none does.
func TestOnlyRootAsks(t *testing.T) {
	for errno, want := range map[syscall.Errno]error{syscall.EACCES: ErrNotAllowed, syscall.EPERM: ErrNotAllowed, syscall.ENOENT: ErrNoAgent, syscall.ECONNREFUSED: ErrNoAgent} {
		err := unheard(&net.OpError{Op: "dial", Net: "unix", Err: os.NewSyscallError("connect", errno)})
		if !errors.Is(err, want) || errors.Is(err, ErrNoAgent) && errors.Is(err, ErrNotAllowed) {
			t.Errorf("%v: %v", errno, err)
		}
	}
}

// Whatever is sent, the agent answers with an error or closes; it does not break.
func TestNonsenseIsAnswered(t *testing.T) {
	c, _ := serve(t, paperAgent{})
	for _, body := range []string{"", "{", "[]", `{"wait_ns":"x"}`, strings.Repeat("x", 2*maxBody)} {
		resp, err := c.http.Post("http://agent/v1/routes", "application/json", strings.NewReader(body))
		if err != nil {
			continue
		}
		if resp.StatusCode != http.StatusUnprocessableEntity {
			t.Errorf("%.20q: %s", body, resp.Status)
		}
		resp.Body.Close()
	}
	if _, err := c.Status(t.Context()); err != nil {
		t.Error(err)
	}
	var out struct{}
	if err := c.do(t.Context(), http.MethodGet, "/v9/other", nil, &out); err == nil || !strings.Contains(err.Error(), "version") {
		t.Errorf("an agent of another version: %v", err)
	}
}

// A socket that an agent left behind is no hindrance; the end of an agent ends its commands.
func TestAnAgentEndsWithItsCommands(t *testing.T) {
	path := filepath.Join(t.TempDir(), "agent.sock")
	for range 2 {
		ln, err := Listen(path)
		if err != nil {
			t.Fatal(err)
		}
		ln.(interface{ SetUnlinkOnClose(bool) }).SetUnlinkOnClose(false)
		ctx, cancel := context.WithCancel(t.Context())
		asked := make(chan struct{})
		done := make(chan error, 2)
		go func() {
			done <- Serve(ctx, ln, paperAgent{route: func(ctx context.Context, _ Want) (Route, error) {
				close(asked)
				<-ctx.Done()
				return Route{}, ErrFailed
			}})
		}()
		go func() {
			_, err := NewClient(path).Route(context.Background(), Want{Wait: time.Minute})
			if err == nil {
				err = errors.New("there is a route")
			} else {
				err = nil
			}
			done <- err
		}()
		<-asked
		cancel()
		for range 2 {
			if err := <-done; err != nil {
				t.Error(err)
			}
		}
	}
}
