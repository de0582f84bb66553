package election

import (
	"context"
	"errors"
	"hash/fnv"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	clientv3 "go.etcd.io/etcd/client/v3"
	"google.golang.org/grpc"
)

// endpoints chooses the endpoint that requests go to.
//
// The client itself spreads its requests over all endpoints by turns, so that one silent endpoint fails every n-th
// request for as long as it is silent, and a second try may hit it again. Here one endpoint is used until it fails, and
// then the next, over a connection of its own. A connection is closed when it is left and made anew when its turn comes
// again: neither gRPC's growing pauses between attempts nor TCP's on a link that was cut outlive the fault.
type endpoints struct {
	client *clientv3.Client

	mu     sync.Mutex // guards the rest
	next   int
	now    *endpoint // nil: the next is still to be connected
	closed bool

	closing sync.WaitGroup // connections: gRPC takes up to 5 s to close one that went silent
}

// endpoint is one connection to one endpoint. It is safe for concurrent use.
type endpoint struct {
	address string
	conn    *grpc.ClientConn
	kv      clientv3.KV
	lease   pb.LeaseClient
	watch   pb.WatchClient
	left    context.Context // ends when the endpoint is left
	leave   context.CancelFunc
	heard   atomic.Int64 // when it last answered, as time since processStart

	mu     sync.Mutex // guards renewals, one at a time, and stream
	stream *keepAliveStream
}

type keepAliveStream struct {
	pb.Lease_LeaseKeepAliveClient
	cancel context.CancelFunc
}

// newEndpoints lets each master begin with another endpoint.
func newEndpoints(c *clientv3.Client, master string) *endpoints {
	h := fnv.New32a()
	h.Write([]byte(master))
	return &endpoints{client: c, next: int(h.Sum32() % 1024)}
}

// present returns the endpoint in use. Connecting is left to the first request.
func (e *endpoints) present() (*endpoint, error) {
	e.mu.Lock()
	defer e.mu.Unlock()
	list := e.client.Endpoints()
	switch {
	case e.closed:
		return nil, errors.New("the election has ended")
	case len(list) == 0:
		return nil, errors.New("no etcd endpoints")
	case e.now != nil && slices.Contains(list, e.now.address):
		return e.now, nil
	case e.now != nil:
		e.drop()
	}
	address := list[e.next%len(list)]
	conn, err := e.client.Dial(address)
	if err != nil {
		e.next++
		return nil, err
	}
	left, leave := context.WithCancel(context.Background())
	e.now = &endpoint{
		address: address, conn: conn, kv: clientv3.NewKVFromKVClient(pb.NewKVClient(conn), e.client),
		lease: pb.NewLeaseClient(conn), watch: pb.NewWatchClient(conn), left: left, leave: leave,
	}
	return e.now, nil
}

// leave goes on to the next endpoint, unless another request has already done so.
func (e *endpoints) leave(ep *endpoint) {
	e.mu.Lock()
	defer e.mu.Unlock()
	if e.now == ep {
		e.next++
		e.drop()
	}
}

// drop closes the present connection; its requests, streams and watches fail. The caller holds e.mu.
func (e *endpoints) drop() {
	e.now.leave()
	conn := e.now.conn
	e.closing.Go(func() { conn.Close() })
	e.now = nil
}

// close waits until the connections are closed, or until ctx ends.
func (e *endpoints) close(ctx context.Context) {
	e.mu.Lock()
	if e.now != nil {
		e.drop()
	}
	e.closed = true
	e.mu.Unlock()
	done := make(chan struct{})
	go func() { // ends as soon as gRPC has given up on them
		defer close(done)
		e.closing.Wait()
	}()
	select {
	case <-done:
	case <-ctx.Done():
	}
}

// answered notes that the endpoint has said something.
func (ep *endpoint) answered() { ep.heard.Store(int64(time.Since(processStart))) }

// silentSince reports whether the endpoint has said nothing at all since then.
func (ep *endpoint) silentSince(t time.Time) bool {
	return ep.heard.Load() < int64(t.Sub(processStart))
}

// while returns a context that also ends when the endpoint is left.
func (ep *endpoint) while(ctx context.Context) (context.Context, context.CancelFunc) {
	ctx, cancel := context.WithCancel(ctx)
	stop := context.AfterFunc(ep.left, cancel)
	return ctx, func() { stop(); cancel() }
}

// keepAlive renews a lease with one request and one answer, the TTL; 0 says that there is no such lease.
//
// The stream that carries them stays open from one renewal to the next, because with etcd users the client proves its
// password again for each stream, which costs etcd a bcrypt and a raft proposal. It serves no more after any failure,
// so that a late answer is never taken for that to a later request, and a token that has expired is replaced.
func (ep *endpoint) keepAlive(ctx context.Context, id int64) (ttl int64, err error) {
	ep.mu.Lock()
	defer ep.mu.Unlock()
	if ep.stream == nil {
		if ep.stream, err = ep.openStream(ctx); err != nil {
			return 0, err
		}
	}
	stream := ep.stream
	stop := context.AfterFunc(ctx, stream.cancel)
	ttl, err = stream.renew(id)
	if !stop() || err != nil {
		stream.cancel()
		ep.stream = nil
	}
	if err != nil && ctx.Err() != nil {
		err = context.Cause(ctx)
	}
	return ttl, err
}

func (ep *endpoint) openStream(ctx context.Context) (*keepAliveStream, error) {
	life, cancel := context.WithCancel(context.WithoutCancel(ctx)) // keeps the metadata of ctx
	stop := context.AfterFunc(ctx, cancel)
	stream, err := ep.lease.LeaseKeepAlive(life)
	if err == nil && !stop() {
		err = context.Cause(ctx)
	}
	if err != nil {
		cancel()
		return nil, err
	}
	return &keepAliveStream{stream, cancel}, nil
}

func (s *keepAliveStream) renew(id int64) (int64, error) {
	if err := s.Send(&pb.LeaseKeepAliveRequest{ID: id}); err != nil {
		_, err = s.Recv() // Send only says EOF; why the stream ended is in Recv
		if err == nil {
			err = errors.New("the stream has ended")
		}
		return 0, err
	}
	resp, err := s.Recv()
	if err != nil {
		return 0, err
	}
	return resp.TTL, nil
}
