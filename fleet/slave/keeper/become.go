package keeper

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/nfs-fleet/nfs-fleet/fleet/slave/poll"
)

// Life is the name of the file by which a worker learns that its keeper is no more.
const Life = "keeper"

// Orphaned waits until the keeper is gone that handed a file of the name Life on, and returns nil then, or until ctx ends.
func Orphaned(ctx context.Context, life *os.File) error {
	p, err := poll.New(life.Fd(), unix.POLLIN) // the end of a pipe is told whatever is asked for
	if err != nil {
		return fmt.Errorf("watch the keeper: %w", err)
	}
	defer p.Close() //nolint:errcheck // nothing is lost
	return p.Wait(ctx)
}

// Check reports whether the program works that this process is to become.
func (k *Keeper) Check(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, checkTime)
	defer cancel()
	cmd := exec.CommandContext(ctx, k.cfg.Program, k.cfg.Check...)
	cmd.WaitDelay = time.Second // for what it has started, and that still has its output
	if out, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("%s: %w: %.500s", k.cfg.Program, err, out)
	}
	return nil
}

// envStop is how a keeper tells the program that it becomes that it was told to end when the worker does.
const envStop = "NFS_FLEET_STOP"

// told returns what the environment says that this keeper was told before, and clears it.
func told() goal {
	defer os.Unsetenv(envStop) //nolint:errcheck // fails for malformed keys only
	if os.Getenv(envStop) != "" {
		return endWhenDone
	}
	return keepOn
}

// Become replaces this process by the keeper that the program at its path is when it gets Self as its arguments: with the same
// process id, the files that are held, and a SIGTERM that nobody has heeded yet. It returns an error when that fails, and nil when
// there is to be no keeper any more, after a SIGINT. A worker that has become an orphan calls it on a keeper of its own that
// does not Run.
func (k *Keeper) Become() error {
	for len(k.cfg.Signals) > 0 {
		switch <-k.cfg.Signals {
		case syscall.SIGTERM:
			k.stop = true
		case syscall.SIGHUP: // the program is the one that is there now
		default:
			return nil
		}
	}
	env, undo := k.files.pass(os.Environ())
	if k.stop {
		env = append(env, envStop+"=1")
	}
	err := syscall.Exec(k.cfg.Program, k.cfg.Self, env)
	undo()
	return fmt.Errorf("become %s: %w", k.cfg.Program, err)
}
