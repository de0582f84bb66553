package master

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/nfs-fleet/nfs-fleet/fleet/console"
)

// The word to rescue etcd counts for nothing once another master has a lease: two clusters of one would be two fleets.
func TestNoRescueBesideALiveFleet(t *testing.T) {
	m1 := start(t, testConfig(t))
	m1.until("generation 1", serves(1))
	c := joinConfig(t, "m2", m1.joinToken(time.Hour))
	m2 := start(t, c)
	m1.until("two masters serving", inStep(2, 1))
	m1.until("a second member of etcd", func(s console.Status) bool {
		return len(s.Masters) == 2 && s.Masters[1].EtcdRole != "" && s.Masters[1].EtcdRole != "client"
	})
	m2.stop()
	word := filepath.Join(c.DataDir, "rescue-etcd")
	if err := os.WriteFile(word, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	m2 = start(t, c)
	m2.until("two masters serving", inStep(2, 1))
	if _, err := os.Stat(word); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("the word is still there: %v", err)
	}
}
