package relay

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/rs/zerolog"
	"golang.org/x/sys/unix"
)

// What the relay may cost, as issue 4 has it.
const (
	mostAdded  = 60 * time.Microsecond // to a call
	leastRatio = 0.85                  // of the throughput
)

// TestMain makes this program a front of its own: TestCost runs it as a process beside the master and the reader.
func TestMain(m *testing.M) {
	if kind := os.Getenv("RELAY_FRONT"); kind != "" {
		if err := front(kind, os.Getenv("RELAY_LISTEN"), os.Getenv("RELAY_MASTER")); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		return
	}
	os.Exit(m.Run())
}

// front passes connections to a master until SIGTERM: by a Relay, or by what Go's library has for it ("plain").
func front(kind, listen, master string) error {
	addr, err := net.ResolveTCPAddr("tcp", listen)
	if err != nil {
		return err
	}
	ln, err := net.ListenTCP("tcp", addr)
	if err != nil {
		return err
	}
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM)
	defer stop()
	if kind == "plain" {
		go plain(ln, master)
		<-ctx.Done()
		return nil
	}
	r := New(Config{Listener: ln, Dialer: Dialer{Insecure: true}, Insecure: true, Logger: zerolog.New(os.Stderr)})
	r.Switch(netip.MustParseAddrPort(master))
	return r.Run(ctx)
}

func plain(ln *net.TCPListener, master string) {
	for {
		near, err := ln.Accept()
		if err != nil {
			return
		}
		far, err := net.Dial("tcp", master)
		if err != nil {
			near.Close()
			continue
		}
		for _, c := range [][2]net.Conn{{near, far}, {far, near}} {
			go func() {
				io.Copy(c[0], c[1]) // it splices
				near.Close()
				far.Close()
			}()
		}
	}
}

// way is one way to the master.
type way struct {
	name, addr string
	pid        int // of the front; 0: there is none
}

// sample is one run of the load program.
type sample struct {
	calls, mb, p50        float64 // a second, a second, µs
	mean                  time.Duration
	front, master, client float64 // processor seconds a GB, or ms a call when there are no bytes
	others                float64 // processors that were busy with something else
}

// bench is a real master, and ways to it.
type bench struct {
	t      *testing.T
	load   string
	master int
	nfs    string
	ways   []way
}

// What the relay costs beside a direct connection, and beside the plainest relay that Go has, in turns: make relaybench.
func TestCost(t *testing.T) {
	if os.Getenv("RELAY_COST") == "" {
		t.Skip("skipped: only make relaybench measures it")
	}
	b := newBench(t)
	for _, c := range []struct {
		name, args string
		stream     bool
	}{
		{"GETATTR, one at a time", "getattr 1 1 0.5 big", false},
		{"READ 4 KiB at random, one at a time", "randread 1 1 0.5 big:4096", false},
		{"READ 128 KiB, 4 connections × 4", "read 4 4 0.5 big:131072", true},
		{"READ 1 MiB, 4 connections × 4", "read 4 4 0.5 big:1048576", true},
	} {
		rows := b.measure(c.args)
		direct := rows[0]
		t.Log(c.name)
		for i, w := range b.ways {
			s := rows[i]
			t.Logf("  %-6s %8.0f/s %6.2f GB/s, ratio %.2f; median %4.0f µs, mean %6.1f µs; processor s/GB (ms/call): front %.4f, master %.4f, client %.4f; others %.2f",
				w.name, s.calls, s.mb/1000, s.calls/direct.calls, s.p50, float64(s.mean)/1e3, s.front, s.master, s.client, s.others)
		}
		relayed := rows[len(rows)-1]
		median := time.Duration((relayed.p50 - direct.p50) * float64(time.Microsecond))
		switch added := max(relayed.mean-direct.mean, median); {
		case c.stream && relayed.calls < leastRatio*direct.calls:
			t.Logf("  %.2f of the throughput, the target is %.2f: missed", relayed.calls/direct.calls, leastRatio)
		case !c.stream && added > mostAdded:
			t.Logf("  %v added to a call, by the mean or the median, the target is %v: missed", added, mostAdded)
		default:
			t.Log("  reached")
		}
	}
}

func newBench(t *testing.T) *bench {
	dir := t.TempDir()
	b := &bench{t: t, load: filepath.Join(dir, "nfsload")}
	program := filepath.Join(dir, "nfs-fleet")
	needed := map[string]string{program: "cmd/nfs-fleet", b.load: "e2e/load/nfsload"}
	if other := os.Getenv("RELAY_LOAD"); other != "" { // one that is used the same way
		delete(needed, b.load)
		b.load = other
	}
	for out, pkg := range needed {
		cmd := exec.Command("go", "build", "-o", out, "github.com/nfs-fleet/nfs-fleet/"+pkg)
		cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
		if out, err := cmd.CombinedOutput(); err != nil {
			t.Fatalf("build %s: %v\n%s", pkg, err, out)
		}
	}
	source := filepath.Join(dir, "source")
	if err := os.Mkdir(source, 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(source, "big"), bytes.Repeat(pattern, 85), 0o644); err != nil { // 255 MiB
		t.Fatal(err)
	}
	ports := freeAddrs(t, 7)
	b.nfs = ports[0]
	b.master = b.start(nil, program, "serve", "--name", "m1", "--data-dir", filepath.Join(dir, "data"), "--source", "www="+source,
		"--insecure", "--listen-nfs", ports[0], "--listen-http", ports[1], "--listen-peer", ports[2], "--listen-dns", "off",
		"--etcd-client-listen", ports[3], "--etcd-peer-listen", ports[4], "--advertise", "127.0.0.1", "--log-level", "warn")
	b.ways = []way{{"direct", b.nfs, 0}}
	for i, kind := range []string{"plain", "relay"} {
		pid := b.start([]string{"RELAY_FRONT=" + kind, "RELAY_LISTEN=" + ports[5+i], "RELAY_MASTER=" + b.nfs}, "/proc/self/exe")
		b.ways = append(b.ways, way{kind, ports[5+i], pid})
	}
	for _, w := range b.ways {
		await(t, w.name+" answers", func() bool { _, err := b.once(w, "read 1 1 0.01 big"); return err == nil })
	}
	return b
}

// start starts a process that ends with the test.
func (b *bench) start(env []string, argv ...string) (pid int) {
	b.t.Helper()
	cmd := exec.Command(argv[0], argv[1:]...)
	cmd.Env = append(os.Environ(), env...)
	cmd.Stderr = b.t.Output()
	if err := cmd.Start(); err != nil {
		b.t.Fatal(err)
	}
	b.t.Cleanup(func() {
		cmd.Process.Signal(syscall.SIGTERM)
		cmd.Wait()
	})
	return cmd.Process.Pid
}

func freeAddrs(t *testing.T, n int) []string {
	t.Helper()
	var addrs []string
	for range n {
		ln, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		defer ln.Close()
		addrs = append(addrs, ln.Addr().String())
	}
	return addrs
}

// measure returns the medians of RELAY_ROUNDS samples (7) of each way, taken in turns.
func (b *bench) measure(args string) []sample {
	b.t.Helper()
	got := make([][]sample, len(b.ways))
	for range rounds(7) {
		for i, w := range b.ways {
			s, err := b.once(w, args)
			if err != nil {
				b.t.Fatalf("%s, %s: %v", w.name, args, err)
			}
			got[i] = append(got[i], s)
		}
	}
	rows := make([]sample, len(b.ways))
	for i, samples := range got {
		rows[i] = median(samples)
	}
	return rows
}

// median returns the median of each figure.
func median(samples []sample) (m sample) {
	pick := func(f func(*sample) *float64) {
		var v []float64
		for i := range samples {
			v = append(v, *f(&samples[i]))
		}
		slices.Sort(v)
		*f(&m) = v[len(v)/2]
	}
	for _, f := range []func(*sample) *float64{
		func(s *sample) *float64 { return &s.calls }, func(s *sample) *float64 { return &s.mb }, func(s *sample) *float64 { return &s.p50 },
		func(s *sample) *float64 { return &s.front }, func(s *sample) *float64 { return &s.master },
		func(s *sample) *float64 { return &s.client }, func(s *sample) *float64 { return &s.others },
	} {
		pick(f)
	}
	m.mean = time.Duration(float64(time.Second) / m.calls)
	return m
}

// once runs the load program over a way, with MOUNT asked of the master itself.
func (b *bench) once(w way, args string) (s sample, err error) {
	_, nfs, _ := strings.Cut(w.addr, ":")
	_, mount, _ := strings.Cut(b.nfs, ":")
	url := "nfs://127.0.0.1/www?nfsport=" + nfs + "&mountport=" + mount
	cmd := exec.Command(b.load, append([]string{url}, strings.Fields(args)...)...)
	front, master, busy, began := processTime(w.pid), processTime(b.master), busyTime(), time.Now()
	out, err := cmd.Output()
	took := time.Since(began).Seconds()
	if err != nil {
		return s, err
	}
	front, master, busy = processTime(w.pid)-front, processTime(b.master)-master, busyTime()-busy
	client := (cmd.ProcessState.UserTime() + cmd.ProcessState.SystemTime()).Seconds()
	value := func(key string) float64 {
		for _, f := range strings.Fields(string(out)) {
			if v, ok := strings.CutPrefix(f, key+"="); ok {
				n, _ := strconv.ParseFloat(v, 64) // 0 shows
				return n
			}
		}
		return 0
	}
	s.calls, s.mb, s.p50 = value("calls_per_s"), value("MB_per_s"), value("p50_us")
	units := s.mb * value("seconds") / 1000
	if units == 0 {
		units = value("calls") / 1000
	}
	s.front, s.master, s.client = front/units, master/units, client/units
	s.others = (busy - front - master - client) / took
	return s, nil
}

// processTime returns the seconds that a process has used.
func processTime(pid int) float64 {
	var ts unix.Timespec
	if pid == 0 || unix.ClockGettime(int32(^pid<<3|2), &ts) != nil {
		return 0
	}
	return float64(ts.Nano()) / 1e9
}

// busyTime returns the seconds that all processors have been busy.
func busyTime() (seconds float64) {
	stat, _ := os.ReadFile("/proc/stat") // empty then
	line, _, _ := strings.Cut(string(stat), "\n")
	for i, f := range strings.Fields(line) {
		if n, err := strconv.ParseFloat(f, 64); err == nil && i != 4 && i != 5 { // idle, and waiting for a disk
			seconds += n / 100
		}
	}
	return seconds
}
