package dns

import (
	"bytes"
	"encoding/json"
	"flag"
	"fmt"
	"net"
	"net/http"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/miekg/dns"
)

// Built and run by: make coredns.
var coredns = flag.String("coredns", "", "a CoreDNS binary; with it, and etcd in the PATH, its answers are compared with ours")

// A stock CoreDNS with its etcd plugin answers as we do.
func TestAgainstCoreDNS(t *testing.T) {
	if *coredns == "" {
		t.Skip("no -coredns")
	}
	dir, etcd, port := t.TempDir(), "http://"+freeAddress(t), ""
	peers := "http://" + freeAddress(t)
	start(t, "etcd", "--data-dir", filepath.Join(dir, "etcd"), "--listen-client-urls", etcd, "--advertise-client-urls", etcd,
		"--listen-peer-urls", peers, "--initial-advertise-peer-urls", peers, "--initial-cluster", "default="+peers)
	_, port, _ = net.SplitHostPort(freeAddress(t))
	corefile := write(t, "Corefile", sample(t, "Corefile.etcd", "http://192.0.2.21:2379 http://192.0.2.22:2379 http://192.0.2.23:2379", etcd,
		DefaultDomain+" {", "prod.example:"+port+" {\n bind 127.0.0.1"))
	until(t, func() error { return put(etcd, "/ready", "yes") })
	start(t, *coredns, "-conf", corefile)
	theirs := serving{port: port}

	z := threeMasters()
	for range 7 {
		z.Masters = append(z.Masters, Target{Name: fmt.Sprintf("n%d", len(z.Masters)), Addresses: addrs(fmt.Sprintf("10.77.9.%d", len(z.Masters))), Port: 2049, InStep: true})
	}
	z.Fleet = "prod"
	for key, value := range SkyDNS(z) {
		if err := put(etcd, key, value); err != nil {
			t.Fatal(err)
		}
	}
	ours := serve(t, "127.0.0.1:0", Config{Zone: of(z)})
	for _, c := range []struct {
		name  string
		qtype uint16
	}{
		{"_nfs._tcp.prod.example", dns.TypeSRV}, {"_nfs._tcp.web17.slaves.prod.example", dns.TypeSRV},
		{"_nfs._tcp.web18.rack2.slaves.prod.example", dns.TypeSRV}, {"m1.masters.prod.example", dns.TypeA},
		{"m1.masters.prod.example", dns.TypeAAAA}, {"m2.masters.prod.example", dns.TypeA}, {"m2.masters.prod.example", dns.TypeAAAA},
		{"gone.masters.prod.example", dns.TypeA},
	} {
		for _, network := range []string{"tcp", "udp"} {
			m := withEDNS(question(c.name, c.qtype), 1232, false)
			a, b := ours.exchange(t, network, "127.0.0.1", m), theirs.exchange(t, network, "127.0.0.1", m)
			what := fmt.Sprintf("%s %s over %s", c.name, dns.TypeToString[c.qtype], network)
			if a.Rcode != b.Rcode || a.Truncated != b.Truncated {
				t.Errorf("%s: %s, CoreDNS %s", what, dns.RcodeToString[a.Rcode], dns.RcodeToString[b.Rcode])
			}
			same(t, what, sorted(a.Answer), sorted(b.Answer))
			// It leaves the IPv6 addresses beside SRV records to a question of their own.
			same(t, what+", additional", sorted(slices.DeleteFunc(a.Extra, isAAAA)), sorted(b.Extra))
			if c.qtype == dns.TypeSRV {
				t.Logf("CoreDNS, %s: %q", what, srvs(b.Answer))
			}
		}
	}
}

// sorted returns records as text, without EDNS.
func sorted(list []dns.RR) []string {
	var out []string
	for _, rr := range list {
		if !isOPT(rr) {
			out = append(out, strings.Join(strings.Fields(rr.String()), " "))
		}
	}
	slices.Sort(out)
	return out
}

func isAAAA(rr dns.RR) bool { return rr.Header().Rrtype == dns.TypeAAAA }

// put writes a key through etcd's HTTP gateway.
func put(etcd, key, value string) error {
	body, err := json.Marshal(map[string][]byte{"key": []byte(key), "value": []byte(value)})
	if err != nil {
		return err
	}
	resp, err := http.Post(etcd+"/v3/kv/put", "application/json", bytes.NewReader(body))
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	if resp.StatusCode != http.StatusOK {
		return fmt.Errorf("etcd: %s", resp.Status)
	}
	return nil
}

func until(t *testing.T, f func() error) {
	t.Helper()
	for end := time.Now().Add(patience); ; time.Sleep(20 * time.Millisecond) {
		err := f()
		if err == nil {
			return
		}
		if time.Now().After(end) {
			t.Fatal(err)
		}
	}
}

// start runs a program until the test ends.
func start(t *testing.T, name string, args ...string) {
	t.Helper()
	cmd := exec.CommandContext(t.Context(), name, args...)
	var out bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &out
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = cmd.Process.Kill()
		_ = cmd.Wait()
		if t.Failed() {
			t.Logf("%s:\n%s", name, out.Bytes())
		}
	})
}

func freeAddress(t *testing.T) string {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	return l.Addr().String()
}
