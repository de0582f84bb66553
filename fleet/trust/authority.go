package trust

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/hex"
	"encoding/pem"
	"errors"
	"fmt"
	"math/big"
	"time"
)

// ServerName is the DNS name in the certificate of every master. Masters are known by their names, not by addresses,
// which change.
const ServerName = "nfs-fleet-master"

// How long certificates are valid.
const (
	authorityLife = 30 * 365 * 24 * time.Hour
	leafLife      = 365 * 24 * time.Hour
)

// notBefore is when every certificate begins: long ago, because clocks jump, and some machines boot in 1970.
var notBefore = time.Unix(0, 0).UTC()

const (
	pemCertificate = "CERTIFICATE"
	pemKey         = "PRIVATE KEY"
)

// Fingerprint is the SHA-256 of a certificate's DER form.
type Fingerprint [sha256.Size]byte

// FingerprintOf returns the fingerprint of a certificate.
func FingerprintOf(c *x509.Certificate) Fingerprint { return sha256.Sum256(c.Raw) }

// String returns 64 hexadecimal digits, as `openssl x509 -fingerprint -sha256` has them but for case and colons.
func (f Fingerprint) String() string { return hex.EncodeToString(f[:]) }

// Authority is a fleet's certificate authority: a certificate and its private key. It does not change and is safe for
// concurrent use.
type Authority struct {
	certificate *x509.Certificate
	key         *ecdsa.PrivateKey
}

// NewAuthority makes the CA of a new fleet, valid for 30 years from now.
func NewAuthority(fleet string, now time.Time) (*Authority, error) {
	key, err := newKey()
	if err != nil {
		return nil, err
	}
	template := &x509.Certificate{
		SerialNumber: newSerial(),
		Subject:      pkix.Name{CommonName: "nfs-fleet CA", Organization: []string{fleet}},
		NotBefore:    notBefore, NotAfter: now.Add(authorityLife),
		IsCA: true, BasicConstraintsValid: true, MaxPathLenZero: true,
		KeyUsage: x509.KeyUsageCertSign | x509.KeyUsageDigitalSignature,
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, &key.PublicKey, key)
	if err != nil {
		return nil, fmt.Errorf("make the fleet's CA: %w", err)
	}
	return newAuthority(der, key)
}

// ParseAuthority reads what PEM wrote. The error never shows any of it.
func ParseAuthority(text []byte) (*Authority, error) {
	var der []byte
	var key *ecdsa.PrivateKey
	for {
		var block *pem.Block
		if block, text = pem.Decode(text); block == nil {
			break
		}
		switch {
		case block.Type == pemCertificate && der == nil:
			der = block.Bytes
		case block.Type == pemKey && key == nil:
			parsed, err := x509.ParsePKCS8PrivateKey(block.Bytes)
			if err != nil {
				return nil, errors.New("the fleet's CA: its private key cannot be read")
			}
			var ok bool
			if key, ok = parsed.(*ecdsa.PrivateKey); !ok {
				return nil, fmt.Errorf("the fleet's CA: a private key of type %T, not ECDSA", parsed)
			}
		default:
			return nil, fmt.Errorf("the fleet's CA: an unexpected PEM block %q", block.Type)
		}
	}
	switch {
	case len(bytes.TrimSpace(text)) > 0:
		return nil, errors.New("the fleet's CA: something that is not PEM")
	case der == nil || key == nil:
		return nil, errors.New("the fleet's CA: one certificate and its private key are needed, in PEM")
	}
	return newAuthority(der, key)
}

func newAuthority(der []byte, key *ecdsa.PrivateKey) (*Authority, error) {
	c, err := x509.ParseCertificate(der)
	switch {
	case err != nil:
		return nil, fmt.Errorf("the fleet's CA: %w", err)
	case key.Curve != elliptic.P256() || !key.PublicKey.Equal(c.PublicKey):
		return nil, errors.New("the fleet's CA: the private key is not that of the certificate")
	case !c.IsCA || c.CheckSignatureFrom(c) != nil:
		return nil, errors.New("the fleet's CA: the certificate is not a CA's that signed itself")
	}
	return &Authority{c, key}, nil
}

// PEM returns the certificate and the private key. Whoever has it can make masters of the fleet.
func (a *Authority) PEM() []byte { return append(a.CertificatePEM(), keyPEM(a.key)...) }

// CertificatePEM returns the certificate alone, which is no secret.
func (a *Authority) CertificatePEM() []byte {
	return pem.EncodeToMemory(&pem.Block{Type: pemCertificate, Bytes: a.certificate.Raw})
}

// Fingerprint is that of the CA's certificate.
func (a *Authority) Fingerprint() Fingerprint { return FingerprintOf(a.certificate) }

// Issue makes a key and a certificate for a master, valid for a year from now, with the CA's certificate behind it in the
// chain.
func (a *Authority) Issue(master, instance string, now time.Time) (tls.Certificate, error) {
	key, err := newKey()
	if err != nil {
		return tls.Certificate{}, err
	}
	return a.issue(key, master, instance, now)
}

func (a *Authority) issue(key *ecdsa.PrivateKey, master, instance string, now time.Time) (tls.Certificate, error) {
	if master == "" || instance == "" {
		return tls.Certificate{}, errors.New("issue a certificate: a master has a name and an instance")
	}
	until := now.Add(leafLife)
	if until.After(a.certificate.NotAfter) {
		until = a.certificate.NotAfter
	}
	template := &x509.Certificate{
		SerialNumber: newSerial(),
		Subject:      pkix.Name{CommonName: master, SerialNumber: instance},
		DNSNames:     []string{ServerName},
		NotBefore:    notBefore, NotAfter: until,
		BasicConstraintsValid: true,
		KeyUsage:              x509.KeyUsageDigitalSignature,
		ExtKeyUsage:           []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth},
	}
	der, err := x509.CreateCertificate(rand.Reader, template, a.certificate, &key.PublicKey, a.key)
	if err != nil {
		return tls.Certificate{}, fmt.Errorf("issue a certificate for %s: %w", master, err)
	}
	leaf, err := x509.ParseCertificate(der)
	if err != nil {
		return tls.Certificate{}, fmt.Errorf("issue a certificate for %s: %w", master, err)
	}
	return tls.Certificate{Certificate: [][]byte{der, a.certificate.Raw}, PrivateKey: key, Leaf: leaf}, nil
}

// pool holds the CA alone.
func (a *Authority) pool() *x509.CertPool {
	pool := x509.NewCertPool()
	pool.AddCert(a.certificate)
	return pool
}

func newKey() (*ecdsa.PrivateKey, error) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, fmt.Errorf("make a private key: %w", err)
	}
	return key, nil
}

func newSerial() *big.Int {
	var b [16]byte
	rand.Read(b[:]) // never fails
	b[0] &= 0x7f    // positive in 16 bytes
	return new(big.Int).SetBytes(b[:])
}

func keyPEM(key *ecdsa.PrivateKey) []byte {
	der, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		panic(fmt.Sprintf("trust: a P-256 key does not marshal: %v", err))
	}
	return pem.EncodeToMemory(&pem.Block{Type: pemKey, Bytes: der})
}
