package direct

import (
	"errors"
	"fmt"
	"net/netip"
	"os"
	"slices"
	"strings"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/google/nftables"
	"github.com/google/nftables/expr"
	"golang.org/x/sys/unix"
)

// fencePrefix begins the name of every table of nftables that this package makes, and is the comment of its iptables rules.
const fencePrefix = "nfs-fleet"

// nftFence breaks connections by rules in nftables that answer what this host sends to the peer with a reset: the FIN, or all. Every fence
// is a table of its own. What it stops are the elements of a set that the kernel empties by itself after fenceTime, so
// that a fence whose process died stops nobody for longer; the next process removes the table.
type nftFence struct{ made atomic.Uint64 }

// fenceTime is longer than a change can take.
const fenceTime = changeTime + time.Second

func (*nftFence) Name() string { return "nftables" }
func (*nftFence) First() bool  { return true }

// Sweep removes the tables of processes that are no more.
func (*nftFence) Sweep() error {
	conn, err := nftables.New()
	if err != nil {
		return fmt.Errorf("nftables: %w", err)
	}
	tables, err := conn.ListTables()
	if err != nil {
		return fmt.Errorf("nftables: %w", err)
	}
	for _, t := range tables {
		if strings.HasPrefix(t.Name, fencePrefix+".") {
			conn.DelTable(t)
		}
	}
	if err := conn.Flush(); err != nil {
		return fmt.Errorf("nftables: %w", err)
	}
	return nil
}

// Check makes a fence before an address that nobody has, and removes it.
func (n *nftFence) Check() error {
	for _, nobody := range []string{"192.0.2.1:2049", "[2001:db8::1]:2049"} {
		release, err := n.Break(Socket{Remote: netip.MustParseAddrPort(nobody)})
		switch {
		case err == nil:
			if err := release(); err != nil {
				return err
			}
		case errors.Is(err, syscall.EOPNOTSUPP), errors.Is(err, syscall.ENOENT), errors.Is(err, syscall.EPROTONOSUPPORT),
			errors.Is(err, syscall.EAFNOSUPPORT):
			return fmt.Errorf("%w (nf_tables and nft_reject): %w", ErrUnsupported, err)
		default:
			return err
		}
	}
	return nil
}

// Catch implements Breaker.
func (n *nftFence) Catch(s Socket) (func() error, error) { return n.reject(s, true) }

// Break implements Breaker.
func (n *nftFence) Break(s Socket) (func() error, error) { return n.reject(s, false) }

// reject answers all TCP to a socket's peer with a reset; or just what ends a connection.
func (n *nftFence) reject(s Socket, ends bool) (func() error, error) {
	nothing := func() error { return nil }
	conn, err := nftables.New()
	if err != nil {
		return nothing, fmt.Errorf("nftables: %w", err)
	}
	family, kind := nftables.TableFamilyIPv4, nftables.TypeIPAddr
	if s.Remote.Addr().Is6() {
		family, kind = nftables.TableFamilyIPv6, nftables.TypeIP6Addr
	}
	table := conn.AddTable(&nftables.Table{Name: fmt.Sprintf("%s.%d.%d", fencePrefix, os.Getpid(), n.made.Add(1)), Family: family})
	silent := &nftables.Set{Table: table, Name: "silent", KeyType: kind, HasTimeout: true, Timeout: fenceTime}
	element := nftables.SetElement{Key: s.Remote.Addr().AsSlice(), Timeout: fenceTime}
	if err := conn.AddSet(silent, []nftables.SetElement{element}); err != nil {
		return nothing, fmt.Errorf("nftables: %w", err)
	}
	chain := conn.AddChain(&nftables.Chain{
		Name: "output", Table: table, Type: nftables.ChainTypeFilter,
		Hooknum: nftables.ChainHookOutput, Priority: nftables.ChainPriorityFilter,
	})
	conn.AddRule(&nftables.Rule{Table: table, Chain: chain, Exprs: rejection(silent, s.Remote, ends)})
	if err := conn.Flush(); err != nil {
		return nothing, fmt.Errorf("nftables: %w", err)
	}
	return func() error {
		conn.DelTable(table)
		if err := conn.Flush(); err != nil {
			return fmt.Errorf("nftables: remove the table %s: %w", table.Name, err)
		}
		return nil
	}, nil
}

// rejection answers TCP to the addresses of a set and a port with a reset; or just what ends a connection.
func rejection(set *nftables.Set, to netip.AddrPort, ends bool) []expr.Any {
	ip := ipv4
	if to.Addr().Is6() {
		ip = ipv6
	}
	rule := slices.Concat(isTCP(), ip.to.in(set), tcpTo.is(bigEndian(to.Port())))
	if ends {
		const fin = 1
		rule = append(rule, tcpFlags.load(),
			&expr.Bitwise{SourceRegister: 1, DestRegister: 1, Len: 1, Mask: []byte{fin}, Xor: []byte{0}},
			&expr.Cmp{Op: expr.CmpOpEq, Register: 1, Data: []byte{fin}})
	}
	return append(rule, &expr.Reject{Type: unix.NFT_REJECT_TCP_RST})
}
