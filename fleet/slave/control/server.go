package control

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"net/http"
	"os"
	"time"

	"golang.org/x/net/netutil"
	"golang.org/x/sys/unix"
)

// Agent is what a Server makes reachable. Its methods are called by many goroutines at once.
type Agent interface {
	Route(ctx context.Context, w Want) (Route, error)
	Release(w Want)
	Status() Status
}

// maxClients is how many commands may talk to an agent at once; more wait.
const maxClients = 128

// maxWait bounds Want.Wait.
const maxWait = 10 * time.Minute

// Listen makes the socket at path, in place of one that is there: whoever calls it has made sure that no other agent runs.
func Listen(path string) (net.Listener, error) {
	if err := os.Remove(path); err != nil && !errors.Is(err, os.ErrNotExist) {
		return nil, fmt.Errorf("listen for commands: %w", err)
	}
	ln, err := net.Listen("unix", path)
	if err != nil {
		return nil, fmt.Errorf("listen for commands: %w", err)
	}
	if err := os.Chmod(path, 0o600); err != nil {
		return nil, errors.Join(err, ln.Close())
	}
	return ln, nil
}

// Serve answers commands until ctx ends.
func Serve(ctx context.Context, ln net.Listener, a Agent) error {
	s := &http.Server{
		Handler:           handler(a),
		ReadHeaderTimeout: answerTime, ReadTimeout: answerTime, IdleTimeout: answerTime,
		BaseContext: func(net.Listener) context.Context { return ctx },
	}
	ended := make(chan struct{})
	stop := context.AfterFunc(ctx, func() {
		defer close(ended)
		s.Shutdown(context.WithoutCancel(ctx)) //nolint:errcheck // what is answered meanwhile ends with ctx
	})
	err := s.Serve(netutil.LimitListener(own{ln}, maxClients))
	if !stop() {
		<-ended // also the commands
		return nil
	}
	return fmt.Errorf("serve commands: %w", err)
}

// own accepts connections of root, and of the agent's user, only: the mode of the socket says the same, but whoever made
// its directory might change that.
type own struct{ net.Listener }

func (o own) Accept() (net.Conn, error) {
	for {
		conn, err := o.Listener.Accept()
		if err != nil {
			return nil, err
		}
		if uid, err := peer(conn.(*net.UnixConn)); err == nil && (uid == 0 || uid == os.Geteuid()) {
			return conn, nil
		}
		conn.Close()
	}
}

// peer returns the user who connected.
func peer(conn *net.UnixConn) (uid int, err error) {
	raw, err := conn.SyscallConn()
	if err != nil {
		return 0, err
	}
	var cred *unix.Ucred
	var failed error
	err = raw.Control(func(fd uintptr) { cred, failed = unix.GetsockoptUcred(int(fd), unix.SOL_SOCKET, unix.SO_PEERCRED) })
	if err = errors.Join(err, failed); err != nil {
		return 0, err
	}
	return int(cred.Uid), nil
}

func handler(a Agent) http.Handler {
	mux := http.NewServeMux()
	mux.HandleFunc("GET /v1/status", func(w http.ResponseWriter, _ *http.Request) { answer(w, a.Status()) })
	mux.HandleFunc("POST /v1/routes", func(w http.ResponseWriter, r *http.Request) {
		want, err := readWant(w, r)
		if err != nil {
			fail(w, err)
			return
		}
		want.Wait = min(max(want.Wait, 0), maxWait)
		ctx, cancel := context.WithTimeout(r.Context(), want.Wait)
		defer cancel()
		route, err := a.Route(ctx, want)
		if err != nil {
			fail(w, err)
			return
		}
		answer(w, route)
	})
	mux.HandleFunc("POST /v1/release", func(w http.ResponseWriter, r *http.Request) {
		want, err := readWant(w, r)
		if err != nil {
			fail(w, err)
			return
		}
		a.Release(want)
		answer(w, struct{}{})
	})
	return mux
}

func readWant(w http.ResponseWriter, r *http.Request) (want Want, err error) {
	if err := json.NewDecoder(http.MaxBytesReader(w, r.Body, maxBody)).Decode(&want); err != nil {
		return want, fmt.Errorf("%w request: %w", ErrInvalid, err)
	}
	return want, nil
}

func answer(w http.ResponseWriter, v any) {
	w.Header().Set("Content-Type", "application/json")
	json.NewEncoder(w).Encode(v) //nolint:errcheck // the client is gone
}

func fail(w http.ResponseWriter, err error) {
	f := failure{Kind: "failed", Error: err.Error()}
	for name, kind := range kinds {
		if errors.Is(err, kind) {
			f.Kind = name
		}
	}
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(http.StatusUnprocessableEntity)
	json.NewEncoder(w).Encode(f) //nolint:errcheck // the client is gone
}
