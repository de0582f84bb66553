package load

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"net"
	"runtime"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/nfs-fleet/nfs-fleet/e2e/nfs"
)

// The operations.
const (
	Null     = "null"
	GetAttr  = "getattr"  // of Path
	Access   = "access"   // of Path
	Lookup   = "lookup"   // the names in the directory Path, one after the other
	Read     = "read"     // Path, Block bytes at a time, from beginning to end and again
	RandRead = "randread" // Path, at random multiples of Block
	Walk     = "walk"     // READDIRPLUS of the tree below Path, once
	Slurp    = "slurp"    // a walk that reads every file to its end
)

// Op says what is asked, of whom and how much at a time.
type Op struct {
	Addr, Export string // host:port of NFS and MOUNT
	MountAddr    string // host:port of MOUNT, when it is another
	Name         string // one of the operations
	Path         string // below the export
	Block        int    // bytes of a READ; 1 MiB
	Conns, Depth int
	For          time.Duration // how long, but for walk and slurp
	Each         bool          // as libnfs does: a write for each call, and its reply read in two, without TCP_NODELAY
}

// Result is what came of it.
type Result struct {
	Calls, Bytes, Errors uint64
	Entries, Files       uint64 // of walk and slurp
	Took                 time.Duration
	P50, P99, Max        time.Duration // of a call
}

// String is one line of key=value.
func (r Result) String() string {
	s := r.Took.Seconds()
	return fmt.Sprintf("calls=%d seconds=%.5f calls_per_s=%.0f MB_per_s=%.1f p50_us=%d p99_us=%d max_us=%d entries=%d files=%d errors=%d",
		r.Calls, s, float64(r.Calls)/s, float64(r.Bytes)/s/1e6, r.P50.Microseconds(), r.P99.Microseconds(), r.Max.Microseconds(),
		r.Entries, r.Files, r.Errors)
}

// node is a directory or a file of a tree that is walked.
type node struct {
	handle nfs.Handle
	size   uint64
	dir    bool
}

// run is one Op under way.
type run struct {
	op      Op
	target  node
	calls   [][]byte // the records to be sent, one after the other; names for lookup, else one
	cursor  uint64
	conns   []*conn
	ready   []unix.PollFd // of conns, as wait found them
	queue   []node        // of walk and slurp
	names   []string      // the same: what a client would keep of them
	flying  int
	now     int64 // when the last wait ended, in nanoseconds
	ends    int64
	result  Result
	delays  delays
	random  *rand.Rand
	walking bool
}

// Run does it.
func Run(ctx context.Context, op Op) (Result, error) {
	if op.Block == 0 {
		op.Block = 1 << 20
	}
	if op.MountAddr == "" {
		op.MountAddr = op.Addr
	}
	r := &run{op: op, random: rand.New(rand.NewPCG(1, 2)), walking: op.Name == Walk || op.Name == Slurp}
	if err := r.prepare(ctx); err != nil {
		return Result{}, err
	}
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	for range op.Conns {
		c, err := dial(r, op.Addr)
		if err != nil {
			return Result{}, err
		}
		defer unix.Close(c.fd) //nolint:errcheck // it was read to the end
		r.conns = append(r.conns, c)
		r.ready = append(r.ready, unix.PollFd{Fd: int32(c.fd), Events: unix.POLLIN})
	}
	if err := r.loop(); err != nil {
		return Result{}, err
	}
	r.result.P50, r.result.P99, r.result.Max = r.delays.at(0.5), r.delays.at(0.99), r.delays.at(1)
	return r.result, nil
}

// prepare finds the handles and makes the calls.
func (r *run) prepare(ctx context.Context) error {
	dialer := (&net.Dialer{}).DialContext
	m, err := nfs.Dial(ctx, dialer, r.op.MountAddr, 10*time.Second)
	if err != nil {
		return err
	}
	defer m.Close()
	h, err := m.Mount(r.op.Export)
	if err != nil {
		return fmt.Errorf("mount %s: %w", r.op.Export, err)
	}
	c, err := nfs.Dial(ctx, dialer, r.op.Addr, 10*time.Second)
	if err != nil {
		return err
	}
	defer c.Close()
	var size uint64
	for name := range strings.SplitSeq(r.op.Path, "/") {
		if name == "" {
			continue
		}
		var a nfs.Attr
		if h, a, err = c.Lookup(h, name); err != nil {
			return fmt.Errorf("look up %s: %w", name, err)
		}
		size = a.Size
	}
	r.target = node{handle: h, size: size, dir: r.walking}
	return r.template(c)
}

// template makes the records that are sent.
func (r *run) template(c *nfs.Conn) error {
	h := r.target.handle
	switch r.op.Name {
	case Null:
		r.calls = [][]byte{record(procNull, nil)}
	case GetAttr:
		r.calls = [][]byte{record(procGetattr, opaque(nil, h))}
	case Access:
		r.calls = [][]byte{record(procAccess, u32(opaque(nil, h), 0x3f))}
	case Lookup:
		entries, _, err := c.ReadDirPlus(h, 0, 64<<10)
		if err != nil {
			return fmt.Errorf("list %s: %w", r.op.Path, err)
		}
		for _, e := range entries {
			if e.Name != "." && e.Name != ".." {
				r.calls = append(r.calls, record(procLookup, opaque(opaque(nil, h), e.Name)))
			}
		}
	case Read, RandRead:
		if r.target.size < uint64(r.op.Block) {
			return errors.New("the file is smaller than a block")
		}
	case Walk, Slurp:
		r.queue = []node{r.target}
	default:
		return fmt.Errorf("no operation %q", r.op.Name)
	}
	if len(r.calls) == 0 && r.op.Name == Lookup {
		return errors.New("the directory is empty")
	}
	return nil
}

// loop sends and receives until all is done.
func (r *run) loop() error {
	began := nanotime()
	r.now, r.ends = began, began+int64(r.op.For)
	for _, c := range r.conns {
		r.fill(c)
		if err := c.flush(); err != nil {
			return err
		}
	}
	for r.flying > 0 {
		n, err := r.wait(patience)
		if err != nil || n == 0 {
			return fmt.Errorf("no answer in %v: %w", patience, err)
		}
		if err := r.receive(); err != nil {
			return err
		}
		if _, err := r.wait(0); err != nil { // others may have come meanwhile
			return err
		}
		if err := r.receive(); err != nil {
			return err
		}
		for _, c := range r.conns {
			r.fill(c)
			if err := c.flush(); err != nil {
				return err
			}
		}
	}
	r.result.Took = time.Duration(nanotime() - began)
	return nil
}

// receive takes in what has come.
func (r *run) receive() error {
	for i, c := range r.conns {
		if r.ready[i].Revents == 0 {
			continue
		}
		r.now = nanotime()
		if err := c.receive(); err != nil {
			return err
		}
	}
	return nil
}

// fill makes as many calls on c as may be in flight.
func (r *run) fill(c *conn) {
	for len(c.free) > 0 {
		if r.walking {
			if len(r.queue) == 0 {
				return
			}
			n := r.queue[0]
			r.queue = r.queue[1:]
			if !n.dir && n.size == 0 {
				r.result.Files++
				continue
			}
			c.visit(c.take(), n, 0)
			continue
		}
		if r.now >= r.ends {
			return
		}
		c.begin(c.take())
	}
}

// ParseURL takes nfs://HOST/EXPORT?nfsport=P&mountport=P apart, as libnfs writes it.
func ParseURL(s string) (op Op, err error) {
	rest, ok := strings.CutPrefix(s, "nfs://")
	host, path, ok2 := strings.Cut(rest, "/")
	if !ok || !ok2 {
		return op, fmt.Errorf("%q is not nfs://HOST/EXPORT", s)
	}
	path, query, _ := strings.Cut(path, "?")
	ports := map[string]int{"nfsport": 2049, "mountport": 2049}
	for pair := range strings.SplitSeq(query, "&") {
		name, value, _ := strings.Cut(pair, "=")
		if _, known := ports[name]; known {
			if ports[name], err = strconv.Atoi(value); err != nil {
				return op, fmt.Errorf("%s: %w", name, err)
			}
		}
	}
	op.Export = "/" + path
	op.Addr = net.JoinHostPort(host, strconv.Itoa(ports["nfsport"]))
	op.MountAddr = net.JoinHostPort(host, strconv.Itoa(ports["mountport"]))
	return op, nil
}
