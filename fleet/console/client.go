package console

import (
	"context"
	"encoding/json"
	"io"
	"net/http"
	"net/url"
	"strconv"
	"strings"
	"sync/atomic"
	"time"

	"github.com/nfs-fleet/nfs-fleet/fleet"
	"github.com/nfs-fleet/nfs-fleet/replicator/tree"
)

// DefaultServer is where a master's console listens unless told otherwise.
const DefaultServer = "http://127.0.0.1:7049"

const (
	quickTimeout = 30 * time.Second // for what does not stream
	slowTimeout  = 10 * time.Minute // for one batch of an upload, and what moves leaderships
)

// Client asks a master's console. It is a Control; every error of it wraps a sentinel of this package if the server's
// did, and ErrUnreachable when no HTTP answer came. It is safe for concurrent use.
type Client struct {
	servers []string     // base URLs without a trailing slash, one at the least
	last    atomic.Int64 // index of the one that answered last
	http    *http.Client
	bearer  string // the token; "": none
	user    string
}

var _ Control = (*Client)(nil)

// Status is Control.Status.
func (c *Client) Status(ctx context.Context) (Status, error) {
	return call[Status](ctx, c, request{path: "/v1/status"})
}

// Shards is Control.Shards.
func (c *Client) Shards(ctx context.Context) ([]Shard, error) {
	return call[[]Shard](ctx, c, request{path: "/v1/shards"})
}

// Shard returns one shard's settings.
func (c *Client) Shard(ctx context.Context, name string) (Shard, error) {
	return callShard[Shard](ctx, c, name, request{})
}

// CreateShard is Control.CreateShard.
func (c *Client) CreateShard(ctx context.Context, s Shard) (Shard, error) {
	return call[Shard](ctx, c, request{method: http.MethodPost, path: "/v1/shards", body: s})
}

// SetShard is Control.SetShard.
func (c *Client) SetShard(ctx context.Context, name string, p ShardPatch) (Shard, error) {
	return callShard[Shard](ctx, c, name, request{method: http.MethodPatch, body: p})
}

// DeleteShard is Control.DeleteShard.
func (c *Client) DeleteShard(ctx context.Context, name string) error {
	_, err := callShard[empty](ctx, c, name, request{method: http.MethodDelete})
	return err
}

// History is Control.History.
func (c *Client) History(ctx context.Context, shard string) ([]tree.Generation, error) {
	return callShard[[]tree.Generation](ctx, c, shard, request{path: "/generations"})
}

// Source is Control.Source.
func (c *Client) Source(ctx context.Context, shard string, a SourceAction) error {
	_, err := callShard[empty](ctx, c, shard, request{method: http.MethodPost, path: "/source/" + url.PathEscape(string(a))})
	return err
}

// Recover is Control.Recover.
func (c *Client) Recover(ctx context.Context, r RecoverRequest) (RecoverReport, error) {
	return call[RecoverReport](ctx, c, request{method: http.MethodPost, path: "/v1/recover", body: r, timeout: slowTimeout})
}

// BeginUpload is Control.BeginUpload.
func (c *Client) BeginUpload(ctx context.Context, shard string) (string, error) {
	id, err := callShard[uploadID](ctx, c, shard, request{method: http.MethodPost, path: "/uploads", again: true})
	return id.Upload, err
}

// EndUpload is Control.EndUpload.
func (c *Client) EndUpload(ctx context.Context, shard, upload string) error {
	_, err := callShard[empty](ctx, c, shard, request{method: http.MethodDelete, path: "/uploads/" + url.PathEscape(upload), again: true})
	return err
}

// Missing is Control.Missing.
func (c *Client) Missing(ctx context.Context, shard, upload string, want []tree.Digest) ([]tree.Digest, error) {
	lacks, err := callShard[digests](ctx, c, shard, request{
		method: http.MethodPost, path: "/uploads/" + url.PathEscape(upload) + "/missing", body: digests{listed(want)}, timeout: slowTimeout, again: true,
	})
	return lacks.Digests, err
}

// PutObjects is Control.PutObjects.
func (c *Client) PutObjects(ctx context.Context, shard, upload string, r io.Reader) error {
	_, err := callShard[empty](ctx, c, shard, request{
		method: http.MethodPost, path: "/uploads/" + url.PathEscape(upload) + "/objects", stream: r, timeout: slowTimeout,
	})
	return err
}

// Healthy is Control.Healthy.
func (c *Client) Healthy() error { return c.probe("/healthz") }

// Ready is Control.Ready.
func (c *Client) Ready() error { return c.probe("/readyz") }

func (c *Client) probe(path string) error {
	ctx, cancel := context.WithTimeout(context.Background(), quickTimeout)
	defer cancel()
	resp, err := c.do(ctx, request{path: path})
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	text, err := io.ReadAll(io.LimitReader(resp.Body, 4096))
	if err != nil {
		return lost(resp, err)
	}
	if resp.StatusCode != http.StatusOK {
		return Errorf(ErrUnavailable, "%s", strings.TrimSpace(string(text)))
	}
	return nil
}

// Publish is Control.Publish. Cancelling ctx stops the waiting, not the publish.
func (c *Client) Publish(ctx context.Context, shard string, r PublishRequest, progress func(Progress)) (Published, error) {
	return callStream[Published](ctx, c, shard, "publish", r, progress)
}

// Rollback is Control.Rollback. Cancelling ctx stops the waiting, not the rollback.
func (c *Client) Rollback(ctx context.Context, shard string, r RollbackRequest, progress func(Progress)) (Published, error) {
	return callStream[Published](ctx, c, shard, "rollback", r, progress)
}

func callStream[T any](ctx context.Context, c *Client, shard, verb string, body any, progress func(Progress)) (result T, err error) {
	r := request{method: http.MethodPost, path: "/" + verb, body: body}
	if err := r.ofShard(shard); err != nil {
		return result, err
	}
	err = c.follow(ctx, r, &result, reporter(progress))
	return result, err
}

// Verify is Control.Verify.
func (c *Client) Verify(ctx context.Context, r VerifyRequest, progress func(Progress)) (rep VerifyReport, err error) {
	err = c.follow(ctx, request{method: http.MethodPost, path: "/v1/verify", body: r}, &rep, reporter(progress))
	return rep, err
}

func reporter(progress func(Progress)) func(line) error {
	return func(l line) error {
		if l.Progress != nil && progress != nil {
			progress(*l.Progress)
		}
		return nil
	}
}

// Diff is Control.Diff.
func (c *Client) Diff(ctx context.Context, shard string, a, b uint64, fn func(Change) error) error {
	query := url.Values{}
	for name, n := range map[string]uint64{"a": a, "b": b} {
		if n != 0 {
			query.Set(name, strconv.FormatUint(n, 10))
		}
	}
	r := request{path: "/diff", query: query}
	if err := r.ofShard(shard); err != nil {
		return err
	}
	return c.follow(ctx, r, new(diffed), func(l line) error {
		if l.Change == nil {
			return nil
		}
		return fn(*l.Change)
	})
}

// request is one request of the API. A stream or a JSON body, not both.
type request struct {
	method  string // "": GET
	path    string
	query   url.Values
	body    any
	stream  io.Reader
	timeout time.Duration // 0: quickTimeout
	again   bool          // asking twice does no harm, although it is no GET
}

// ofShard puts the shard's path before the request's. A name that cannot be one is not sent.
func (r *request) ofShard(name string) error {
	if err := fleet.ValidName(name); err != nil {
		return Errorf(ErrInvalid, "shard %w", err)
	}
	r.path = "/v1/shards/" + url.PathEscape(name) + r.path
	return nil
}

func callShard[T any](ctx context.Context, c *Client, name string, r request) (v T, err error) {
	if err := r.ofShard(name); err != nil {
		return v, err
	}
	return call[T](ctx, c, r)
}

// call sends a request and reads a JSON answer.
func call[T any](ctx context.Context, c *Client, r request) (v T, err error) {
	if r.timeout == 0 {
		r.timeout = quickTimeout
	}
	ctx, cancel := context.WithTimeout(ctx, r.timeout)
	defer cancel()
	resp, err := c.send(ctx, r)
	if err != nil {
		return v, err
	}
	defer resp.Body.Close()
	if err := json.NewDecoder(resp.Body).Decode(&v); err != nil {
		return v, lost(resp, err)
	}
	return v, nil
}

// follow sends a request and reads a stream of lines to its end: the result goes to into, the others to fn. A master that
// says nothing at all for too long, not even that it is alive, is given up.
func (c *Client) follow(ctx context.Context, r request, into any, fn func(line) error) error {
	asked, end := context.WithCancelCause(ctx)
	defer end(nil)
	alive := newVigil(silence, end)
	defer alive.stop()
	resp, err := c.send(asked, r)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	for d := json.NewDecoder(alive.reader(resp.Body)); ; {
		var l line
		if err := d.Decode(&l); err != nil {
			if ctx.Err() != nil {
				return context.Cause(ctx)
			}
			return lost(resp, cause(asked, err))
		}
		switch {
		case l.Kind != "":
			return apiError{l.Error, l.Kind}.err()
		case l.Result != nil:
			if err := json.Unmarshal(l.Result, into); err != nil {
				return lost(resp, err)
			}
			return nil
		}
		if err := fn(l); err != nil {
			return err
		}
	}
}

// cause is why a request whose context has ended failed with err.
func cause(ctx context.Context, err error) error {
	if ctx.Err() != nil {
		return context.Cause(ctx)
	}
	return err
}
