package e2e

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"math/big"
	"net"
	"os"
	"path/filepath"
	"testing"
	"time"
)

// certificates writes ca.pem and, for server and client alike, cert.pem and key.pem of an address into a new directory.
func certificates(t *testing.T, addr string) string {
	t.Helper()
	dir := t.TempDir()
	write := func(name, kind string, der []byte, err error) {
		if err == nil {
			err = os.WriteFile(filepath.Join(dir, name), pem.EncodeToMemory(&pem.Block{Type: kind, Bytes: der}), 0o600)
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	key := func() *ecdsa.PrivateKey {
		k, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
		if err != nil {
			t.Fatal(err)
		}
		return k
	}
	caKey, leafKey, now := key(), key(), time.Now()
	ca := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "e2e CA"}, NotBefore: now.Add(-time.Hour), NotAfter: now.Add(24 * time.Hour),
		IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign,
	}
	// No common name: etcd would take it for a user.
	leaf := &x509.Certificate{
		SerialNumber: big.NewInt(2), Subject: pkix.Name{Organization: []string{"e2e"}}, NotBefore: ca.NotBefore, NotAfter: ca.NotAfter,
		IPAddresses: []net.IP{net.ParseIP(addr)}, KeyUsage: x509.KeyUsageDigitalSignature,
		ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth},
	}
	der, err := x509.CreateCertificate(rand.Reader, ca, ca, caKey.Public(), caKey)
	write("ca.pem", "CERTIFICATE", der, err)
	der, err = x509.CreateCertificate(rand.Reader, leaf, ca, leafKey.Public(), caKey)
	write("cert.pem", "CERTIFICATE", der, err)
	der, err = x509.MarshalECPrivateKey(leafKey)
	write("key.pem", "EC PRIVATE KEY", der, err)
	return dir
}

// An etcd that wants client certificates, a user and a password, and gives that user the fleet's prefix alone.
func TestEtcdWithTLSAndUsers(t *testing.T) {
	for _, kind := range []EtcdKind{EtcdDebian, EtcdModule} {
		t.Run(string(kind), func(t *testing.T) { etcdWithTLSAndUsers(t, kind.binary(t)) })
	}
}

func etcdWithTLSAndUsers(t *testing.T, bin string) {
	needCommands(t, "etcdctl", "nfs-cat")
	lan := NewLAN(t)
	host := lan.Host(t, "e1")
	pki := certificates(t, host.Addr)
	client := "https://" + host.Addr + ":2379"
	files := func(flags ...string) (args []string) { // three flags: for the CA, the certificate and the key
		for i, name := range []string{"ca.pem", "cert.pem", "key.pem"} {
			args = append(args, flags[i], filepath.Join(pki, name))
		}
		return args
	}
	e := &EtcdMember{Host: host, Name: "e1", t: t, log: &procLog{}}
	e.argv = append([]string{
		bin, "--name", "e1", "--data-dir", t.TempDir(), "--listen-client-urls", client, "--advertise-client-urls", client, "--client-cert-auth",
	}, files("--trusted-ca-file", "--cert-file", "--key-file")...)
	e.Start()
	t.Cleanup(func() {
		if t.Failed() {
			t.Logf("log of etcd:\n%s", e.log.tail(30))
		}
	})
	etcdctl := func(args ...string) Result {
		args = append(append([]string{"etcdctl", "--endpoints", client}, files("--cacert", "--cert", "--key")...), args...)
		return runOn(t, host, time.Minute, []string{"ETCDCTL_API=3"}, args...)
	}
	eventually(t, 30*time.Second, "etcd answers", func() bool { return etcdctl("endpoint", "health").Code == 0 })
	for _, args := range [][]string{
		{"user", "add", "root:boss"}, {"user", "grant-role", "root", "root"}, {"role", "add", "fleet"},
		{"role", "grant-permission", "fleet", "readwrite", "/nfs-fleet/test/", "--prefix=true"},
		{"user", "add", "nfs-fleet:secret"}, {"user", "grant-role", "nfs-fleet", "fleet"}, {"auth", "enable"},
	} {
		if r := etcdctl(args...); r.Code != 0 && args[1] != "grant-role" { // some versions have the role root by themselves
			t.Fatalf("etcdctl %q: %v", args, r)
		}
	}
	f := &Fleet{LAN: lan, Outside: lan.Host(t, "outside"), t: t, Etcd: &Etcd{Members: []*EtcdMember{e}}}
	for _, name := range []string{"m1", "m2"} {
		flags := append([]string{"--etcd", client, "--etcd-user", "nfs-fleet:secret"}, files("--etcd-cacert", "--etcd-cert", "--etcd-key")...)
		f.Masters = append(f.Masters, StartMaster(t, MasterConfig{Name: name, Host: lan.Host(t, name), Flags: flags}))
	}
	dir := t.TempDir()
	writeFile(t, dir+"/file", "content")
	f.createShard("www")
	f.WaitServed("www", f.publishAnywhere("www", dir, "").Number, restLimit)

	// After a restart etcd knows none of the sessions that it gave out.
	e.Kill()
	e.Start()
	writeFile(t, dir+"/file", "more")
	f.WaitServed("www", f.publishAnywhere("www", dir, "").Number, restLimit)
	for _, m := range f.Masters {
		if got := f.cat(m, "www/file"); got != "more" {
			t.Errorf("%s serves %q", m.Name, got)
		}
	}
	t.Run("a wrong password", func(t *testing.T) {
		m := NewMaster(t, MasterConfig{Name: "m3", Host: lan.Host(t, "m3"), Flags: append([]string{"--etcd", client, "--etcd-user", "nfs-fleet:wrong"},
			files("--etcd-cacert", "--etcd-cert", "--etcd-key")...)})
		m.Start()
		eventually(t, restLimit, "it says that the password is wrong", func() bool {
			return len(grep(m.log.String(), `{"level":"warn"`)+grep(m.log.String(), `{"level":"error"`)) > 0 || m.Down()
		})
		checkSays(t, m.log.String(), "password")
	})
}
