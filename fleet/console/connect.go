package console

import (
	"bytes"
	"context"
	"crypto/tls"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptrace"
	"net/url"
	"os"
	"strings"
	"sync/atomic"
	"time"

	"github.com/nfs-fleet/nfs-fleet/fleet/trust"
)

const (
	dialTimeout = 5 * time.Second
	nextTimeout = 10 * time.Second // for the first byte of an answer, when there is another master to ask
)

// ClientConfig says whom a Client asks, and as who.
type ClientConfig struct {
	// Servers are the consoles of masters of one fleet, each an http or https URL or host:port. One is asked until it
	// does not answer; then the next is. None: the addresses in the token, or DefaultServer.
	Servers []string
	Token   string       // the text of a publish token; it goes over https only, to a master of its fleet. "": none
	User    string       // on whose behalf the client asks, for the history: user@host
	HTTP    *http.Client // nil: made from the above
}

// NewClient returns a client of the console at server: one address, or several with commas between them.
func NewClient(server string) (*Client, error) {
	return Connect(ClientConfig{Servers: strings.Split(server, ",")})
}

// Connect returns a client. It sends nothing yet.
func Connect(cfg ClientConfig) (*Client, error) {
	c := &Client{http: cfg.HTTP, user: cleanUser(cfg.User)}
	servers := cfg.Servers
	transport := &http.Transport{
		Proxy:       http.ProxyFromEnvironment,
		DialContext: (&net.Dialer{Timeout: dialTimeout}).DialContext, TLSHandshakeTimeout: dialTimeout,
		MaxIdleConnsPerHost: 4, IdleConnTimeout: idleTimeout, ForceAttemptHTTP2: true,
	}
	if cfg.Token != "" {
		t, err := publishToken(cfg.Token)
		if err != nil {
			return nil, err
		}
		if len(servers) == 0 {
			for _, a := range t.Addresses {
				servers = append(servers, "https://"+a)
			}
		}
		if len(servers) == 0 {
			return nil, Errorf(ErrInvalid, "the token names no master: give one with --server https://HOST:7050")
		}
		c.bearer = t.String()
		transport.TLSClientConfig, transport.ForceAttemptHTTP2 = trust.PinnedTLS(t.CA), false
	}
	if len(servers) == 0 {
		servers = []string{DefaultServer}
	}
	for _, text := range servers {
		base, err := serverURL(text, c.bearer != "")
		if err != nil {
			return nil, err
		}
		c.servers = append(c.servers, base)
	}
	if c.http == nil {
		c.http = &http.Client{Transport: transport, CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }}
	}
	return c, nil
}

func publishToken(text string) (trust.Token, error) {
	t, err := trust.ParseToken(text)
	if err != nil {
		return t, Errorf(ErrInvalid, "--token: %w", err)
	}
	if t.Kind != trust.Publish {
		return t, Errorf(ErrInvalid, "--token: that is a %s token: make one for publishing with `nfs-fleet token create --shard SHARD`", t.Kind)
	}
	return t, nil
}

// serverURL is the base URL of what an operator names as a server.
func serverURL(text string, secret bool) (string, error) {
	server := strings.TrimSpace(text)
	if !strings.Contains(server, "://") {
		scheme := "http://"
		if secret {
			scheme = "https://"
		}
		server = scheme + server
	}
	u, err := url.Parse(server)
	if err != nil || u.Host == "" || u.Scheme != "http" && u.Scheme != "https" || u.RawQuery != "" || u.Fragment != "" {
		return "", Errorf(ErrInvalid, "--server %q: give a URL as in %s", text, DefaultServer)
	}
	if secret && u.Scheme != "https" {
		return "", Errorf(ErrInvalid, "--server %q: a token goes over https only, as in https://%s:7050, or leave --server out: the token knows the masters", text, u.Hostname())
	}
	return strings.TrimSuffix(u.String(), "/"), nil
}

// Server returns the URL of the master that is asked first.
func (c *Client) Server() string { return c.servers[int(c.last.Load())%len(c.servers)] }

// send sends a request and returns an answer of status 200.
func (c *Client) send(ctx context.Context, r request) (*http.Response, error) {
	resp, err := c.do(ctx, r)
	if err != nil || resp.StatusCode == http.StatusOK {
		return resp, err
	}
	defer resp.Body.Close()
	var e apiError
	if json.NewDecoder(io.LimitReader(resp.Body, maxJSON)).Decode(&e) != nil || e.Kind == "" {
		return nil, fmt.Errorf("%s answered %s: is it the console of an nfs-fleet master?", origin(resp), resp.Status)
	}
	return nil, e.err()
}

// do sends a request and returns whatever answer comes. When a master does not answer, the next one is asked, unless the
// first may have begun to do what was asked for.
func (c *Client) do(ctx context.Context, r request) (*http.Response, error) {
	var body []byte
	if r.body != nil {
		var err error
		if body, err = json.Marshal(r.body); err != nil {
			return nil, fmt.Errorf("encode the request: %w", err)
		}
	}
	first := c.last.Load()
	var silent []string
	for i := range int64(len(c.servers)) {
		n := (first + i) % int64(len(c.servers))
		resp, sent, err := c.ask(ctx, c.servers[n], r, body)
		if err == nil {
			c.last.Store(n)
			return resp, nil
		}
		if errors.Is(err, ErrInvalid) {
			return nil, err
		}
		if ctx.Err() != nil && !errors.Is(ctx.Err(), context.DeadlineExceeded) && !errors.Is(context.Cause(ctx), errSilent) {
			return nil, context.Cause(ctx)
		}
		err = bare(cause(ctx, err))
		var untrusted *tls.CertificateVerificationError
		if errors.As(err, &untrusted) && c.bearer == "" {
			return nil, Errorf(ErrUnauthorized, "%s is a fleet's own address, for those with a token: make one on a master (`nfs-fleet token create --shard SHARD`) and give it with --token or --token-file (%w)", c.servers[n], err)
		}
		if sent && r.method != "" && !r.again {
			return nil, Errorf(ErrUnreachable, "%s broke off (%w): `nfs-fleet status` and `history` show whether it was done", c.servers[n], err)
		}
		silent = append(silent, fmt.Sprintf("%s (%v)", c.servers[n], err))
		if ctx.Err() != nil {
			break
		}
	}
	return nil, Errorf(ErrUnreachable, "no master answers at %s: is `nfs-fleet serve` running? or set --server", strings.Join(silent, ", "))
}

// ask asks one master. sent reports whether it may have got the request.
func (c *Client) ask(ctx context.Context, base string, r request, body []byte) (resp *http.Response, sent bool, err error) {
	target := base + r.path
	if len(r.query) > 0 {
		target += "?" + r.query.Encode()
	}
	content, kind := r.stream, "application/octet-stream"
	if body != nil {
		content, kind = bytes.NewReader(body), "application/json"
	}
	var connected atomic.Bool
	ctx = httptrace.WithClientTrace(ctx, &httptrace.ClientTrace{GotConn: func(httptrace.GotConnInfo) { connected.Store(true) }})
	ctx, end := context.WithCancelCause(ctx)
	req, err := http.NewRequestWithContext(ctx, r.method, target, content)
	if err != nil {
		end(nil)
		return nil, false, Errorf(ErrInvalid, "%w", err)
	}
	if content != nil {
		req.Header.Set("Content-Type", kind)
	}
	if c.bearer != "" {
		req.Header.Set("Authorization", "Bearer "+c.bearer)
	}
	if c.user != "" {
		req.Header.Set(userHeader, c.user)
	}
	stop := func() bool { return true }
	if len(c.servers) > 1 && r.method == "" { // there is somebody else to ask, and no harm in it
		stop = time.AfterFunc(nextTimeout, func() { end(errTimedOut) }).Stop
	}
	resp, err = c.http.Do(req)
	if err == nil && !stop() {
		resp.Body.Close()
		err = errTimedOut
	}
	if err != nil {
		err = cause(ctx, err)
		end(nil)
		return nil, connected.Load(), err
	}
	resp.Body = endedBody{resp.Body, end}
	return resp, true, nil
}

// endedBody ends its request's context when it is closed.
type endedBody struct {
	io.ReadCloser
	end context.CancelCauseFunc
}

func (b endedBody) Close() error {
	err := b.ReadCloser.Close()
	b.end(nil)
	return err
}

var errTimedOut = errors.New("timed out")

// bare is what went wrong, without the request's URL and the addresses, which whoever reports it knows.
func bare(err error) error {
	var ue *url.Error
	var op *net.OpError
	var call *os.SyscallError
	switch {
	case errors.Is(err, context.DeadlineExceeded):
		return errTimedOut
	case errors.As(err, &call):
		return call.Err
	case errors.As(err, &op):
		return op.Err
	case errors.As(err, &ue):
		return ue.Err
	}
	return err
}

// lost is an answer that broke off: what was asked for may have happened.
func lost(resp *http.Response, err error) error {
	if errors.Is(err, io.EOF) {
		err = io.ErrUnexpectedEOF
	}
	return Errorf(ErrUnreachable, "the answer of %s broke off (%v): `nfs-fleet status` and `history` show whether it was done", origin(resp), err)
}

// origin is the base URL of who answered.
func origin(resp *http.Response) string {
	return resp.Request.URL.Scheme + "://" + resp.Request.URL.Host
}
