package master

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"

	"github.com/nfs-fleet/nfs-fleet/fleet/console"
)

// A fleet whose embedded etcd has lost its quorum for good, because most of the voters' disks are gone, goes on from one
// master: an operator says so (`recover --lost-quorum`), and at its next start that master's etcd becomes a cluster of
// one. A file in the data directory carries the word over the restart, once.

func (m *Master) rescueFile() string { return m.data.join("rescue-etcd") }

func (m *Master) toRescue() bool {
	_, err := os.Stat(m.rescueFile())
	return err == nil
}

// rescue starts the etcd that the disk has as a cluster of one; without any, a new one, for `recover` to fill. The word
// counts no more when another master holds a lease by now: that one was rescued meanwhile, and two clusters of one are two
// fleets.
func (m *Master) rescue(ctx context.Context) error {
	if alive := m.leaseholder(ctx); alive != "" {
		m.log.Error().Str("peer", alive).Msg("the etcd in this process is not rescued: another master holds a lease")
		if err := os.Remove(m.rescueFile()); err != nil {
			return fmt.Errorf("the rescue is not to happen: %w", err)
		}
		return m.member.Open(ctx, false)
	}
	var err error
	if m.member.Holds() {
		err = m.member.Rescue(ctx)
	} else {
		err = m.member.Open(ctx, true)
	}
	if err != nil {
		return err
	}
	m.log.Warn().Msg("the etcd in this process is a cluster of one now; the other masters join it by themselves")
	if err := os.Remove(m.rescueFile()); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("the rescue is not to happen twice: %w", err)
	}
	return nil
}

// askRescue has this master's etcd rescued at the next start, unless the fleet's etcd is alive somewhere.
func (c control) askRescue(ctx context.Context) error {
	if c.member == nil {
		return console.Errorf(console.ErrInvalid, "this fleet's etcd is a cluster of its own: restore it with etcdctl and etcdutl, then run `nfs-fleet recover`")
	}
	if c.etcdProblem() == nil {
		return console.Errorf(console.ErrConflict, "etcd answers and has its quorum: there is nothing to rescue")
	}
	if c.member.Status().Learner {
		return console.Errorf(console.ErrConflict, "the etcd of this master was a learner, which cannot go on by itself: say it to a voter (`nfs-fleet master list`), or, when none is left, stop this master, remove %s, start it, and say it then", c.etcdDir())
	}
	if alive := c.leaseholder(ctx); alive != "" {
		return console.Errorf(console.ErrConflict, "master %s holds a lease: etcd has its quorum, and only this master does not reach it; mend the network", alive)
	}
	if err := os.WriteFile(c.rescueFile(), nil, 0o600); err != nil {
		return err
	}
	c.log.Warn().Str("by", console.CallerOf(ctx).String()).Msg("etcd is to be rescued at the next start")
	return nil
}

// leaseholder names another master that holds a lease; "" when none that can be reached does.
func (m *Master) leaseholder(ctx context.Context) string {
	ctx, cancel := context.WithTimeout(ctx, recordsLimit)
	defer cancel()
	alive := ""
	askAll(ctx, m.links, pathLease, nothing{}, func(name string, r leaseReport, err error) {
		if err == nil && r.Alive {
			alive = name
		}
	})
	return alive
}
