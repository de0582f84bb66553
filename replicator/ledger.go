package replicator

import (
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"time"

	"go.etcd.io/bbolt"
	berrors "go.etcd.io/bbolt/errors"
	"golang.org/x/sys/unix"

	"github.com/nfs-fleet/nfs-fleet/replicator/store"
	"github.com/nfs-fleet/nfs-fleet/replicator/tree"
)

// Maxima are the highest numbers that this master has seen of a shard. They never go down.
type Maxima struct {
	Generation uint64 `json:"generation"`
	NextIno    uint64 `json:"next_ino"`
	Era        int    `json:"era,omitempty"`
	Epoch      int64  `json:"epoch"` // the highest of that era
}

// raise returns the maxima of m and what g names.
func (m Maxima) raise(g tree.Generation) Maxima {
	m.Generation, m.NextIno = max(m.Generation, g.Number), max(m.NextIno, g.NextIno)
	if (fence{m.Era, m.Epoch}).before(fenceOf(g)) {
		m.Era, m.Epoch = g.Era, g.Epoch
	}
	return m
}

// Join returns the higher of each.
func (m Maxima) Join(n Maxima) Maxima {
	return m.raise(tree.Generation{Number: n.Generation, NextIno: n.NextIno, Era: n.Era, Epoch: n.Epoch})
}

// Ledger is what a master remembers of its shards on its own disk: settings, maxima, retained generations. It is one
// file; every method is one durable transaction. Safe for concurrent use.
type Ledger struct{ db *bbolt.DB }

// Record is one shard's entry in a Ledger. The last generation is the head that this master served last.
type Record struct {
	Settings    json.RawMessage // the shard's settings as the master gave them
	Maxima      Maxima
	Generations []tree.Generation // oldest first
}

var (
	keySettings = []byte("settings")
	keyMaxima   = []byte("maxima")
	keyHistory  = []byte("generations")
)

// OpenLedger opens the ledger at path and makes it when there is none.
func OpenLedger(path string) (*Ledger, error) {
	db, err := bbolt.Open(path, 0o600, &bbolt.Options{Timeout: time.Second})
	if err != nil {
		return nil, fmt.Errorf("open ledger %s: %w", path, err)
	}
	return &Ledger{db}, nil
}

// Close releases the file.
func (l *Ledger) Close() error { return l.db.Close() }

// Read returns every shard's record.
func (l *Ledger) Read() (map[string]Record, error) {
	out := map[string]Record{}
	err := l.db.View(func(tx *bbolt.Tx) error {
		return tx.ForEach(func(name []byte, b *bbolt.Bucket) error {
			rec, err := readRecord(b)
			if err != nil {
				return fmt.Errorf("ledger, shard %s: %w", name, err)
			}
			out[string(name)] = rec
			return nil
		})
	})
	return out, err
}

func readRecord(b *bbolt.Bucket) (Record, error) {
	rec := Record{Settings: append(json.RawMessage(nil), b.Get(keySettings)...)}
	if v := b.Get(keyMaxima); v != nil {
		if err := json.Unmarshal(v, &rec.Maxima); err != nil {
			return rec, err
		}
	}
	history := b.Bucket(keyHistory)
	if history == nil {
		return rec, nil
	}
	return rec, history.ForEach(func(_, v []byte) error {
		var g tree.Generation
		if err := json.Unmarshal(v, &g); err != nil {
			return err
		}
		rec.Generations = append(rec.Generations, g)
		return nil
	})
}

// SetSettings remembers a shard's settings.
func (l *Ledger) SetSettings(shard string, settings json.RawMessage) error {
	return l.update(shard, func(b *bbolt.Bucket) error { return b.Put(keySettings, settings) })
}

// Raise remembers the inos and the epoch of a generation that is about to be published, so that they are not issued
// again even if neither etcd nor this master learns how the publish ended. Its number counts when it is Appended.
func (l *Ledger) Raise(shard string, g tree.Generation) error {
	g.Number = 0
	return l.update(shard, func(b *bbolt.Bucket) error { return raise(b, g) })
}

// Append remembers a generation as the one served now, and forgets those below oldest.
func (l *Ledger) Append(shard string, g tree.Generation, oldest uint64) error {
	return l.update(shard, func(b *bbolt.Bucket) error {
		if err := raise(b, g); err != nil {
			return err
		}
		history, err := b.CreateBucketIfNotExists(keyHistory)
		if err != nil {
			return err
		}
		if err := putJSON(history, generationKey(g.Number), g); err != nil {
			return err
		}
		c := history.Cursor()
		for k, _ := c.First(); k != nil && binary.BigEndian.Uint64(k) < oldest; k, _ = c.First() {
			if err := c.Delete(); err != nil {
				return err
			}
		}
		return nil
	})
}

// Forget drops everything about a shard.
func (l *Ledger) Forget(shard string) error {
	return l.db.Update(func(tx *bbolt.Tx) error {
		if err := tx.DeleteBucket([]byte(shard)); !errors.Is(err, berrors.ErrBucketNotFound) {
			return err
		}
		return nil
	})
}

func (l *Ledger) update(shard string, fn func(*bbolt.Bucket) error) error {
	err := l.db.Update(func(tx *bbolt.Tx) error {
		b, err := tx.CreateBucketIfNotExists([]byte(shard))
		if err != nil {
			return err
		}
		return fn(b)
	})
	return ledgerError(shard, err)
}

// ledgerError is the error of a write. A disk without room is one kind of trouble, whatever meets it first.
func ledgerError(shard string, err error) error {
	switch {
	case err == nil:
		return nil
	case errors.Is(err, unix.ENOSPC), errors.Is(err, unix.EDQUOT):
		err = fmt.Errorf("%w: %w", store.ErrFull, err)
	}
	return fmt.Errorf("ledger, shard %s: %w", shard, err)
}

func raise(b *bbolt.Bucket, g tree.Generation) error {
	var m Maxima
	if v := b.Get(keyMaxima); v != nil {
		if err := json.Unmarshal(v, &m); err != nil {
			return err
		}
	}
	return putJSON(b, keyMaxima, m.raise(g))
}

func putJSON(b *bbolt.Bucket, key []byte, v any) error {
	text, err := json.Marshal(v)
	if err != nil {
		return err
	}
	return b.Put(key, text)
}

func generationKey(n uint64) []byte { return binary.BigEndian.AppendUint64(nil, n) }
