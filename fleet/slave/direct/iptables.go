package direct

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os/exec"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"
)

// iptablesFence breaks connections as nftFence does, by the command iptables, for kernels that have no nftables.
type iptablesFence struct{}

func (*iptablesFence) Name() string { return "iptables" }
func (*iptablesFence) First() bool  { return true }

// iptablesTime is how long one command may take.
const iptablesTime = 4 * time.Second

// iptables begins the command for the family of an address: the one for the kernel's older packet filter if there is one, since
// the other speaks to nftables, which is not there. The function that it returns waits for its end.
func iptables(v6 bool, args ...string) (wait func() (string, error), err error) {
	names := []string{"iptables-legacy", "iptables"}
	if v6 {
		names = []string{"ip6tables-legacy", "ip6tables"}
	}
	i := slices.IndexFunc(names, func(n string) bool { _, err := exec.LookPath(n); return err == nil })
	if i < 0 {
		return nil, fmt.Errorf("the command %s is not installed: %w", names[1], ErrUnsupported)
	}
	ctx, cancel := context.WithTimeout(context.Background(), iptablesTime)
	var stdout, stderr strings.Builder
	cmd := exec.CommandContext(ctx, names[i], append([]string{"--wait", "1"}, args...)...)
	cmd.Stdout, cmd.Stderr = &stdout, &stderr
	said := func(err error) error {
		if err == nil {
			return nil
		}
		return fmt.Errorf("%s %s: %w: %s", names[i], strings.Join(args, " "), err, strings.TrimSpace(stderr.String()))
	}
	if err := cmd.Start(); err != nil {
		cancel()
		return nil, said(err)
	}
	return func() (string, error) {
		defer cancel()
		err := cmd.Wait()
		return stdout.String(), said(err)
	}, nil
}

// iptablesNow runs the command to its end.
func iptablesNow(v6 bool, args ...string) (string, error) {
	wait, err := iptables(v6, args...)
	if err != nil {
		return "", err
	}
	return wait()
}

// rejectRule is the rule behind a -I or -D.
func rejectRule(to netip.AddrPort) []string {
	return []string{
		"OUTPUT", "-d", to.Addr().String(), "-p", "tcp", "--dport", strconv.Itoa(int(to.Port())),
		"-m", "comment", "--comment", fencePrefix, "-j", "REJECT", "--reject-with", "tcp-reset",
	}
}

// Check makes a rule for an address that nobody has, and removes it.
func (f *iptablesFence) Check() error {
	release, err := f.Break(Socket{Remote: netip.MustParseAddrPort("192.0.2.1:2049")})
	if err != nil {
		return err
	}
	return release()
}

// Break returns as soon as the rule works, which is before the command has ended: what the kernel sends again meanwhile would
// be reset before it has another address to connect to, and its attempt at the old one would be refused, which costs three
// seconds.
func (*iptablesFence) Break(s Socket) (func() error, error) {
	v6, rule := s.Remote.Addr().Is6(), rejectRule(s.Remote)
	wait, err := iptables(v6, append([]string{"-I"}, rule...)...)
	if err != nil {
		return func() error { return nil }, err
	}
	made := make(chan error, 1)
	go func() {
		_, err := wait()
		made <- err
	}()
	release := func() error {
		if err := <-made; err != nil {
			return err
		}
		_, err := iptablesNow(v6, append([]string{"-D"}, rule...)...)
		return err
	}
	for {
		select {
		case err := <-made:
			made <- err
			if err != nil {
				return func() error { return nil }, err
			}
			return release, nil
		default:
			if refused(s.Remote) {
				return release, nil
			}
		}
	}
}

// refused says whether connecting to an address is refused at once.
func refused(to netip.AddrPort) bool {
	conn, err := net.DialTimeout("tcp", to.String(), 5*time.Millisecond)
	if err == nil {
		conn.Close() //nolint:errcheck // it was not wanted
		time.Sleep(time.Millisecond)
	}
	return errors.Is(err, syscall.ECONNREFUSED)
}

// Sweep removes the rules that carry our comment.
func (*iptablesFence) Sweep() error {
	var all []error
	for _, v6 := range []bool{false, true} {
		rules, err := iptablesNow(v6, "-S", "OUTPUT")
		if err != nil {
			continue // nothing can have been left there
		}
		for line := range strings.Lines(rules) {
			fields := strings.Fields(line)
			if len(fields) < 2 || fields[0] != "-A" || !slices.Contains(fields, fencePrefix) {
				continue
			}
			if _, err := iptablesNow(v6, append([]string{"-D"}, fields[1:]...)...); err != nil {
				all = append(all, err)
			}
		}
	}
	return errors.Join(all...)
}
