package direct

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"sync/atomic"
	"syscall"

	"github.com/google/nftables"
	"github.com/google/nftables/expr"
	"golang.org/x/sys/unix"
)

// fencePrefix begins the name of every table of nftables that this package makes, and is the comment of its iptables rules.
const fencePrefix = "nfs-fleet"

// nftFence breaks connections by a rule in nftables that answers what this host sends to the peer with a reset. The table
// that holds it belongs to a netlink socket: when that is closed, the kernel removes the table, whatever happens to the
// process.
type nftFence struct{ made atomic.Uint64 }

func (*nftFence) Name() string { return "nftables" }
func (*nftFence) First() bool  { return true }
func (*nftFence) Sweep() error { return nil }

// tableOwner is NFT_TABLE_F_OWNER, since Linux 5.12.
const tableOwner = 2

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

func (n *nftFence) Break(s Socket) (func() error, error) {
	nothing := func() error { return nil }
	conn, err := nftables.New(nftables.AsLasting())
	if err != nil {
		return nothing, fmt.Errorf("nftables: %w", err)
	}
	family := nftables.TableFamilyIPv4
	if s.Remote.Addr().Is6() {
		family = nftables.TableFamilyIPv6
	}
	table := conn.AddTable(&nftables.Table{
		Name:   fmt.Sprintf("%s.%d.%d", fencePrefix, os.Getpid(), n.made.Add(1)),
		Family: family, Flags: tableOwner,
	})
	chain := conn.AddChain(&nftables.Chain{
		Name: "output", Table: table, Type: nftables.ChainTypeFilter,
		Hooknum: nftables.ChainHookOutput, Priority: nftables.ChainPriorityFilter,
	})
	conn.AddRule(&nftables.Rule{Table: table, Chain: chain, Exprs: rejection(s.Remote)})
	if err := conn.Flush(); err != nil {
		return nothing, fmt.Errorf("nftables: %w", errors.Join(err, conn.CloseLasting()))
	}
	return conn.CloseLasting, nil
}

// rejection answers TCP to an address and port with a reset.
func rejection(to netip.AddrPort) []expr.Any {
	addr := to.Addr().AsSlice()
	offset := uint32(16) // of the destination in an IPv4 header
	if to.Addr().Is6() {
		offset = 24
	}
	return []expr.Any{
		&expr.Meta{Key: expr.MetaKeyL4PROTO, Register: 1},
		&expr.Cmp{Op: expr.CmpOpEq, Register: 1, Data: []byte{unix.IPPROTO_TCP}},
		&expr.Payload{DestRegister: 1, Base: expr.PayloadBaseNetworkHeader, Offset: offset, Len: uint32(len(addr))},
		&expr.Cmp{Op: expr.CmpOpEq, Register: 1, Data: addr},
		&expr.Payload{DestRegister: 1, Base: expr.PayloadBaseTransportHeader, Offset: 2, Len: 2},
		&expr.Cmp{Op: expr.CmpOpEq, Register: 1, Data: binary.BigEndian.AppendUint16(nil, to.Port())},
		&expr.Counter{},
		&expr.Reject{Type: unix.NFT_REJECT_TCP_RST},
	}
}
