package direct

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"os/exec"
	"slices"
	"strconv"
	"strings"
	"time"
)

// iptablesFence breaks connections as nftFence does, by the command iptables, for kernels that have no nftables.
type iptablesFence struct{}

func (*iptablesFence) Name() string { return "iptables" }
func (*iptablesFence) First() bool  { return true }

// iptablesTime is how long one command may take.
const iptablesTime = 4 * time.Second

// iptables runs the command for the family of an address: the one for the kernel's older packet filter if there is one, since
// the other speaks to nftables, which is not there.
func iptables(v6 bool, args ...string) (string, error) {
	names := []string{"iptables-legacy", "iptables"}
	if v6 {
		names = []string{"ip6tables-legacy", "ip6tables"}
	}
	i := slices.IndexFunc(names, func(n string) bool { _, err := exec.LookPath(n); return err == nil })
	if i < 0 {
		return "", fmt.Errorf("the command %s is not installed: %w", names[1], ErrUnsupported)
	}
	ctx, cancel := context.WithTimeout(context.Background(), iptablesTime)
	defer cancel()
	var stdout, stderr strings.Builder
	cmd := exec.CommandContext(ctx, names[i], append([]string{"--wait", "1"}, args...)...)
	cmd.Stdout, cmd.Stderr = &stdout, &stderr
	if err := cmd.Run(); err != nil {
		return "", fmt.Errorf("%s %s: %w: %s", names[i], strings.Join(args, " "), err, strings.TrimSpace(stderr.String()))
	}
	return stdout.String(), nil
}

// rejectRule is the rule behind a -I or -D. ends: only what ends a connection is answered with a reset.
func rejectRule(to netip.AddrPort, ends bool) []string {
	rule := []string{"OUTPUT", "-d", to.Addr().String(), "-p", "tcp", "--dport", strconv.Itoa(int(to.Port()))}
	if ends {
		rule = append(rule, "--tcp-flags", "FIN", "FIN")
	}
	return append(rule, "-m", "comment", "--comment", fencePrefix, "-j", "REJECT", "--reject-with", "tcp-reset")
}

// Check makes a rule for an address that nobody has, and removes it.
func (f *iptablesFence) Check() error {
	release, err := f.Catch(Socket{Remote: netip.MustParseAddrPort("192.0.2.1:2049")})
	if err != nil {
		return err
	}
	return release()
}

// Catch implements Breaker.
func (*iptablesFence) Catch(s Socket) (func() error, error) { return reject(s, true) }

// Break implements Breaker.
func (*iptablesFence) Break(s Socket) (func() error, error) { return reject(s, false) }

func reject(s Socket, ends bool) (release func() error, err error) {
	v6, rule := s.Remote.Addr().Is6(), rejectRule(s.Remote, ends)
	if _, err := iptables(v6, append([]string{"-I"}, rule...)...); err != nil {
		return func() error { return nil }, err
	}
	return func() error {
		_, err := iptables(v6, append([]string{"-D"}, rule...)...)
		return err
	}, nil
}

// Sweep removes the rules that carry our comment.
func (*iptablesFence) Sweep() error {
	return errors.Join(sweepIptables(false, "filter", "OUTPUT"), sweepIptables(true, "filter", "OUTPUT"))
}

// sweepIptables removes the rules of a chain that carry our comment.
func sweepIptables(v6 bool, table, chain string) error {
	rules, err := iptables(v6, "-t", table, "-S", chain)
	if err != nil {
		return nil // nothing can have been left there
	}
	var all []error
	for line := range strings.Lines(rules) {
		fields := strings.Fields(line)
		if len(fields) < 2 || fields[0] != "-A" || !slices.Contains(fields, fencePrefix) {
			continue
		}
		if _, err := iptables(v6, append([]string{"-t", table, "-D"}, fields[1:]...)...); err != nil {
			all = append(all, err)
		}
	}
	return errors.Join(all...)
}
