package control

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"net/http"
	"time"
)

// maxBody is how long a request or an answer may be.
const maxBody = 1 << 20

// answerTime is how long an agent may take for what does not wait for a master.
const answerTime = 5 * time.Second

// Client talks to an agent. It is safe for concurrent use.
type Client struct {
	http *http.Client
	path string
}

// What asking fails with when no agent hears it.
var (
	ErrNoAgent    = errors.New("no agent runs")
	ErrNotAllowed = errors.New("only root can ask the agent") // whether one runs or not
)

// NewClient returns a client of the agent behind a socket.
func NewClient(socket string) *Client {
	return &Client{path: socket, http: &http.Client{Transport: &http.Transport{
		DisableKeepAlives: true,
		DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
			conn, err := new(net.Dialer).DialContext(ctx, "unix", socket)
			if err != nil && ctx.Err() == nil {
				return nil, unheard(err)
			}
			return conn, err
		},
	}}}
}

// unheard says what it means that the agent's socket cannot be connected to.
func unheard(err error) error {
	if errors.Is(err, fs.ErrPermission) {
		return fmt.Errorf("%w (%w)", ErrNotAllowed, err)
	}
	return fmt.Errorf("%w (%w)", ErrNoAgent, err)
}

// Route has a way to the masters ready and waits for one to answer.
func (c *Client) Route(ctx context.Context, w Want) (Route, error) {
	ctx, cancel := context.WithTimeout(ctx, w.Wait+answerTime)
	defer cancel()
	var r Route
	return r, c.do(ctx, http.MethodPost, "/v1/routes", w, &r)
}

// Release tells that the mount that a route was asked for came to nothing.
func (c *Client) Release(ctx context.Context, w Want) error {
	ctx, cancel := context.WithTimeout(ctx, answerTime)
	defer cancel()
	return c.do(ctx, http.MethodPost, "/v1/release", w, new(struct{}))
}

// Status asks what the agent does.
func (c *Client) Status(ctx context.Context) (Status, error) {
	ctx, cancel := context.WithTimeout(ctx, answerTime)
	defer cancel()
	var s Status
	return s, c.do(ctx, http.MethodGet, "/v1/status", nil, &s)
}

// failure is an error on the wire.
type failure struct {
	Kind  string `json:"kind"`
	Error string `json:"error"`
}

// agentError is what the agent said, and what kind it is of.
type agentError struct {
	kind error
	text string
}

func (e *agentError) Error() string        { return e.text }
func (e *agentError) Is(target error) bool { return target == e.kind }

func (c *Client) do(ctx context.Context, method, path string, in, out any) error {
	var body io.Reader
	if in != nil {
		b, err := json.Marshal(in)
		if err != nil {
			return err
		}
		body = bytes.NewReader(b)
	}
	req, err := http.NewRequestWithContext(ctx, method, "http://agent"+path, body)
	if err != nil {
		return err
	}
	resp, err := c.http.Do(req)
	switch {
	case errors.Is(err, ErrNoAgent):
		return fmt.Errorf("%w at %s", ErrNoAgent, c.path)
	case errors.Is(err, ErrNotAllowed):
		return fmt.Errorf("%w at %s", ErrNotAllowed, c.path)
	case ctx.Err() != nil && errors.Is(context.Cause(ctx), context.DeadlineExceeded):
		return fmt.Errorf("the agent at %s does not answer", c.path)
	case err != nil:
		return fmt.Errorf("ask the agent: %w", err)
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(io.LimitReader(resp.Body, maxBody))
	if err != nil {
		return fmt.Errorf("ask the agent: %w", err)
	}
	if resp.StatusCode == http.StatusOK {
		if err := json.Unmarshal(b, out); err != nil {
			return fmt.Errorf("ask the agent: %w", err)
		}
		return nil
	}
	var f failure
	if json.Unmarshal(b, &f) != nil || f.Error == "" {
		return fmt.Errorf("the agent answers %s to %s: it is of another version; restart it", resp.Status, path)
	}
	kind := kinds[f.Kind]
	if kind == nil {
		kind = ErrFailed
	}
	return &agentError{kind, f.Error}
}
