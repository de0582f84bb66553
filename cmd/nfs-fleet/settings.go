package main

import (
	"fmt"

	"github.com/spf13/pflag"

	"github.com/nfs-fleet/nfs-fleet/fleet/master"
)

// bindSettings gives every setting of c a flag, with c's values as defaults.
func bindSettings(fs *pflag.FlagSet, c *master.Config) {
	fs.StringVar(&c.Name, "name", c.Name, "this master's `name`, unique in the fleet")
	fs.StringVar(&c.Fleet, "fleet", c.Fleet, "the fleet's `name`")
	fs.StringVar(&c.DataDir, "data-dir", c.DataDir, "`directory` of this master's data, kept across restarts")
	fs.StringVar(&c.Advertise, "advertise", c.Advertise, "`host` name or IP address that others reach this master by (default: found out)")
	fs.StringVar(&c.Domain, "domain", c.Domain, "the fleet's `domain` in DNS, the same on all masters (default: what another master is set to, or nfs-fleet.internal)")
	fs.BoolVar(&c.SkyDNS, "skydns", c.SkyDNS, "keep DNS records in etcd under /skydns/ for a CoreDNS with its etcd plugin, while this master coordinates the fleet")
	fs.DurationVar(&c.LeaseTTL, "lease-ttl", c.LeaseTTL, "time after which a silent master counts as lost; at least 2s")
	fs.StringVar(&c.Join, "join", c.Join, "`token` by which this master joins a fleet: \"nfs-fleet token create --join\" on one of its masters prints it")
	fs.Var(sources{c, map[string]bool{}}, "source", "publish a directory: `SHARD=DIR[,mode=manual]`; repeatable")

	fs.StringVar(&c.Listen.NFS, "listen-nfs", c.Listen.NFS, "`host:port` for NFS and MOUNT")
	fs.StringVar(&c.Listen.HTTP, "listen-http", c.Listen.HTTP, "`host:port` for these commands, on this machine only, and for health and metrics")
	fs.StringVar(&c.Listen.Peer, "listen-peer", c.Listen.Peer, "`host:port` for other masters, and for publishing with a token, over TLS")
	fs.StringVar(&c.Listen.DNS, "listen-dns", c.Listen.DNS, "`host:port` for DNS, over UDP and TCP, or off; the default waits while another program has the port")
	fs.StringVar(&c.Listen.Portmap, "listen-portmap", c.Listen.Portmap, "`host:port` for a portmapper (usually :111), or off")

	fs.StringSliceVar(&c.Etcd.Endpoints, "etcd", c.Etcd.Endpoints, "`URLs` of a running etcd, comma-separated (default: an etcd inside this process)")
	fs.StringVar(&c.Etcd.Cert, "etcd-cert", c.Etcd.Cert, "client certificate `file` for etcd")
	fs.StringVar(&c.Etcd.Key, "etcd-key", c.Etcd.Key, "the client certificate's key `file`")
	fs.StringVar(&c.Etcd.CACert, "etcd-cacert", c.Etcd.CACert, "`file` of the CA that etcd's certificate is checked with")
	fs.StringVar(&c.Etcd.User, "etcd-user", c.Etcd.User, "etcd `user[:password]`; better kept in the --config file, which ps does not show")
	fs.StringVar(&c.Etcd.ClientListen, "etcd-client-listen", c.Etcd.ClientListen, "`host:port` of the embedded etcd for this master; loopback")
	fs.StringVar(&c.Etcd.PeerListen, "etcd-peer-listen", c.Etcd.PeerListen, "`host:port` of the embedded etcd for those of other masters, over TLS")
	fs.StringVar(&c.Etcd.DataDir, "etcd-data-dir", c.Etcd.DataDir, "`directory` of the embedded etcd (default: etcd in --data-dir)")

	fs.IntVar(&c.NewShards.KeepGenerations, "keep-generations", c.NewShards.KeepGenerations, "generations that a new shard retains at least")
	fs.DurationVar(&c.NewShards.KeepFor, "keep-for", c.NewShards.KeepFor, "age up to which a new shard retains all generations")
	fs.IntVar(&c.NewShards.MinCopies, "min-copies", c.NewShards.MinCopies, "masters that hold a generation of a new shard before it is the head")
	fs.Var(&networks{p: &c.NewShards.Networks}, "network", "`networks` that may mount a new shard, comma-separated; repeatable (default: all)")
	fs.StringVar((*string)(&c.NewShards.Squash), "squash", string(c.NewShards.Squash), "callers of a new shard that become anonymous: none, root or all")
	fs.BoolVar(&c.NewShards.Insecure, "insecure", c.NewShards.Insecure, "clients of a new shard may use ports from 1024")

	fs.DurationVar(&c.Scan.Quiet, "scan-quiet", c.Scan.Quiet, "time without a change before a source is published")
	fs.DurationVar(&c.Scan.MaxWait, "scan-max-wait", c.Scan.MaxWait, "the longest that a publish waits for that quiet")
	fs.DurationVar(&c.Scan.Rescan, "scan-rescan", c.Scan.Rescan, "time between two readings of a whole source")
	fs.IntVar(&c.NFS.MaxConnections, "nfs-max-connections", c.NFS.MaxConnections, "NFS connections at a time")
	fs.DurationVar(&c.NFS.IdleTimeout, "nfs-idle-timeout", c.NFS.IdleTimeout, "time after which a silent NFS connection is closed")

	fs.StringVar(&c.Log.Level, "log-level", c.Log.Level, "`level`: trace, debug, info, warn or error")
	fs.StringVar(&c.Log.Format, "log-format", c.Log.Format, "`format`: console or json")
}

// sources is the flag --source: each use adds one shard's source, or replaces the one of the --config file.
type sources struct {
	c     *master.Config
	given map[string]bool // by shard: on this command line
}

func (s sources) String() string { return "" }
func (s sources) Type() string   { return "source" }

func (s sources) Set(text string) error {
	shard, src, err := master.ParseSource(text)
	if err != nil {
		return err
	}
	if s.given[shard] {
		return fmt.Errorf("shard %s is given two sources: it can have one on a master", shard)
	}
	s.given[shard], s.c.Sources[shard] = true, src
	return nil
}

// recorder is a flag that remembers how it was set, so that it can be set again on another configuration.
type recorder struct {
	pflag.Value
	name string
	log  *[]assignment
}

type assignment struct{ name, text string }

func (r recorder) Set(text string) error {
	if err := r.Value.Set(text); err != nil {
		return err
	}
	*r.log = append(*r.log, assignment{r.name, text})
	return nil
}

// overlay sets on c what the flags have set.
func overlay(c *master.Config, log []assignment) error {
	fs := pflag.NewFlagSet("overlay", pflag.ContinueOnError)
	bindSettings(fs, c)
	for _, as := range log {
		if err := fs.Set(as.name, as.text); err != nil {
			return err
		}
	}
	return nil
}
