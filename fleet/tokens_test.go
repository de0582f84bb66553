package fleet

import (
	"errors"
	"reflect"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/nfs-fleet/nfs-fleet/fleet/trust"
)

func record(kind trust.Kind, shards ...string) TokenRecord {
	t := trust.NewToken(kind, trust.Fingerprint{}, nil)
	made := time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)
	return TokenRecord{
		ID: t.ID, Kind: kind, Shards: shards, Hash: trust.HashSecret(t.Secret),
		CreatedAt: made, ExpiresAt: made.Add(time.Hour), By: "local", Note: "for CI",
	}
}

func TestTokens(t *testing.T) {
	r, ctx := newFleet(t)
	want := record(trust.Publish, "www")
	for i, err := range []error{r.CreateToken(ctx, want), r.CreateToken(ctx, record(trust.Join))} {
		if err != nil {
			t.Fatal(i, err)
		}
	}
	if err := r.CreateToken(ctx, want); !errors.Is(err, ErrExists) {
		t.Errorf("a second time: %v, want ErrExists", err)
	}
	got, err := r.Token(ctx, want.ID)
	if got.revision = 0; err != nil || !reflect.DeepEqual(got, want) {
		t.Errorf("%+v, %v", got, err)
	}
	if all, err := r.Tokens(ctx); err != nil || len(all) != 2 {
		t.Errorf("%+v, %v", all, err)
	}
	for _, id := range []string{"nosuch", "", "a/b", "../heads/www", strings.Repeat("x", 65)} {
		if _, err := r.Token(ctx, id); !errors.Is(err, ErrNotFound) {
			t.Errorf("token %q: %v, want ErrNotFound", id, err)
		}
		if err := r.DeleteToken(ctx, id); !errors.Is(err, ErrNotFound) {
			t.Errorf("delete token %q: %v, want ErrNotFound", id, err)
		}
	}
	resp, err := r.client.Get(ctx, r.keys.Token(want.ID))
	if err != nil || resp.Kvs[0].Lease == 0 {
		t.Errorf("etcd would keep it for ever: %v, %v", resp, err)
	}
	if _, err := r.client.Put(ctx, r.keys.Token("bad"), "{"); err != nil {
		t.Fatal(err)
	}
	if all, err := r.Tokens(ctx); err != nil || len(all) != 2 {
		t.Errorf("one bad record hid the others: %+v, %v", all, err)
	}
}

func TestATokenIsUsedOnce(t *testing.T) {
	r, ctx := newFleet(t)
	token := record(trust.Join)
	if err := r.CreateToken(ctx, token); err != nil {
		t.Fatal(err)
	}
	var used atomic.Int32
	var wait sync.WaitGroup
	for range 8 {
		wait.Go(func() {
			if err := r.DeleteToken(ctx, token.ID); err == nil {
				used.Add(1)
			} else if !errors.Is(err, ErrNotFound) {
				t.Error(err)
			}
		})
	}
	wait.Wait()
	if used.Load() != 1 {
		t.Errorf("used %d times", used.Load())
	}
}

func TestATokenKnowsWhoHasUsedIt(t *testing.T) {
	r, ctx := newFleet(t)
	token := record(trust.Join)
	if err := r.CreateToken(ctx, token); err != nil {
		t.Fatal(err)
	}
	lease := func() int64 {
		resp, err := r.client.Get(ctx, r.keys.Token(token.ID))
		if err != nil || len(resp.Kvs) != 1 {
			t.Fatalf("%+v, %v", resp, err)
		}
		return resp.Kvs[0].Lease
	}
	first, err := r.Token(ctx, token.ID)
	if err != nil || first.UsedBy != "" {
		t.Fatalf("%+v, %v", first, err)
	}
	under := lease()
	if err := r.UseToken(ctx, first, "i1"); err != nil {
		t.Fatal(err)
	}
	if err := r.UseToken(ctx, first, "i2"); !errors.Is(err, ErrConflict) {
		t.Errorf("two at once: %v", err)
	}
	used, err := r.Token(ctx, token.ID)
	if err != nil || used.UsedBy != "i1" || under == 0 || lease() != under {
		t.Errorf("%+v, %v, lease %d, was %d", used, err, lease(), under)
	}
	if err := r.UseToken(ctx, used, "i1"); err != nil {
		t.Errorf("the same one again: %v", err)
	}
	if err := errors.Join(r.DeleteToken(ctx, token.ID), r.UseToken(ctx, used, "i3")); !errors.Is(err, ErrConflict) {
		t.Errorf("one that is gone: %v", err)
	}
}

func TestTokenRecordValidate(t *testing.T) {
	for _, good := range []TokenRecord{record(trust.Join), record(trust.Publish, "www", "images")} {
		if err := good.Validate(); err != nil {
			t.Error(err)
		}
		if good.Expired(good.CreatedAt) || good.Expired(good.ExpiresAt.Add(-1)) || !good.Expired(good.ExpiresAt) {
			t.Error("it expires at another time than it says")
		}
	}
	for name, spoil := range map[string]func(*TokenRecord){
		"ID": func(t *TokenRecord) { t.ID = "a/b" }, "kind": func(t *TokenRecord) { t.Kind = "root" },
		"no shard": func(t *TokenRecord) { t.Shards = nil }, "shard": func(t *TokenRecord) { t.Shards = []string{"a/b"} },
		"secret for a hash": func(t *TokenRecord) { t.Hash = trust.NewSecret() }, "life": func(t *TokenRecord) { t.ExpiresAt = t.CreatedAt },
		"long life": func(t *TokenRecord) { t.ExpiresAt = t.CreatedAt.AddDate(200, 0, 0) }, "no end": func(t *TokenRecord) { t.ExpiresAt = time.Time{} },
		"note": func(t *TokenRecord) { t.Note = strings.Repeat("x", 1025) }, "join with shards": func(t *TokenRecord) { t.Kind = trust.Join },
	} {
		bad := record(trust.Publish, "www")
		spoil(&bad)
		if bad.Validate() == nil {
			t.Errorf("a bad %s was accepted", name)
		}
	}
}
