package doctor

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"slices"
	"strings"
	"syscall"
	"time"

	"github.com/nfs-fleet/nfs-fleet/exporter/hello"
	"github.com/nfs-fleet/nfs-fleet/fleet/slave/relay"
	"github.com/nfs-fleet/nfs-fleet/fleet/slave/resolve"
)

var errNoName = resolve.ErrNoName

// slowAnswer is how long a healthy master takes for a call that it answers from memory.
const slowAnswer = 200 * time.Millisecond

// judgeMaster says how far a slave gets with a master, and what stops it.
func judgeMaster(n Name, m Master) []Finding {
	r := report{check: "master " + m.Target.String()}
	if m.Target.Name != "" {
		r.check += " (" + m.Target.Addr.String() + ")"
	}
	switch {
	case m.Connect.Err != nil:
		r.unreachable(m, answersDNS(n, m.Target.Addr.Addr()))
	case m.Null.Err != nil:
		r.mute(m.Null.Err)
	case errors.Is(m.Hello.Err, hello.ErrNoHello):
		r.say(Fail, "it is an NFS server, but no nfs-fleet master", "DNS leads to the wrong host: correct the SRV record")
	case m.Exports.Err != nil:
		r.say(Fail, "it does not list its exports: "+plain(m.Exports.Err), "look at its log: journalctl -u nfs-fleet")
	case m.Shard == "":
		r.say(Fail, "it exports nothing", "publish something: nfs-fleet publish; or, if it just started, wait until it is in step: nfs-fleet status")
	case m.Mount.Err != nil:
		r.unmountable(m)
	case m.Read.Err != nil && m.File != "":
		r.say(Fail, fmt.Sprintf("reading /%s%s fails: %s", m.Shard, m.File, plain(m.Read.Err)), "on the master: nfs-fleet verify; and look at its log")
	case m.Read.Err != nil:
		r.say(Warn, fmt.Sprintf("nothing of /%s can be read as this user: %s", m.Shard, plain(m.Read.Err)), "see the modes of the files, and the shard's squash: nfs-fleet shard list")
	case m.Hello.Err != nil:
		r.say(Warn, "it serves, but HELLO fails: "+plain(m.Hello.Err), "the agent will take it for lost; is it overloaded, or much older than this program?")
	case m.Null.Took > slowAnswer:
		r.say(Warn, fmt.Sprintf("it serves, but took %s for a call that does nothing", m.Null.Took.Round(time.Millisecond)), "is the network, or the master, overloaded? The agent leaves a master that is silent for 500 ms")
	case m.File == "":
		r.say(Note, fmt.Sprintf("/%s can be mounted; no file with bytes in it was found there", m.Shard), "")
	default:
		r.say(OK, fmt.Sprintf("connects in %s, mounts /%s, reads %s", m.Connect.Took.Round(10*time.Microsecond), m.Shard, m.File), "")
	}
	return r.out
}

// unreachable says why there is no connection. knows says that the same host answers questions of DNS.
func (r *report) unreachable(m Master, knows bool) {
	err, port := m.Connect.Err, m.Target.Addr.Port()
	switch {
	case errors.Is(err, syscall.ECONNREFUSED):
		r.say(Fail, fmt.Sprintf("its host refuses connections to port %d", port), "no nfs-fleet serve runs there, or it listens elsewhere: systemctl status nfs-fleet")
	case errors.Is(err, syscall.EHOSTUNREACH), errors.Is(err, syscall.ENETUNREACH):
		r.say(Fail, "there is no way to its host: "+plain(err), "is the host up, and do routes lead there? A firewall that rejects looks the same")
	case errors.Is(err, syscall.EACCES), errors.Is(err, syscall.EPERM):
		r.say(Fail, "this host's own packet filter forbids it: "+plain(err), fmt.Sprintf("allow TCP to port %d in this host's output rules", port))
	case timedOut(err) && knows:
		r.say(Fail, fmt.Sprintf("its host answers DNS, but says nothing on port %d", port), fmt.Sprintf("a firewall drops TCP to port %d, on this host, on the way, or there: allow it", port))
	case timedOut(err):
		r.say(Fail, "its host says nothing", fmt.Sprintf("it is down, or a firewall drops TCP to port %d: try ping, and the same from another host", port))
	default:
		r.say(Fail, "cannot connect: "+plain(err), "")
	}
}

// mute says what is the matter with a master that accepts connections and does not answer.
func (r *report) mute(err error) {
	switch {
	case timedOut(err):
		r.say(Fail, "it accepts connections and answers nothing", "its process hangs (is it stopped? ps shows T), or a firewall or a wrong MTU stops what follows the connection")
	case errors.Is(err, io.EOF), errors.Is(err, syscall.ECONNRESET):
		r.say(Fail, "it closes connections at once", "it is stopping, or has too many connections, or a proxy is in its place: look at its log")
	default:
		r.say(Fail, "it does not answer as an NFS server: "+plain(err), "something else listens there: see with `ss -tlnp` on the master")
	}
}

// unmountable says why a shard cannot be mounted.
func (r *report) unmountable(m Master) {
	const denied, absent = status(13), status(2)
	exported := slices.Contains(m.Exported, "/"+m.Shard)
	switch {
	case errors.Is(m.Mount.Err, denied) && !m.Low:
		r.say(Fail, fmt.Sprintf("it does not let /%s be mounted from a port above 1023", m.Shard), "run this as root")
	case errors.Is(m.Mount.Err, denied):
		r.say(Fail, fmt.Sprintf("it does not let this host mount /%s", m.Shard), "add this host's network to the shard's: nfs-fleet shard set "+m.Shard+" --network …; behind NAT masters see another address")
	case errors.Is(m.Mount.Err, absent) && !exported:
		r.say(Fail, fmt.Sprintf("it has no shard %s; it exports %s", m.Shard, list(m.Exported)), "check the name, or wait until the master is in step: nfs-fleet status")
	default:
		r.say(Fail, fmt.Sprintf("mounting /%s fails: %s", m.Shard, plain(m.Mount.Err)), "look at the master's log")
	}
}

// wrongClock is how far a clock may be off.
const wrongClock = 2 * time.Second

// judgeClock compares this host's clock with a master's.
func judgeClock(m Master) []Finding {
	if m.Says.Now.IsZero() {
		return nil
	}
	r := report{check: "clock"}
	off := m.Offset.Abs() - m.Accuracy
	if off <= wrongClock {
		return nil
	}
	which := "behind"
	if m.Offset < 0 {
		which = "ahead of"
	}
	r.say(Warn, fmt.Sprintf("this host's clock is %s %s %s's", m.Offset.Abs().Round(100*time.Millisecond), which, m.Target),
		"run chrony or systemd-timesyncd on both: files seem to be from the future, and logs do not agree")
	return r.out
}

// judgeTogether judges the masters as a whole.
func judgeTogether(n Name) []Finding {
	r := report{check: "masters of " + n.Name}
	var well []Master
	for _, m := range n.Masters {
		if m.Mount.Tried && m.Mount.Err == nil && m.Read.Err == nil {
			well = append(well, m)
		}
	}
	for _, m := range well[min(1, len(well)):] {
		if m.Shard == well[0].Shard && m.Root != well[0].Root {
			r.say(Fail, fmt.Sprintf("%s and %s give different handles for /%s: they are not of one fleet", well[0].Target, m.Target, m.Shard), "correct the SRV records, or join the master to the fleet")
		}
	}
	switch {
	case len(n.Masters) == 0: // DNS has said why
	case len(well) == 0:
		r.say(Fail, "none of them can be read from", "")
	case len(well) == 1:
		r.say(Warn, fmt.Sprintf("only %s can be read from: nothing is left when it is lost", well[0].Target), "mend the others, or start another master")
	default:
		r.say(OK, fmt.Sprintf("%d of %d can be read from", len(well), len(n.Masters)), "")
	}
	return r.out
}

// answersDNS says whether a name server at an address answered.
func answersDNS(n Name, addr netip.Addr) bool {
	return slices.ContainsFunc(n.Servers, func(s resolve.Opinion) bool {
		at, err := netip.ParseAddrPort(s.Server)
		return err == nil && at.Addr().Unmap() == addr && s.Err == nil
	})
}

func timedOut(err error) bool {
	var n net.Error
	return errors.Is(err, os.ErrDeadlineExceeded) || errors.Is(err, context.DeadlineExceeded) || errors.As(err, &n) && n.Timeout()
}

// plain returns an error without the addresses that net puts before it.
func plain(err error) string {
	var op *net.OpError
	if errors.As(err, &op) {
		err = op.Err
	}
	if timedOut(err) {
		return "no answer within " + stepTime.String()
	}
	return oneLine(err)
}

func sameTargets(a, b []relay.Target) bool {
	return len(a) == len(b) && !slices.ContainsFunc(a, func(t relay.Target) bool {
		return !slices.ContainsFunc(b, func(o relay.Target) bool { return o.Addr == t.Addr })
	})
}

func targetNames(targets []relay.Target) string {
	var names []string
	for _, t := range targets {
		names = append(names, t.String())
	}
	return list(names)
}

// list writes some of a list.
func list(items []string) string {
	const most = 6
	if len(items) == 0 {
		return "nothing"
	}
	out := strings.Join(items[:min(len(items), most)], ", ")
	if len(items) > most {
		out += fmt.Sprintf(" and %d more", len(items)-most)
	}
	return out
}
