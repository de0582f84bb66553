package master

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"maps"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/rs/zerolog"
	"go.yaml.in/yaml/v3"
	"golang.org/x/sys/unix"

	"github.com/nfs-fleet/nfs-fleet/fleet"
	"github.com/nfs-fleet/nfs-fleet/fleet/dns"
	"github.com/nfs-fleet/nfs-fleet/fleet/trust"
)

// Config is every setting of `serve`. deploy/nfs-fleet.yaml explains each of them.
type Config struct {
	Name      string                  `yaml:"name"`      // of this master, unique in the fleet
	Fleet     string                  `yaml:"fleet"`     // the fleet's name, and with that its prefix in etcd
	DataDir   string                  `yaml:"data_dir"`  // one master's, kept across restarts
	Advertise string                  `yaml:"advertise"` // host or IP address that others reach this master by; "": found out
	Domain    string                  `yaml:"domain"`    // of the fleet, in DNS; "": what other masters are set to, or dns.DefaultDomain
	SkyDNS    bool                    `yaml:"skydns"`    // the coordinator keeps DNS records in etcd for CoreDNS
	LeaseTTL  time.Duration           `yaml:"lease_ttl"` // after which a silent master counts as lost
	Join      string                  `yaml:"join"`      // the token by which this master becomes one of a fleet's; not used again once it has
	Sources   map[string]SourceConfig `yaml:"sources"`   // by shard
	Listen    ListenConfig            `yaml:"listen"`
	Etcd      EtcdConfig              `yaml:"etcd"`
	NewShards ShardConfig             `yaml:"new_shards"`
	Scan      ScanConfig              `yaml:"scan"`
	NFS       NFSConfig               `yaml:"nfs"`
	Log       LogConfig               `yaml:"log"`
}

// SourceConfig is a directory on this master that a shard is published from. Its text, in YAML or after the "SHARD=" of
// a flag, is DIR or DIR,mode=MODE.
type SourceConfig struct {
	Dir  string `yaml:"dir"`
	Mode string `yaml:"mode"` // watch ("" is watch too): changes are published by themselves; manual: when told to
}

// Manual reports whether the source is published only when told to.
func (s SourceConfig) Manual() bool { return s.Mode == "manual" }

// UnmarshalText reads DIR or DIR,mode=MODE. A comma that does not begin ",mode=" belongs to the directory's name.
func (s *SourceConfig) UnmarshalText(text []byte) error {
	*s = SourceConfig{Dir: string(text)}
	if i := strings.LastIndex(s.Dir, ",mode="); i >= 0 {
		s.Dir, s.Mode = s.Dir[:i], s.Dir[i+len(",mode="):]
	}
	return nil
}

// ParseSource reads SHARD=DIR or SHARD=DIR,mode=MODE; a relative directory is taken from the working directory.
func ParseSource(text string) (shard string, s SourceConfig, err error) {
	shard, rest, ok := strings.Cut(text, "=")
	if !ok || shard == "" || rest == "" {
		return "", s, fmt.Errorf("%q: give SHARD=DIR or SHARD=DIR,mode=manual", text)
	}
	if err := s.UnmarshalText([]byte(rest)); err != nil {
		return "", s, err
	}
	if s.Dir == "" {
		return "", s, fmt.Errorf("%q: the directory is missing", text)
	}
	s.Dir, err = filepath.Abs(s.Dir)
	return shard, s, err
}

// ListenConfig holds listen addresses, host:port each; an empty host means every address.
type ListenConfig struct {
	NFS     string `yaml:"nfs"`
	HTTP    string `yaml:"http"`
	Peer    string `yaml:"peer"`    // other masters, and whoever has a token, over TLS
	DNS     string `yaml:"dns"`     // "off": no DNS
	Portmap string `yaml:"portmap"` // "off": no portmapper
}

// EtcdConfig says which etcd coordinates the fleet: a running cluster (Endpoints to User), or, without
// Endpoints, one inside this process (ClientListen, PeerListen, DataDir).
type EtcdConfig struct {
	Endpoints    []string `yaml:"endpoints"`
	Cert         string   `yaml:"cert"`
	Key          string   `yaml:"key"`
	CACert       string   `yaml:"cacert"`
	User         string   `yaml:"user"` // name, or name:password as etcdctl has it
	ClientListen string   `yaml:"client_listen"`
	PeerListen   string   `yaml:"peer_listen"`
	DataDir      string   `yaml:"data_dir"` // "": etcd/ in the master's data directory
}

// ShardConfig is what a shard that a source brings into being starts with; `shard set` changes it later.
type ShardConfig struct {
	KeepGenerations int            `yaml:"keep_generations"`
	KeepFor         time.Duration  `yaml:"keep_for"`
	MinCopies       int            `yaml:"min_copies"`
	Networks        []netip.Prefix `yaml:"networks"` // empty: everyone
	Squash          fleet.Squash   `yaml:"squash"`
	Insecure        bool           `yaml:"insecure"` // clients may use ports from 1024
}

// ScanConfig is when sources are read.
type ScanConfig struct {
	Quiet   time.Duration `yaml:"quiet"`    // without a change before a publish
	MaxWait time.Duration `yaml:"max_wait"` // of a publish for that quiet
	Rescan  time.Duration `yaml:"rescan"`   // between two readings of everything
}

// NFSConfig bounds the NFS server.
type NFSConfig struct {
	MaxConnections int           `yaml:"max_connections"`
	IdleTimeout    time.Duration `yaml:"idle_timeout"` // after which a silent connection is closed
}

// LogConfig is what is logged to standard error, and how.
type LogConfig struct {
	Level  string `yaml:"level"`  // trace, debug, info, warn or error
	Format string `yaml:"format"` // console or json
}

// PortmapOff is the ListenConfig.Portmap that turns the portmapper off.
const PortmapOff = "off"

// DNSOff is the ListenConfig.DNS that turns DNS off.
const DNSOff = "off"

// defaultDNS is where DNS is answered by default.
const defaultDNS = ":5353"

// MinLeaseTTL is the shortest lease that etcd can be trusted to keep.
const MinLeaseTTL = 2 * time.Second

const dataDirName = "/var/lib/nfs-fleet"

// Default returns the settings of a `serve` without file and flags. Name and DataDir depend on the host and on what
// this process may write.
func Default() Config {
	return Config{
		Name: defaultName(), Fleet: "default", DataDir: defaultDataDir(dataDirName), LeaseTTL: 5 * time.Second, SkyDNS: true,
		Sources:   map[string]SourceConfig{},
		Listen:    ListenConfig{NFS: ":2049", HTTP: "127.0.0.1:7049", Peer: ":7050", DNS: defaultDNS, Portmap: PortmapOff},
		Etcd:      EtcdConfig{ClientListen: "127.0.0.1:2379", PeerListen: ":2380"},
		NewShards: ShardConfig{KeepGenerations: 10, KeepFor: 24 * time.Hour, MinCopies: 2, Squash: fleet.SquashNone},
		Scan:      ScanConfig{Quiet: 500 * time.Millisecond, MaxWait: 30 * time.Second, Rescan: 10 * time.Minute},
		NFS:       NFSConfig{MaxConnections: 1024, IdleTimeout: time.Hour},
		Log:       LogConfig{Level: "info", Format: "console"},
	}
}

// defaultName is the host's name as far as it can name a master.
func defaultName() string {
	host, err := os.Hostname()
	host, _, _ = strings.Cut(strings.ToLower(host), ".")
	if err != nil || fleet.ValidName(host) != nil {
		return "master"
	}
	return host
}

// defaultDataDir is preferred when this process can write to it or make it, and ./nfs-fleet-data otherwise.
func defaultDataDir(preferred string) string {
	if unix.Access(preferred, unix.W_OK|unix.X_OK) == nil {
		return preferred
	}
	if _, err := os.Lstat(preferred); errors.Is(err, os.ErrNotExist) && unix.Access(filepath.Dir(preferred), unix.W_OK|unix.X_OK) == nil {
		return preferred
	}
	return "nfs-fleet-data"
}

// Load reads a YAML file over the defaults. A key that is not a setting is an error. The result is not validated,
// because flags may change it yet.
func Load(path string) (Config, error) {
	b, err := os.ReadFile(path)
	if err != nil {
		return Config{}, fmt.Errorf("config: %w", err)
	}
	c, err := parse(b)
	if err != nil {
		return Config{}, fmt.Errorf("config %s: %w", path, err)
	}
	return c, nil
}

func parse(b []byte) (Config, error) {
	c := Default()
	d := yaml.NewDecoder(bytes.NewReader(b))
	d.KnownFields(true)
	if err := d.Decode(&c); err != nil && !errors.Is(err, io.EOF) {
		return Config{}, oneLine(err)
	}
	if err := d.Decode(new(yaml.Node)); !errors.Is(err, io.EOF) {
		return Config{}, errors.New("more than one YAML document: keep one")
	}
	if c.Sources == nil {
		c.Sources = map[string]SourceConfig{}
	}
	return c, nil
}

// oneLine folds the lines of a YAML error into one and says what to do about an unknown key.
func oneLine(err error) error {
	text := err.Error()
	var te *yaml.TypeError
	if errors.As(err, &te) {
		text = strings.Join(te.Errors, "; ")
	}
	text = strings.Join(strings.FieldsFunc(text, func(r rune) bool { return r == '\n' || r == '\r' }), " ")
	if strings.Contains(text, "not found in type") {
		text += " (no such setting: `nfs-fleet serve --help` lists them all)"
	}
	return errors.New(text)
}

// Validate reports the first setting that cannot work, by the name of its flag, with what to do.
func (c Config) Validate() error {
	for _, check := range []func() error{c.validateNames, c.validateJoin, c.validateListen, c.validateSources, c.validateEtcd, c.validateNumbers, c.validateLog} {
		if err := check(); err != nil {
			return err
		}
	}
	return nil
}

func (c Config) validateNames() error {
	if err := fleet.ValidName(c.Name); err != nil {
		return fmt.Errorf("--name: %w", err)
	}
	if err := fleet.ValidName(c.Fleet); err != nil {
		return fmt.Errorf("--fleet: %w", err)
	}
	if c.DataDir == "" {
		return errors.New("--data-dir is empty: name a directory that this master keeps across restarts")
	}
	if c.Domain != "" {
		if err := dns.ValidDomain(c.Domain); err != nil {
			return fmt.Errorf("--domain: %w", err)
		}
	}
	if strings.ContainsAny(c.Advertise, "/: \t\n") {
		if _, err := netip.ParseAddr(c.Advertise); err != nil {
			return fmt.Errorf("--advertise %q: give a host name or an IP address, without a port", c.Advertise)
		}
	}
	return nil
}

func (c Config) validateJoin() error {
	if c.Join == "" {
		return nil
	}
	t, err := trust.ParseToken(c.Join)
	switch {
	case err != nil:
		return fmt.Errorf("--join: %w", err)
	case t.Kind != trust.Join:
		return fmt.Errorf("--join: that is a %s token: make one with `nfs-fleet token create --join` on a master", t.Kind)
	case len(t.Addresses) == 0:
		return errors.New("--join: the token names no master: make another with `nfs-fleet token create --join`")
	case len(c.Etcd.Endpoints) > 0:
		return errors.New("--join is for a fleet whose etcd runs inside its masters: with --etcd a master needs no token, leave --join out")
	}
	return nil
}

func (c Config) validateListen() error {
	for _, l := range []struct{ flag, address string }{
		{"listen-nfs", c.Listen.NFS}, {"listen-http", c.Listen.HTTP}, {"listen-peer", c.Listen.Peer}, {"listen-dns", c.Listen.DNS}, {"listen-portmap", c.Listen.Portmap},
		{"etcd-client-listen", c.Etcd.ClientListen}, {"etcd-peer-listen", c.Etcd.PeerListen},
	} {
		if l.address == "off" && (l.flag == "listen-portmap" || l.flag == "listen-dns") {
			continue
		}
		if err := validAddress(l.address); err != nil {
			return fmt.Errorf("--%s %q: %w; give host:port, as in 127.0.0.1:7049 or :2049", l.flag, l.address, err)
		}
	}
	return nil
}

func validAddress(address string) error {
	_, port, err := net.SplitHostPort(address)
	if err != nil {
		var ae *net.AddrError
		if errors.As(err, &ae) {
			return errors.New(ae.Err)
		}
		return err
	}
	if _, err := strconv.ParseUint(port, 10, 16); err != nil {
		return fmt.Errorf("port %q is no number from 0 to 65535", port)
	}
	return nil
}

func (c Config) validateSources() error {
	for _, shard := range slices.Sorted(maps.Keys(c.Sources)) {
		if err := fleet.ValidName(shard); err != nil {
			return fmt.Errorf("--source: shard %w", err)
		}
		s := c.Sources[shard]
		if !filepath.IsAbs(s.Dir) {
			return fmt.Errorf("--source %s=%s: give the directory's absolute path", shard, s.Dir)
		}
		switch s.Mode {
		case "", "watch", "manual":
		default:
			return fmt.Errorf("--source %s=%s: mode %q: use watch or manual", shard, s.Dir, s.Mode)
		}
		if within(c.DataDir, s.Dir) {
			return fmt.Errorf("--source %s=%s holds this master's data directory %s, which would publish itself: move one of them", shard, s.Dir, c.DataDir)
		}
	}
	return nil
}

// within reports whether path is dir or below it, symbolic links followed as far as they exist.
func within(path, dir string) bool {
	path, err := filepath.Abs(path)
	if err != nil {
		return false
	}
	path, dir = real(path), real(dir)
	rel, err := filepath.Rel(dir, path)
	return err == nil && rel != ".." && !strings.HasPrefix(rel, "../")
}

// real resolves the symbolic links in an absolute path, of which the end need not exist yet.
func real(path string) string {
	if resolved, err := filepath.EvalSymlinks(path); err == nil {
		return resolved
	}
	if parent := filepath.Dir(path); parent != path {
		return filepath.Join(real(parent), filepath.Base(path))
	}
	return path
}

func (c Config) validateEtcd() error {
	e := c.Etcd
	host, _, err := net.SplitHostPort(e.ClientListen)
	if ip, ipErr := netip.ParseAddr(host); len(e.Endpoints) == 0 && err == nil && host != "localhost" && (ipErr != nil || !ip.IsLoopback()) {
		return fmt.Errorf("--etcd-client-listen %q: the embedded etcd asks for no password: give it a loopback address, as in 127.0.0.1:2379", e.ClientListen)
	}
	for _, endpoint := range e.Endpoints {
		if err := validEndpoint(endpoint); err != nil {
			return fmt.Errorf("--etcd %q: %w; give URLs as in http://10.0.0.1:2379,http://10.0.0.2:2379", endpoint, err)
		}
	}
	for _, f := range []struct{ flag, value string }{
		{"etcd-cert", e.Cert}, {"etcd-key", e.Key}, {"etcd-cacert", e.CACert}, {"etcd-user", e.User},
	} {
		if f.value != "" && len(e.Endpoints) == 0 {
			return fmt.Errorf("--%s is for a running etcd: name its addresses with --etcd, or leave it out", f.flag)
		}
	}
	if (e.Cert == "") != (e.Key == "") {
		return errors.New("--etcd-cert and --etcd-key go together: give both or neither")
	}
	return nil
}

func validEndpoint(endpoint string) error {
	scheme, host, ok := strings.Cut(endpoint, "://")
	if !ok {
		scheme, host = "http", endpoint
	}
	if scheme != "http" && scheme != "https" {
		return fmt.Errorf("scheme %q is neither http nor https", scheme)
	}
	return validAddress(host)
}

func (c Config) validateNumbers() error {
	switch {
	case c.LeaseTTL < MinLeaseTTL:
		return fmt.Errorf("--lease-ttl %s: use %s or more", c.LeaseTTL, MinLeaseTTL)
	case c.LeaseTTL%time.Second != 0:
		return fmt.Errorf("--lease-ttl %s: etcd counts whole seconds", c.LeaseTTL)
	case c.Scan.Quiet <= 0:
		return fmt.Errorf("--scan-quiet %s: use a duration above 0", c.Scan.Quiet)
	case c.Scan.MaxWait < c.Scan.Quiet:
		return fmt.Errorf("--scan-max-wait %s: use --scan-quiet (%s) or more", c.Scan.MaxWait, c.Scan.Quiet)
	case c.Scan.Rescan < time.Second:
		return fmt.Errorf("--scan-rescan %s: use 1s or more", c.Scan.Rescan)
	case c.NFS.MaxConnections < 1:
		return fmt.Errorf("--nfs-max-connections %d: use 1 or more", c.NFS.MaxConnections)
	case c.NFS.IdleTimeout < time.Second:
		return fmt.Errorf("--nfs-idle-timeout %s: use 1s or more", c.NFS.IdleTimeout)
	}
	if err := c.Shard("new", time.Time{}).Validate(); err != nil {
		return fmt.Errorf("new_shards: %w", err)
	}
	return nil
}

// Shard returns the settings that a shard of this name starts with.
func (c Config) Shard(name string, now time.Time) fleet.Shard {
	s := fleet.NewShard(name, now)
	s.Keep = fleet.Keep{Generations: c.NewShards.KeepGenerations, For: fleet.Duration(c.NewShards.KeepFor)}
	s.MinCopies, s.Squash, s.Insecure = c.NewShards.MinCopies, c.NewShards.Squash, c.NewShards.Insecure
	s.Networks = append(s.Networks, c.NewShards.Networks...)
	return s
}

func (c Config) validateLog() error {
	if level, err := zerolog.ParseLevel(c.Log.Level); err != nil || level < zerolog.TraceLevel || level > zerolog.ErrorLevel {
		return fmt.Errorf("--log-level %q: use trace, debug, info, warn or error", c.Log.Level)
	}
	if c.Log.Format != "console" && c.Log.Format != "json" {
		return fmt.Errorf("--log-format %q: use console or json", c.Log.Format)
	}
	return nil
}
