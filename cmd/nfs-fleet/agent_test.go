package main

import (
	"bytes"
	"context"
	"syscall"
	"testing"

	"github.com/rs/zerolog"
)

// A worker that cannot watch its keeper says so, unless it is about to end anyhow.
func TestAWorkerThatCannotWatchItsKeeperSaysSo(t *testing.T) {
	ended, cancel := context.WithCancel(t.Context())
	cancel()
	for name, c := range map[string]struct {
		ctx          context.Context
		waited       error
		orphan, says bool
	}{
		"the keeper is gone": {t.Context(), nil, true, false},
		"no descriptors":     {t.Context(), syscall.EMFILE, false, true},
		"the worker ends":    {ended, context.Canceled, false, false},
	} {
		var log bytes.Buffer
		if got := isOrphan(c.ctx, zerolog.New(&log), c.waited); got != c.orphan || (log.Len() > 0) != c.says {
			t.Errorf("%s: %v, and it says %q", name, got, log.String())
		}
	}
}
