package direct

import (
	"errors"
	"os"
	"slices"
	"strconv"
	"strings"
)

// iptablesDetourer lays detours by the command iptables and the kernel's NAT, for kernels that have no nftables. NAT asks its rules about
// what connection tracking does not know yet: what it knows of the transport's packets, from an earlier detour or where it is always
// there, is forgotten.
type iptablesDetourer struct {
	root string // put before paths
}

func (iptablesDetourer) Name() string { return "iptables" }

// natRules are what is behind the -I or -D of the rules that make a detour with a port on the wire. The second is for what the first
// has led elsewhere.
func natRules(d Detour, port uint16) [][]string {
	local, remote, own := strconv.Itoa(int(d.Local)), strconv.Itoa(int(d.From.Port())), strconv.Itoa(int(port))
	common := []string{"-p", "tcp", "--sport", local, "--dport", remote, "-m", "comment", "--comment", fencePrefix}
	return [][]string{
		slices.Concat([]string{"OUTPUT", "-d", d.From.Addr().String()}, common, []string{"-j", "DNAT", "--to-destination", d.To.String()}),
		slices.Concat([]string{"POSTROUTING", "-d", d.To.Addr().String()}, common,
			[]string{"-m", "conntrack", "--ctorigdst", d.From.Addr().String(), "-j", "SNAT", "--to-source", ":" + own}),
	}
}

// Lay implements Detourer.
func (iptablesDetourer) Lay(d Detour) (remove func() error, err error) {
	return withOwnPort(d, func(port uint16) (func() error, error) {
		rules := natRules(d, port)
		for i := len(rules) - 1; i >= 0; i-- { // nothing is led anywhere before the last is there
			if err := changeNAT("-I", d, rules[i]); err != nil {
				_, failed := removeNAT(d, rules[i+1:])
				return nil, errors.Join(err, failed)
			}
		}
		if err := forget(d.Local, d.From); err != nil {
			_, failed := removeNAT(d, rules)
			return nil, errors.Join(err, failed)
		}
		return func() (err error) { rules, err = removeNAT(d, rules); return err }, nil
	})
}

// removeNAT returns the rules that it could not remove.
func removeNAT(d Detour, rules [][]string) (left [][]string, err error) {
	var all []error
	for _, rule := range rules {
		if err := changeNAT("-D", d, rule); err != nil {
			left, all = append(left, rule), append(all, err)
		}
	}
	return left, errors.Join(all...)
}

func changeNAT(verb string, d Detour, rule []string) error {
	_, err := iptables(d.From.Addr().Is6(), append([]string{"-t", "nat", verb}, rule...)...)
	return err
}

// Sweep removes the rules that carry our comment. Where no table of NAT is loaded there are none.
func (i iptablesDetourer) Sweep() error {
	var all []error
	for v6, names := range map[bool]string{false: "/proc/thread-self/net/ip_tables_names", true: "/proc/thread-self/net/ip6_tables_names"} {
		loaded, err := os.ReadFile(i.root + names)
		if err == nil && slices.Contains(strings.Fields(string(loaded)), "nat") {
			all = append(all, sweepIptables(v6, "nat", "OUTPUT"), sweepIptables(v6, "nat", "POSTROUTING"))
		}
	}
	return errors.Join(all...)
}
