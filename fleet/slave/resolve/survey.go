package resolve

import (
	"context"
	"sync"
	"time"

	"github.com/miekg/dns"

	"github.com/nfs-fleet/nfs-fleet/fleet/slave/relay"
)

// Opinion is what one name server says of a SRV name.
type Opinion struct {
	Server  string
	Took    time.Duration
	Targets []relay.Target // in the order in which they are to be tried
	TTL     time.Duration  // the least of the SRV records'
	Err     error
}

// Survey asks each name server by itself, once, all at the same time; Masters is content with the first that answers.
func (r Resolver) Survey(ctx context.Context, name string) ([]Opinion, error) {
	servers, err := r.servers()
	if err != nil {
		return nil, err
	}
	out := make([]Opinion, len(servers))
	var wg sync.WaitGroup
	for i, server := range servers {
		wg.Go(func() { out[i] = opinion(ctx, server, name) })
	}
	wg.Wait()
	return out, nil
}

func opinion(ctx context.Context, server, name string) Opinion {
	began := time.Now()
	said := put(ctx, server, name, dns.TypeSRV)
	o := Opinion{Server: server, Took: time.Since(began), Err: said.err}
	if o.Err != nil {
		return o
	}
	for _, rr := range said.answer.Answer {
		if srv, ok := rr.(*dns.SRV); ok {
			if ttl := time.Duration(srv.Hdr.Ttl) * time.Second; o.TTL == 0 || ttl < o.TTL {
				o.TTL = ttl
			}
		}
	}
	o.Targets, o.Err = targets(ctx, []string{server}, name, said.answer)
	return o
}
