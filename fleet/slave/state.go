package slave

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/google/renameio/v2"

	"github.com/nfs-fleet/nfs-fleet/fleet/slave/relay"
)

// state is what an agent leaves to the next one.
type state struct {
	Format int           `json:"format"`
	Boot   string        `json:"boot"`            // of which start of the machine it speaks
	Saved  uint64        `json:"saved,omitempty"` // one more at each save: of two copies the higher is the later
	Routes []routeRecord `json:"routes"`
}

// routeRecord is a route in the state. After a reboot only its name and port count.
type routeRecord struct {
	Name   string         `json:"name"`
	Via    string         `json:"via"`
	Port   uint16         `json:"port,omitempty"`
	Told   []told         `json:"told,omitempty"`   // by its mounts, the latest first
	Called string         `json:"called,omitempty"` // the name in the fleet that came of it
	Order  []relay.Target `json:"order,omitempty"`  // as the masters or DNS last said
	Last   relay.Change   `json:"last,omitzero"`
	Used   time.Time      `json:"used"`
}

const (
	stateFormat = 1
	stateFile   = "agent.json"
)

// loadState reads the state; a missing one is empty. What cannot be read is an error, and an empty state.
func loadState(dir string) (state, error) {
	empty := state{Format: stateFormat}
	b, err := os.ReadFile(filepath.Join(dir, stateFile))
	if errors.Is(err, fs.ErrNotExist) {
		return empty, nil
	}
	var s state
	if err == nil {
		err = json.Unmarshal(b, &s)
	}
	if err == nil && s.Format != stateFormat {
		err = fmt.Errorf("format %d is not known", s.Format)
	}
	if err != nil {
		return empty, fmt.Errorf("read the agent's state: %w", err)
	}
	return s, nil
}

// latest returns the state of this start of the machine that was saved last, and else what was saved last of all: of two as late
// the first. What cannot be read is an error beside it.
func latest(boot string, dirs []string) (found state, failed error) {
	for i, dir := range dirs {
		s, err := loadState(dir)
		failed = errors.Join(failed, err)
		ours, best := s.Boot == boot, found.Boot == boot
		if i == 0 || ours && !best || ours == best && s.Saved > found.Saved {
			found = s
		}
	}
	return found, failed
}

// kept says whether a directory has a state.
func kept(dir string) bool {
	_, err := os.Stat(filepath.Join(dir, stateFile))
	return err == nil
}

// save writes the state.
func (s state) save(dir string) error {
	b, err := json.MarshalIndent(s, "", "  ")
	if err != nil {
		return fmt.Errorf("write the agent's state: %w", err)
	}
	if err := renameio.WriteFile(filepath.Join(dir, stateFile), append(b, '\n'), 0o600); err != nil {
		return fmt.Errorf("write the agent's state: %w", err)
	}
	return nil
}

// stateDir returns the first of some directories that can be written to, and makes it.
func stateDir(dirs ...string) (string, error) {
	var failed error
	for _, dir := range dirs {
		err := os.MkdirAll(dir, 0o700)
		if err == nil {
			var f *os.File
			if f, err = os.CreateTemp(dir, ".writable-*"); err == nil {
				f.Close()
				os.Remove(f.Name()) //nolint:errcheck // it is empty
				return dir, nil
			}
		}
		failed = errors.Join(failed, err)
	}
	return "", fmt.Errorf("no directory for the agent's state: %w", failed)
}

// bootID is made anew at each start of the machine.
func bootID() string {
	b, err := os.ReadFile("/proc/sys/kernel/random/boot_id")
	if err != nil {
		return "unknown"
	}
	return strings.TrimSpace(string(b))
}
