package mount

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"github.com/nfs-fleet/nfs-fleet/fleet/slave/control"
)

// Unit is the agent's systemd unit.
const Unit = "nfs-fleet-agent.service"

// launchTime is how long an agent may take to answer.
const launchTime = 15 * time.Second

// unitMissing is what `systemctl start` exits with when there is no such unit.
const unitMissing = 5

// Launcher starts an agent.
type Launcher struct {
	Agent   *control.Client
	Systemd string   // a directory that is there when systemd runs this machine; "": no unit is asked for
	Program string   // nfs-fleet
	Args    []string // of it, to be an agent
}

// Start starts an agent, by its unit if there is one and else by itself in the background, and waits until it answers.
func (l Launcher) Start(ctx context.Context) error {
	ctx, cancel := context.WithTimeoutCause(ctx, launchTime, fmt.Errorf("it does not answer within %s", launchTime))
	defer cancel()
	started, err := l.unit(ctx)
	if err != nil {
		return err
	}
	ended := make(chan error, 1)
	if !started {
		if ended, err = l.background(); err != nil {
			return err
		}
	}
	tick := time.NewTicker(10 * time.Millisecond)
	defer tick.Stop()
	for {
		_, err := l.Agent.Status(ctx)
		if err == nil {
			return nil
		}
		select {
		case <-tick.C:
		case end := <-ended:
			// Another command may have started one at the same time.
			if _, err := l.Agent.Status(ctx); err == nil {
				return nil
			}
			return fmt.Errorf("it has ended: %w", end)
		case <-ctx.Done():
			return fmt.Errorf("%w (%w)", context.Cause(ctx), err)
		}
	}
}

// unit starts the unit; started is false when there is none.
func (l Launcher) unit(ctx context.Context) (started bool, err error) {
	if info, err := os.Stat(l.Systemd); l.Systemd == "" || err != nil || !info.IsDir() {
		return false, nil
	}
	out, err := exec.CommandContext(ctx, "systemctl", "start", Unit).CombinedOutput()
	var exit *exec.ExitError
	switch {
	case err == nil:
		return true, nil
	case errors.Is(err, exec.ErrNotFound), errors.As(err, &exit) && exit.ExitCode() == unitMissing:
		return false, nil
	}
	return false, fmt.Errorf("systemctl start %s: %w: %s", Unit, err, strings.TrimSpace(string(out)))
}

// background starts an agent that outlives this process, its terminal and its session.
func (l Launcher) background() (ended chan error, err error) {
	null, err := os.OpenFile(os.DevNull, os.O_RDWR, 0)
	if err != nil {
		return nil, err
	}
	defer null.Close()
	cmd := exec.Command(l.Program, l.Args...)
	cmd.Dir = "/"
	cmd.Env = []string{"PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"}
	cmd.Stdin, cmd.Stdout, cmd.Stderr = null, null, null
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	if err := cmd.Start(); err != nil {
		return nil, fmt.Errorf("start %s: %w", filepath.Base(l.Program), err)
	}
	ended = make(chan error, 1)
	go func() {
		if err := cmd.Wait(); err != nil {
			ended <- err
			return
		}
		ended <- errors.New("it says nothing")
	}()
	return ended, nil
}
