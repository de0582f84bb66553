package etcd

import (
	"context"
	"errors"
	"fmt"
	"path/filepath"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
	clientv3 "go.etcd.io/etcd/client/v3"
	"golang.org/x/sys/unix"
)

const (
	followEvery  = time.Second
	followLimit  = time.Second // for one member's answer
	askAtOnce    = 8           // members, while it is not known who serves
	reclaimEvery = time.Minute
	roomToRun    = 16 << 20        // bytes: what a busy log writes in the second between two looks
	roomToStart  = 80 << 20        // bytes: a segment of the log is 64 MiB
	firstPause   = 2 * time.Second // before the member is started again after a failure; doubled each time
	longestPause = time.Minute
)

// Run keeps the member as the cluster's member list wants it, the routes to where etcd answers, and the
// database within its quota, until ctx ends; then it closes the member. It survives whatever happens to etcd; its error
// is always nil.
func (m *Member) Run(ctx context.Context, client *clientv3.Client, routes *Routes) error {
	defer m.Close()
	f := &follower{m: m, client: client, routes: routes, asker: newAsker(routes)}
	defer f.asker.close()
	defer f.closing.Wait()
	tick, reclaim := time.NewTicker(followEvery), time.NewTicker(reclaimEvery)
	defer tick.Stop()
	defer reclaim.Stop()
	for {
		f.look(ctx)
		select {
		case <-ctx.Done():
			return nil
		case <-tick.C:
		case <-m.over():
		case <-reclaim.C:
			if err := f.reclaim(ctx); err != nil && ctx.Err() == nil {
				m.cfg.Logger.Warn().Err(err).Msg("embedded etcd: reclaiming space failed; trying again in a minute")
			}
		}
	}
}

// follower is a running Run. It is used by one goroutine.
type follower struct {
	m      *Member
	client *clientv3.Client
	routes *Routes
	asker  *asker

	via   string        // the endpoint that gave the last list
	from  int           // where in the order of the others the next questions begin
	next  time.Time     // when the member may be started again
	pause time.Duration // after the next failure
	full  bool          // the member waits for room on the disk

	closing sync.WaitGroup // of a member that has ended by itself
	closes  atomic.Bool    // that is under way: its ports and its directory may not be free yet
}

func (f *follower) look(ctx context.Context) {
	f.bury()
	f.makeRoom()
	own := f.m.present()
	if own != nil && own.isReady() {
		f.pause = 0
	}
	f.m.mu.Lock()
	stuck := f.m.stuck || f.full || f.closes.Load()
	f.m.mu.Unlock()
	list, via := f.list(ctx, own)
	if ctx.Err() != nil {
		return
	}
	if list != nil {
		f.routes.setVoters(voterNames(list))
		f.reconcile(ctx, list, stuck)
	} else if own == nil && !stuck && f.m.Holds() {
		f.start(ctx, nil) // the cluster may be waiting for just this member
	}
	f.connect(ctx, list, via)
}

// bury closes a member that has ended by itself.
func (f *follower) bury() {
	r := f.m.present()
	if r == nil || !r.isOver() {
		return
	}
	if errors.Is(r.err, errRemoved) {
		f.m.cfg.Logger.Warn().Msg(r.err.Error())
	} else {
		f.m.cfg.Logger.Error().Err(r.err).Msg("the etcd in this master has ended")
		f.m.failed(r.err)
	}
	f.wait()
	f.avoid()
	f.closes.Store(true)
	f.m.detach()
	f.closing.Go(func() { // which can take long, or for ever, when its goroutines have failed
		defer f.closes.Store(false)
		f.m.finish(r)
	})
}

// avoid sends the client to other masters' voters at once, because this one's has ended. Which of them answers is found
// out with the next look.
func (f *follower) avoid() {
	self := f.routes.Endpoint(f.m.cfg.Name)
	others := slices.DeleteFunc(f.routes.fallback(), func(e string) bool { return e == self })
	if len(others) > 0 {
		f.routes.lead(others)
	}
}

// makeRoom ends the member in good order before the disk under it is full, because etcd does not outlive an error of a
// write, and lets it start again when there is room.
func (f *follower) makeRoom() {
	free, err := freeBytes(filepath.Dir(f.m.cfg.Dir))
	switch {
	case err != nil:
	case f.full && free >= roomToStart:
		f.full = false
		f.m.clear()
	case !f.full && free < roomToRun && f.m.present() != nil:
		f.full = true
		err := fmt.Errorf("embedded etcd waits for room: the disk of %s has %d MiB free, and %d are needed", f.m.cfg.Dir, free>>20, roomToStart>>20)
		f.m.cfg.Logger.Error().Err(err).Msg("the etcd in this master pauses")
		f.m.failed(err)
		f.m.end()
	}
}

func freeBytes(dir string) (uint64, error) {
	var st unix.Statfs_t
	if err := unix.Statfs(dir, &st); err != nil {
		return 0, err
	}
	return st.Bavail * uint64(st.Bsize), nil
}

// list asks for the member list: the own member first, then whoever gave it last, and then, some at a time, everyone that
// there is a way to.
func (f *follower) list(ctx context.Context, own *running) (list []*pb.Member, via string) {
	self := f.routes.Endpoint(f.m.cfg.Name)
	groups := [][]string{nil, nil, nil}
	if own != nil && own.isReady() {
		groups[0] = []string{self}
	}
	if f.via != "" && f.via != self {
		groups[1] = []string{f.via}
	}
	others := slices.DeleteFunc(f.routes.fallback(), func(e string) bool { return e == self || e == f.via })
	if n := len(others); n > 0 {
		for i := range min(n, askAtOnce) {
			groups[2] = append(groups[2], others[(f.from+i)%n])
		}
	}
	for _, g := range groups {
		if list, via := f.firstList(ctx, g); list != nil {
			f.via, f.from = via, 0
			return list, via
		}
	}
	f.from += askAtOnce
	return nil, ""
}

// firstList asks several members at once and takes the first answer.
func (f *follower) firstList(ctx context.Context, endpoints []string) (list []*pb.Member, via string) {
	type answer struct {
		list []*pb.Member
		via  string
	}
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	answers := make(chan answer, len(endpoints))
	for _, e := range endpoints {
		go func() { // ends with ctx
			list, err := f.asker.members(ctx, e, followLimit)
			if err != nil {
				f.m.cfg.Logger.Trace().Err(err).Msg("etcd members: no answer")
			}
			answers <- answer{list, e}
		}()
	}
	for range endpoints {
		if a := <-answers; len(a.list) > 0 {
			return a.list, a.via
		}
	}
	return nil, ""
}

func voterNames(list []*pb.Member) (names []string) {
	for _, p := range list {
		if !p.IsLearner && p.Name != "" {
			names = append(names, p.Name)
		}
	}
	slices.Sort(names)
	return slices.Compact(names)
}

// reconcile makes the member what the list says that it is.
func (f *follower) reconcile(ctx context.Context, list []*pb.Member, stuck bool) {
	var claim *pb.Member // a place at this master's address that nobody has taken
	has := map[uint64]*pb.Member{}
	for _, p := range list {
		has[p.ID] = p
		if p.Name == "" && slices.Contains(p.PeerURLs, f.m.cfg.PeerURL) {
			claim = p
		}
	}
	if r := f.m.present(); r != nil {
		if p := has[r.id()]; p != nil {
			f.move(ctx, p, list)
			return
		}
		f.m.cfg.Logger.Warn().Str("member", memberID(r.id())).Msg(errRemoved.Error())
		f.m.stop()
		f.next = time.Time{}
	}
	noted := f.m.notedID()
	gone := noted != 0 && has[noted] == nil
	if f.m.Holds() && (gone || claim != nil && claim.ID != noted) {
		if err := f.m.setAside(); err != nil {
			f.m.failed(err)
			return
		}
		gone = true
	}
	switch {
	case stuck: // its error says what to do
	case f.m.Holds():
		f.start(ctx, nil)
	case claim != nil:
		f.start(ctx, list)
	case gone:
		f.m.clear()
	}
}

// clear forgets an error of a member that is no more.
func (m *Member) clear() {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.err = nil
}

// start starts the member that is on disk, or takes the place that the list has, unless it failed a short while ago.
func (f *follower) start(ctx context.Context, list []*pb.Member) {
	if time.Now().Before(f.next) {
		return
	}
	if list != nil { // what an attempt that did not get through has left
		if err := f.m.setAside(); err != nil {
			f.m.failed(err)
			f.wait()
			return
		}
	}
	err := f.m.start(ctx, list == nil, list)
	switch {
	case err == nil:
		return
	case list != nil && f.pause == 0: // as when the list has changed meanwhile
		f.m.cfg.Logger.Debug().Err(err).Msg("the etcd in this master does not start; trying again")
	default:
		f.m.cfg.Logger.Error().Err(err).Msg("the etcd in this master does not start; trying again")
		f.m.failed(err)
	}
	f.wait()
}

// wait puts the next start off, longer each time.
func (f *follower) wait() {
	f.pause = min(max(2*f.pause, firstPause), longestPause)
	f.next = time.Now().Add(f.pause)
}

// move tells the cluster when this master has another address than the list says.
func (f *follower) move(ctx context.Context, p *pb.Member, list []*pb.Member) {
	url := f.m.cfg.PeerURL
	if slices.Equal(p.PeerURLs, []string{url}) || slices.ContainsFunc(list, func(o *pb.Member) bool { return o.ID != p.ID && slices.Contains(o.PeerURLs, url) }) {
		return
	}
	ctx, cancel := context.WithTimeout(ctx, stepLimit)
	defer cancel()
	if _, err := f.client.MemberUpdate(ctx, p.ID, []string{url}); err != nil {
		f.m.cfg.Logger.Debug().Err(err).Msg("the new address of this master's etcd could not be told to the others")
		return
	}
	f.m.cfg.Logger.Info().Strs("before", p.PeerURLs).Str("now", url).Msg("etcd member moved")
}

// connect sends the client where it is served best: to this master's own voter while that answers with a quorum behind
// it, and otherwise to the voters of other masters that follow a leader.
func (f *follower) connect(ctx context.Context, list []*pb.Member, via string) {
	self := f.routes.Endpoint(f.m.cfg.Name)
	var want []string
	switch {
	case list != nil && via == self:
		want = []string{self}
	case list != nil:
		var others []string
		for _, name := range voterNames(list) {
			if name != f.m.cfg.Name {
				others = append(others, name)
			}
		}
		want = f.answering(ctx, f.routes.endpoints(others))
	}
	if len(want) == 0 {
		want = f.routes.fallback()
	}
	if ctx.Err() == nil {
		f.routes.lead(want)
	}
}

// answering returns the first few endpoints whose member follows a leader.
func (f *follower) answering(ctx context.Context, endpoints []string) (list []string) {
	good := make([]bool, len(endpoints))
	var wait sync.WaitGroup
	for i, e := range endpoints {
		wait.Go(func() {
			st, err := f.asker.status(ctx, e, followLimit)
			good[i] = err == nil && st.Leader != 0 && !st.IsLearner
		})
	}
	wait.Wait()
	for i, e := range endpoints {
		if good[i] && len(list) < slots {
			list = append(list, e)
		}
	}
	return list
}

// reclaim compacts and defragments the own member when etcd has raised NOSPACE or most of its file is free, and lifts its
// alarm. A leader hands over first, because a member that is being defragmented answers nobody.
func (f *follower) reclaim(ctx context.Context) error {
	r := f.m.present()
	if r == nil || !r.isReady() {
		return nil
	}
	endpoint := f.routes.Endpoint(f.m.cfg.Name)
	st, err := f.asker.status(ctx, endpoint, followLimit)
	if err != nil {
		return err
	}
	alarm, err := f.alarmed(ctx, r.id())
	if err != nil {
		return err
	}
	if !alarm && (st.DbSize < 64<<20 || st.DbSizeInUse > st.DbSize/2) {
		return nil
	}
	if err := r.handOver(ctx); err != nil {
		f.m.cfg.Logger.Debug().Err(err).Msg("defragmenting as leader")
	}
	if err := f.squeeze(ctx, endpoint, r.id(), st, alarm); err != nil {
		return err
	}
	f.m.cfg.Logger.Info().Bool("nospace", alarm).Int64("db_bytes", st.DbSize).Msg("embedded etcd: space reclaimed")
	return nil
}

// alarmed reports whether a member has raised NOSPACE.
func (f *follower) alarmed(ctx context.Context, id uint64) (bool, error) {
	ctx, cancel := context.WithTimeout(ctx, stepLimit)
	defer cancel()
	resp, err := f.client.AlarmList(ctx)
	if err != nil {
		return false, err
	}
	return slices.ContainsFunc(resp.Alarms, func(a *pb.AlarmMember) bool { return a.Alarm == pb.AlarmType_NOSPACE && a.MemberID == id }), nil
}

func (f *follower) squeeze(ctx context.Context, endpoint string, id uint64, st *pb.StatusResponse, alarm bool) error {
	if alarm {
		_, err := f.client.Compact(ctx, st.Header.Revision)
		if err != nil && !errors.Is(err, rpctypes.ErrCompacted) {
			return err
		}
	}
	if _, err := f.client.Defragment(ctx, endpoint); err != nil {
		return err
	}
	if alarm {
		if _, err := f.client.AlarmDisarm(ctx, &clientv3.AlarmMember{MemberID: id, Alarm: pb.AlarmType_NOSPACE}); err != nil {
			return err
		}
	}
	return nil
}
