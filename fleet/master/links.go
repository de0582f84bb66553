package master

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"net/http"
	"net/url"
	"slices"
	"sync"
	"time"

	"github.com/nfs-fleet/nfs-fleet/fleet"
	"github.com/nfs-fleet/nfs-fleet/fleet/console"
	"github.com/nfs-fleet/nfs-fleet/fleet/trust"
	"github.com/nfs-fleet/nfs-fleet/replicator"
	"github.com/nfs-fleet/nfs-fleet/replicator/peer"
	"github.com/nfs-fleet/nfs-fleet/replicator/store"
	"github.com/nfs-fleet/nfs-fleet/replicator/tree"
)

const (
	// linkBeat is how often a master that works on a request of another says that it is still there.
	linkBeat = time.Second
	// linkSilence is how long a master may say nothing before the connection counts as broken.
	linkSilence = 5 * time.Second
	// maxLine bounds one line of an answer.
	maxLine = 16 << 20
)

// links are the ways to the other masters: HTTP/1.1 over mutual TLS, by name. Safe for concurrent use.
type links struct {
	credentials func() *trust.Credentials

	mu        sync.Mutex        // guards the rest
	addresses map[string]string // host:port by master
	clients   map[string]*http.Client
	consoles  map[string]*console.Client // by URL, each with its master's client
}

func newLinks(c func() *trust.Credentials) *links {
	return &links{credentials: c, addresses: map[string]string{}, clients: map[string]*http.Client{}, consoles: map[string]*console.Client{}}
}

// set tells where masters are reached. Those that are not named stay known: they may come back.
func (l *links) set(addresses map[string]string) {
	l.mu.Lock()
	defer l.mu.Unlock()
	maps.Copy(l.addresses, addresses)
}

// names lists the masters whose address is known.
func (l *links) names() []string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return slices.Sorted(maps.Keys(l.addresses))
}

// client returns how to reach a master. The URL has no path.
func (l *links) client(master string) (*http.Client, string, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	address := l.addresses[master]
	if address == "" {
		return nil, "", fmt.Errorf("the address of master %s is not known: %w", master, errNoAnswer)
	}
	c := l.clients[master]
	if c == nil {
		c = &http.Client{Transport: peer.NewTransport(l.credentials().ClientTLS(master))}
		l.clients[master] = c
	}
	return c, "https://" + address, nil
}

// console returns a master's console.
func (l *links) console(master string) (*console.Client, error) {
	client, url, err := l.client(master)
	if err != nil {
		return nil, err
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	if c := l.consoles[url]; c != nil && l.clients[master] == client {
		return c, nil
	}
	c, err := console.Connect(console.ClientConfig{Servers: []string{url}, HTTP: client})
	if err == nil {
		l.consoles[url] = c
	}
	return c, err
}

// reset has every connection made anew, with other credentials.
func (l *links) reset() {
	l.close()
	l.mu.Lock()
	defer l.mu.Unlock()
	clear(l.clients)
	clear(l.consoles)
}

func (l *links) close() {
	l.mu.Lock()
	defer l.mu.Unlock()
	for _, c := range l.clients {
		c.CloseIdleConnections()
	}
}

// errNoAnswer is wrapped by what keeps another master from answering.
var errNoAnswer = errors.New("no answer")

// linkLine is one line of an answer: a sign of life, perhaps of progress, or the last one.
type linkLine struct {
	Progress bool            `json:"progress,omitempty"`
	Result   json.RawMessage `json:"result,omitempty"`
	Error    string          `json:"error,omitempty"`
	Kind     string          `json:"kind,omitempty"`
	Done     bool            `json:"done,omitempty"`
}

// linkKinds are the errors that keep their meaning between masters.
var linkKinds = []struct {
	name string
	err  error
}{
	{"declined", replicator.ErrDeclined}, {"older_epoch", replicator.ErrOlderEpoch}, {"no_term", replicator.ErrNoTerm},
	{"behind", replicator.ErrBehind}, {"holding", replicator.ErrHolding}, {"too_few_copies", replicator.ErrTooFewCopies},
	{"no_source", replicator.ErrNoSource}, {"missing", tree.ErrMissing}, {"full", store.ErrFull},
	{"not_found", fleet.ErrNotFound}, {"conflict", fleet.ErrConflict}, {"unavailable", fleet.ErrUnavailable},
}

func kindName(err error) string {
	for _, k := range linkKinds {
		if errors.Is(err, k.err) {
			return k.name
		}
	}
	return ""
}

// errOf is the error that another master has answered.
func (l linkLine) errOf(master string) error {
	for _, k := range linkKinds {
		if k.name == l.Kind {
			return fmt.Errorf("master %s: %w (%s)", master, k.err, l.Error)
		}
	}
	return fmt.Errorf("master %s: %s", master, l.Error)
}

// ask has another master do something and returns its result. beat, which may be nil, is called when it makes progress.
// A master that says nothing for linkSilence has failed.
func ask[T any](ctx context.Context, l *links, master, path string, body any, beat func()) (out T, err error) {
	client, base, err := l.client(master)
	if err != nil {
		return out, err
	}
	text, err := json.Marshal(body)
	if err != nil {
		return out, err
	}
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	silence := time.AfterFunc(linkSilence, func() {
		cancel(fmt.Errorf("master %s has said nothing for %s: %w", master, linkSilence, errNoAnswer))
	})
	defer silence.Stop()
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, base+path, bytes.NewReader(text))
	if err != nil {
		return out, err
	}
	resp, err := client.Do(req)
	if err != nil {
		return out, unreachable(ctx, master, err)
	}
	defer resp.Body.Close()
	if resp.Header.Get(removedHeader) != "" {
		return out, fmt.Errorf("master %s: %w", master, errRemovedHere)
	}
	if resp.StatusCode != http.StatusOK {
		return out, fmt.Errorf("master %s: %s", master, resp.Status)
	}
	lines := bufio.NewScanner(resp.Body)
	lines.Buffer(nil, maxLine)
	for lines.Scan() {
		silence.Reset(linkSilence)
		var line linkLine
		if err := json.Unmarshal(lines.Bytes(), &line); err != nil {
			return out, fmt.Errorf("master %s: %w", master, err)
		}
		switch {
		case line.Error != "":
			return out, line.errOf(master)
		case line.Done:
			return out, json.Unmarshal(line.Result, &out)
		case line.Progress && beat != nil:
			beat()
		}
	}
	err = lines.Err()
	if err == nil {
		err = errors.New("the answer has no end")
	}
	return out, unreachable(ctx, master, err)
}

// askAll has every master whose address is known do something, all at once, and returns when each has answered or
// failed. heard is called for one of them at a time.
func askAll[T any](ctx context.Context, l *links, path string, body any, heard func(master string, out T, err error)) {
	var mu sync.Mutex // held while heard runs
	var asking sync.WaitGroup
	for _, name := range l.names() {
		asking.Go(func() {
			out, err := ask[T](ctx, l, name, path, body, nil)
			mu.Lock()
			defer mu.Unlock()
			heard(name, out, err)
		})
	}
	asking.Wait()
}

// errRemovedHere is what another master answers when it knows that this one was removed.
var errRemovedHere = errors.New("this master was removed from the fleet")

func unreachable(ctx context.Context, master string, err error) error {
	if ctx.Err() != nil {
		return context.Cause(ctx)
	}
	var u *url.Error
	if errors.As(err, &u) {
		err = u.Err // without the URL, which says less than the name
	}
	return fmt.Errorf("master %s: %w: %w", master, errNoAnswer, err)
}
