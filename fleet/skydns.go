package fleet

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"

	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
	clientv3 "go.etcd.io/etcd/client/v3"
)

// SkyDNS is what the fleet remembers of the DNS records that it keeps in etcd, outside of its prefix.
type SkyDNS struct {
	Domains []string `json:"domains"` // under which there may be some
}

// ErrDenied says that etcd does not let this user do something.
var ErrDenied = errors.New("etcd does not permit it")

// skyPage is how many records are read at once.
const skyPage = 1000

// SkyDNS returns what the fleet remembers of its DNS records.
func (r *Registry) SkyDNS(ctx context.Context) (SkyDNS, error) {
	var s SkyDNS
	_, err := r.get(ctx, r.keys.SkyDNS(), &s)
	if errors.Is(err, ErrNotFound) {
		return SkyDNS{}, nil
	}
	return s, err
}

// Records returns the DNS records under the prefixes, whoever has put them there. ErrDenied: etcd does not let them be read.
func (r *Registry) Records(ctx context.Context, prefixes []string) (map[string]string, error) {
	out := map[string]string{}
	for _, prefix := range prefixes {
		for from, end := prefix, clientv3.GetPrefixRangeEnd(prefix); from != ""; {
			resp, err := r.client.Get(ctx, from, clientv3.WithRange(end), clientv3.WithLimit(skyPage))
			if err != nil {
				return nil, fmt.Errorf("read DNS records: %w", denied(err))
			}
			from = ""
			for _, kv := range resp.Kvs {
				out[string(kv.Key)] = string(kv.Value)
				if resp.More {
					from = string(kv.Key) + "\x00"
				}
			}
		}
	}
	return out, nil
}

// MaxRecords is how many records one WriteRecords takes.
const MaxRecords = maxOps

// WriteRecords puts and deletes DNS records, MaxRecords together at the most, and remembers s if it is not nil, all in one
// transaction, if f, of the coordinator, still holds. ErrFenced: it does not. ErrDenied: etcd does not let them be written.
func (r *Registry) WriteRecords(ctx context.Context, f Fence, s *SkyDNS, puts map[string]string, gone []string) error {
	var ops []clientv3.Op
	if s != nil && len(s.Domains) > 0 {
		ops = append(ops, put(r.keys.SkyDNS(), s))
	} else if s != nil {
		ops = append(ops, clientv3.OpDelete(r.keys.SkyDNS()))
	}
	for _, key := range slices.Sorted(maps.Keys(puts)) {
		ops = append(ops, clientv3.OpPut(key, puts[key]))
	}
	for _, key := range gone {
		ops = append(ops, clientv3.OpDelete(key))
	}
	_, err := r.swap(ctx, []clientv3.Cmp{f.holds()}, ops...)
	if errors.Is(err, ErrConflict) {
		err = ErrFenced
	}
	if err != nil {
		return fmt.Errorf("write DNS records: %w", denied(err))
	}
	return nil
}

// denied wraps ErrDenied around etcd's word for it.
func denied(err error) error {
	if errors.Is(err, rpctypes.ErrPermissionDenied) {
		return fmt.Errorf("%w: %w", ErrDenied, err)
	}
	return unavailable(err)
}
