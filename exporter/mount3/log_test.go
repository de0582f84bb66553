package mount3

import (
	"bytes"
	"testing"

	"github.com/rs/zerolog"
)

// Whoever asks for what is not there as fast as he can does not fill the log.
func TestRefusalsDoNotFillTheLog(t *testing.T) {
	var log bytes.Buffer
	p, _ := newProgram(t)
	p = New(Config{Exports: p.cfg.Exports, Log: zerolog.New(&log)})
	for range 1000 {
		if _, err := do(p, Version, procMnt, str("/nothing")); err != nil {
			t.Fatal(err)
		}
	}
	if n := bytes.Count(log.Bytes(), []byte("\n")); n < 1 || n > 10*refusals {
		t.Errorf("%d lines of log", n)
	}
}
