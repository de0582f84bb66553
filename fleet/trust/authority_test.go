package trust

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"encoding/pem"
	"strings"
	"testing"
	"time"
)

func newTestAuthority(t testing.TB) *Authority {
	t.Helper()
	a, err := NewAuthority("prod", time.Now())
	if err != nil {
		t.Fatal(err)
	}
	return a
}

func TestAuthorityRoundTrip(t *testing.T) {
	a := newTestAuthority(t)
	b, err := ParseAuthority(a.PEM())
	if err != nil {
		t.Fatal(err)
	}
	if b.Fingerprint() != a.Fingerprint() || !bytes.Equal(b.PEM(), a.PEM()) {
		t.Error("it came back as another one")
	}
	if newTestAuthority(t).Fingerprint() == a.Fingerprint() {
		t.Error("two fleets share a CA")
	}
	if c := a.certificate; c.NotBefore.After(time.Unix(0, 0)) || c.NotAfter.Before(time.Now().Add(29*365*24*time.Hour)) {
		t.Errorf("valid from %s to %s", c.NotBefore, c.NotAfter)
	}
	if bytes.Contains(a.CertificatePEM(), []byte("PRIVATE")) {
		t.Error("the certificate comes with the key")
	}
}

func TestParseAuthorityRefuses(t *testing.T) {
	a, other := newTestAuthority(t), newTestAuthority(t)
	leaf, err := a.Issue("m1", "i1", time.Now())
	if err != nil {
		t.Fatal(err)
	}
	block := func(kind string, der []byte) []byte { return pem.EncodeToMemory(&pem.Block{Type: kind, Bytes: der}) }
	join := func(parts ...[]byte) []byte { return bytes.Join(parts, nil) }
	p384, err := ecdsa.GenerateKey(elliptic.P384(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	for name, text := range map[string][]byte{
		"nothing": nil, "text": []byte("hello"), "no key": a.CertificatePEM(), "no certificate": keyPEM(a.key),
		"another CA's key": join(a.CertificatePEM(), keyPEM(other.key)), "a leaf": join(block(pemCertificate, leaf.Certificate[0]), keyPEM(leaf.PrivateKey.(*ecdsa.PrivateKey))),
		"two certificates": join(a.CertificatePEM(), a.PEM()), "garbage behind": join(a.PEM(), []byte("garbage")),
		"a damaged key": join(a.CertificatePEM(), block(pemKey, []byte("garbage"))), "a damaged certificate": join(block(pemCertificate, []byte("garbage")), keyPEM(a.key)),
		"another curve": join(a.CertificatePEM(), keyPEM(p384)), "half": a.PEM()[:len(a.PEM())-40],
	} {
		if _, err := ParseAuthority(text); err == nil {
			t.Errorf("%s was accepted", name)
		} else if strings.Contains(err.Error(), "MIG") {
			t.Errorf("%s: the message shows what it read: %v", name, err)
		}
	}
}

func TestIssue(t *testing.T) {
	a := newTestAuthority(t)
	now := time.Now()
	c, err := a.Issue("m1", "i1", now)
	if err != nil {
		t.Fatal(err)
	}
	if len(c.Certificate) != 2 || !bytes.Equal(c.Certificate[1], a.certificate.Raw) {
		t.Error("the CA is not in the chain")
	}
	l := c.Leaf
	if l.Subject.CommonName != "m1" || l.Subject.SerialNumber != "i1" || !l.NotBefore.Equal(a.certificate.NotBefore) || l.IsCA {
		t.Errorf("%+v", l.Subject)
	}
	if life := l.NotAfter.Sub(now); life < 364*24*time.Hour || life > 366*24*time.Hour {
		t.Errorf("it lives %s", life)
	}
	for _, use := range []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth} {
		for _, when := range []time.Time{now, {}, time.Unix(0, 0)} { // a clock may be anything
			if when.IsZero() {
				when = now.Add(-20 * 365 * 24 * time.Hour)
			}
			if _, err := l.Verify(x509.VerifyOptions{DNSName: ServerName, Roots: a.pool(), CurrentTime: when, KeyUsages: []x509.ExtKeyUsage{use}}); err != nil {
				t.Errorf("at %s: %v", when, err)
			}
		}
	}
	if _, err := a.Issue("", "i1", now); err == nil {
		t.Error("a master without a name")
	}
	if _, err := a.Issue("m1", "", now); err == nil {
		t.Error("a master without an instance")
	}
	late, err := a.Issue("m1", "i1", a.certificate.NotAfter.Add(-time.Hour))
	if err != nil || !late.Leaf.NotAfter.Equal(a.certificate.NotAfter) {
		t.Errorf("a certificate outlives its CA: %v", err)
	}
}

func FuzzParseAuthority(f *testing.F) {
	a := newTestAuthority(f)
	f.Add(a.PEM())
	f.Add(a.CertificatePEM())
	f.Fuzz(func(t *testing.T, text []byte) {
		b, err := ParseAuthority(text)
		if err != nil {
			return
		}
		if c, err := ParseAuthority(b.PEM()); err != nil || c.Fingerprint() != b.Fingerprint() {
			t.Errorf("it does not come back: %v", err)
		}
	})
}
