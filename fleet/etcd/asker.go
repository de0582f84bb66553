package etcd

import (
	"cmp"
	"context"
	"fmt"
	"slices"
	"strings"
	"sync"
	"time"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
)

// asker puts questions to single members, each over a connection of its own that is kept for the next question, and made
// anew after a failure. It is safe for concurrent use.
type asker struct {
	routes *Routes // how to connect

	mu    sync.Mutex // guards conns
	conns map[string]*grpc.ClientConn
}

func newAsker(r *Routes) *asker { return &asker{routes: r, conns: map[string]*grpc.ClientConn{}} }

func (a *asker) conn(endpoint string) (*grpc.ClientConn, error) {
	a.mu.Lock()
	defer a.mu.Unlock()
	if c := a.conns[endpoint]; c != nil {
		return c, nil
	}
	c, err := grpc.NewClient("passthrough:///"+strings.TrimPrefix(endpoint, scheme),
		grpc.WithContextDialer(a.routes.Dial), grpc.WithTransportCredentials(insecure.NewCredentials())) // the tunnel has its own
	if err == nil {
		a.conns[endpoint] = c
	}
	return c, err
}

func (a *asker) drop(endpoint string, c *grpc.ClientConn) {
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.conns[endpoint] == c {
		delete(a.conns, endpoint)
	}
	c.Close()
}

func (a *asker) close() {
	a.mu.Lock()
	defer a.mu.Unlock()
	for endpoint, c := range a.conns {
		c.Close()
		delete(a.conns, endpoint)
	}
}

// ask puts one question, within a limit.
func ask[R any](ctx context.Context, a *asker, endpoint string, limit time.Duration, question func(context.Context, *grpc.ClientConn) (R, error)) (R, error) {
	ctx, cancel := context.WithTimeout(ctx, limit)
	defer cancel()
	var answer R
	c, err := a.conn(endpoint)
	if err == nil {
		if answer, err = question(ctx, c); err != nil {
			a.drop(endpoint, c)
		}
	}
	if err != nil {
		return answer, fmt.Errorf("etcd at %s: %w", endpoint, err)
	}
	return answer, nil
}

// members returns the member list, in order of ID, as a quorum agrees on it.
func (a *asker) members(ctx context.Context, endpoint string, limit time.Duration) ([]*pb.Member, error) {
	resp, err := ask(ctx, a, endpoint, limit, func(ctx context.Context, c *grpc.ClientConn) (*pb.MemberListResponse, error) {
		return pb.NewClusterClient(c).MemberList(ctx, &pb.MemberListRequest{Linearizable: true}, grpc.WaitForReady(true))
	})
	if err != nil {
		return nil, err
	}
	return inOrder(resp.Members), nil
}

func inOrder(list []*pb.Member) []*pb.Member {
	slices.SortFunc(list, func(a, b *pb.Member) int { return cmp.Compare(a.ID, b.ID) })
	return list
}

// status returns what a member says of itself.
func (a *asker) status(ctx context.Context, endpoint string, limit time.Duration) (*pb.StatusResponse, error) {
	return ask(ctx, a, endpoint, limit, func(ctx context.Context, c *grpc.ClientConn) (*pb.StatusResponse, error) {
		return pb.NewMaintenanceClient(c).Status(ctx, &pb.StatusRequest{}, grpc.WaitForReady(true))
	})
}

// moveLeader asks the leader, which alone can, to hand over to a voter.
func (a *asker) moveLeader(ctx context.Context, leader string, to uint64) error {
	_, err := ask(ctx, a, leader, stepLimit, func(ctx context.Context, c *grpc.ClientConn) (*pb.MoveLeaderResponse, error) {
		return pb.NewMaintenanceClient(c).MoveLeader(ctx, &pb.MoveLeaderRequest{TargetID: to})
	})
	return err
}
