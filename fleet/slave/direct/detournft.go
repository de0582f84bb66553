package direct

import (
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"slices"
	"sync/atomic"
	"time"

	"github.com/google/nftables"
	"github.com/google/nftables/expr"
	"golang.org/x/sys/unix"
)

// nftDetourer lays detours by nftables, packet by packet: the addresses and ports of what goes out are written over on the way, and
// those of what comes in back again. That takes neither the kernel's NAT nor its connection tracking, which would have to be loaded;
// and where it is there for other reasons, it knows the transport's packets from before, and would lead them nowhere else.
//
// Every detour is a table of its own, whose rules hold as long as the elements of a set are there. The kernel removes those after
// a time; the next process removes the table.
type nftDetourer struct {
	lasts time.Duration
	made  atomic.Uint64
}

// detourTime is how long a detour leads anywhere when nobody removes it.
const detourTime = time.Minute

func (*nftDetourer) Name() string { return "nftables" }

// Sweep removes the tables of processes that are no more.
func (*nftDetourer) Sweep() error { return (&nftFence{}).Sweep() }

// Lay implements Detourer.
func (n *nftDetourer) Lay(d Detour) (remove func() error, err error) {
	return withOwnPort(d, func(port uint16) (func() error, error) {
		conn, err := nftables.New()
		if err != nil {
			return nil, fmt.Errorf("nftables: %w", err)
		}
		name := fmt.Sprintf("%s.detour.%d.%d", fencePrefix, os.Getpid(), n.made.Add(1))
		return layTable(conn, name, d, port, n.lasts)
	})
}

// layTable lays a detour that has a port on the wire.
func layTable(conn *nftables.Conn, name string, d Detour, port uint16, lasts time.Duration) (remove func() error, err error) {
	family, ip := nftables.TableFamilyIPv4, ipv4
	if d.From.Addr().Is6() {
		family, ip = nftables.TableFamilyIPv6, ipv6
	}
	table := conn.AddTable(&nftables.Table{Name: name, Family: family})
	alive := &nftables.Set{Table: table, Name: "alive", KeyType: nftables.TypeInetService, HasTimeout: true, Timeout: lasts}
	err = conn.AddSet(alive, []nftables.SetElement{{Key: bigEndian(d.From.Port()), Timeout: lasts}})
	if err != nil {
		return nil, fmt.Errorf("nftables: %w", err)
	}
	// Connection tracking is between the two, and sees what is on the wire.
	out := conn.AddChain(&nftables.Chain{
		Name: "output", Table: table, Type: nftables.ChainTypeRoute,
		Hooknum: nftables.ChainHookOutput, Priority: nftables.ChainPriorityRaw,
	})
	in := conn.AddChain(&nftables.Chain{
		Name: "input", Table: table, Type: nftables.ChainTypeFilter,
		Hooknum: nftables.ChainHookInput, Priority: nftables.ChainPrioritySELinuxLast,
	})
	conn.AddRule(&nftables.Rule{Table: table, Chain: out, Exprs: slices.Concat(isTCP(),
		ip.to.is(d.From.Addr().AsSlice()), tcpTo.in(alive), tcpFrom.is(bigEndian(d.Local)),
		ip.to.write(d.To.Addr().AsSlice()), tcpFrom.write(bigEndian(port)))})
	conn.AddRule(&nftables.Rule{Table: table, Chain: in, Exprs: slices.Concat(isTCP(),
		ip.from.is(d.To.Addr().AsSlice()), tcpFrom.in(alive), tcpTo.is(bigEndian(port)),
		ip.from.write(d.From.Addr().AsSlice()), tcpTo.write(bigEndian(d.Local)))})
	if err := conn.Flush(); err != nil {
		return nil, fmt.Errorf("nftables: %w", err)
	}
	return func() error {
		conn.DelTable(table)
		if err := conn.Flush(); err != nil && !errors.Is(err, unix.ENOENT) { // somebody else has removed it
			return fmt.Errorf("nftables: remove the table %s: %w", name, err)
		}
		return nil
	}, nil
}

// field is a part of a packet's headers.
type field struct {
	base         expr.PayloadBase
	offset, size uint32
	sum          uint32 // where the checksum is that covers it
	flags        uint32
}

// The fields of a TCP segment in IP. An IPv6 header has no checksum; but nftables corrects that of TCP, which covers the addresses, only
// beside another: the one that is corrected is the first half of the address itself, before that is written.
var (
	tcpFrom  = field{base: expr.PayloadBaseTransportHeader, offset: 0, size: 2, sum: 16}
	tcpTo    = field{base: expr.PayloadBaseTransportHeader, offset: 2, size: 2, sum: 16}
	tcpFlags = field{base: expr.PayloadBaseTransportHeader, offset: 13, size: 1, sum: 16}
	ipv4     = struct{ from, to field }{
		field{expr.PayloadBaseNetworkHeader, 12, 4, 10, unix.NFT_PAYLOAD_L4CSUM_PSEUDOHDR},
		field{expr.PayloadBaseNetworkHeader, 16, 4, 10, unix.NFT_PAYLOAD_L4CSUM_PSEUDOHDR},
	}
	ipv6 = struct{ from, to field }{
		field{expr.PayloadBaseNetworkHeader, 8, 16, 8, unix.NFT_PAYLOAD_L4CSUM_PSEUDOHDR},
		field{expr.PayloadBaseNetworkHeader, 24, 16, 24, unix.NFT_PAYLOAD_L4CSUM_PSEUDOHDR},
	}
)

func isTCP() []expr.Any {
	return []expr.Any{
		&expr.Meta{Key: expr.MetaKeyL4PROTO, Register: 1},
		&expr.Cmp{Op: expr.CmpOpEq, Register: 1, Data: []byte{unix.IPPROTO_TCP}},
	}
}

func (f field) load() expr.Any {
	return &expr.Payload{DestRegister: 1, Base: f.base, Offset: f.offset, Len: f.size}
}

// is goes on when the field has a value.
func (f field) is(value []byte) []expr.Any {
	return []expr.Any{f.load(), &expr.Cmp{Op: expr.CmpOpEq, Register: 1, Data: value}}
}

// in goes on when the field is in a set.
func (f field) in(set *nftables.Set) []expr.Any {
	return []expr.Any{f.load(), &expr.Lookup{SourceRegister: 1, SetName: set.Name, SetID: set.ID}}
}

// write writes the field, and corrects checksums.
func (f field) write(value []byte) []expr.Any {
	return []expr.Any{
		&expr.Immediate{Register: 1, Data: value},
		&expr.Payload{
			OperationType: expr.PayloadWrite, SourceRegister: 1, Base: f.base, Offset: f.offset, Len: f.size,
			CsumType: expr.CsumTypeInet, CsumOffset: f.sum, CsumFlags: f.flags,
		},
	}
}

func bigEndian(port uint16) []byte { return binary.BigEndian.AppendUint16(nil, port) }
