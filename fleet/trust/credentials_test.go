package trust

import (
	"bytes"
	"crypto/tls"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"testing/synctest"
	"time"
)

func newTestCredentials(t testing.TB, a *Authority, master string) *Credentials {
	t.Helper()
	c, err := NewCredentials(a, master, "instance-of-"+master)
	if err != nil {
		t.Fatal(err)
	}
	return c
}

// shake lets a server and a client meet, and returns what each saw of the other. A side that fails closes the connection.
func shake(t *testing.T, server, client *tls.Config) (atServer, atClient tls.ConnectionState, serverErr, clientErr error) {
	t.Helper()
	a, b := net.Pipe()
	defer a.Close()
	defer b.Close()
	s, c := tls.Server(a, server), tls.Client(b, client)
	done := make(chan struct{})
	go func() {
		defer close(done)
		if serverErr = s.Handshake(); serverErr != nil {
			a.Close()
			return
		}
		atServer = s.ConnectionState()
		_, serverErr = s.Write([]byte("x")) // in TLS 1.3 a client learns here that it was refused
	}()
	if clientErr = c.Handshake(); clientErr == nil {
		atClient = c.ConnectionState()
		_, clientErr = c.Read(make([]byte, 1))
	}
	b.Close()
	<-done
	return atServer, atClient, serverErr, clientErr
}

func TestMastersKnowEachOther(t *testing.T) {
	a := newTestAuthority(t)
	m1, m2 := newTestCredentials(t, a, "m1"), newTestCredentials(t, a, "m2")
	for _, expected := range []string{"", "m1"} {
		atServer, atClient, serverErr, clientErr := shake(t, m1.ServerTLS("tunnel"), m2.ClientTLS(expected))
		if serverErr != nil || clientErr != nil {
			t.Fatal(serverErr, clientErr)
		}
		if name, instance, ok := Caller(&atServer); name != "m2" || instance != "instance-of-m2" || !ok {
			t.Errorf("the server saw %q, %q, %t", name, instance, ok)
		}
		if name, instance, ok := Caller(&atClient); name != "m1" || instance != "instance-of-m1" || !ok {
			t.Errorf("the client saw %q, %q, %t", name, instance, ok)
		}
		if atServer.Version != tls.VersionTLS13 {
			t.Errorf("TLS %x", atServer.Version)
		}
	}
	if _, _, _, err := shake(t, m1.ServerTLS(), m2.ClientTLS("m3")); err == nil || !strings.Contains(err.Error(), "is master m1, not m3") {
		t.Errorf("m1 passed for m3: %v", err)
	}
}

func TestProtocols(t *testing.T) {
	m := newTestCredentials(t, newTestAuthority(t), "m1")
	for _, c := range []struct {
		offer []string
		want  string
	}{{[]string{"h2", "http/1.1"}, "http/1.1"}, {[]string{"tunnel"}, "tunnel"}, {nil, ""}} {
		config := m.ClientTLS("")
		config.NextProtos = c.offer
		if s, _, _, err := shake(t, m.ServerTLS("tunnel"), config); err != nil || s.NegotiatedProtocol != c.want {
			t.Errorf("offered %v: %q, %v; want %q", c.offer, s.NegotiatedProtocol, err, c.want)
		}
	}
	old := m.ClientTLS("")
	old.MinVersion, old.MaxVersion = tls.VersionTLS12, tls.VersionTLS12
	if _, _, err, _ := shake(t, m.ServerTLS(), old); err == nil {
		t.Error("TLS 1.2 was accepted")
	}
}

func TestStrangersAreRefused(t *testing.T) {
	ours, theirs := newTestAuthority(t), newTestAuthority(t)
	m1, stranger := newTestCredentials(t, ours, "m1"), newTestCredentials(t, theirs, "m1")
	if _, _, _, err := shake(t, stranger.ServerTLS(), m1.ClientTLS("m1")); err == nil {
		t.Error("a server of another fleet was accepted")
	}
	trusting := stranger.ClientTLS("")
	trusting.RootCAs = ours.pool()
	if _, _, err, _ := shake(t, m1.ServerTLS(), trusting); err == nil {
		t.Error("a client of another fleet was accepted")
	}
	nobody := m1.ClientTLS("")
	nobody.GetClientCertificate = nil
	atServer, _, serverErr, clientErr := shake(t, m1.ServerTLS(), nobody)
	if serverErr != nil || clientErr != nil {
		t.Fatalf("without a certificate: %v, %v", serverErr, clientErr)
	}
	if _, _, ok := Caller(&atServer); ok {
		t.Error("nobody is a master")
	}
	if _, _, ok := Caller(nil); ok {
		t.Error("no connection is a master's")
	}
}

func TestPinned(t *testing.T) {
	ours, theirs := newTestAuthority(t), newTestAuthority(t)
	m1, stranger := newTestCredentials(t, ours, "m1"), newTestCredentials(t, theirs, "m1")
	if _, _, serverErr, err := shake(t, m1.ServerTLS(), PinnedTLS(ours.Fingerprint())); err != nil || serverErr != nil {
		t.Errorf("the fleet that the token is for: %v, %v", err, serverErr)
	}
	if _, _, _, err := shake(t, stranger.ServerTLS(), PinnedTLS(ours.Fingerprint())); err == nil || !strings.Contains(err.Error(), "not of the fleet") {
		t.Errorf("another fleet: %v", err)
	}
	// Anybody can show a certificate that is no secret, behind one of his own.
	posing := stranger.ServerTLS()
	leaf, err := theirs.Issue("m1", "i", time.Now())
	if err != nil {
		t.Fatal(err)
	}
	leaf.Certificate = append(leaf.Certificate, ours.certificate.Raw)
	posing.GetCertificate = func(*tls.ClientHelloInfo) (*tls.Certificate, error) { return &leaf, nil }
	if _, _, _, err := shake(t, posing, PinnedTLS(ours.Fingerprint())); err == nil {
		t.Error("a server that shows our CA behind its own leaf was accepted")
	}
	if _, _, _, err := shake(t, m1.ServerTLS(), PinnedTLS(Fingerprint{})); err == nil {
		t.Error("no pin accepts everybody")
	}
}

func TestCertificatesAreMadeAnewInTime(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		a := newTestAuthority(t)
		m1, m2 := newTestCredentials(t, a, "m1"), newTestCredentials(t, a, "m2")
		server, client := m1.ServerTLS(), m2.ClientTLS("m1")
		dir := t.TempDir()
		first, err := m1.WriteFiles(dir)
		if err != nil {
			t.Fatal(err)
		}
		before, key := read(t, first.Cert), read(t, first.Key)
		for range 30 { // 10 years and more
			time.Sleep(130 * 24 * time.Hour)
			if _, _, serverErr, clientErr := shake(t, server, client); serverErr != nil || clientErr != nil {
				t.Fatalf("%s: %v, %v", time.Now(), serverErr, clientErr)
			}
			leaf, err := m1.certificate()
			if err != nil || time.Until(leaf.Leaf.NotAfter) < leafLife/3 {
				t.Fatalf("%s: %v", time.Now(), err)
			}
		}
		second, err := m1.WriteFiles(dir)
		if err != nil || second != first {
			t.Fatalf("%+v, %v", second, err)
		}
		if bytes.Equal(read(t, second.Cert), before) || !bytes.Equal(read(t, second.Key), key) {
			t.Error("another certificate for the same key was expected")
		}
		if pair, err := tls.LoadX509KeyPair(second.Cert, second.Key); err != nil || pair.Leaf.NotAfter.Before(time.Now()) {
			t.Errorf("what lies on the disk: %v", err)
		}
	})
}

func read(t *testing.T, name string) []byte {
	t.Helper()
	b, err := os.ReadFile(name)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

func TestWriteFiles(t *testing.T) {
	a := newTestAuthority(t)
	m := newTestCredentials(t, a, "m1")
	dir := filepath.Join(t.TempDir(), "pki", "etcd")
	f, err := m.WriteFiles(dir)
	if err != nil {
		t.Fatal(err)
	}
	if pair, err := tls.LoadX509KeyPair(f.Cert, f.Key); err != nil || len(pair.Certificate) != 2 || pair.Leaf.Subject.CommonName != "m1" {
		t.Errorf("%v", err)
	}
	if !bytes.Equal(read(t, f.CA), a.CertificatePEM()) {
		t.Error("the CA's certificate differs")
	}
	entries, err := os.ReadDir(dir)
	if err != nil || len(entries) != 3 {
		t.Errorf("%v, %v", entries, err)
	}
	stamps := map[string]time.Time{}
	for _, e := range entries {
		info, err := e.Info()
		if err != nil || info.Mode() != 0o600 {
			t.Errorf("%s: %v, %v", e.Name(), info.Mode(), err)
		}
		stamps[e.Name()] = info.ModTime()
	}
	if _, err := m.WriteFiles(dir); err != nil {
		t.Fatal(err)
	}
	for name, stamp := range stamps {
		if info, err := os.Stat(filepath.Join(dir, name)); err != nil || !info.ModTime().Equal(stamp) {
			t.Errorf("%s was written again: %v", name, err)
		}
	}
	if _, err := m.WriteFiles(f.CA); err == nil {
		t.Error("a file was taken for a directory")
	}
}
