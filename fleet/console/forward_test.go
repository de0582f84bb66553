package console

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"reflect"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/nfs-fleet/nfs-fleet/fleet/trust"
	"github.com/nfs-fleet/nfs-fleet/replicator/tree"
)

// pair is two masters: m1 is asked, m2 leads.
func pair(t *testing.T) (s *site, m1, m2 *fake, c *Client, stop2 func()) {
	t.Helper()
	s, m1, m2 = newSite(t), newFake(), newFake()
	s.setLeader(always("m2"))
	url, _ := s.start("m1", m1)
	c = s.client(s.grant(trust.Publish, tomorrow, "www"), url)
	_, stop2 = s.start("m2", m2)
	return s, m1, m2, c, stop2
}

// What only a leader can do is done by it, whoever is asked; everything else is done where it is asked.
func TestLeadersAreAsked(t *testing.T) {
	s, m1, m2, _, _ := pair(t)
	c := s.as("m3", "m1")
	leaders := map[string]bool{
		"Publish": true, "Rollback": true, "BeginUpload": true, "Missing": true, "PutObjects": true, "EndUpload": true,
	}
	for _, x := range exchanges() {
		m1.calls, m2.calls = nil, nil
		got, err := x.call(t.Context(), c)
		if err != nil {
			t.Errorf("%s: %v", x.name, err)
			continue
		}
		at, other := m1, m2
		if leaders[x.name] {
			at, other = m2, m1
		}
		asked := strings.Replace(x.asked, "Caller:local", "Caller:master m3 from 127.0.0.1", 1)
		if at.last() != asked || other.last() != "" {
			t.Errorf("%s: asked %q and %q, want %q", x.name, at.last(), other.last(), asked)
		}
		if want := x.want(at); !reflect.DeepEqual(got, want) {
			t.Errorf("%s: got  %+v\nwant %+v", x.name, got, want)
		}
	}
	if err := c.Source(t.Context(), "www", SourceResume); err != nil || m2.last() != "source www resume" {
		t.Errorf("resume: %v, asked %q", err, m2.last())
	}
	if string(m2.objects[tree.Sum([]byte("two"))]) != "two" {
		t.Error("the upload did not reach the leader")
	}
}

// Who asked first, and what it may, goes with the request.
func TestTheCallerIsPassedOn(t *testing.T) {
	s := newSite(t)
	f := &callers{Control: newFake()}
	s.setLeader(always("m2"))
	url, _ := s.start("m1", newFake())
	token := s.grant(trust.Publish, tomorrow, "www")
	s.start("m2", f)
	if _, err := s.client(token, url).Publish(t.Context(), "www", PublishRequest{}, nil); err != nil {
		t.Fatal(err)
	}
	if want := "root@web1 token " + token.ID + " from 127.0.0.1"; f.publisher.String() != want {
		t.Errorf("%q, want %q", f.publisher, want)
	}
	if _, err := s.client(token, url).Publish(t.Context(), "zoo", PublishRequest{}, nil); !errors.Is(err, ErrForbidden) {
		t.Errorf("another shard: %v", err)
	}
}

func TestEveryErrorIsPassedOn(t *testing.T) {
	_, _, m2, c, _ := pair(t)
	for _, kind := range []error{ErrInvalid, ErrNotFound, ErrConflict, ErrNoQuorum, ErrUnavailable, ErrForbidden, ErrGone, io.ErrNoProgress} {
		m2.fail = fmt.Errorf("shard \"www\": %w", kind)
		for name, call := range map[string]func() error{
			"publish": func() error { _, err := c.Publish(t.Context(), "www", PublishRequest{}, nil); return err },
			"upload":  func() error { return c.PutObjects(t.Context(), "www", "u", objectStream(strings.Repeat("x", 4<<20))) },
			"begin":   func() error { _, err := c.BeginUpload(t.Context(), "www"); return err },
		} {
			if err := call(); err == nil || err.Error() != m2.fail.Error() || !errors.Is(err, kind) && kind != io.ErrNoProgress {
				t.Errorf("%s: %v, want %v", name, err, m2.fail)
			}
		}
	}
	m2.fail = nil
	m2.op = func(_ context.Context, progress func(Progress)) error {
		progress(Progress{Step: "scan"})
		return Errorf(ErrNoLeader, "the lease is gone")
	}
	if _, err := c.Publish(t.Context(), "www", PublishRequest{}, nil); !errors.Is(err, ErrNoLeader) || err.Error() != "the lease is gone" {
		t.Errorf("after progress: %v", err)
	}
}

// Progress comes through as it is made.
func TestProgressIsPassedOn(t *testing.T) {
	_, _, m2, c, _ := pair(t)
	seen := make(chan struct{})
	m2.op = func(_ context.Context, progress func(Progress)) error {
		progress(Progress{Step: "scan", Files: 1})
		<-seen
		return nil
	}
	n := 0
	p, err := c.Publish(t.Context(), "www", PublishRequest{}, func(Progress) {
		if n++; n == 1 {
			close(seen)
		}
	})
	if err != nil || p.Number != 42 || n == 0 {
		t.Errorf("%+v, %v", p, err)
	}
}

// A hand-over is no reason to refuse a publish: it waits for the next leader, whatever stage the hand-over is in.
func TestHandOverIsWaitedFor(t *testing.T) {
	s, m1, m2, c, _ := pair(t)
	var stage atomic.Int32
	s.setLeader(func(string) (string, error) {
		switch stage.Add(1) {
		case 1: // nobody leads
			return "", Errorf(ErrNoLeader, "nobody leads www")
		case 2: // the view is behind: it was this master, whose term is over
			return "m1", nil
		case 3: // a master that nobody can reach
			return "m9", nil
		case 4: // one that has stopped listening
			return "dead", nil
		}
		return "m2", nil
	})
	_, stop := s.start("dead", newFake())
	stop()
	m1.op = func(context.Context, func(Progress)) error { return Errorf(ErrNoLeader, "my term is over") }
	if _, err := c.Publish(t.Context(), "www", PublishRequest{Note: "n"}, nil); err != nil || !strings.HasPrefix(m2.last(), "publish www {Note:n ") {
		t.Errorf("publish: %v, asked %q", err, m2.last())
	}
	stage.Store(2)
	if err := c.PutObjects(t.Context(), "www", "u", objectStream("one")); err != nil || m2.objects[tree.Sum([]byte("one"))] == nil {
		t.Errorf("upload: %v", err)
	}
}

// The wait has an end, and its error the kind and the words of the reason.
func TestNobodyLeads(t *testing.T) {
	t.Parallel()
	s, _, _, c, _ := pair(t)
	for _, kind := range []error{ErrNotFound, ErrNoQuorum, ErrNoLeader} {
		asked := 0
		s.setLeader(func(string) (string, error) { asked++; return "", Errorf(kind, "because") })
		if _, err := c.Publish(t.Context(), "www", PublishRequest{}, nil); !errors.Is(err, kind) || err.Error() != "because" {
			t.Errorf("%v, want %v", err, kind)
		}
		if again := asked > 1; again != (kind == ErrNoLeader) {
			t.Errorf("%v: asked %d times", kind, asked)
		}
	}
}

// Two masters that each take the other for the leader do not send a request in circles.
func TestOneHopOnly(t *testing.T) {
	t.Parallel()
	s, _, m2, c, _ := pair(t)
	s.setLeader(func(string) (string, error) { return "m2", nil }) // m2 would be asked again and again if it believed m1
	m2.fail = Errorf(ErrNoLeader, "m1 leads www")
	if _, err := c.Publish(t.Context(), "www", PublishRequest{}, nil); !errors.Is(err, ErrNoLeader) || err.Error() != "m1 leads www" {
		t.Errorf("%v", err)
	}
}

// A leader that dies while it answers: the client learns that it may or may not be done.
func TestLeaderDiesMeanwhile(t *testing.T) {
	t.Parallel()
	_, _, m2, c, stop := pair(t)
	for name, say := range map[string]bool{"silent": false, "after progress": true} {
		m2.op = func(_ context.Context, progress func(Progress)) error {
			if say {
				progress(Progress{Step: "scan"})
			}
			panic(http.ErrAbortHandler)
		}
		_, err := c.Publish(t.Context(), "www", PublishRequest{}, nil)
		if !errors.Is(err, ErrUnavailable) || !strings.Contains(err.Error(), "master m2") || !strings.Contains(err.Error(), "nfs-fleet history www") {
			t.Errorf("%s: %v", name, err)
		}
	}
	stop()
	if _, err := c.Publish(t.Context(), "www", PublishRequest{}, nil); !errors.Is(err, ErrNoLeader) || !strings.Contains(err.Error(), "m2 leads shard www and does not answer") {
		t.Errorf("stopped: %v", err)
	}
}

// A master that leads no more and does not answer is given up; one that only is slow is not.
func TestWatchingALeader(t *testing.T) {
	for name, tc := range map[string]struct {
		leader func(at time.Duration) (string, error)
		ends   time.Duration // 0: never
	}{
		"it leads":      {func(time.Duration) (string, error) { return "m2", nil }, 0},
		"etcd is away":  {func(time.Duration) (string, error) { return "", ErrNoQuorum }, 0},
		"another leads": {func(time.Duration) (string, error) { return "m3", nil }, leaderGrace + leaderLook},
		"nobody leads":  {func(time.Duration) (string, error) { return "", ErrNoLeader }, leaderGrace + leaderLook},
		"lost it for moment": {func(at time.Duration) (string, error) {
			return map[bool]string{true: "m2", false: "m3"}[at > leaderGrace-time.Second], nil
		}, 0},
	} {
		synctest.Test(t, func(t *testing.T) {
			began := time.Now()
			ctx, cancel := context.WithCancelCause(t.Context())
			a := &api{Config: Config{Leader: func(string) (string, error) { return tc.leader(time.Since(began)) }}}
			h := &hop{api: a, shard: "www", master: "m2", ctx: ctx, cancel: cancel}
			limit, stop := context.WithTimeout(ctx, time.Minute)
			defer stop()
			h.watch(limit)
			took := time.Since(began)
			if tc.ends == 0 && took != time.Minute || tc.ends != 0 && took != tc.ends {
				t.Errorf("%s: ended after %s", name, took)
			}
			if given := errors.Is(context.Cause(ctx), ErrUnavailable); given != (tc.ends != 0) {
				t.Errorf("%s: given up: %t", name, given)
			}
		})
	}
}
