package mount

import (
	"cmp"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/nfs-fleet/nfs-fleet/fleet/slave/control"
	"github.com/nfs-fleet/nfs-fleet/fleet/slave/resolve"
)

// DefaultWait is how long a mount waits for a master to answer.
const DefaultWait = 20 * time.Second

// attributeCache is how long the kernel believes what it knows of a file or a directory without asking. A file's bytes
// never change under its handle, and an open asks in any case; so this bounds how long a listing, a stat, or the absence of a
// name stays behind a publish, against a GETATTR for each file in use and time. Linux's own 3 to 60 s is made for servers
// whose load such calls are; ours answer them from memory.
var attributeCache = []string{"acregmin=1", "acregmax=5", "acdirmin=1", "acdirmax=5"}

// Options are the options of a mount, sorted by who heeds them.
type Options struct {
	Via     string   // control.Relay or control.Direct; "": relay
	DNS     []string // name servers
	Masters []string // HOST:PORT
	Slave   string   // this slave's name
	Wait    time.Duration
	// Readahead is how far the kernel reads ahead.
	Readahead Readahead
	flags     uintptr  // MS_*, besides those that every mount has
	kernel    []string // for the kernel's NFS client, after the defaults
}

// rule says what becomes of an option.
type rule struct {
	ours    func(o *Options, value string) error // it is for the agent
	flag    uintptr                              // it is a flag of mount(2)
	clear   uintptr                              // it takes flags back
	value   func(value string) error             // it is for the kernel; nil: without a value
	kernel  bool
	refused string // it is refused: why
}

var (
	ignored = rule{}
	plain   = rule{kernel: true}
	number  = rule{kernel: true, value: isNumber}
	text    = rule{kernel: true, value: isText}
)

func oneOf(values ...string) rule {
	return rule{kernel: true, value: func(v string) error {
		if slices.Contains(values, v) {
			return nil
		}
		return fmt.Errorf("want %s", strings.Join(values, " or "))
	}}
}

// given is a rule for what every mount has, in that one value.
func given(values ...string) rule {
	r := oneOf(values...)
	r.kernel = false
	return r
}

func refused(why string) rule { return rule{refused: why} }

const (
	onlyHard   = "a reader would get errors while masters change; mounts are hard"
	onlyTCP    = "masters serve over TCP alone"
	onlyAgent  = "the agent chooses it"
	onlyV3     = "masters serve NFS version 3"
	useWait    = "use wait=DURATION, nofail or x-systemd.automount"
	noPrivs    = "files of a fleet must not give rights on this host"
	onlyNolock = "the tree is read-only: there is nothing to lock"
)

// rules are the options that are known, as mount(8) and nfs(5) have them. mount(8) hands over everything in fstab's fourth
// field, also what is for itself or for systemd.
var rules = map[string]rule{
	"via":       {ours: func(o *Options, v string) error { o.Via = v; return isVia(v) }},
	"dns":       {ours: func(o *Options, v string) error { o.DNS = append(o.DNS, v); return resolve.CheckServer(v) }},
	"master":    {ours: func(o *Options, v string) error { o.Masters = append(o.Masters, v); return isText(v) }},
	"name":      {ours: func(o *Options, v string) error { o.Slave = v; return isText(v) }},
	"wait":      {ours: func(o *Options, v string) (err error) { o.Wait, err = duration(v); return err }},
	"readahead": {ours: func(o *Options, v string) (err error) { o.Readahead, err = parseReadahead(v); return err }},
	"noexec":    {flag: unix.MS_NOEXEC},
	"exec":      {clear: unix.MS_NOEXEC},
	"noatime":   {flag: unix.MS_NOATIME}, "nodiratime": {flag: unix.MS_NODIRATIME},
	"relatime": {flag: unix.MS_RELATIME}, "strictatime": {flag: unix.MS_STRICTATIME}, "silent": {flag: unix.MS_SILENT},

	"defaults": ignored, "ro": ignored, "nosuid": ignored, "nodev": ignored, "async": ignored, "sync": ignored,
	"auto": ignored, "noauto": ignored, "nofail": ignored, "_netdev": ignored, "_rnetdev": ignored, "user": ignored, "nouser": ignored,
	"users": ignored, "owner": ignored, "group": ignored, "comment": ignored, "helper": ignored, "uhelper": ignored, "loud": ignored,
	"atime": ignored, "diratime": ignored, "norelatime": ignored, "nostrictatime": ignored, "nolazytime": ignored, "lazytime": ignored,
	"fg": ignored, "intr": ignored, "nointr": ignored, "hard": ignored, "nolock": ignored, "tcp": ignored, "v3": ignored, "resvport": ignored,
	"vers": given("3", "3.0"), "nfsvers": given("3", "3.0"), "proto": given("tcp", "tcp6"), "mountproto": given("tcp", "tcp6"),
	"mountvers": given("3"), "sec": given("sys"), "sloppy": ignored,

	"rsize": number, "wsize": number, "bsize": number, "timeo": number, "retrans": number, "namlen": number,
	"acregmin": number, "acregmax": number, "acdirmin": number, "acdirmax": number, "actimeo": number, "ac": plain, "noac": plain,
	"cto": plain, "nocto": plain, "rdirplus": plain, "nordirplus": plain, "fsc": {kernel: true, value: noComma},
	"nofsc": plain, "sharecache": plain, "nosharecache": plain, "acl": plain, "noacl": plain,
	"lookupcache": oneOf("all", "none", "pos", "positive"), "local_lock": oneOf("all", "flock", "posix", "none"),
	"nconnect": {kernel: true, value: func(v string) error {
		if n, err := strconv.Atoi(v); err != nil || n < 1 || n > 16 {
			return errors.New("want a number from 1 to 16")
		}
		return nil
	}},
	"context": text, "fscontext": text, "defcontext": text, "rootcontext": text,

	"rw":   refused("masters serve the tree read-only: leave it away, or say ro"),
	"soft": refused(onlyHard), "softerr": refused(onlyHard), "softreval": refused(onlyHard), "udp": refused(onlyTCP),
	"rdma": refused(onlyTCP), "port": refused(onlyAgent), "addr": refused(onlyAgent), "mountport": refused(onlyAgent),
	"mountaddr": refused(onlyAgent), "mounthost": refused(onlyAgent), "clientaddr": refused(onlyV3), "minorversion": refused(onlyV3),
	"v2": refused(onlyV3), "v4": refused(onlyV3), "v4.0": refused(onlyV3), "v4.1": refused(onlyV3), "v4.2": refused(onlyV3),
	"noresvport": refused("masters and the agent ask for ports below 1024"), "lock": refused(onlyNolock),
	"suid": refused(noPrivs), "dev": refused(noPrivs), "bg": refused(useWait), "retry": refused(useWait), "remount": refused("unmount and mount again"),
	"bind": refused("that is not a mount of a fleet"), "rbind": refused("that is not a mount of a fleet"),
}

// HelperOptions returns options as mount(8) hands them over without the rw that it puts there whenever nobody has said ro: its helper
// cannot tell whether somebody has.
func HelperOptions(text string) string {
	return strings.Join(slices.DeleteFunc(strings.Split(text, ","), func(item string) bool { return item == "rw" }), ",")
}

// ParseOptions sorts options, as they stand after -o, by who heeds them. sloppy lets those pass that nobody knows.
func ParseOptions(text string, sloppy bool) (Options, error) {
	o := Options{Wait: DefaultWait}
	list, err := split(text)
	if err != nil {
		return o, err
	}
	for _, item := range list {
		key, value, has := strings.Cut(item, "=")
		if strings.HasPrefix(key, "x-") || strings.HasPrefix(key, "X-") {
			continue // for whoever reads fstab
		}
		r, known := rules[key]
		if !known {
			if sloppy {
				continue
			}
			return o, fmt.Errorf("option %s is not known", item)
		}
		if err := o.apply(r, item, value, has); err != nil {
			return o, err
		}
	}
	return o, nil
}

// apply heeds one option.
func (o *Options) apply(r rule, item, value string, has bool) error {
	o.flags = o.flags&^r.clear | r.flag
	var err error
	switch {
	case r.refused != "":
		return fmt.Errorf("option %s is refused: %s", item, r.refused)
	case r.ours != nil:
		err = r.ours(o, value)
	case r.value != nil:
		err = r.value(value)
	case has && r.kernel:
		err = errors.New("it has no value")
	}
	if err != nil {
		return fmt.Errorf("option %s: %w", item, err)
	}
	if r.kernel {
		o.kernel = append(o.kernel, item)
	}
	return nil
}

// split splits options at commas outside of quotation marks, which SELinux contexts have.
func split(text string) ([]string, error) {
	quoted := false
	items := strings.FieldsFunc(text, func(c rune) bool {
		if c == '"' {
			quoted = !quoted
		}
		return c == ',' && !quoted
	})
	if quoted {
		return nil, errors.New("a quotation mark in the options has no end")
	}
	for _, item := range items {
		if strings.ContainsFunc(item, func(c rune) bool { return c < ' ' || c == 0x7f }) {
			return nil, fmt.Errorf("option %q has a control character", item)
		}
	}
	return items, nil
}

func isNumber(v string) error {
	if _, err := strconv.ParseUint(v, 10, 31); err != nil {
		return errors.New("want a number")
	}
	return nil
}

func isText(v string) error {
	if strings.Trim(v, `"`) == "" {
		return errors.New("want a value")
	}
	return nil
}

// noComma refuses what this package's quotation marks keep together and the kernel would take apart.
func noComma(v string) error {
	if strings.ContainsAny(v, `,"`) {
		return errors.New("want a value without commas and quotation marks")
	}
	return nil
}

func isVia(v string) error {
	if v != control.Relay && v != control.Direct {
		return fmt.Errorf("want %s or %s", control.Relay, control.Direct)
	}
	return nil
}

// duration reads a duration, or a number of seconds.
func duration(v string) (time.Duration, error) {
	d, err := time.ParseDuration(v)
	if n, nerr := strconv.ParseUint(v, 10, 16); nerr == nil {
		d, err = time.Duration(n)*time.Second, nil
	}
	if err != nil || d <= 0 || d > 10*time.Minute {
		return 0, errors.New("want a duration such as 30s, up to 10m")
	}
	return d, nil
}

// Want is what the agent is asked for.
func (o Options) Want(s Spec) control.Want {
	return control.Want{
		Name: s.Name, Via: cmp.Or(o.Via, control.Relay), DNS: o.DNS, Masters: o.Masters, Slave: o.Slave, Wait: o.Wait,
	}
}

// Kernel returns flags and data of mount(2) for a master, or the agent, at addr. The kernel's NFS client reads them as
// mount.nfs writes them; nothing is left for it to find out, so it needs neither rpcbind nor mount.nfs.
func (o Options) Kernel(addr netip.AddrPort) (flags uintptr, data string, err error) {
	proto := "tcp"
	if addr.Addr().Is6() {
		proto = "tcp6"
	}
	ip, port := addr.Addr().String(), strconv.Itoa(int(addr.Port()))
	list := slices.Concat(
		[]string{"vers=3", "proto=" + proto, "hard", "nolock", "sec=sys", "port=" + port},
		attributeCache, o.kernel,
		[]string{"mountvers=3", "mountproto=" + proto, "mountport=" + port, "mountaddr=" + ip, "addr=" + ip})
	data = strings.Join(list, ",")
	if len(data) >= 4096 {
		return 0, "", fmt.Errorf("options of %d bytes are more than the kernel takes", len(data))
	}
	return o.flags | unix.MS_RDONLY | unix.MS_NOSUID | unix.MS_NODEV, data, nil
}
