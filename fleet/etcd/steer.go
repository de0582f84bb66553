package etcd

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	"github.com/rs/zerolog"
	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
	clientv3 "go.etcd.io/etcd/client/v3"
)

const (
	steerEvery = 2 * time.Second
	stepLimit  = 10 * time.Second // for one step: etcd itself gives up after 7 s
	askLimit   = 2 * time.Second  // for one member's answer
	// inSyncLag is by how many log entries a learner may be behind: less than a second of a busy fleet.
	inSyncLag = 500
)

// Steering is what Steer needs to know.
type Steering struct {
	Client  *clientv3.Client
	Routes  *Routes            // that the client dials by
	Masters func() []Candidate // the masters of the fleet; nil while they are not known
	Logger  zerolog.Logger

	hurry time.Duration // for tests: the longest that a step has to settle; 0: as planned
}

// Steer performs Plan's actions one at a time, every two seconds a look, until ctx ends: it is for the coordinator, under
// the context of its term. What fails is tried again. Its error is always nil.
func Steer(ctx context.Context, s Steering) error {
	p := &pilot{Steering: s, asker: newAsker(s.Routes), due: map[Action]time.Time{}}
	defer p.asker.close()
	tick := time.NewTicker(steerEvery)
	defer tick.Stop()
	for {
		p.look(ctx)
		select {
		case <-ctx.Done():
			return nil
		case <-tick.C:
		}
	}
}

// pilot is a running Steer. It is used by one goroutine.
type pilot struct {
	Steering
	asker  *asker
	due    map[Action]time.Time // since when
	failed string               // what was logged last
}

// look takes steps until there is none to take now. Several follow each other without a pause: between the promotions of
// a pair the number of voters is even.
func (p *pilot) look(ctx context.Context) {
	for range 2 * MaxVoters {
		members, err := look(ctx, p.Client, p.asker)
		if err != nil {
			p.Logger.Debug().Err(err).Msg("etcd members: no look now")
			return
		}
		masters := p.Masters()
		if len(masters) == 0 {
			return
		}
		a, ok := p.settled(Plan(members, masters), time.Now())
		if !ok {
			p.failed = ""
			return
		}
		if err := p.perform(ctx, a, members); err != nil {
			p.complain(ctx, a, err)
			return
		}
		p.failed = ""
		p.Logger.Info().Str("step", string(a.Kind)).Str("member", memberID(a.ID)).Str("of", a.Name).Str("why", a.Why).Msg("etcd membership changed")
	}
}

// settled returns the first action that has been due for long enough, and forgets those that are not due any more.
func (p *pilot) settled(actions []Action, now time.Time) (Action, bool) {
	due := make(map[Action]time.Time, len(actions))
	for _, a := range actions {
		if since, ok := p.due[a]; ok {
			due[a] = since
		} else {
			due[a] = now
		}
	}
	p.due = due
	for _, a := range actions {
		settle := a.Settle
		if p.hurry > 0 {
			settle = min(settle, p.hurry)
		}
		if now.Sub(due[a]) >= settle {
			return a, true
		}
	}
	return Action{}, false
}

func (p *pilot) perform(ctx context.Context, a Action, members []Seat) error {
	ctx, cancel := context.WithTimeout(ctx, stepLimit)
	defer cancel()
	var err error
	switch a.Kind {
	case AddLearner:
		_, err = p.Client.MemberAddAsLearner(ctx, []string{a.PeerURL})
	case Promote:
		_, err = p.Client.MemberPromote(ctx, a.ID)
	case Remove:
		_, err = p.Client.MemberRemove(ctx, a.ID)
	case Transfer:
		for _, s := range members {
			if s.Leader {
				err = p.asker.moveLeader(ctx, p.Routes.Endpoint(s.Name), a.ID)
			}
		}
	default:
		err = errors.New("unknown step")
	}
	if err != nil {
		return fmt.Errorf("%s %s: %w", a.Kind, cmp.Or(a.Name, a.PeerURL), err)
	}
	return nil
}

// complain logs a failure once, and as no news when etcd only asks for patience.
func (p *pilot) complain(ctx context.Context, a Action, err error) {
	level := zerolog.WarnLevel
	if ctx.Err() != nil || errors.Is(err, rpctypes.ErrMemberLearnerNotReady) || errors.Is(err, rpctypes.ErrUnhealthy) || p.failed == err.Error() {
		level = zerolog.DebugLevel
	}
	p.failed = err.Error()
	p.Logger.WithLevel(level).Err(err).Str("why", a.Why).Msg("etcd membership: trying again in 2 s")
}

// Members returns the seats of the cluster, in order of ID, by one linearizable look at the list and one question to each
// member, two seconds each at most. It fails without a quorum.
func Members(ctx context.Context, client *clientv3.Client, routes *Routes) ([]Seat, error) {
	a := newAsker(routes)
	defer a.close()
	return look(ctx, client, a)
}

func look(ctx context.Context, client *clientv3.Client, a *asker) ([]Seat, error) {
	listing, cancel := context.WithTimeout(ctx, askLimit)
	defer cancel()
	resp, err := client.MemberList(listing)
	if err != nil {
		return nil, fmt.Errorf("etcd members: %w", err)
	}
	list := inOrder(resp.Members)
	seats := make([]Seat, len(list))
	states := make([]*pb.StatusResponse, len(list)) // nil: no answer
	var wait sync.WaitGroup
	for i, m := range list {
		seats[i] = Seat{ID: m.ID, Name: m.Name, Learner: m.IsLearner}
		if len(m.PeerURLs) > 0 {
			seats[i].PeerURL = m.PeerURLs[0]
		}
		if m.Name == "" {
			continue // not started
		}
		wait.Go(func() {
			st, err := a.status(ctx, a.routes.Endpoint(m.Name), askLimit)
			if err == nil && st.Header.GetMemberId() == m.ID { // and not another member in its place
				states[i] = st
			}
		})
	}
	wait.Wait()
	judge(seats, states)
	return seats, nil
}

// judge says who is well, from the answers: those that follow the leader of the highest term.
func judge(seats []Seat, states []*pb.StatusResponse) {
	var newest *pb.StatusResponse
	for _, st := range states {
		if st != nil && st.Leader != 0 && (newest == nil || st.RaftTerm > newest.RaftTerm) {
			newest = st
		}
	}
	if newest == nil {
		return
	}
	var committed uint64
	for i, st := range states {
		if st == nil || st.Leader != newest.Leader || st.RaftTerm != newest.RaftTerm {
			continue
		}
		seats[i].Healthy = true
		seats[i].Leader = st.Leader == seats[i].ID
		committed = max(committed, st.RaftIndex)
	}
	for i, st := range states {
		seats[i].InSync = seats[i].Healthy && st.RaftAppliedIndex+inSyncLag >= committed
	}
}

// Role names what a master is to etcd: "leader", "voter", "learner" or "client".
func Role(members []Seat, master string) string {
	for _, s := range members {
		switch {
		case s.Name != master || master == "":
		case s.Leader:
			return "leader"
		case s.Learner:
			return "learner"
		default:
			return "voter"
		}
	}
	return "client"
}

// memberID writes a member's ID as etcdctl does.
func memberID(id uint64) string { return fmt.Sprintf("%x", id) }
