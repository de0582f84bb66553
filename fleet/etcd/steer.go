package etcd

import (
	"context"

	"github.com/rs/zerolog"
	clientv3 "go.etcd.io/etcd/client/v3"
)

// Steering is what Steer needs to know.
type Steering struct {
	Client  *clientv3.Client
	Routes  *Routes            // that the client dials by
	Masters func() []Candidate // the masters of the fleet; nil while they are not known
	Logger  zerolog.Logger
}

// Steer performs Plan's actions one at a time, every two seconds a look, until ctx ends: it is for the coordinator, under
// the context of its term. What fails is tried again. Its error is always nil.
func Steer(ctx context.Context, s Steering) error {
	<-ctx.Done()
	return nil
}

// Members returns the seats of the cluster, in order of ID, by one linearizable look at the list and one at each
// member, a second each at most. It fails without a quorum.
func Members(ctx context.Context, client *clientv3.Client, routes *Routes) ([]Seat, error) {
	return nil, nil
}

// Role names what a master is to etcd: "leader", "voter", "learner" or "client".
func Role(members []Seat, master string) string { return "client" }
