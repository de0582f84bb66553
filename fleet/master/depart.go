package master

import (
	"context"
	"time"

	"github.com/rs/zerolog"
)

const (
	// lately is how old the last greeting of a slave may be that still counts as a reader. An agent greets twice a second.
	lately = 2 * time.Second
	// stopNotice is how long a master that stops waits for its slaves to go, and downNotice one that has lost its lease: an
	// agent is told with its next greeting, tries another master, and moves.
	stopNotice, downNotice = 2500 * time.Millisecond, time.Second
	// arriveNotice is how long it waits for those that greet and are connected, but have not said that they read here: they may
	// have come just now.
	arriveNotice = 700 * time.Millisecond
)

// seeOff waits until the slaves that read from this master and have an agent have gone, which they are told by HELLO, so
// that nobody's connection has to be closed under it. Whoever stays until the limit has nowhere to go, or another kernel
// mount that has no agent.
func (m *Master) seeOff(ctx context.Context, limit time.Duration) {
	if g := m.guide.Load(); g == nil || g.alone {
		return
	}
	began := time.Now()
	ctx, cancel := context.WithTimeout(ctx, limit)
	defer cancel()
	most, left := 0, 0
	poll(ctx, 5*time.Millisecond, func() bool {
		left = m.readers(time.Since(began) < arriveNotice)
		most = max(most, left)
		return left == 0
	})
	if most == 0 {
		return
	}
	level := zerolog.InfoLevel
	if left > 0 {
		level = zerolog.WarnLevel
	}
	m.log.WithLevel(level).Int("slaves", most).Int("stayed", left).Int64("took_ms", time.Since(began).Milliseconds()).Msg("slaves were sent to other masters")
}

// readers counts the machines that have greeted lately, are connected, and read here; or perhaps do.
func (m *Master) readers(perhaps bool) int {
	n := 0
	connected := m.connected()
	for address, reads := range m.stays.lately(time.Now(), lately) {
		if connected[address] && (reads || perhaps) {
			n++
		}
	}
	return n
}
