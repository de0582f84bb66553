package trust

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"sync"
	"time"
)

// Credentials are what one master shows of itself. The certificate is made anew, for the same key, when a third of its
// life is left: whoever serves or dials with TLS configurations of Credentials never sees it expire. Safe for concurrent
// use.
type Credentials struct {
	authority        *Authority
	key              *ecdsa.PrivateKey
	master, instance string

	mu   sync.Mutex // guards leaf
	leaf *tls.Certificate

	files sync.Mutex // held while files are written
}

// NewCredentials makes the key and the certificate of a master.
func NewCredentials(a *Authority, master, instance string) (*Credentials, error) {
	leaf, err := a.Issue(master, instance, time.Now())
	if err != nil {
		return nil, err
	}
	return &Credentials{authority: a, key: leaf.PrivateKey.(*ecdsa.PrivateKey), master: master, instance: instance, leaf: &leaf}, nil
}

// Authority returns the fleet's CA.
func (c *Credentials) Authority() *Authority { return c.authority }

// certificate returns the present certificate, made anew if it is due.
func (c *Credentials) certificate() (*tls.Certificate, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	now := time.Now()
	if c.leaf.Leaf.NotAfter.Sub(now) > leafLife/3 {
		return c.leaf, nil
	}
	if leaf, err := c.authority.issue(c.key, c.master, c.instance, now); err == nil {
		c.leaf = &leaf
	} else if now.After(c.leaf.Leaf.NotAfter) {
		return nil, err
	}
	return c.leaf, nil
}

// ServerTLS is for the peer listener: TLS 1.3, a client certificate verified under the CA if one is given (Caller tells
// whose it is), HTTP/1.1 and the given application protocols. An http.Server over it must not turn HTTP/2 on by itself:
// give it a listener of tls.NewListener.
func (c *Credentials) ServerTLS(protocols ...string) *tls.Config {
	return &tls.Config{
		MinVersion:     tls.VersionTLS13,
		NextProtos:     append([]string{"http/1.1"}, protocols...),
		GetCertificate: func(*tls.ClientHelloInfo) (*tls.Certificate, error) { return c.certificate() },
		ClientAuth:     tls.VerifyClientCertIfGiven,
		ClientCAs:      c.authority.pool(),
	}
}

// ClientTLS is for dialling another master: it shows the certificate, and accepts only a master of this fleet, the named
// one unless master is "".
func (c *Credentials) ClientTLS(master string) *tls.Config {
	return &tls.Config{
		MinVersion:           tls.VersionTLS13,
		ServerName:           ServerName,
		RootCAs:              c.authority.pool(),
		GetClientCertificate: func(*tls.CertificateRequestInfo) (*tls.Certificate, error) { return c.certificate() },
		VerifyConnection: func(s tls.ConnectionState) error {
			name, _, ok := Caller(&s)
			switch {
			case !ok:
				return errors.New("the server shows no master's certificate")
			case master != "" && name != master:
				return fmt.Errorf("the server is master %s, not %s", name, master)
			}
			return nil
		},
	}
}

// Caller returns the name and the instance of the master at the other end of a connection of ServerTLS or ClientTLS.
// ok is false when it showed no certificate. Whether it was removed since is the caller's to know.
func Caller(s *tls.ConnectionState) (master, instance string, ok bool) {
	if s == nil || len(s.VerifiedChains) == 0 || len(s.VerifiedChains[0]) < 2 {
		return "", "", false
	}
	leaf := s.VerifiedChains[0][0]
	master, instance = leaf.Subject.CommonName, leaf.Subject.SerialNumber
	if master == "" || instance == "" || leaf.IsCA || leaf.VerifyHostname(ServerName) != nil {
		return "", "", false
	}
	return master, instance, true
}

// PinnedTLS is for somebody without a certificate: it accepts a master of the fleet whose CA has this fingerprint, and
// nobody else.
func PinnedTLS(ca Fingerprint) *tls.Config {
	return &tls.Config{
		MinVersion:         tls.VersionTLS13,
		ServerName:         ServerName,
		InsecureSkipVerify: true, // in favour of the following
		VerifyConnection: func(s tls.ConnectionState) error {
			for _, c := range s.PeerCertificates {
				if FingerprintOf(c) != ca {
					continue
				}
				roots := x509.NewCertPool()
				roots.AddCert(c)
				_, err := s.PeerCertificates[0].Verify(x509.VerifyOptions{DNSName: ServerName, Roots: roots})
				return err
			}
			return fmt.Errorf("the server is not of the fleet that the token is for (its CA is not %s)", ca)
		},
	}
}

// Files are the paths of what WriteFiles wrote, all PEM.
type Files struct {
	Cert string // the master's certificate and the CA's
	Key  string
	CA   string // the CA's certificate alone
}

// WriteFiles writes the credentials into dir, for the embedded etcd, which reads them at every handshake. Each file is
// replaced in one step and only when it differs, and the key stays the same while the process lives, so that the files
// fit each other at any moment. Call it again at least once a month: the certificate may be another one then.
func (c *Credentials) WriteFiles(dir string) (Files, error) {
	leaf, err := c.certificate()
	if err != nil {
		return Files{}, err
	}
	c.files.Lock()
	defer c.files.Unlock()
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return Files{}, fmt.Errorf("write credentials: %w", err)
	}
	var chain []byte
	for _, der := range leaf.Certificate {
		chain = append(chain, pem.EncodeToMemory(&pem.Block{Type: pemCertificate, Bytes: der})...)
	}
	f := Files{Cert: filepath.Join(dir, "master.crt"), Key: filepath.Join(dir, "master.key"), CA: filepath.Join(dir, "ca.crt")}
	for _, file := range []struct {
		name string
		text []byte
	}{{f.CA, c.authority.CertificatePEM()}, {f.Key, keyPEM(c.key)}, {f.Cert, chain}} {
		if err := replace(file.name, file.text); err != nil {
			return Files{}, fmt.Errorf("write credentials: %w", err)
		}
	}
	return f, nil
}

// replace gives a file new content in one step, durably, readable by its owner alone.
func replace(name string, content []byte) error {
	if old, err := os.ReadFile(name); err == nil && bytes.Equal(old, content) {
		return nil
	}
	f, err := os.CreateTemp(filepath.Dir(name), "."+filepath.Base(name)+".") // mode 0600
	if err != nil {
		return err
	}
	defer os.Remove(f.Name()) // in vain once it has its name
	_, err = f.Write(content)
	if err = errors.Join(err, f.Sync(), f.Close()); err != nil {
		return err
	}
	if err := os.Rename(f.Name(), name); err != nil {
		return err
	}
	dir, err := os.Open(filepath.Dir(name))
	if err != nil {
		return err
	}
	return errors.Join(dir.Sync(), dir.Close())
}
