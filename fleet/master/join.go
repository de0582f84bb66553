package master

import (
	"bytes"
	"context"
	"crypto/tls"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"maps"
	"net"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/google/renameio/v2"
	"github.com/rs/zerolog"

	"github.com/nfs-fleet/nfs-fleet/fleet"
	"github.com/nfs-fleet/nfs-fleet/fleet/etcd"
	"github.com/nfs-fleet/nfs-fleet/fleet/trust"
)

const (
	// pathJoin is where a master asks to be one of the fleet.
	pathJoin = "/join"
	// joinPatience is how long a starting master asks, while none of the fleet's masters can answer.
	joinPatience = 30 * time.Second
	// joinLimit bounds one request to join.
	joinLimit = 10 * time.Second
	// joinRest is the time between two rounds over the masters.
	joinRest = time.Second
	// maxJoinAnswer bounds what is read of an answer: the addresses of a thousand masters are a tenth of it.
	maxJoinAnswer = 1 << 20
)

// joinRequest is what a master that wants to join sends, in JSON.
type joinRequest struct {
	Token     string `json:"token"` // its ID
	Secret    string `json:"secret"`
	Name      string `json:"name"`
	Instance  string `json:"instance"`             // that it will be, the same at each try with this token
	Was       string `json:"was,omitempty"`        // the instance that its data directory has been
	Fleet     string `json:"fleet,omitempty"`      // the ID of the fleet that its data directory belongs to
	FleetName string `json:"fleet_name,omitempty"` // of the fleet that its operator means; "": any
	Peer      string `json:"peer"`                 // the port of its peer listener
	Version   string `json:"version"`
	Formats   int    `json:"formats"` // the highest object format that it reads
}

// joinAnswer makes a master of who receives it.
type joinAnswer struct {
	Identity fleet.Identity    `json:"identity"`
	CA       string            `json:"ca"`      // PEM of the fleet's CA, certificate and key
	Masters  map[string]string `json:"masters"` // peer listeners of the living ones, host:port by name
	Member   bool              `json:"member"`  // the data directory is a master of the fleet as it is: Was goes on
}

// errStranger: who answers has no certificate of the fleet that the token is for.
var errStranger = errors.New("it is no master of the fleet that the token is for")

// joining is the file that keeps the instance of a join that has not come to its end: the token is used up by it.
type joining struct {
	Token    string `json:"token"`
	Instance string `json:"instance"`
}

// join makes this master one of the fleet whose token it was given, unless it is already. It is called before anything
// listens. What it writes, it writes in an order in which a second try mends what a first one has left: the identity
// comes last.
func (m *Master) join(ctx context.Context) error {
	if m.local.ID != "" && m.cfg.Fleet == defaultFleet {
		m.cfg.Fleet = m.local.Fleet
	}
	if m.cfg.Join == "" {
		return nil
	}
	token, err := trust.ParseToken(m.cfg.Join)
	if err != nil {
		return fmt.Errorf("--join: %w", err)
	}
	if token.ID == m.local.Joined {
		return nil
	}
	answer, instance, err := m.askToJoin(ctx, token, joinPatience)
	if err != nil {
		return fmt.Errorf("join the fleet: %w", err)
	}
	if err := m.become(token, answer, instance); err != nil {
		return fmt.Errorf("join the fleet: %w", err)
	}
	m.log.Info().Str("fleet", answer.Identity.Fleet).Str("token", token.ID).Strs("masters", slices.Sorted(maps.Keys(answer.Masters))).Msg("joined the fleet")
	return nil
}

// askToJoin returns the fleet's answer, and the instance that this master is from now on.
func (m *Master) askToJoin(ctx context.Context, token trust.Token, patience time.Duration) (joinAnswer, string, error) {
	instance, err := m.data.instanceFor(token.ID)
	if err != nil {
		return joinAnswer{}, "", err
	}
	_, port, err := net.SplitHostPort(m.cfg.Listen.Peer)
	if err != nil {
		return joinAnswer{}, "", fmt.Errorf("--listen-peer: %w", err)
	}
	r := joinRequest{
		Token: token.ID, Secret: token.Secret, Name: m.cfg.Name, Instance: instance, Peer: port, Version: m.version, Formats: objectFormats,
	}
	if m.local.ID != "" {
		r.Was, r.Fleet = m.local.Instance, m.local.ID
	}
	if m.cfg.Fleet != defaultFleet {
		r.FleetName = m.cfg.Fleet
	}
	answer, err := newJoiner(token, m.log).ask(ctx, r, patience)
	if err == nil && answer.Member {
		instance = m.local.Instance
	}
	return answer, instance, err
}

// instanceFor returns the instance that joins with a token: the same one after a crash.
func (d *dataDir) instanceFor(token string) (string, error) {
	path := d.join("joining")
	b, err := os.ReadFile(path)
	var known joining
	if err == nil && json.Unmarshal(b, &known) == nil && known.Token == token && fleet.ValidInstance(known.Instance) == nil {
		return known.Instance, nil
	}
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return "", fmt.Errorf("data directory: %w", err)
	}
	known = joining{token, fleet.NewInstance()}
	if b, err = json.Marshal(known); err == nil {
		err = renameio.WriteFile(path, append(b, '\n'), 0o600)
	}
	if err != nil {
		return "", fmt.Errorf("data directory: %w", err)
	}
	return known.Instance, nil
}

// become writes down that this master belongs to the fleet of an answer.
func (m *Master) become(token trust.Token, answer joinAnswer, instance string) error {
	a, err := m.checkAnswer(token, answer)
	if err != nil {
		return err
	}
	if !answer.Member {
		if err := setEtcdAside(m.etcdDir(), m.log); err != nil {
			return err
		}
	}
	if err := os.MkdirAll(m.data.join("pki"), 0o700); err != nil {
		return fmt.Errorf("data directory: %w", err)
	}
	if err := renameio.WriteFile(m.data.join("pki", "ca.pem"), a.PEM(), 0o600); err != nil {
		return fmt.Errorf("the fleet's CA: %w", err)
	}
	if err := m.data.setRoutes(m.cfg.Name, answer.Masters, m.log); err != nil {
		return err
	}
	m.local = localIdentity{Identity: answer.Identity, Master: m.cfg.Name, Instance: instance, Joined: token.ID}
	if err := m.data.setIdentity(m.local); err != nil {
		return err
	}
	m.cfg.Fleet = answer.Identity.Fleet
	if err := os.Remove(m.data.join("joining")); err != nil {
		m.log.Debug().Err(err).Msg("a file that is of no use any more stays")
	}
	return nil
}

// checkAnswer refuses an answer that is not of the token's fleet, or not of the one that this disk belongs to.
func (m *Master) checkAnswer(token trust.Token, answer joinAnswer) (*trust.Authority, error) {
	a, err := trust.ParseAuthority([]byte(answer.CA))
	if err != nil {
		return nil, err
	}
	id := answer.Identity
	switch {
	case a.Fingerprint() != token.CA:
		return nil, fmt.Errorf("the answer has another CA (%s) than the token (%s): make another token with `nfs-fleet token create --join`", a.Fingerprint(), token.CA)
	case id.ID == "" || fleet.ValidName(id.Fleet) != nil || len(answer.Masters) == 0:
		return nil, errors.New("the answer does not say which fleet it is, or who its masters are")
	case m.local.ID != "" && m.local.ID != id.ID:
		return nil, fmt.Errorf("data directory %s belongs to fleet %s (%s), and the token is for %s (%s): choose another with --data-dir",
			m.data.path, m.local.Fleet, m.local.ID, id.Fleet, id.ID)
	case m.cfg.Fleet != defaultFleet && m.cfg.Fleet != id.Fleet:
		return nil, fmt.Errorf("the token is for fleet %q, not %q: leave --fleet out, or give the right one", id.Fleet, m.cfg.Fleet)
	}
	return a, nil
}

func (m *Master) etcdDir() string {
	if m.cfg.Etcd.DataDir != "" {
		return m.cfg.Etcd.DataDir
	}
	return m.data.join("etcd")
}

// setEtcdAside moves an etcd that this disk has had before it joined out of the way, and removes what was set aside
// before that: it belongs to a cluster that has gone on without it, or is no more.
func setEtcdAside(dir string, log zerolog.Logger) error {
	if _, err := os.Lstat(dir); errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	old, err := filepath.Glob(dir + ".old-*")
	if err != nil {
		return err
	}
	to := dir + ".old-" + time.Now().UTC().Format("20060102T150405.000")
	if err := os.Rename(dir, to); err != nil {
		return fmt.Errorf("set the old etcd aside: %w", err)
	}
	log.Warn().Str("dir", to).Msg("the etcd data that this master had before it joined was set aside")
	for _, other := range old {
		if err := os.RemoveAll(other); err != nil {
			return fmt.Errorf("remove the etcd data that was set aside before: %w", err)
		}
	}
	return nil
}

// setRoutes replaces what the disk knows of the ways to other masters.
func (d *dataDir) setRoutes(self string, masters map[string]string, log zerolog.Logger) error {
	fresh := d.join("routes.new")
	if err := os.Remove(fresh); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("data directory: %w", err)
	}
	peers := maps.Clone(masters)
	delete(peers, self)
	etcd.OpenRoutes(etcd.RoutesConfig{Self: self, File: fresh, Logger: log}).Set(peers)
	if err := os.Rename(fresh, d.join("routes")); err != nil {
		return fmt.Errorf("the ways to the other masters: %w", err)
	}
	return nil
}

// joiner asks the masters that a token names.
type joiner struct {
	token  trust.Token
	client *http.Client
	log    zerolog.Logger
}

func newJoiner(token trust.Token, log zerolog.Logger) *joiner {
	secure := trust.PinnedTLS(token.CA)
	pinned := secure.VerifyConnection
	secure.VerifyConnection = func(s tls.ConnectionState) error {
		if err := pinned(s); err != nil {
			return fmt.Errorf("%w: %w", errStranger, err)
		}
		return nil
	}
	return &joiner{token: token, log: log, client: &http.Client{
		Timeout:       joinLimit,
		Transport:     &http.Transport{TLSClientConfig: secure, DisableKeepAlives: true, DialContext: (&net.Dialer{Timeout: joinLimit / 3}).DialContext},
		CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
	}}
}

// ask asks one master after the other until one answers, or says no.
func (j *joiner) ask(ctx context.Context, r joinRequest, patience time.Duration) (joinAnswer, error) {
	if len(j.token.Addresses) == 0 {
		return joinAnswer{}, errors.New("the token names no master: make another with `nfs-fleet token create --join`")
	}
	body, err := json.Marshal(r)
	if err != nil {
		return joinAnswer{}, err
	}
	said := ""
	for deadline := time.Now().Add(patience); ; {
		answer, errs := j.round(ctx, body)
		if len(errs) == 0 {
			return answer, nil
		}
		err := errors.Join(errs...)
		switch {
		case ctx.Err() != nil:
			return answer, context.Cause(ctx)
		case final(errs):
			return answer, errs[len(errs)-1]
		case !time.Now().Before(deadline):
			return answer, fmt.Errorf("no master has let this one in within %s: see that one of them runs and can be reached from here (%s), or make a token with newer addresses with `nfs-fleet token create --join`",
				patience, strings.Join(texts(errs), "; "))
		case err.Error() != said:
			said = err.Error()
			j.log.Warn().Strs("problems", texts(errs)).Msg("no master lets this one in yet; trying again")
		}
		select {
		case <-ctx.Done():
			return joinAnswer{}, context.Cause(ctx)
		case <-time.After(joinRest):
		}
	}
}

// round asks each master once, until one gives an answer that counts.
func (j *joiner) round(ctx context.Context, body []byte) (answer joinAnswer, errs []error) {
	for _, address := range j.token.Addresses {
		answer, err := j.askOne(ctx, address, body)
		if err == nil {
			return answer, nil
		}
		errs = append(errs, err)
		var no *refusal
		if errors.As(err, &no) && no.final() {
			break
		}
	}
	return answer, errs
}

// final reports whether asking again is of no use: somebody has said no, or all who answer are strangers.
func final(errs []error) bool {
	var no *refusal
	if errors.As(errs[len(errs)-1], &no) && no.final() {
		return true
	}
	return !slices.ContainsFunc(errs, func(err error) bool { return !errors.Is(err, errStranger) })
}

func texts(errs []error) []string {
	out := make([]string, len(errs))
	for i, err := range errs {
		out[i] = err.Error()
	}
	return out
}

func (j *joiner) askOne(ctx context.Context, address string, body []byte) (answer joinAnswer, err error) {
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, "https://"+address+pathJoin, bytes.NewReader(body))
	if err != nil {
		return answer, err
	}
	resp, err := j.client.Do(req)
	if err != nil {
		var u *url.Error
		if errors.As(err, &u) {
			err = u.Err
		}
		return answer, fmt.Errorf("%s: %w", address, err)
	}
	defer resp.Body.Close()
	text, err := io.ReadAll(io.LimitReader(resp.Body, maxJoinAnswer))
	switch {
	case err != nil:
		return answer, fmt.Errorf("%s: %w", address, err)
	case resp.StatusCode != http.StatusOK:
		return answer, fmt.Errorf("%s: %w", address, &refusal{resp.StatusCode, strings.TrimSpace(string(text[:min(len(text), 2048)]))})
	}
	if err := json.Unmarshal(text, &answer); err != nil {
		return answer, fmt.Errorf("%s: its answer: %w", address, err)
	}
	return answer, nil
}
