package master

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"

	"github.com/google/renameio/v2"
	"golang.org/x/sys/unix"

	"github.com/nfs-fleet/nfs-fleet/fleet"
)

// dataDir is a master's directory on disk:
//
//	lock        held while a master runs on it
//	identity    the fleet it belongs to, and the master's name
//	ledger      what the master has seen of each shard (replicator.Ledger)
//	store/      the content (replicator/store)
//	scan/       one file a source: fingerprints, a cache that may be deleted
//	joining     the instance of a join that has not come to its end
//	pki/        the fleet's CA, and this master's certificate for etcd's peers
//	routes      where the other masters are reached
//	etcd/       the embedded etcd, unless it has a directory of its own
type dataDir struct {
	path string
	lock *os.File
}

// localIdentity is the file "identity".
type localIdentity struct {
	fleet.Identity
	Master   string `json:"master"`
	Instance string `json:"instance"`         // drawn with the directory, and anew by each join
	Joined   string `json:"joined,omitempty"` // the ID of the token that it has joined with last
}

func openDataDir(path string) (*dataDir, error) {
	path, err := filepath.Abs(path)
	if err != nil {
		return nil, fmt.Errorf("data directory: %w", err)
	}
	for _, dir := range []string{path, filepath.Join(path, "scan")} {
		if err := os.MkdirAll(dir, 0o700); err != nil {
			return nil, fmt.Errorf("data directory: %w; choose another with --data-dir", err)
		}
	}
	lock, err := lockFile(filepath.Join(path, "lock"))
	if errors.Is(err, unix.EWOULDBLOCK) {
		return nil, fmt.Errorf("data directory %s is used by another nfs-fleet that runs: stop it, or choose another with --data-dir", path)
	}
	if err != nil {
		return nil, fmt.Errorf("data directory: %w; choose another with --data-dir", err)
	}
	return &dataDir{path, lock}, nil
}

// lockFile locks a file, made when it is not there, until it is closed. EWOULDBLOCK: another process has it.
func lockFile(path string) (*os.File, error) {
	f, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return nil, err
	}
	if err := unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB); err != nil {
		f.Close()
		return nil, fmt.Errorf("lock %s: %w", path, err)
	}
	return f, nil
}

func (d *dataDir) close() error { return d.lock.Close() }

func (d *dataDir) join(elem ...string) string {
	return filepath.Join(append([]string{d.path}, elem...)...)
}

// identity returns what the directory says it belongs to; the zero value when it is new.
func (d *dataDir) identity() (localIdentity, error) {
	var id localIdentity
	b, err := os.ReadFile(d.join("identity"))
	if errors.Is(err, fs.ErrNotExist) {
		return id, nil
	}
	if err == nil {
		err = json.Unmarshal(b, &id)
	}
	if err != nil {
		return id, fmt.Errorf("read %s: %w", d.join("identity"), err)
	}
	return id, nil
}

func (d *dataDir) setIdentity(id localIdentity) error {
	b, err := json.MarshalIndent(id, "", "  ")
	if err != nil {
		return err
	}
	if err := renameio.WriteFile(d.join("identity"), append(b, '\n'), 0o600); err != nil {
		return fmt.Errorf("write identity: %w", err)
	}
	return nil
}

// defaultFleet is the name of a fleet that was given none. A directory that belongs to a fleet knows the name better.
const defaultFleet = "default"

// check refuses a directory that belongs to another fleet than the one that the operator named, or to another master.
func (id localIdentity) check(fleetName, master, path string) error {
	switch {
	case id.ID == "":
		return nil
	case id.Fleet != fleetName && fleetName != defaultFleet:
		return fmt.Errorf("data directory %s belongs to fleet %q, not %q: choose another with --data-dir, or the right fleet with --fleet", path, id.Fleet, fleetName)
	case id.Master != master:
		return fmt.Errorf("data directory %s belongs to master %q, not %q: choose another with --data-dir, or the right name with --name", path, id.Master, master)
	}
	return nil
}
