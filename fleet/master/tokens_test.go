package master

import (
	"context"
	"errors"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/nfs-fleet/nfs-fleet/fleet"
	"github.com/nfs-fleet/nfs-fleet/fleet/console"
	"github.com/nfs-fleet/nfs-fleet/replicator/tree"
)

// publishOne publishes a tree of one empty directory, as `publish SHARD DIR` does.
func publishOne(t *testing.T, c *console.Client, shard string) (console.Published, error) {
	t.Helper()
	up, err := console.NewUploader(t.Context(), c, shard)
	if err != nil {
		return console.Published{}, err
	}
	defer up.End(t.Context())
	root, err := putEmpty(t.Context(), up)
	if err != nil {
		return console.Published{}, err
	}
	if _, err := up.Flush(t.Context()); err != nil {
		return console.Published{}, err
	}
	return c.Publish(t.Context(), shard, console.PublishRequest{Root: root, Upload: up.ID(), Origin: "web1:/srv", Wait: true}, nil)
}

// Whoever has a token publishes its shard through any master, until it is revoked; the history knows who it was.
func TestPublishingWithAToken(t *testing.T) {
	all, _ := several(t, "m1", "m2")
	m1, m2 := all["m1"], all["m2"]
	m1.until("two masters serving the first generation", inStep(2, 1))
	if _, err := m1.client.CreateToken(t.Context(), console.TokenRequest{Kind: console.TokenPublish, Shards: []string{"none"}}); !errors.Is(err, console.ErrNotFound) {
		t.Errorf("for a shard that is not there: %v", err)
	}
	if _, err := m1.client.CreateToken(t.Context(), console.TokenRequest{Kind: console.TokenJoin}); !errors.Is(err, console.ErrInvalid) || !strings.Contains(err.Error(), "--etcd") {
		t.Errorf("joining with an etcd elsewhere: %v", err)
	}
	made, err := m1.client.CreateToken(t.Context(), console.TokenRequest{Kind: console.TokenPublish, Shards: []string{"www", "www"}, TTL: fleet.Duration(time.Minute), Note: "ci"})
	if err != nil {
		t.Fatal(err)
	}
	listed, err := m2.client.Tokens(t.Context())
	if err != nil || len(listed) != 1 || !slices.Equal(listed[0].Shards, []string{"www"}) || listed[0].By != "local" || listed[0].Note != "ci" {
		t.Errorf("%+v, %v", listed, err)
	}
	for i, servers := range [][]string{nil, {m1.cfg.Listen.Peer}, {m2.cfg.Listen.Peer}} { // one of them does not lead
		c, err := console.Connect(console.ClientConfig{Token: made.Text, Servers: servers, User: "root@web1"})
		if err != nil {
			t.Fatal(err)
		}
		if _, err := c.Rollback(t.Context(), "www", console.RollbackRequest{Generation: 1, Wait: true}, nil); err != nil {
			t.Fatalf("%v: rollback: %v", servers, err)
		}
		p, err := publishOne(t, c, "www")
		if err != nil || !p.Changed || p.Number != uint64(2*i+3) || !slices.Equal(p.ServedBy, []string{"m1", "m2"}) {
			t.Fatalf("%v: %+v, %v", servers, p, err)
		}
		if want := "root@web1 token " + made.ID + " from 127.0.0.1"; p.Caller != want || p.Source != "upload:web1:/srv" {
			t.Errorf("%v: by %q from %q, want %q", servers, p.Caller, p.Source, want)
		}
		if _, err := c.Status(t.Context()); !errors.Is(err, console.ErrForbidden) {
			t.Errorf("%v: status: %v", servers, err)
		}
	}
	if err := m2.client.RevokeToken(t.Context(), made.ID); err != nil {
		t.Error(err)
	}
	c, err := console.Connect(console.ClientConfig{Token: made.Text})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := publishOne(t, c, "www"); !errors.Is(err, console.ErrUnauthorized) {
		t.Errorf("revoked: %v", err)
	}
	if err := m2.client.RevokeToken(t.Context(), made.ID); !errors.Is(err, console.ErrNotFound) {
		t.Errorf("revoked twice: %v", err)
	}
}

// noFiles lists an empty directory.
type noFiles struct{}

func (noFiles) List(context.Context, string, *tree.Entry) (tree.Listing, error) {
	return tree.Listing{Complete: true}, nil
}

// putEmpty puts the tree of an empty directory.
func putEmpty(ctx context.Context, up tree.Objects) (tree.Digest, error) {
	memory := tree.NewMemory()
	merged, err := tree.Merge(ctx, memory, tree.Digest{}, noFiles{}, tree.MergeOptions{
		Generation: 1, Tag: func() uint64 { return 1 }, Root: tree.Observed{Entry: tree.Entry{Type: tree.Directory, Mode: 0o755}},
	})
	if err != nil {
		return tree.Digest{}, err
	}
	for _, d := range []tree.Digest{merged.Root, merged.Entry.Content.Digest} {
		if b, err := memory.Get(ctx, d); err == nil {
			if _, err := up.Put(ctx, b); err != nil {
				return tree.Digest{}, err
			}
		}
	}
	return merged.Root, nil
}
