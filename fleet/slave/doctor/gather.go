package doctor

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/nfs-fleet/nfs-fleet/fleet/slave/control"
	"github.com/nfs-fleet/nfs-fleet/fleet/slave/direct"
	"github.com/nfs-fleet/nfs-fleet/fleet/slave/mounts"
	"github.com/nfs-fleet/nfs-fleet/fleet/slave/relay"
	"github.com/nfs-fleet/nfs-fleet/fleet/slave/resolve"
)

// Options say what to look at.
type Options struct {
	Name    string   // a SRV name; "": those by which something is mounted
	Shard   string   // to mount; "": what is mounted by the name, else the first that is exported
	DNS     []string // name servers; none: those that the name was mounted with, or the host's
	Direct  bool     // via direct is wanted
	Socket  string   // of the agent
	Version string   // of this program
}

// Gather looks. It fails only when it cannot look at all.
func Gather(ctx context.Context, o Options) (Facts, error) {
	table, err := mounts.Table()
	if err != nil {
		return Facts{}, err
	}
	f := Facts{Host: host(), Agent: agent(ctx, o)}
	names := make(map[string][]mounts.Mount)
	for _, m := range table {
		names[m.Name] = append(names[m.Name], m)
		f.Host.Direct = f.Host.Direct || !m.Addr.Addr().IsLoopback()
	}
	f.Host.Direct = f.Host.Direct || o.Direct
	if o.Name != "" {
		name := mounts.Canonical(o.Name)
		if err := mounts.CheckName(name); err != nil {
			return Facts{}, err
		}
		names = map[string][]mounts.Mount{name: names[name]}
	}
	for name, ms := range names {
		o := o
		o.DNS = nameServers(o, f.Agent, name)
		f.Names = append(f.Names, gatherName(ctx, o, name, ms, knownTargets(f.Agent, name), f.Host.Bind == nil))
	}
	slices.SortFunc(f.Names, func(a, b Name) int { return strings.Compare(a.Name, b.Name) })
	return f, ctx.Err()
}

// nameServers are those to be asked for a name.
func nameServers(o Options, a Agent, name string) []string {
	if len(o.DNS) > 0 {
		return o.DNS
	}
	for _, m := range a.Mounts {
		if m.Name == name && len(m.DNS) > 0 {
			return m.DNS
		}
	}
	return nil
}

// knownTargets are the masters of a name that the agent can tell the address of.
func knownTargets(a Agent, name string) (out []relay.Target) {
	for _, m := range a.Mounts {
		addr, err := netip.ParseAddrPort(m.At)
		if m.Name != name || err != nil || slices.ContainsFunc(out, func(t relay.Target) bool { return t.Addr == addr }) {
			continue
		}
		out = append(out, relay.Target{Name: m.Master, Addr: addr})
	}
	return out
}

// gatherName asks the name servers, and then the masters that any of them names, or that are known without them.
func gatherName(ctx context.Context, o Options, name string, ms []mounts.Mount, known []relay.Target, low bool) Name {
	n := Name{Name: name, Mounts: ms}
	n.Servers, n.NoDNS = resolve.Resolver{Servers: o.DNS}.Survey(ctx, name)
	var targets []relay.Target
	for _, s := range n.Servers {
		for _, t := range s.Targets {
			if !slices.ContainsFunc(targets, func(o relay.Target) bool { return o.Addr == t.Addr }) {
				targets = append(targets, t)
			}
		}
	}
	if len(targets) == 0 {
		targets = known
	}
	shard := strings.Trim(o.Shard, "/")
	if shard == "" && len(ms) > 0 {
		shard = ms[0].Shard()
	}
	n.Masters = probeAll(ctx, targets, low, shard)
	return n
}

// agent asks the agent.
func agent(ctx context.Context, o Options) Agent {
	ctx, cancel := within(ctx)
	defer cancel()
	s, err := control.NewClient(o.Socket).Status(ctx)
	return Agent{Err: err, Absent: errors.Is(err, control.ErrNoAgent), Version: s.Version, Own: o.Version, Mounts: s.Mounts}
}

// host looks at this machine.
func host() Host {
	var h Host
	var un unix.Utsname
	if err := unix.Uname(&un); err == nil {
		h.Release = unix.ByteSliceToString(un.Release[:])
	}
	h.NFS = nfsClient("", h.Release)
	linux := &direct.Linux{}
	_, h.Transports = linux.Transports()
	h.Breaker, h.NoBreaker = breaker(linux.Breakers())
	h.Bind = bindLow()
	h.FreePorts = freePorts("")
	return h
}

// nfsClient says why this kernel has no NFSv3 client. root is put before paths.
func nfsClient(root, release string) error {
	known, err := os.ReadFile(root + "/proc/filesystems")
	if err != nil {
		return err
	}
	loaded, err := os.ReadFile(root + "/proc/modules")
	if err == nil && strings.Contains(string(loaded), "\nnfsv3 ") || strings.HasPrefix(string(loaded), "nfsv3 ") {
		return nil
	}
	for _, list := range []string{"modules.builtin", "modules.dep"} {
		b, err := os.ReadFile(filepath.Join(root, "/lib/modules", release, list))
		if err == nil && strings.Contains(string(b), "/nfsv3.ko") {
			return nil
		}
	}
	if strings.Contains(string(known), "\tnfs\n") {
		return nil // it is there; whether it speaks version 3 cannot be seen, and it nearly always does
	}
	return fmt.Errorf("the kernel %s has no module nfsv3 (nor is it built in)", release)
}

// breaker returns the first that works here. It does as the agent would.
func breaker(all []direct.Breaker) (string, error) {
	var why []error
	for _, b := range all {
		err := b.Check()
		if err == nil {
			return b.Name(), nil
		}
		why = append(why, fmt.Errorf("%s: %w", b.Name(), err))
	}
	return "", errors.Join(why...)
}

// The ports of the kernel's client, unless sunrpc.min_resvport says otherwise, and of the agent.
const (
	lowPort  = 665
	highPort = 1023
)

// bindLow says why this process cannot have a port below 1024.
func bindLow() error {
	var err error
	for port := highPort; port >= lowPort; port-- {
		var l *net.TCPListener
		if l, err = net.ListenTCP("tcp4", &net.TCPAddr{IP: net.IPv4(127, 0, 0, 1), Port: port}); err == nil {
			return l.Close()
		}
		if errors.Is(err, unix.EACCES) {
			return err
		}
	}
	return err
}

// freePorts counts the ports that no TCP socket of this host has.
func freePorts(root string) int {
	taken := make(map[uint64]bool)
	for _, name := range []string{"/proc/net/tcp", "/proc/net/tcp6"} {
		f, err := os.Open(root + name)
		if err != nil {
			continue // no such family here
		}
		for lines := bufio.NewScanner(f); lines.Scan(); {
			fields := strings.Fields(lines.Text())
			if len(fields) < 2 {
				continue
			}
			_, port, _ := strings.Cut(fields[1], ":")
			if n, err := strconv.ParseUint(port, 16, 16); err == nil && n >= lowPort && n <= highPort {
				taken[n] = true
			}
		}
		f.Close() //nolint:errcheck // it was read
	}
	return highPort - lowPort + 1 - len(taken)
}
