package main

import (
	"errors"
	"fmt"
	"net/netip"
	"strings"
)

// allNetworks is how no restriction is shown, and can be said.
const allNetworks = "all"

// networks is a flag that holds prefixes: its first use replaces the default, others add to it. A lone address is a
// network of one, unless it looks like a network whose mask was forgotten.
type networks struct {
	p   *[]netip.Prefix
	set bool
	all bool // said so
}

func (n *networks) Type() string { return "networks" }

func (n *networks) String() string {
	if n.p == nil {
		return ""
	}
	var out []string
	for _, p := range *n.p {
		out = append(out, p.String())
	}
	return strings.Join(out, ",")
}

func (n *networks) Set(text string) error {
	found := []netip.Prefix{}
	if n.set {
		found = *n.p
	}
	for _, part := range strings.FieldsFunc(text, func(r rune) bool { return r == ',' || r == ' ' }) {
		if part == allNetworks {
			n.all = true
			continue
		}
		p, err := parseNetwork(part)
		if err != nil {
			return err
		}
		found = append(found, p)
	}
	if n.all && len(found) > 0 {
		return errors.New("\"all\" lets everybody in: name it alone, or leave it out")
	}
	*n.p, n.set = found, true
	return nil
}

func parseNetwork(text string) (netip.Prefix, error) {
	if a, err := netip.ParseAddr(text); err == nil && a.Zone() == "" {
		return netip.PrefixFrom(a, a.BitLen()), forgottenMask(a)
	}
	p, err := netip.ParsePrefix(text)
	if err != nil {
		return p, fmt.Errorf("%q: use an address, a network as in 10.0.0.0/8, or all", text)
	}
	return p.Masked(), nil
}

// forgottenMask refuses an address that ends as networks do and hosts do not: taken as one host, it would shut everybody out.
func forgottenMask(a netip.Addr) error {
	unit, host := 1, 1 // bytes by which masks are usually written, and those of the part that a network has all zero
	if a.Is6() {
		unit, host = 2, 8
	}
	b := a.AsSlice()
	used := len(b)
	for used > 0 && b[used-1] == 0 {
		used--
	}
	switch {
	case used == 0:
		return fmt.Errorf("%s is no host's address: say all to let everybody in", a)
	case used > len(b)-host:
		return nil
	}
	bits := (used + unit - 1) / unit * unit * 8
	return fmt.Errorf("%s is one address; did you mean %s/%d? write %s/%d if not", a, a, bits, a, a.BitLen())
}
