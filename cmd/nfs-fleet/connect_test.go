package main

import (
	"context"
	"errors"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/rs/zerolog"

	"github.com/nfs-fleet/nfs-fleet/fleet"
	"github.com/nfs-fleet/nfs-fleet/fleet/console"
	"github.com/nfs-fleet/nfs-fleet/fleet/trust"
)

// remote makes the bench answer over TLS too, to whoever has the token that it returns.
func (b *bench) remote(t *testing.T, shards ...string) (token string) {
	t.Helper()
	ca, err := trust.NewAuthority("prod", time.Now())
	if err != nil {
		t.Fatal(err)
	}
	creds, err := trust.NewCredentials(ca, "m1", "5f1c")
	if err != nil {
		t.Fatal(err)
	}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	made := trust.NewToken(trust.Publish, ca.Fingerprint(), []string{l.Addr().String()})
	lookup := func(_ context.Context, id string) (fleet.TokenRecord, error) {
		if id != made.ID {
			return fleet.TokenRecord{}, fleet.ErrNotFound
		}
		return fleet.TokenRecord{ID: id, Kind: trust.Publish, Shards: shards, Hash: trust.HashSecret(made.Secret), ExpiresAt: time.Now().Add(time.Hour)}, nil
	}
	s := console.NewServer(console.Config{Control: b, Logger: zerolog.Nop()})
	h := &http.Server{
		Handler:   s.Handler(t.Context(), console.Remote(lookup, func(string) bool { return false })),
		TLSConfig: creds.ServerTLS(), ReadHeaderTimeout: time.Minute,
	}
	done := make(chan error, 1)
	go func() { done <- h.ServeTLS(l, "", "") }()
	t.Cleanup(func() {
		h.Close()
		if err := <-done; !errors.Is(err, http.ErrServerClosed) {
			t.Errorf("serve: %v", err)
		}
	})
	return made.String()
}

// From another machine a token is all that it takes, however it is given, and --server only when another master is meant.
func TestPublishWithAToken(t *testing.T) {
	b, dir := newBench(t), site(t)
	token := b.remote(t, "www")
	file := filepath.Join(t.TempDir(), "token")
	if err := os.WriteFile(file, []byte(token+"\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	t.Setenv("NFS_FLEET_SERVER", "")
	t.Setenv("NFS_FLEET_TOKEN", "")
	for name, args := range map[string][]string{"flag": {"--token", token}, "file": {"--token-file", file}, "environment": nil} {
		if name == "environment" {
			t.Setenv("NFS_FLEET_TOKEN", token)
		}
		if s := speak(t, &app{}, append(args, "publish", "www", dir, "--wait")...); s.code != 0 || !strings.Contains(s.out, "generation 42 is the head") || s.err != "" {
			t.Errorf("%s: %+v", name, s)
		}
		for _, line := range []string{"history www", "diff www", "rollback www", "shard show www"} {
			if s := speak(t, &app{}, append(args, strings.Fields(line)...)...); s.code != 0 {
				t.Errorf("%s, %s: %+v", name, line, s)
			}
		}
		for line, says := range map[string]string{"publish docs": "is for shard www, not for docs", "status": "do this on one of the masters", "shard delete www --yes": "a token is for publishing"} {
			if s := speak(t, &app{}, append(args, strings.Fields(line)...)...); s.code != 1 || !strings.Contains(s.err, says) {
				t.Errorf("%s, %s: %+v", name, line, s)
			}
		}
	}
	if s := b.command(t, "status"); s.code != 0 { // of this machine, whatever the environment holds
		t.Errorf("a local master: %+v", s)
	}
	if s := b.command(t, "status", "--token", token); s.code != 2 || !strings.Contains(s.err, "over https only") || strings.Contains(s.err, token) {
		t.Errorf("a token over plain HTTP: %+v", s)
	}
}

// Several masters may be named: one that is away is no reason to fail.
func TestSeveralServers(t *testing.T) {
	b := newBench(t)
	if s := speak(t, &app{}, "--server", "127.0.0.1:1,"+b.url, "publish", "www"); s.code != 0 {
		t.Errorf("%+v", s)
	}
	if s := speak(t, &app{}, "--server", "127.0.0.1:1,127.0.0.1:2", "status"); s.code != 1 || strings.Count(s.err, "connection refused") != 2 {
		t.Errorf("%+v", s)
	}
	if s := speak(t, &app{}, "--server", b.url+",", "status"); s.code != 2 {
		t.Errorf("%+v", s)
	}
}

// leaving is a master that loses the leadership in the middle of the first uploads.
type leaving struct {
	*bench
	left int
}

func (l *leaving) Publish(ctx context.Context, shard string, r console.PublishRequest, progress func(console.Progress)) (console.Published, error) {
	l.mu.Lock()
	l.left--
	gone := l.left >= 0
	l.mu.Unlock()
	if gone {
		return console.Published{}, console.Errorf(console.ErrGone, "the upload has ended")
	}
	return l.bench.Publish(ctx, shard, r, progress)
}

func TestUploadBeginsAnewAtTheNextLeader(t *testing.T) {
	for left, want := range map[int]int{0: exitDone, uploadTries - 1: exitDone, uploadTries: exitFailed} {
		b := newBench(t)
		l := &leaving{b, left}
		url := serveBench(t, l)
		s := speak(t, &app{}, "--server", url, "publish", "www", site(t))
		if s.code != want || want == exitFailed && !strings.Contains(s.err, "the upload has ended") {
			t.Errorf("gone %d times: %+v", left, s)
		}
		b.mu.Lock()
		begun, ended := strings.Count(strings.Join(b.asked, "\n"), "begin www"), strings.Count(strings.Join(b.asked, "\n"), "end www")
		b.mu.Unlock()
		if begun != min(left+1, uploadTries) || ended != begun {
			t.Errorf("gone %d times: %d uploads, %d ended", left, begun, ended)
		}
	}
}
