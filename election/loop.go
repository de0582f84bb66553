package election

import (
	"context"
	"errors"
)

type backend interface{}

func newEtcd(c Config) backend { return nil }

type loop struct {
	terms   chan *Term
	changed chan struct{}
}

func newLoop(c Config, b backend, now clock) *loop {
	return &loop{terms: make(chan *Term), changed: make(chan struct{}, 1)}
}

func (l *loop) Stand(shard string, preferred bool) {}
func (l *loop) Withdraw(shard string)              {}
func (l *loop) Resign(shard, to string)            {}
func (l *loop) Terms() <-chan *Term                { return l.terms }
func (l *loop) Announce(key string, value []byte)  {}
func (l *loop) Lease() LeaseStatus                 { return LeaseStatus{} }
func (l *loop) Leader(shard string) (Leader, bool) { return Leader{}, false }
func (l *loop) Changed() <-chan struct{}           { return l.changed }
func (l *loop) Run(ctx context.Context) error      { return errors.New("not yet") }
