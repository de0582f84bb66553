package master

import (
	"context"
	"net/netip"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"

	"github.com/nfs-fleet/nfs-fleet/exporter"
	"github.com/nfs-fleet/nfs-fleet/exporter/hello"
)

// metrics are this master's Prometheus metrics. It implements exporter.Observer without a lock or an allocation a call.
type metrics struct {
	registry   *prometheus.Registry
	calls      map[procedureKey]prometheus.Counter
	latency    map[procedureKey]prometheus.Observer
	other      prometheus.Counter
	in, out    prometheus.Counter
	publishing *prometheus.HistogramVec
	moved      prometheus.Counter // slaves
	greetings  map[hello.Status]prometheus.Counter
}

type procedureKey struct{ program, procedure uint32 }

func newMetrics(m *Master) *metrics {
	r := prometheus.NewRegistry()
	calls := prometheus.NewCounterVec(prometheus.CounterOpts{Name: "nfs_fleet_rpc_calls_total", Help: "RPC calls answered."}, []string{"program", "procedure"})
	latency := prometheus.NewHistogramVec(prometheus.HistogramOpts{
		Name: "nfs_fleet_rpc_seconds", Help: "Time from reading a batch of calls to writing its replies, one observation a procedure and batch.",
		Buckets: prometheus.ExponentialBuckets(10e-6, 4, 10),
	}, []string{"program", "procedure"})
	moved := prometheus.NewCounterVec(prometheus.CounterOpts{Name: "nfs_fleet_rpc_bytes_total", Help: "Bytes of calls (in) and replies (out)."}, []string{"direction"})
	out := &metrics{
		registry: r, calls: map[procedureKey]prometheus.Counter{}, latency: map[procedureKey]prometheus.Observer{},
		other: calls.WithLabelValues("other", "other"), in: moved.WithLabelValues("in"), out: moved.WithLabelValues("out"),
		publishing: prometheus.NewHistogramVec(prometheus.HistogramOpts{
			Name: "nfs_fleet_publish_seconds", Help: "Duration of publishes, from the request or the source's quiet to the new head served.",
			Buckets: prometheus.ExponentialBuckets(0.01, 3, 12),
		}, []string{"shard"}),
		moved: prometheus.NewCounter(prometheus.CounterOpts{Name: "nfs_fleet_slave_moves_total", Help: "Slaves that this master, coordinating, has given another home."}),
	}
	greetings := prometheus.NewCounterVec(prometheus.CounterOpts{Name: "nfs_fleet_greetings_total", Help: "HELLOs of slaves, by what they were answered."}, []string{"status"})
	out.greetings = map[hello.Status]prometheus.Counter{}
	for _, status := range []hello.Status{hello.OK, hello.Leave, hello.Unwell, hello.Refused} {
		out.greetings[status] = greetings.WithLabelValues(status.String())
	}
	for _, p := range exporter.Procedures() {
		k := procedureKey{p.Program, p.Number}
		out.calls[k] = calls.WithLabelValues(p.ProgramName, p.Name)
		out.latency[k] = latency.WithLabelValues(p.ProgramName, p.Name)
	}
	r.MustRegister(calls, latency, moved, greetings, out.publishing, out.moved, collectors.NewGoCollector(),
		collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}), &gauges{m})
	return out
}

func (x *metrics) greeted(status hello.Status) { x.greetings[status].Inc() }

// Answered implements exporter.Observer.
func (x *metrics) Answered(program, procedure uint32, n int, took time.Duration) {
	k := procedureKey{program, procedure}
	if c, ok := x.calls[k]; ok {
		c.Add(float64(n))
		x.latency[k].Observe(took.Seconds())
		return
	}
	x.other.Add(float64(n))
}

// Moved implements exporter.Observer.
func (x *metrics) Moved(in, out int) {
	x.in.Add(float64(in))
	x.out.Add(float64(out))
}

func (x *metrics) published(shard string) func(time.Duration) {
	h := x.publishing.WithLabelValues(shard)
	return func(d time.Duration) { h.Observe(d.Seconds()) }
}

// gauges are read from the master when Prometheus asks.
type gauges struct{ m *Master }

var (
	descConns      = prometheus.NewDesc("nfs_fleet_connections", "Open NFS connections.", nil, nil)
	descSpoiled    = prometheus.NewDesc("nfs_fleet_connections_spoiled_total", "Connections closed in the middle of a reply, because what was being sent left memory meanwhile.", nil, nil)
	descRefused    = prometheus.NewDesc("nfs_fleet_connections_refused_total", "Connections closed unserved.", nil, nil)
	descGeneration = prometheus.NewDesc("nfs_fleet_generation", "Generation served.", []string{"shard"}, nil)
	descFiles      = prometheus.NewDesc("nfs_fleet_files", "Names in the served generation that are not directories.", []string{"shard"}, nil)
	descLeads      = prometheus.NewDesc("nfs_fleet_leads", "1 when this master leads the shard.", []string{"shard"}, nil)
	descObjects    = prometheus.NewDesc("nfs_fleet_store_objects", "Objects in the store.", nil, nil)
	descStore      = prometheus.NewDesc("nfs_fleet_store_bytes", "Bytes that the store takes on disk.", nil, nil)
	descFree       = prometheus.NewDesc("nfs_fleet_store_free_bytes", "Bytes free on the store's file system.", nil, nil)
	descQuestions  = prometheus.NewDesc("nfs_fleet_dns_questions_total", "DNS questions that came in.", []string{"transport"}, nil)
	descLimited    = prometheus.NewDesc("nfs_fleet_dns_limited_total", "DNS questions over the rate of their network.", nil, nil)
	descUnanswered = prometheus.NewDesc("nfs_fleet_dns_unanswered_total", "DNS messages that were no questions.", nil, nil)
	descDNSConns   = prometheus.NewDesc("nfs_fleet_dns_connections", "Open TCP connections for DNS.", nil, nil)
	descSlaves     = prometheus.NewDesc("nfs_fleet_slaves", "Slaves that have the master as their home; the coordinator alone tells.", []string{"home"}, nil)
	descReaders    = prometheus.NewDesc("nfs_fleet_readers", "Slaves that read from this master.", nil, nil)
	descEtcd       = prometheus.NewDesc("nfs_fleet_etcd_healthy", "1 when etcd answers.", nil, nil)
)

// Describe implements prometheus.Collector.
func (g *gauges) Describe(c chan<- *prometheus.Desc) {
	for _, d := range []*prometheus.Desc{descConns, descRefused, descSpoiled, descGeneration, descFiles, descLeads, descObjects, descStore, descFree, descSlaves, descReaders, descEtcd, descQuestions, descLimited, descUnanswered, descDNSConns} {
		c <- d
	}
}

// Collect implements prometheus.Collector.
func (g *gauges) Collect(c chan<- prometheus.Metric) {
	gauge := func(d *prometheus.Desc, v float64, labels ...string) {
		c <- prometheus.MustNewConstMetric(d, prometheus.GaugeValue, v, labels...)
	}
	rpc, disk := g.m.exporter.Stats(), g.m.store.Stats()
	gauge(descConns, float64(rpc.Conns))
	c <- prometheus.MustNewConstMetric(descRefused, prometheus.CounterValue, float64(rpc.Refused))
	c <- prometheus.MustNewConstMetric(descSpoiled, prometheus.CounterValue, float64(rpc.Spoiled))
	gauge(descObjects, float64(disk.Objects))
	gauge(descStore, float64(disk.Disk))
	gauge(descFree, float64(disk.Free))
	gauge(descEtcd, truth(g.m.etcdProblem() == nil))
	g.collectDNS(c)
	gauge(descReaders, float64(len(g.m.heardSlaves(time.Now()))))
	if g.m.spreader.Load() != nil {
		for home, n := range loads(g.m.lastView()) {
			gauge(descSlaves, float64(n), home)
		}
	}
	for _, s := range g.m.allShards() {
		st := s.replica.Status()
		gauge(descGeneration, float64(st.Head.Number), s.name)
		gauge(descFiles, float64(st.Head.Files), s.name)
		gauge(descLeads, truth(st.Epoch != 0), s.name)
	}
}

func (g *gauges) collectDNS(c chan<- prometheus.Metric) {
	n := g.m.dns.Load()
	if n == nil || n.server == nil {
		return
	}
	count := func(d *prometheus.Desc, v uint64, labels ...string) {
		c <- prometheus.MustNewConstMetric(d, prometheus.CounterValue, float64(v), labels...)
	}
	st := n.server.Stats()
	count(descQuestions, st.UDP, "udp")
	count(descQuestions, st.TCP, "tcp")
	count(descLimited, st.Limited)
	count(descUnanswered, st.Unanswered)
	c <- prometheus.MustNewConstMetric(descDNSConns, prometheus.GaugeValue, float64(st.Connections))
}

func truth(b bool) float64 {
	if b {
		return 1
	}
	return 0
}

// startConsole serves HTTP.
func (m *Master) startConsole(parts *stack, l *listeners) error {
	if host, err := netip.ParseAddrPort(l.http.Addr().String()); err != nil || !host.Addr().IsLoopback() {
		m.log.Warn().Str("http", l.http.Addr().String()).Msg("the console is reachable from other hosts and asks for no password: whoever reaches it can publish")
	}
	parts.start("http", func(ctx context.Context) error { return m.console.Serve(ctx, l.http) })
	return nil
}
