package etcdtest

import (
	"context"
	"os"
	"testing"
	"time"
)

var shared *Server

func TestMain(m *testing.M) { os.Exit(Main(m, func(s *Server) { shared = s })) }

func TestAMemberKeepsWhatItHeld(t *testing.T) {
	t.Parallel()
	s := New(t)
	c := s.Dial(t)
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	for _, end := range []func(){s.Stop, s.Kill} {
		if _, err := c.Put(ctx, "k", "v"); err != nil {
			t.Fatal(err)
		}
		end()
		if s.Etcd() != nil {
			t.Error("it runs still")
		}
		if err := s.Start(); err != nil {
			t.Fatal(err)
		}
		if resp, err := c.Get(ctx, "k"); err != nil || len(resp.Kvs) != 1 {
			t.Errorf("%v, %v", resp, err)
		}
	}
	if resp, err := shared.Dial(t).Get(ctx, "k"); err != nil || len(resp.Kvs) != 0 {
		t.Errorf("two members share keys: %v, %v", resp, err)
	}
}

func TestAClusterLosesItsLeader(t *testing.T) {
	t.Parallel()
	servers := NewCluster(t, 3)
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	leader := leaderOf(t, ctx, servers)
	leader.Kill()
	next := leaderOf(t, ctx, servers)
	if next == leader {
		t.Fatal("a dead member leads")
	}
	if _, err := Dial(t, URLs(servers)...).Put(ctx, "k", "v"); err != nil {
		t.Fatal(err)
	}
	if err := leader.Start(); err != nil {
		t.Fatal(err)
	}
	if resp, err := leader.Dial(t).Get(ctx, "k"); err != nil || len(resp.Kvs) != 1 {
		t.Errorf("it came back without what it missed: %v, %v", resp, err)
	}
}

func leaderOf(t *testing.T, ctx context.Context, servers []*Server) *Server {
	t.Helper()
	for {
		for _, s := range servers {
			if s.Leads() {
				return s
			}
		}
		select {
		case <-time.After(5 * time.Millisecond):
		case <-ctx.Done():
			t.Fatal("nobody leads")
		}
	}
}
