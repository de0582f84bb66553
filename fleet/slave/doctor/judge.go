package doctor

import (
	"cmp"
	"errors"
	"fmt"
	"net"
	"slices"
	"strings"
	"syscall"
	"time"

	"github.com/nfs-fleet/nfs-fleet/fleet/slave/control"
	"github.com/nfs-fleet/nfs-fleet/fleet/slave/resolve"
)

// Level is how a thing is.
type Level string

// The levels. Only OK and Note are well.
const (
	OK   Level = "ok"
	Note Level = "note" // as it may be; good to know
	Warn Level = "warn" // it works, and may not when something else fails
	Fail Level = "fail"
)

// Finding is the verdict on one thing.
type Finding struct {
	Check string `json:"check"` // what was looked at
	Level Level  `json:"level"`
	What  string `json:"what"`         // how it is
	Do    string `json:"do,omitempty"` // what to do about it
}

// Well says whether nothing is wrong.
func Well(findings []Finding) bool {
	return !slices.ContainsFunc(findings, func(f Finding) bool { return f.Level == Warn || f.Level == Fail })
}

// report collects findings on one thing.
type report struct {
	check string
	out   []Finding
}

func (r *report) say(level Level, what, do string) {
	r.out = append(r.out, Finding{Check: r.check, Level: level, What: what, Do: do})
}

// Judge says what facts mean.
func Judge(f Facts) []Finding {
	out := slices.Concat(judgeKernel(f.Host), judgePorts(f.Host), judgeAgent(f.Agent, f.Names))
	for _, n := range f.Names {
		out = append(out, judgeDNS(n)...)
		for _, m := range n.Masters {
			out = append(out, judgeMaster(n, m)...)
			out = append(out, judgeClock(m)...)
		}
		out = append(out, judgeTogether(n)...)
	}
	return out
}

// judgeKernel judges what this kernel can do.
func judgeKernel(h Host) []Finding {
	r := report{check: "kernel"}
	if h.NFS != nil {
		r.say(Fail, h.NFS.Error(), "install the package with the kernel's modules (on Debian linux-image-…, not -cloud or a container's kernel), and try `modprobe nfsv3`")
	} else {
		r.say(OK, "Linux "+h.Release+" has an NFSv3 client", "")
	}
	switch {
	case !h.Direct: // via relay none of this is needed
	case h.Transports != nil:
		r.say(Fail, "--via direct cannot work: "+brief(h.Transports), "use --via relay")
	case h.NoBreaker != nil:
		r.say(Warn, "via direct, a master that falls silent is not left before the kernel gives it up, after about 300 s",
			"run this as root; else load nf_tables and nft_reject_ipv4, install iptables, or use --via relay")
	default:
		r.say(OK, "--via direct can leave a master that falls silent, by "+h.Breaker, "")
	}
	return r.out
}

// fewPorts is how many free ports are few: every mount and every master takes some.
const fewPorts = 32

// judgePorts judges the local ports below 1024.
func judgePorts(h Host) []Finding {
	r := report{check: "ports"}
	switch {
	case h.Bind != nil:
		r.say(Fail, fmt.Sprintf("no local port below 1024 can be had: %v; masters refuse to be mounted from others", h.Bind),
			"run this as root; in a container, with CAP_NET_BIND_SERVICE")
	case h.FreePorts < fewPorts:
		r.say(Warn, fmt.Sprintf("only %d of the local ports from %d to %d are free", h.FreePorts, lowPort, highPort),
			"see who has them: ss -tanp; many mounts of one server can share a connection")
	default:
		r.say(OK, fmt.Sprintf("%d local ports below 1024 are free", h.FreePorts), "")
	}
	return r.out
}

// judgeAgent judges the agent, and what it says of the mounts.
func judgeAgent(a Agent, names []Name) []Finding {
	r := report{check: "agent"}
	switch {
	case a.Absent && mounted(names) > 0:
		r.say(Fail, noAgent(names), "systemctl start nfs-fleet-agent; without systemd: `nfs-fleet agent &`")
		return r.out
	case a.Absent:
		r.say(Note, "no agent runs; it will with the first mount", "")
		return r.out
	case errors.Is(a.Err, control.ErrNotAllowed):
		r.say(Fail, a.Err.Error(), "run this as root")
		return r.out
	case a.Err != nil:
		r.say(Fail, fmt.Sprintf("the agent does not answer: %v", a.Err), "run this as root; look at the agent's log: journalctl -u nfs-fleet-agent")
		return r.out
	case a.Version != a.Own:
		r.say(Warn, fmt.Sprintf("the agent is version %s, this program %s", a.Version, a.Own), "systemctl restart nfs-fleet-agent; mounts go on meanwhile")
	default:
		r.say(OK, "the agent runs, version "+a.Version, "")
	}
	for _, m := range a.Mounts {
		r.mount(m)
	}
	for _, n := range names {
		for _, m := range n.Mounts {
			if !slices.ContainsFunc(a.Mounts, func(o control.Mount) bool { return o.Dir == m.Dir }) {
				r.say(Warn, fmt.Sprintf("the agent does not know the mount at %s", m.Dir), "systemctl restart nfs-fleet-agent")
			}
		}
	}
	return r.out
}

// noAgent says what it means for mounts that no agent runs: one via relay reads through the agent.
func noAgent(names []Name) string {
	relayed := 0
	for _, n := range names {
		for _, m := range n.Mounts {
			if m.Addr.Addr().IsLoopback() {
				relayed++
			}
		}
	}
	text := fmt.Sprintf("no agent runs, and %d mounts need one: ", mounted(names))
	if mounted(names) == 1 {
		text = "no agent runs, and a mount needs one: "
	}
	switch relayed {
	case mounted(names):
		return text + "reads wait until one runs"
	case 0:
		return text + "no lost master is left"
	}
	return text + "reads via relay wait until one runs, and via direct no lost master is left"
}

func mounted(names []Name) int {
	n := 0
	for _, name := range names {
		n += len(name.Mounts)
	}
	return n
}

// mount judges what the agent says of a mount.
func (r *report) mount(m control.Mount) {
	at := cmp.Or(m.Dir, m.Name+" (in a place that the agent cannot see)")
	switch {
	case m.State == control.Searching:
		r.say(Fail, fmt.Sprintf("%s finds no master: %s", at, cmp.Or(m.Why, "none answers")), "see below what is wrong with the masters")
	case m.State == control.Reading && m.Home != "" && m.Master != m.Home:
		r.say(Note, fmt.Sprintf("%s reads from %s; its home is %s, and it goes there by itself when that has been well for 30 s", at, m.Master, m.Home), "")
	case m.State == control.Reading:
		r.say(OK, fmt.Sprintf("%s reads from %s", at, m.Master), "")
	}
}

// slowTTL is how long a look-up may be remembered before moves are noticed late.
const slowTTL = time.Minute

// judgeDNS judges what the name servers say.
func judgeDNS(n Name) []Finding {
	r := report{check: "dns " + n.Name}
	if n.NoDNS != nil {
		r.say(Fail, n.NoDNS.Error(), "name servers are taken from /etc/resolv.conf, or from --dns HOST:PORT")
		return r.out
	}
	good := 0
	for _, s := range n.Servers {
		if s.Err == nil {
			good++
		}
	}
	for i, s := range n.Servers {
		switch {
		case errors.Is(s.Err, errNoName) && good == 0:
			r.say(Fail, oneLine(s.Err), "check the name; the fleet's domain must be delegated to its masters, or --dns must name them (deploy/dns)")
		case s.Err != nil && good == 0:
			r.say(Fail, oneLine(s.Err), nameServerHint(s))
		case s.Err != nil:
			r.say(Warn, oneLine(s.Err), "others know the name; mend this one, or strike it off")
		case s.TTL > slowTTL:
			r.say(Warn, fmt.Sprintf("%s lets answers be kept for %s", s.Server, s.TTL), "whoever resolves at mount time hears late of a lost master: have it pass on the fleet's 5 s")
		case i > 0 && n.Servers[0].Err == nil && !sameTargets(s.Targets, n.Servers[0].Targets):
			r.say(Note, fmt.Sprintf("%s lists other masters than %s: %s", s.Server, n.Servers[0].Server, targetNames(s.Targets)), "")
		default:
			r.say(OK, fmt.Sprintf("%s lists %s (%s, kept for %s)", s.Server, targetNames(s.Targets), s.Took.Round(time.Millisecond), s.TTL), "")
		}
	}
	return r.out
}

// nameServerHint is what to do about a name server that is of no use, when no other is.
func nameServerHint(s resolve.Opinion) string {
	switch _, port, _ := net.SplitHostPort(s.Server); {
	case resolve.IsRefusal(s.Err):
		return "is that the fleet's domain (`nfs-fleet serve --domain`)?"
	case port == "53" && errors.Is(s.Err, syscall.ECONNREFUSED):
		return "nothing answers DNS there on port 53; if it is a master, it does on 5353 unless it was told otherwise: --dns HOST:5353"
	}
	return "is it up, and does a firewall let UDP and TCP through to it?"
}

// brief is the first line of an error.
func brief(err error) string {
	first, _, _ := strings.Cut(err.Error(), "\n")
	return first
}

// oneLine folds an error of several lines.
func oneLine(err error) string { return strings.ReplaceAll(err.Error(), "\n", "; ") }
