package e2e

import (
	"cmp"
	"flag"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

var otherLoad = flag.String("load", "", "measure by this program too, which takes the arguments of e2e/load/nfsload, and compare the ratios")

// contestant is a server that is measured. It is stopped (SIGSTOP) while another is.
type contestant struct {
	name, url string
	proc      *proc
	treeless  bool // it has no tree that could be walked
}

// measured is how one contestant did in one contest. Nothing is known of one that failed.
type measured struct {
	figure float64
	cost   time.Duration // of its processor time, a call
}

// contestLimit is how long one measurement may take: go-nfs does not get through a large tree.
const contestLimit = 15 * time.Second

// contest is one row of the table: an operation of package load and the figure that counts.
type contest struct {
	name, figure string
	least        float64 // of ours against Ganesha's
	args         string
}

// The operations and the targets, as issue 5 has them.
var contests = []contest{
	{"null", "calls_per_s", 0, "null 4 8 SECONDS"},
	{"getattr", "calls_per_s", 4, "getattr 4 8 SECONDS"},
	{"access", "calls_per_s", 4, "access 4 8 SECONDS"},
	{"lookup", "calls_per_s", 4, "lookup 4 8 SECONDS src"},
	{"READ 4 KiB random", "calls_per_s", 3.5, "randread 4 8 SECONDS large:4096"},
	{"READ 128 KiB", "MB_per_s", 1.5, "read 4 4 SECONDS large:131072"},
	{"READ 1 MiB", "MB_per_s", 1.2, "read 4 4 SECONDS large:1048576"},
	{"walk", "seconds", 2, "walk 4 4"},
	{"walk and read all", "seconds", 2.5, "slurp 4 8"},
}

// The NFS server, measured beside NFS-Ganesha and go-nfs on the same content, operation by operation in turns. Prints a table.
func TestServersSideBySide(t *testing.T) {
	if _, err := exec.LookPath("ganesha.nfsd"); !*targets && (err != nil || os.Geteuid() != 0) {
		t.Skip("skipped: only make bench needs NFS-Ganesha, and root for it")
	}
	needCommands(t, "ganesha.nfsd", "rpcbind", "rpcinfo")
	source := publishedTree(t)
	tool := buildTool(t, "./load/nfsload")
	servers := []*contestant{benchOurs(t, source), benchGanesha(t, source), benchGoNFS(t, source), benchBare(t)}
	for _, s := range servers {
		eventually(t, 30*time.Second, s.name+" answers", func() bool {
			r, err := run(nil, 20*time.Second, nil, tool, s.url, "slurp", "4", "8")
			return err == nil && r.Code == 0
		})
		s.proc.signal(t, syscall.SIGSTOP)
	}
	defer func() { // a stopped process ends no other way in good order
		for _, s := range servers {
			s.proc.signal(t, syscall.SIGCONT)
		}
	}()
	clients := [][]string{{tool, "-each"}}
	if *otherLoad != "" {
		clients = append(clients, []string{*otherLoad})
	}
	t.Log(benchMachine(t))
	var costs []string
	for i, c := range contests {
		byClient := c.measure(t, clients, servers)
		got := byClient[0]
		if i == 0 {
			t.Log(tableHead(servers, clients))
		}
		ahead, other := c.ahead(got), ""
		if len(byClient) > 1 {
			theirs := c.ahead(byClient[1])
			other = fmt.Sprintf(" %7.2f | %+5.0f%% |", theirs, 100*(ahead/theirs-1))
		}
		row, cost := fmt.Sprintf("| %-17s |", c.name), fmt.Sprintf("| %-17s |", c.name)
		for _, m := range got {
			row += fmt.Sprintf(" %10s |", c.format(m.figure))
			cost += fmt.Sprintf(" %10s |", c.formatCost(m.cost))
		}
		t.Logf("%s %7.2f | %6s |%s", row, ahead, c.target(), other)
		costs = append(costs, cost)
		if *targets && ahead < c.least {
			t.Errorf("%s: ahead of NFS-Ganesha by %.2f, the target is %.1f", c.name, ahead, c.least)
		}
	}
	t.Log("processor time of the server a call:")
	for _, row := range costs {
		t.Log(row)
	}
}

func tableHead(servers []*contestant, clients [][]string) string {
	head := fmt.Sprintf("| %-17s |", "")
	for _, s := range servers {
		head += fmt.Sprintf(" %10s |", s.name)
	}
	head += "   ahead | target |"
	if len(clients) > 1 {
		head += fmt.Sprintf(" ahead by %s | differ |", filepath.Base(clients[1][0]))
	}
	return head
}

// ahead says by what our figure is better than NFS-Ganesha's.
func (c contest) ahead(got []measured) float64 {
	if c.figure == "seconds" {
		return got[1].figure / got[0].figure
	}
	return got[0].figure / got[1].figure
}

// measure returns, for each client, the medians of each server; nothing for one that cannot do it. The clients take turns too.
func (c contest) measure(t *testing.T, clients [][]string, servers []*contestant) (medians [][]measured) {
	rounds, seconds := 1, "0.1"
	if *targets {
		rounds, seconds = 3, "1"
	}
	args := strings.Fields(strings.ReplaceAll(c.args, "SECONDS", seconds))
	got := make([][][]measured, len(clients)) // by client, server and round
	for i := range got {
		got[i] = make([][]measured, len(servers))
	}
	failed := map[*contestant]bool{}
	try := func(i, client int) (m measured) {
		s := servers[i]
		if failed[s] || s.treeless && c.figure == "seconds" {
			return m
		}
		m, err := c.once(t, clients[client], s, args)
		if failed[s] = err != nil; err != nil && i == 0 {
			t.Errorf("%s of %s: %v", c.name, s.name, err)
		}
		return m
	}
	for range rounds {
		for i, s := range servers {
			s.proc.signal(t, syscall.SIGCONT)
			cold := try(i, 0) // who was stopped has neither caches nor page tables: that is not measured
			for k := range clients {
				for range c.tries(cold) {
					got[k][i] = append(got[k][i], try(i, k))
				}
			}
			s.proc.signal(t, syscall.SIGSTOP)
		}
	}
	for _, byServer := range got {
		m := make([]measured, len(servers))
		for i, rounds := range byServer {
			slices.SortFunc(rounds, func(a, b measured) int { return cmp.Compare(a.figure, b.figure) })
			m[i] = rounds[len(rounds)/2]
		}
		medians = append(medians, m)
	}
	return medians
}

// tries is how often a server is measured at a time: a walk may be over in no time.
func (c contest) tries(m measured) int {
	if c.figure == "seconds" && m.figure < 1 {
		return 5
	}
	return 1
}

// once measures one server by one client.
func (c contest) once(t *testing.T, client []string, s *contestant, args []string) (m measured, err error) {
	t.Helper()
	pid := s.proc.cmd.Process.Pid
	before, err := processorTimeOf(pid)
	if err != nil {
		return m, err
	}
	r, err := run(nil, contestLimit, nil, slices.Concat(client, []string{s.url}, args)...)
	if err == nil && r.Code != 0 {
		err = fmt.Errorf("%v", r)
	}
	if err != nil {
		return m, err
	}
	after, err := processorTimeOf(pid)
	if err != nil {
		return m, err
	}
	m.figure = keyed(r.Stdout, c.figure)
	if calls := keyed(r.Stdout, "calls"); calls > 0 {
		m.cost = time.Duration(float64(after.user+after.system-before.user-before.system) / calls)
	}
	return m, nil
}

// keyed returns the number of key in a line of key=value.
func keyed(line, key string) float64 {
	for _, f := range strings.Fields(line) {
		if v, ok := strings.CutPrefix(f, key+"="); ok {
			n, _ := strconv.ParseFloat(v, 64)
			return n
		}
	}
	return 0
}

func (c contest) format(figure float64) string {
	switch {
	case figure == 0:
		return "none"
	case c.figure == "seconds":
		return fmt.Sprintf("%.3f s", figure)
	case c.figure == "MB_per_s":
		return fmt.Sprintf("%.2f GB/s", figure/1000)
	}
	return fmt.Sprintf("%.0fk/s", figure/1000)
}

func (c contest) formatCost(d time.Duration) string {
	if d == 0 {
		return ""
	}
	return fmt.Sprintf("%.1f us", float64(d.Nanoseconds())/1000)
}

func (c contest) target() string {
	if c.least == 0 {
		return ""
	}
	return fmt.Sprintf("%.1f", c.least)
}

// buildTool builds a command of this suite.
func buildTool(t *testing.T, pkg string) string {
	t.Helper()
	bin := filepath.Join(t.TempDir(), filepath.Base(pkg))
	if r := runOn(t, nil, 5*time.Minute, nil, "go", "build", "-o", bin, pkg); r.Code != 0 {
		t.Fatalf("build %s: %v", pkg, r)
	}
	return bin
}

func benchURL(export, nfs, mount string) string {
	return fmt.Sprintf("nfs://127.0.0.1/%s?nfsport=%s&mountport=%s", strings.TrimPrefix(export, "/"), port(nfs), port(mount))
}

func benchOurs(t *testing.T, source string) *contestant {
	t.Helper()
	m := StartMaster(t, MasterConfig{Sources: []string{"www=" + source}, Flags: []string{"--insecure"}})
	m.WaitGeneration("www", 1)
	return &contestant{name: "nfs-fleet", url: benchURL("www", m.NFS, m.NFS), proc: m.proc}
}

// benchGanesha starts Debian's NFS-Ganesha on a directory. It wants an rpcbind to be there, and its directories.
func benchGanesha(t *testing.T, source string) *contestant {
	t.Helper()
	if r := runOn(t, nil, 10*time.Second, nil, "rpcinfo", "-p", "127.0.0.1"); r.Code != 0 {
		start(t, "rpcbind", nil, &procLog{}, []string{"rpcbind", "-w", "-f"}, nil)
	}
	for _, dir := range []string{"/run/ganesha", "/var/lib/nfs/ganesha"} {
		if err := os.MkdirAll(dir, 0o755); err != nil {
			t.Fatal(err)
		}
	}
	dir, ports := t.TempDir(), freePorts(t, 2)
	conf := fmt.Sprintf(`NFS_CORE_PARAM { NFS_Port = %s; MNT_Port = %s; Protocols = 3; Bind_addr = 127.0.0.1; Enable_NLM = false; Enable_RQUOTA = false; }
NFSV4 { Grace_Period = 0; RecoveryBackend = fs; }
EXPORT { Export_Id = 1; Path = %s; Pseudo = /x; Protocols = 3; Access_Type = RO; Squash = None; SecType = sys; Transports = TCP; FSAL { Name = VFS; } }
LOG { Default_Log_Level = CRIT; }
`, port(ports[0]), port(ports[1]), source)
	writeFile(t, dir+"/conf", conf)
	p := start(t, "ganesha", nil, &procLog{}, []string{"ganesha.nfsd", "-F", "-L", dir + "/log", "-f", dir + "/conf", "-p", dir + "/pid"}, nil)
	return &contestant{name: "Ganesha", url: benchURL(source, ports[0], ports[1]), proc: p}
}

func benchGoNFS(t *testing.T, source string) *contestant {
	t.Helper()
	addr := freePorts(t, 1)[0]
	p := start(t, "go-nfs", nil, &procLog{}, []string{buildTool(t, "./load/gonfs"), addr, source}, nil)
	return &contestant{name: "go-nfs", url: benchURL("/", addr, addr), proc: p}
}

// benchBare answers from memory: what the rest costs that is no server's.
func benchBare(t *testing.T) *contestant {
	t.Helper()
	addr := freePorts(t, 1)[0]
	p := start(t, "bare", nil, &procLog{}, []string{buildTool(t, "./load/bare"), addr}, nil)
	return &contestant{name: "bare loop", url: benchURL("/", addr, addr), proc: p, treeless: true}
}

// benchMachine says what was measured on what.
func benchMachine(t *testing.T) string {
	t.Helper()
	model := "an unknown processor"
	info, _ := os.ReadFile("/proc/cpuinfo") // empty then
	for line := range strings.Lines(string(info)) {
		if name, value, ok := strings.Cut(line, ":"); ok && strings.TrimSpace(name) == "model name" {
			model = strings.TrimSpace(value)
			break
		}
	}
	var u unix.Utsname
	_ = unix.Uname(&u) // empty then
	load, _ := os.ReadFile("/proc/loadavg")
	version := func(argv ...string) string {
		r, _ := run(nil, time.Minute, nil, argv...)
		return strings.TrimSpace(r.Stdout)
	}
	return fmt.Sprintf("%d × %s, Linux %s, load %s; %s; nfs-ganesha %s; go-nfs %s", runtime.NumCPU(), model, unix.ByteSliceToString(u.Release[:]),
		strings.Fields(string(load))[0], runtime.Version(), version("dpkg-query", "-W", "-f", "${Version}", "nfs-ganesha"),
		version("go", "list", "-m", "-f", "{{.Version}}", "github.com/willscott/go-nfs"))
}
