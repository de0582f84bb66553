package master

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"time"

	"github.com/google/renameio/v2"

	"github.com/nfs-fleet/nfs-fleet/fleet/trust"
)

// openTrust reads the fleet's CA from disk and makes this master's credentials. The first master of a fleet makes the
// CA too; with an etcd elsewhere that is a proposal, which settleTrust exchanges for the one that the fleet has.
func (m *Master) openTrust() error {
	if err := os.MkdirAll(m.data.join("pki"), 0o700); err != nil {
		return fmt.Errorf("data directory: %w", err)
	}
	text, err := os.ReadFile(m.data.join("pki", "ca.pem"))
	if errors.Is(err, fs.ErrNotExist) {
		a, err := trust.NewAuthority(m.cfg.Fleet, time.Now())
		if err != nil {
			return err
		}
		return m.adoptAuthority(a)
	}
	if err != nil {
		return fmt.Errorf("the fleet's CA: %w", err)
	}
	a, err := trust.ParseAuthority(text)
	if err != nil {
		return fmt.Errorf("the fleet's CA, %s: %w", m.data.join("pki", "ca.pem"), err)
	}
	return m.useAuthority(a)
}

// adoptAuthority makes a the fleet's CA on this disk, and uses it from now on.
func (m *Master) adoptAuthority(a *trust.Authority) error {
	if err := renameio.WriteFile(m.data.join("pki", "ca.pem"), a.PEM(), 0o600); err != nil {
		return fmt.Errorf("the fleet's CA: %w", err)
	}
	return m.useAuthority(a)
}

func (m *Master) useAuthority(a *trust.Authority) error {
	c, err := trust.NewCredentials(a, m.cfg.Name, m.instance)
	if err != nil {
		return err
	}
	files, err := c.WriteFiles(m.data.join("pki"))
	if err != nil {
		return err
	}
	m.credentials.Store(c)
	m.files.Store(&files)
	if m.links != nil {
		m.links.reset()
	}
	return nil
}

// refreshTrust writes the files anew that the embedded etcd reads: their certificate expires in time.
func (m *Master) refreshTrust() {
	if _, err := m.credentials.Load().WriteFiles(m.data.join("pki")); err != nil {
		m.log.Error().Err(err).Msg("writing the certificate for etcd's peers failed; trying again tomorrow")
	}
}

// settleTrust sees to it that this master has the fleet's CA. With an etcd elsewhere that is the one in etcd, because
// whoever can write there is a master; with an embedded one the CA came with the join, or was made here.
func (m *Master) settleTrust(ctx context.Context) error {
	if m.trusted || len(m.cfg.Etcd.Endpoints) == 0 {
		return nil
	}
	ctx, cancel := context.WithTimeout(ctx, etcdTimeout)
	defer cancel()
	own := m.credentials.Load().Authority()
	text, err := m.registry.CA(ctx, own.PEM())
	if err != nil {
		return fmt.Errorf("the fleet's CA in etcd: %w", err)
	}
	a, err := trust.ParseAuthority(text)
	if err != nil {
		return fmt.Errorf("the fleet's CA in etcd, key %s: %w", m.registry.Keys().CA(), err)
	}
	if a.Fingerprint() != own.Fingerprint() {
		if err := m.adoptAuthority(a); err != nil {
			return err
		}
		m.log.Info().Stringer("ca", a.Fingerprint()).Msg("this master now trusts the fleet's CA")
	}
	m.trusted = true
	return nil
}
