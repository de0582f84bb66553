package master

import (
	"context"
	"github.com/rs/zerolog"
	"strings"
	"testing"

	clientv3 "go.etcd.io/etcd/client/v3"

	"github.com/nfs-fleet/nfs-fleet/fleet"
	"github.com/nfs-fleet/nfs-fleet/fleet/console"
)

// An etcd that has lost the fleet, and in which somebody has made another one of that name, is no reason to stop serving.
func TestAMasterThatServesOutlivesAnotherFleetInEtcd(t *testing.T) {
	all, server := several(t, "m1")
	m1 := all["m1"]
	before := m1.until("generation 1", serves(1))
	client := server.Dial(t)
	if _, err := client.Delete(t.Context(), fleet.KeysOf(m1.cfg.Fleet).Prefix(), clientv3.WithPrefix()); err != nil {
		t.Fatal(err)
	}
	c := testConfig(t)
	c.Name, c.Fleet, c.Etcd, c.Sources = "m2", m1.cfg.Fleet, m1.cfg.Etcd, map[string]SourceConfig{}
	m2 := start(t, c)
	m2.until("a fleet of its own", func(s console.Status) bool { return s.ID != "" && s.ID != before.ID })
	m1.until("the other fleet noticed", func(s console.Status) bool {
		return s.ID == before.ID && strings.Contains(strings.Join(s.Warnings, "\n"), "belongs to fleet") && len(s.Shards) == 1 && s.Shards[0].Generation == 1
	})
}

// The second master of a name is the one that has to go.
func TestTwoMastersOfOneName(t *testing.T) {
	all, _ := several(t, "m1", "m2")
	m1 := all["m1"]
	m1.until("two masters serving", inStep(2, 1))
	c := testConfig(t)
	c.Name, c.Fleet, c.Etcd, c.Sources = "m1", m1.cfg.Fleet, m1.cfg.Etcd, map[string]SourceConfig{}
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	err := Run(ctx, c, "test", zerolog.New(newTestLog(t)).Level(zerolog.InfoLevel))
	if err == nil || !strings.Contains(err.Error(), "another master named m1") {
		t.Errorf("the second m1 ended with %v", err)
	}
	m1.until("two masters serving", inStep(2, 1))
}
