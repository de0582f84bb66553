package console

import (
	"context"
	"errors"
	"io"
	"time"
)

const (
	// heartbeat is the time after which a stream that has nothing to say says that it is alive, with an empty line.
	heartbeat = 5 * time.Second
	// silence is how long a stream may say nothing at all before its other end counts as gone.
	silence = 30 * time.Second
)

var errSilent = errors.New("nothing has come for " + silence.String())

// vigil ends a request from whose answer nothing has come for too long: the master may be paused, or its machine gone.
type vigil struct {
	limit time.Duration
	timer *time.Timer
}

func newVigil(limit time.Duration, end context.CancelCauseFunc) *vigil {
	return &vigil{limit, time.AfterFunc(limit, func() { end(errSilent) })}
}

func (v *vigil) stop() { v.timer.Stop() }

// reader returns r, each piece of which has to come within the limit.
func (v *vigil) reader(r io.Reader) io.Reader { return vigilant{r, v} }

type vigilant struct {
	r io.Reader
	v *vigil
}

func (w vigilant) Read(p []byte) (int, error) {
	w.v.timer.Reset(w.v.limit)
	defer w.v.timer.Stop() // what is done with the bytes may take its time
	return w.r.Read(p)
}
