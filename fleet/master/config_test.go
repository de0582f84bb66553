package master

import (
	"net/netip"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"testing"
	"time"

	"go.yaml.in/yaml/v3"

	"github.com/nfs-fleet/nfs-fleet/fleet"
	"github.com/nfs-fleet/nfs-fleet/fleet/trust"
)

const sample = "../../deploy/nfs-fleet.yaml"

// portable is Default without what depends on the machine.
func portable() Config {
	c := Default()
	c.Name, c.DataDir = "m1", "/var/lib/nfs-fleet"
	return c
}

// The shipped sample loads, is valid, and shows the defaults.
func TestSampleIsTheDefaults(t *testing.T) {
	c, err := Load(sample)
	if err != nil {
		t.Fatal(err)
	}
	if err := c.Validate(); err != nil {
		t.Error(err)
	}
	want := portable()
	want.Sources["www"] = SourceConfig{Dir: "/srv/www", Mode: "watch"}
	want.Etcd.Endpoints, want.NewShards.Networks = []string{}, []netip.Prefix{}
	if !reflect.DeepEqual(c, want) {
		t.Errorf("the sample says\n%+v\nthe defaults are\n%+v", c, want)
	}
}

// The shipped sample names every setting there is.
func TestSampleIsComplete(t *testing.T) {
	b, err := os.ReadFile(sample)
	if err != nil {
		t.Fatal(err)
	}
	var doc map[string]any
	if err := yaml.Unmarshal(b, &doc); err != nil {
		t.Fatal(err)
	}
	var look func(prefix string, typ reflect.Type, at map[string]any)
	look = func(prefix string, typ reflect.Type, at map[string]any) {
		for i := range typ.NumField() {
			f := typ.Field(i)
			key := f.Tag.Get("yaml")
			value, ok := at[key]
			if !ok || key == "" {
				t.Errorf("%s lacks %s%s", sample, prefix, key)
			}
			if f.Type.Kind() == reflect.Struct {
				below, _ := value.(map[string]any)
				look(prefix+key+".", f.Type, below)
			}
		}
	}
	look("", reflect.TypeFor[Config](), doc)
}

func TestParse(t *testing.T) {
	for name, tc := range map[string]struct {
		yaml string
		want func(*Config) // what differs from the defaults
	}{
		"nothing":          {"", func(*Config) {}},
		"only comments":    {"# nothing\n", func(*Config) {}},
		"a name":           {"name: m7", func(c *Config) { c.Name = "m7" }},
		"one of a group":   {"listen: {http: '[::1]:80'}", func(c *Config) { c.Listen.HTTP = "[::1]:80" }},
		"a long source":    {"sources: {a: {dir: /a, mode: manual}}", func(c *Config) { c.Sources["a"] = SourceConfig{"/a", "manual"} }},
		"a short source":   {"sources: {a: /a}", func(c *Config) { c.Sources["a"] = SourceConfig{Dir: "/a"} }},
		"a short mode":     {"sources: {a: '/a,mode=manual'}", func(c *Config) { c.Sources["a"] = SourceConfig{"/a", "manual"} }},
		"no sources":       {"sources:", func(*Config) {}},
		"durations":        {"lease_ttl: 1m30s", func(c *Config) { c.LeaseTTL = 90 * time.Second }},
		"networks":         {"new_shards: {networks: [10.0.0.0/8]}", func(c *Config) { c.NewShards.Networks = []netip.Prefix{netip.MustParsePrefix("10.0.0.0/8")} }},
		"etcd":             {"etcd: {endpoints: [http://a:1, http://b:2]}", func(c *Config) { c.Etcd.Endpoints = []string{"http://a:1", "http://b:2"} }},
		"off is a word":    {"listen: {portmap: off}", func(*Config) {}},
		"squash":           {"new_shards: {squash: all}", func(c *Config) { c.NewShards.Squash = fleet.SquashAll }},
		"a document start": {"---\nfleet: f\n", func(c *Config) { c.Fleet = "f" }},
	} {
		t.Run(name, func(t *testing.T) {
			want := Default()
			tc.want(&want)
			if got, err := parse([]byte(tc.yaml)); err != nil || !reflect.DeepEqual(got, want) {
				t.Errorf("%v\ngot  %+v\nwant %+v", err, got, want)
			}
		})
	}
}

func TestParseRefuses(t *testing.T) {
	for name, tc := range map[string]struct{ yaml, says string }{
		"an unknown key":          {"naem: m1", "field naem not found"},
		"one in a group":          {"listen: {https: x}", "serve --help"},
		"one in a source":         {"sources: {a: {dir: /a, manual: true}}", "manual"},
		"a wrong type":            {"nfs: {max_connections: many}", "line 1"},
		"a duration with no unit": {"lease_ttl: soon", "soon"},
		"a bad network":           {"new_shards: {networks: [10.0.0.0]}", "10.0.0.0"},
		"a list":                  {"- a", "line 1"},
		"two documents":           {"name: a\n---\nname: b\n", "keep one"},
		"the same key twice":      {"name: a\nname: b\n", "already"},
		"no YAML":                 {"\t", "yaml"},
		"two unknown keys":        {"a: 1\nb: 2\n", "field b not found"},
	} {
		t.Run(name, func(t *testing.T) {
			_, err := parse([]byte(tc.yaml))
			if err == nil || !strings.Contains(err.Error(), tc.says) || strings.Contains(err.Error(), "\n") {
				t.Errorf("%v, want one line with %q", err, tc.says)
			}
		})
	}
}

func TestLoadNamesTheFile(t *testing.T) {
	path := filepath.Join(t.TempDir(), "c.yaml")
	if _, err := Load(path); err == nil || !strings.Contains(err.Error(), path) {
		t.Errorf("absent: %v", err)
	}
	if err := os.WriteFile(path, []byte("nope: 1"), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := Load(path); err == nil || !strings.Contains(err.Error(), path) {
		t.Errorf("bad: %v", err)
	}
}

func joinToken(kind trust.Kind, addresses ...string) string {
	return trust.NewToken(kind, trust.Fingerprint{1}, addresses).String()
}

// Every setting that cannot work is refused with the name of its flag and what to do.
func TestValidate(t *testing.T) {
	if err := Default().Validate(); err != nil {
		t.Fatalf("the defaults: %v", err)
	}
	for flag, spoil := range map[string]func(*Config){
		"--name: name \"\"|letters":          func(c *Config) { c.Name = "" },
		"--name: name \"A\"|letters":         func(c *Config) { c.Name = "A" },
		"--fleet|letters":                    func(c *Config) { c.Fleet = "a/b" },
		"--data-dir|name a directory":        func(c *Config) { c.DataDir = "" },
		"--advertise|without a port":         func(c *Config) { c.Advertise = "10.0.0.1:2049" },
		"--advertise \"http:|without a port": func(c *Config) { c.Advertise = "http://m1" },
		"--lease-ttl 1s|2s or more":          func(c *Config) { c.LeaseTTL = time.Second },
		"--lease-ttl 5ns|2s or more":         func(c *Config) { c.LeaseTTL = 5 },
		"--lease-ttl 2.5s|whole seconds":     func(c *Config) { c.LeaseTTL = 2500 * time.Millisecond },
		"--source|letters":                   func(c *Config) { c.Sources["_x"] = SourceConfig{Dir: "/a"} },
		"--source www=rel|absolute":          func(c *Config) { c.Sources["www"] = SourceConfig{Dir: "rel"} },
		"--source www=|absolute path":        func(c *Config) { c.Sources["www"] = SourceConfig{} },
		"--source www=/a: mode|watch or":     func(c *Config) { c.Sources["www"] = SourceConfig{"/a", "auto"} },
		"--source www=/var|publish itself":   func(c *Config) { c.Sources["www"] = SourceConfig{Dir: "/var"}; c.DataDir = "/var/lib/x" },
		"--source www=/|publish itself":      func(c *Config) { c.Sources["www"] = SourceConfig{Dir: "/"} },
		"--listen-nfs|host:port":             func(c *Config) { c.Listen.NFS = "2049" },
		"--listen-nfs \"\"|host:port":        func(c *Config) { c.Listen.NFS = "" },
		"--listen-http|0 to 65535":           func(c *Config) { c.Listen.HTTP = "127.0.0.1:99999" },
		"--listen-portmap|host:port":         func(c *Config) { c.Listen.Portmap = "on" },
		"--listen-dns|host:port":             func(c *Config) { c.Listen.DNS = "on" },
		"--domain|host name":                 func(c *Config) { c.Domain = "prod example" },
		"--listen-peer|host:port":            func(c *Config) { c.Listen.Peer = "7050" },
		"--join|begins with nfj1_":           func(c *Config) { c.Join = "secret" },
		"--join|publish token":               func(c *Config) { c.Join = joinToken(trust.Publish, "m1:7050") },
		"--join|names no master":             func(c *Config) { c.Join = joinToken(trust.Join) },
		"--join|with --etcd":                 func(c *Config) { c.Join = joinToken(trust.Join, "m1:7050"); c.Etcd.Endpoints = []string{"http://a:1"} },
		"--etcd-client-listen|loopback":      func(c *Config) { c.Etcd.ClientListen = ":2379" },
		"--etcd-client-listen|host:port":     func(c *Config) { c.Etcd.ClientListen = "::1:2379" },
		"--etcd-peer-listen|0 to 65535":      func(c *Config) { c.Etcd.PeerListen = "127.0.0.1:http-alt" },
		"--etcd \"ftp:|http://10.0.0.1:2379": func(c *Config) { c.Etcd.Endpoints = []string{"ftp://a:1"} },
		"--etcd \"http://a\"|missing port":   func(c *Config) { c.Etcd.Endpoints = []string{"http://a"} },
		"--etcd \"\"|missing port":           func(c *Config) { c.Etcd.Endpoints = []string{""} },
		"--etcd-user|--etcd":                 func(c *Config) { c.Etcd.User = "root" },
		"--etcd-cacert|--etcd":               func(c *Config) { c.Etcd.CACert = "ca" },
		"--etcd-cert|both or neither":        func(c *Config) { c.Etcd.Endpoints = []string{"https://a:1"}; c.Etcd.Cert = "c" },
		"keep 0|1 to 1000":                   func(c *Config) { c.NewShards.KeepGenerations = 0 },
		"keep for|0 or more":                 func(c *Config) { c.NewShards.KeepFor = -1 },
		"min_copies 6|1 to 5":                func(c *Config) { c.NewShards.MinCopies = 6 },
		"squash|none, root or all":           func(c *Config) { c.NewShards.Squash = "some" },
		"--scan-quiet|above 0":               func(c *Config) { c.Scan.Quiet = 0 },
		"--scan-max-wait 1s|(2s) or more":    func(c *Config) { c.Scan.Quiet, c.Scan.MaxWait = 2*time.Second, time.Second },
		"--scan-rescan|1s or more":           func(c *Config) { c.Scan.Rescan = 10 },
		"--nfs-max-connections|1 or more":    func(c *Config) { c.NFS.MaxConnections = 0 },
		"--nfs-idle-timeout|1s or more":      func(c *Config) { c.NFS.IdleTimeout = 0 },
		"--log-level \"loud\"|trace, debug":  func(c *Config) { c.Log.Level = "loud" },
		"--log-level \"\"|trace, debug":      func(c *Config) { c.Log.Level = "" },
		"--log-level \"fatal\"|trace, debug": func(c *Config) { c.Log.Level = "fatal" },
		"--log-format|console or json":       func(c *Config) { c.Log.Format = "xml" },
	} {
		t.Run(flag, func(t *testing.T) {
			c := portable()
			spoil(&c)
			err := c.Validate()
			for _, part := range strings.Split(flag, "|") {
				if err == nil || !strings.Contains(err.Error(), part) {
					t.Errorf("%v, want it to say %q", err, part)
				}
			}
		})
	}
}

func TestValidateAccepts(t *testing.T) {
	for name, change := range map[string]func(*Config){
		"IPv6 everywhere": func(c *Config) { c.Listen.NFS, c.Advertise = "[::]:2049", "2001:db8::1" },
		"a free port":     func(c *Config) { c.Listen.NFS, c.Listen.HTTP = "127.0.0.1:0", "127.0.0.1:0" },
		"a portmapper":    func(c *Config) { c.Listen.Portmap = ":111" },
		"no DNS":          func(c *Config) { c.Listen.DNS = DNSOff },
		"a domain":        func(c *Config) { c.Domain = "prod.example." },
		"a secured etcd": func(c *Config) {
			c.Etcd = EtcdConfig{[]string{"https://a:1", "b:2"}, "c", "k", "ca", "u:p", ":1", ":2", ""}
		},
		"a join token":         func(c *Config) { c.Join = joinToken(trust.Join, "m1:7050", "[fd00::1]:7050") },
		"a source beside data": func(c *Config) { c.Sources["www"] = SourceConfig{Dir: "/var/lib/nfs-fleet2"} },
		"a source in data":     func(c *Config) { c.Sources["www"] = SourceConfig{Dir: c.DataDir + "/x", Mode: "watch"} },
		"the shortest lease":   func(c *Config) { c.LeaseTTL = MinLeaseTTL },
	} {
		c := portable()
		if change(&c); c.Validate() != nil {
			t.Errorf("%s: %v", name, c.Validate())
		}
	}
}

func TestParseSource(t *testing.T) {
	wd, err := os.Getwd()
	if err != nil {
		t.Fatal(err)
	}
	for text, want := range map[string]struct {
		shard  string
		source SourceConfig
	}{
		"www=/srv/www":             {"www", SourceConfig{Dir: "/srv/www"}},
		"www=/srv/www,mode=manual": {"www", SourceConfig{"/srv/www", "manual"}},
		"www=/a=b,c":               {"www", SourceConfig{Dir: "/a=b,c"}},
		"www=/a,mode=x,mode=watch": {"www", SourceConfig{"/a,mode=x", "watch"}},
		"www=rel/":                 {"www", SourceConfig{Dir: filepath.Join(wd, "rel")}},
		"www=.,mode=manual":        {"www", SourceConfig{wd, "manual"}},
	} {
		shard, s, err := ParseSource(text)
		if err != nil || shard != want.shard || s != want.source || s.Manual() != strings.HasSuffix(text, "manual") {
			t.Errorf("%q: %q, %+v, %v", text, shard, s, err)
		}
	}
	for _, text := range []string{"", "www", "=", "www=", "=/srv", "www=,mode=manual"} {
		if _, _, err := ParseSource(text); err == nil || !strings.Contains(err.Error(), "directory is missing") && !strings.Contains(err.Error(), "SHARD=DIR") {
			t.Errorf("%q: %v", text, err)
		}
	}
}

func TestDefaultDataDir(t *testing.T) {
	dir := t.TempDir()
	for want, preferred := range map[string]string{
		dir: dir, filepath.Join(dir, "new"): filepath.Join(dir, "new"), "nfs-fleet-data": filepath.Join(dir, "no", "parent"),
	} {
		if got := defaultDataDir(preferred); got != want {
			t.Errorf("%s: %s, want %s", preferred, got, want)
		}
	}
}

func TestNewShardsHaveTheConfiguredSettings(t *testing.T) {
	c := portable()
	n := netip.MustParsePrefix("10.0.0.0/8")
	c.NewShards = ShardConfig{KeepGenerations: 3, KeepFor: time.Minute, MinCopies: 4, Networks: []netip.Prefix{n}, Squash: fleet.SquashRoot, Insecure: true}
	s := c.Shard("www", time.Unix(5, 0))
	if s.Name != "www" || s.Keep != (fleet.Keep{Generations: 3, For: fleet.Duration(time.Minute)}) || s.MinCopies != 4 ||
		len(s.Networks) != 1 || s.Networks[0] != n || s.Squash != fleet.SquashRoot || !s.Insecure || !s.CreatedAt.Equal(time.Unix(5, 0)) {
		t.Errorf("%+v", s)
	}
}

func FuzzParse(f *testing.F) {
	b, err := os.ReadFile(sample)
	if err != nil {
		f.Fatal(err)
	}
	f.Add(b)
	f.Add([]byte("sources: {a: '/a,mode=manual', b: {dir: /b}}"))
	f.Add([]byte("a: &a [*a]"))
	f.Add([]byte("lease_ttl: 5\nnew_shards: {networks: ['::/0']}"))
	f.Fuzz(func(t *testing.T, b []byte) {
		c, err := parse(b)
		if err != nil {
			if strings.Contains(err.Error(), "\n") {
				t.Errorf("more than one line: %q", err)
			}
			return
		}
		if c.Sources == nil {
			t.Error("no map of sources")
		}
		_ = c.Validate()
	})
}

func FuzzParseSource(f *testing.F) {
	for _, seed := range []string{"www=/srv/www", "www=rel,mode=manual", "a==,mode=", "=", ",mode=x"} {
		f.Add(seed)
	}
	f.Fuzz(func(t *testing.T, text string) {
		shard, s, err := ParseSource(text)
		if err != nil {
			return
		}
		if shard == "" || !filepath.IsAbs(s.Dir) {
			t.Fatalf("%q: %q, %+v", text, shard, s)
		}
		again := shard + "=" + s.Dir
		if s.Mode != "" {
			again += ",mode=" + s.Mode
		}
		if shard2, s2, err := ParseSource(again); s.Mode != "" && (err != nil || shard2 != shard || s2 != s) {
			t.Fatalf("%q reads as %+v, %q as %+v, %v", text, s, again, s2, err)
		}
	})
}
