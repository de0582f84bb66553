package fleet

import (
	"context"
	"errors"
	"fmt"
	"regexp"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"

	"github.com/nfs-fleet/nfs-fleet/fleet/trust"
)

// TokenRecord is what the fleet keeps of a token: never its secret.
type TokenRecord struct {
	ID        string     `json:"id"`
	Kind      trust.Kind `json:"kind"`
	Shards    []string   `json:"shards,omitempty"` // of a publish token: those that it may publish
	Hash      string     `json:"hash"`             // trust.HashSecret of the secret
	CreatedAt time.Time  `json:"created_at"`
	ExpiresAt time.Time  `json:"expires_at"` // by the clocks of the masters
	By        string     `json:"by"`         // who made it
	Note      string     `json:"note,omitempty"`
	UsedBy    string     `json:"used_by,omitempty"` // the instance that has joined with it, and may ask again with it

	revision int64 // of the key, as Token read it
}

// MaxTokenLife is the longest that a token may live.
const MaxTokenLife = 10 * 365 * 24 * time.Hour

// expiredStays is how long an expired token is kept, so that its user learns that it expired, not that it is unknown.
const expiredStays = 7 * 24 * time.Hour

// maxNote is the most bytes of a token's note.
const maxNote = 1024

var (
	tokenIDPattern = regexp.MustCompile(`^[a-z0-9]{1,64}$`)
	hashPattern    = regexp.MustCompile(`^[0-9a-f]{64}$`)
)

// Expired reports whether the token is past its time at now.
func (t TokenRecord) Expired(now time.Time) bool { return !now.Before(t.ExpiresAt) }

// Validate reports the first field that is out of range.
func (t TokenRecord) Validate() error {
	switch life := t.ExpiresAt.Sub(t.CreatedAt); {
	case !tokenIDPattern.MatchString(t.ID):
		return fmt.Errorf("token %q: not an ID", t.ID)
	case t.Kind != trust.Join && t.Kind != trust.Publish:
		return fmt.Errorf("token %s: kind %q: use join or publish", t.ID, t.Kind)
	case t.Kind == trust.Publish && len(t.Shards) == 0:
		return fmt.Errorf("token %s: name at least one shard that it may publish", t.ID)
	case t.Kind == trust.Join && len(t.Shards) > 0:
		return fmt.Errorf("token %s: a join token is for no shard", t.ID)
	case !hashPattern.MatchString(t.Hash):
		return fmt.Errorf("token %s: not a hash of its secret", t.ID)
	case life <= 0 || life > MaxTokenLife:
		return fmt.Errorf("token %s: lives %s: use more than 0 and at most %s", t.ID, life, MaxTokenLife)
	case len(t.Note) > maxNote:
		return fmt.Errorf("token %s: a note of %d bytes: use at most %d", t.ID, len(t.Note), maxNote)
	}
	for _, shard := range t.Shards {
		if err := ValidName(shard); err != nil {
			return fmt.Errorf("token %s: shard %w", t.ID, err)
		}
	}
	return nil
}

// CreateToken stores a token. etcd forgets it by itself a week after it expired. ErrExists: there is one with this ID.
func (r *Registry) CreateToken(ctx context.Context, t TokenRecord) error {
	if err := t.Validate(); err != nil {
		return err
	}
	lease, err := r.GrantLease(ctx, t.ExpiresAt.Sub(t.CreatedAt)+expiredStays)
	if err != nil {
		return err
	}
	key := r.keys.Token(t.ID)
	_, err = r.swap(ctx, []clientv3.Cmp{absent(key)}, put(key, t, clientv3.WithLease(lease)))
	if errors.Is(err, ErrConflict) {
		err = ErrExists
	}
	if err != nil {
		return fmt.Errorf("token %s: %w", t.ID, err)
	}
	return nil
}

// Tokens returns all tokens, expired ones too, by ID. Records that cannot be read are left out.
func (r *Registry) Tokens(ctx context.Context) ([]TokenRecord, error) {
	resp, err := r.client.Get(ctx, r.keys.Tokens(), clientv3.WithPrefix())
	if err != nil {
		return nil, fmt.Errorf("read tokens: %w", unavailable(err))
	}
	out := make([]TokenRecord, 0, len(resp.Kvs))
	for _, kv := range resp.Kvs {
		var t TokenRecord
		if decode(string(kv.Key), kv.Value, &t) == nil {
			out = append(out, t)
		}
	}
	return out, nil
}

// Token returns one token, expired or not, or ErrNotFound.
func (r *Registry) Token(ctx context.Context, id string) (TokenRecord, error) {
	var t TokenRecord
	if !tokenIDPattern.MatchString(id) {
		return t, fmt.Errorf("token %q: %w", id, ErrNotFound)
	}
	revision, err := r.get(ctx, r.keys.Token(id), &t)
	t.revision = revision
	return t, err
}

// UseToken notes which instance has used a token that Token returned. ErrConflict: it is not any more as it was read. The
// instance that has used it may do so again.
func (r *Registry) UseToken(ctx context.Context, t TokenRecord, instance string) error {
	if t.UsedBy == instance {
		return nil
	}
	t.UsedBy = instance
	key := r.keys.Token(t.ID)
	if _, err := r.swap(ctx, []clientv3.Cmp{unchanged(key, t.revision)}, put(key, t, clientv3.WithIgnoreLease())); err != nil {
		return fmt.Errorf("use token %s: %w", t.ID, err)
	}
	return nil
}

// DeleteToken deletes a token. Of several that delete the same one, one gets nil and the others ErrNotFound: that is how
// a token is used once. After ErrUnavailable it may be gone.
func (r *Registry) DeleteToken(ctx context.Context, id string) error {
	if !tokenIDPattern.MatchString(id) {
		return fmt.Errorf("token %q: %w", id, ErrNotFound)
	}
	_, err := r.remove(ctx, r.keys.Token(id))
	return err
}
