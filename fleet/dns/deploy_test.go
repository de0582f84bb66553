package dns

import (
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/miekg/dns"
)

// sample reads a file that is shipped for a resolver, with other words in place of some.
func sample(t *testing.T, name string, oldnew ...string) string {
	t.Helper()
	b, err := os.ReadFile(filepath.Join("..", "..", "deploy", "dns", name))
	if err != nil {
		t.Fatal(err)
	}
	for i := 0; i < len(oldnew); i += 2 {
		if !strings.Contains(string(b), oldnew[i]) {
			t.Errorf("%s has no %q", name, oldnew[i])
		}
	}
	return strings.NewReplacer(oldnew...).Replace(string(b))
}

func write(t *testing.T, name, text string) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), name)
	if err := os.WriteFile(path, []byte(text), 0o644); err != nil {
		t.Fatal(err)
	}
	return path
}

// Resolvers with the shipped settings find a slave's order while the first of three masters is down.
func TestShippedSettings(t *testing.T) {
	z := threeMasters()
	z.Domain = DefaultDomain
	for name, run := range map[string]func(t *testing.T, masters, port string){
		"dnsmasq": func(t *testing.T, masters, port string) {
			conf := write(t, "dnsmasq.conf", sample(t, "dnsmasq.conf", "192.0.2.", "127.0.0.", "#5353", "#"+masters))
			start(t, "dnsmasq", "--keep-in-foreground", "--conf-file="+conf, "--port="+port, "--listen-address=127.0.0.1", "--bind-interfaces",
				"--no-resolv", "--no-hosts", "--pid-file=", "--user=", "--stop-dns-rebind")
		},
		"named": func(t *testing.T, masters, port string) {
			dir := t.TempDir()
			head := fmt.Sprintf("options { directory %q; pid-file none; session-keyfile none; listen-on port %s { 127.0.0.1; }; listen-on-v6 { none; };\n"+
				" dnssec-validation no; validate-except { %q; }; recursion yes; };\ncontrols { };\n", dir, port, DefaultDomain)
			conf := write(t, "named.conf", head+sample(t, "named.conf", "192.0.2.", "127.0.0.", "port 5353", "port "+masters))
			start(t, "named", "-g", "-n", "1", "-c", conf)
		},
		"coredns": func(t *testing.T, masters, port string) {
			conf := write(t, "Corefile", sample(t, "Corefile.forward", "192.0.2.", "127.0.0.", ":5353", ":"+masters, DefaultDomain+" {", DefaultDomain+":"+port+" {\n bind 127.0.0.1"))
			start(t, *coredns, "-conf", conf)
		},
	} {
		t.Run(name, func(t *testing.T) {
			if name == "coredns" && *coredns == "" {
				t.Skip("no -coredns")
			} else if name != "coredns" {
				if _, err := exec.LookPath(name); err != nil {
					t.Skip(err)
				}
			}
			masters := serve(t, "127.0.0.12:0", Config{Zone: of(z)})
			_, port, _ := net.SplitHostPort(freeAddress(t))
			run(t, masters.port, port)
			var r *dns.Msg
			until(t, func() error {
				c := dns.Client{Net: "tcp", Timeout: patience}
				var err error
				r, _, err = c.Exchange(question("_nfs._tcp.web17.slaves."+DefaultDomain, dns.TypeSRV), "127.0.0.1:"+port)
				if err == nil && r.Rcode != dns.RcodeSuccess {
					err = fmt.Errorf("answer %v", r)
				}
				return err
			})
			got := srvs(r.Answer) // in any order: some resolvers turn it
			slices.Sort(got)
			same(t, name, got, []string{"10 100 2050 m2.masters.nfs-fleet.internal.", "20 100 2049 m1.masters.nfs-fleet.internal."})
			resolver := serving{port: port}
			if r := resolver.exchange(t, "udp", "127.0.0.1", question("m2.masters."+DefaultDomain, dns.TypeA)); len(r.Answer) != 2 {
				t.Errorf("%v", r)
			}
			if r := resolver.exchange(t, "udp", "127.0.0.1", question("gone.masters."+DefaultDomain, dns.TypeA)); r.Rcode != dns.RcodeNameError {
				t.Errorf("%v", r)
			}
		})
	}
}

// The delegation says what the masters say of themselves.
func TestDelegation(t *testing.T) {
	z := &Zone{Domain: "nfs.prod.example"}
	for i, a := range []string{"192.0.2.11", "192.0.2.12", "192.0.2.13"} {
		z.Masters = append(z.Masters, Target{Name: fmt.Sprintf("m%d", i+1), Addresses: addrs(a), Port: 2049, InStep: true})
	}
	r := ask(t, z, question("nfs.prod.example", dns.TypeNS), UDP)
	want := map[string]bool{}
	for _, rr := range append(r.Answer, r.Extra...) {
		rr.Header().Ttl = 3600
		want[rr.String()] = true
	}
	p := dns.NewZoneParser(strings.NewReader(sample(t, "parent.zone")), "prod.example.", "parent.zone")
	for rr, ok := p.Next(); ok; rr, ok = p.Next() {
		if !want[rr.String()] {
			t.Errorf("the masters do not say %v", rr)
		}
		delete(want, rr.String())
	}
	if err := p.Err(); err != nil || len(want) != 0 {
		t.Errorf("%v, missing %v", err, want)
	}
}

// Both files for systemd-resolved route the domain to masters by address and port.
func TestResolvedSettings(t *testing.T) {
	for name, section := range map[string]string{"nfs-fleet.dns-delegate": "[Delegate]", "resolved.conf": "[Resolve]"} {
		var lines []string
		for line := range strings.Lines(sample(t, name)) {
			if line = strings.TrimSpace(line); !strings.HasPrefix(line, "#") {
				lines = append(lines, line)
			}
		}
		same(t, name, lines, []string{section, "DNS=192.0.2.11:5353 192.0.2.12:5353 192.0.2.13:5353", "Domains=~" + DefaultDomain})
	}
}

// nfsSRV runs deploy/no-agent/nfs-srv, called by a name, against a server.
func nfsSRV(t *testing.T, as string, server serving, args ...string) (stdout, stderr string) {
	t.Helper()
	if _, err := exec.LookPath("dig"); err != nil {
		t.Skip(err)
	}
	script, err := filepath.Abs("../../deploy/no-agent/nfs-srv")
	if err != nil {
		t.Fatal(err)
	}
	link := filepath.Join(t.TempDir(), as)
	if err := os.Symlink(script, link); err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command(link, args...)
	cmd.Env = append(os.Environ(), "NFS_SRV_DNS=127.0.0.13#1 127.0.0.12#"+server.port, "NFS_SRV_NAME=_nfs._tcp.%h.slaves."+DefaultDomain)
	var said strings.Builder
	cmd.Stderr = &said
	out, err := cmd.Output()
	if err != nil {
		said.WriteString(err.Error())
	}
	return string(out), said.String()
}

// The script for hosts without an agent lists masters in the order of RFC 2782: a slave's own order as it is, equal ones by
// chance. A name server that is down costs a moment only.
func TestNoAgentOrder(t *testing.T) {
	z := threeMasters()
	z.Domain = DefaultDomain
	z.SlaveOrder = func(string) []string { return []string{"m2", "m3", "m1"} }
	server := serve(t, "127.0.0.12:0", Config{Zone: of(z)})
	var want []string
	for _, name := range []string{"m2", "m3", "m1"} {
		i := slices.IndexFunc(z.Masters, func(m Target) bool { return m.Name == name })
		for _, a := range z.Masters[i].Addresses {
			want = append(want, fmt.Sprintf("%s %d", a.Unmap(), z.Masters[i].Port))
		}
	}
	got, said := nfsSRV(t, "nfs-srv", server, "_nfs._tcp.web17.slaves."+DefaultDomain)
	if strings.TrimSpace(got) != strings.Join(want, "\n") {
		t.Errorf("a slave's order:\n%s\nwant %q; %s", got, want, said)
	}
	first := make(map[string]int)
	for range 8 {
		got, _ := nfsSRV(t, "nfs-srv", server, "_nfs._tcp."+DefaultDomain)
		if lines := strings.Fields(got); len(lines) > 0 {
			first[lines[0]]++
		}
	}
	if len(first) < 2 {
		t.Errorf("equal masters came first so often: %v", first)
	}
	if got, said := nfsSRV(t, "nfs-srv", server, "_nfs._tcp.nobody.example"); got != "" || said != "" {
		t.Errorf("a name that is not there: %q, %q", got, said)
	}
	if _, said := nfsSRV(t, "mount.nfs-srv", server, "_nfs._tcp.nobody.example:/www", t.TempDir()); !strings.Contains(said, "no masters") || !strings.Contains(said, "exit status 32") {
		t.Errorf("mounting a name that is not there: %q", said)
	}
	for _, key := range []string{"../etc", "a b", "a;b", "", ".hidden"} {
		if got, _ := nfsSRV(t, "auto.nfs-srv", server, key); got != "" {
			t.Errorf("the key %q is mapped to %q", key, got)
		}
	}
}

// What DNS says becomes a word of a command only if it is a port or a host name.
func TestNoAgentTakesHostNamesOnly(t *testing.T) {
	bin := t.TempDir()
	dig := "#!/bin/sh\ncase \"$*\" in\n*SRV*) printf '%s\\n' '1 0 2049 -f/etc/passwd.' '2 0 2049 +trace.' '3 0 2049 m1.example.' '4 0 2049 .' ;;\n" +
		"*' A') echo \"$*\" >>\"$0.log\"; echo 10.0.0.9 ;;\nesac\n"
	if err := os.WriteFile(filepath.Join(bin, "dig"), []byte(dig), 0o755); err != nil {
		t.Fatal(err)
	}
	t.Setenv("PATH", bin+":"+os.Getenv("PATH"))
	got, said := nfsSRV(t, "nfs-srv", serving{}, "_nfs._tcp."+DefaultDomain)
	asked, err := os.ReadFile(filepath.Join(bin, "dig.log"))
	if err != nil || got != "10.0.0.9 2049\n" || strings.Count(string(asked), "\n") != 1 {
		t.Errorf("%q, %q; asked for %q, %v", got, said, asked, err)
	}
}

// As an autofs map it names all masters that have the first one's port: automount keeps the entry, and takes one that answers.
func TestNoAgentMap(t *testing.T) {
	z := threeMasters()
	z.Domain = DefaultDomain
	z.SlaveOrder = func(string) []string { return []string{"m3", "m2", "m1"} }
	server := serve(t, "127.0.0.12:0", Config{Zone: of(z)})
	got, said := nfsSRV(t, "auto.nfs-srv", server, "www")
	want := "port=2049,mountport=2049,retry=0 10.77.0.3,10.77.0.1,[fd00::1]:/www\n"
	if !strings.HasPrefix(got, "-fstype=nfs,use-weight-only,vers=3,ro,hard,nolock,nosuid,nodev,") || !strings.HasSuffix(got, want) {
		t.Errorf("%q, not …%q; %s", got, want, said)
	}
}
