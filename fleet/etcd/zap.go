package etcd

import (
	"sync/atomic"

	"github.com/rs/zerolog"
	"go.uber.org/zap/zapcore"
)

// zapCore writes what etcd logs through zap to a zerolog.Logger, one level lower: what etcd calls information is debug
// output to the operator of a fleet.
type zapCore struct {
	log     zerolog.Logger
	closing *atomic.Bool // what goes wrong while etcd is being closed is no news
}

var zapLevels = map[zapcore.Level]zerolog.Level{
	zapcore.DebugLevel: zerolog.TraceLevel, zapcore.InfoLevel: zerolog.DebugLevel, zapcore.WarnLevel: zerolog.DebugLevel,
	zapcore.ErrorLevel: zerolog.WarnLevel, zapcore.DPanicLevel: zerolog.ErrorLevel, zapcore.PanicLevel: zerolog.ErrorLevel, zapcore.FatalLevel: zerolog.ErrorLevel,
}

// passing are errors to etcd that are a step on the way when a member joins or leaves.
var passing = map[string]bool{
	"setting up serving from embedded etcd failed.": true,
	"bootstrap failed":                           true, // its error comes back to us
	"failed to find local ID in cluster members": true,
	"rejecting member add request; local member has not been connected to majority peers, reconfigure breaks active quorum": true,
	"failed to update storage version":                true,
	"rejecting promote learner: learner is not ready": true,
}

// level is what etcd's level means to an operator.
func (c zapCore) level(l zapcore.Level) zerolog.Level {
	if c.closing.Load() {
		return zerolog.DebugLevel
	}
	return zapLevels[l]
}

func (c zapCore) Enabled(l zapcore.Level) bool { return c.level(l) >= c.log.GetLevel() }

func (c zapCore) With(fields []zapcore.Field) zapcore.Core {
	return zapCore{c.log.With().Fields(flatten(fields)).Logger(), c.closing}
}

func (c zapCore) Check(e zapcore.Entry, ce *zapcore.CheckedEntry) *zapcore.CheckedEntry {
	if c.Enabled(e.Level) {
		return ce.AddCore(e, c)
	}
	return ce
}

func (c zapCore) Write(e zapcore.Entry, fields []zapcore.Field) error {
	level := c.level(e.Level)
	if passing[e.Message] {
		level = min(level, zerolog.DebugLevel)
	}
	c.log.WithLevel(level).Fields(flatten(fields)).Msg(e.Message)
	return nil
}

func (c zapCore) Sync() error { return nil }

func flatten(fields []zapcore.Field) map[string]any {
	enc := zapcore.NewMapObjectEncoder()
	for _, f := range fields {
		f.AddTo(enc)
	}
	return enc.Fields
}
