package e2e

import (
	"crypto/sha256"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// A client in user space reads the tree: another implementation of XDR, MOUNT and READDIR than Linux's.
func TestLibnfs(t *testing.T) {
	needCommands(t, "nfs-ls", "nfs-cat", "nfs-cp")
	host := NewLAN(t).Host(t, "m1") // privileged ports, and nobody else's
	source := t.TempDir()
	zoo := NewZoo(t, source)
	m := StartMaster(t, MasterConfig{Host: host, Sources: []string{"www=" + source}})
	m.WaitGeneration("www", 1)

	t.Run("nfs-ls", func(t *testing.T) { libnfsLists(t, m, zoo) })
	t.Run("nfs-cat", func(t *testing.T) { libnfsReads(t, m, zoo) })
	t.Run("nfs-cp", func(t *testing.T) { libnfsCopies(t, m, zoo) })
}

func libnfsLists(t *testing.T, m *Master, zoo *Zoo) {
	r := m.On("nfs-ls", m.url("www/plain"))
	want, err := os.ReadDir(zoo.path("plain"))
	if err != nil {
		t.Fatal(err)
	}
	if r.Code != 0 {
		t.Fatalf("nfs-ls: %v", r)
	}
	for _, e := range want {
		info, _ := e.Info()
		if !strings.Contains(r.Stdout, " "+e.Name()+"\n") {
			t.Errorf("nfs-ls does not show %s:\n%s", e.Name(), r.Stdout)
		}
		if strings.HasPrefix(e.Name(), "size-") && !strings.Contains(r.Stdout, fmt.Sprintf(" %d %s\n", info.Size(), e.Name())) {
			t.Errorf("nfs-ls does not show the size %d of %s:\n%s", info.Size(), e.Name(), r.Stdout)
		}
	}
	if got := strings.Count(r.Stdout, "\n"); got != len(want) {
		t.Errorf("nfs-ls shows %d names, the source has %d", got, len(want))
	}
	if r = m.On("nfs-ls", m.url("www/"+zoo.Crowd)); strings.Count(r.Stdout, "one-of-many-") != zoo.CrowdSize {
		t.Errorf("nfs-ls of %d entries shows %d", zoo.CrowdSize, strings.Count(r.Stdout, "one-of-many-"))
	}
	if r = m.On("nfs-ls", m.url("www/absent")); r.Code == 0 {
		t.Errorf("nfs-ls of nothing: %v", r)
	}
	if r = m.On("nfs-ls", m.url("nowhere")); r.Code == 0 {
		t.Errorf("nfs-ls of no shard: %v", r)
	}
}

func libnfsReads(t *testing.T, m *Master, zoo *Zoo) {
	for _, name := range []string{"plain/size-0", "plain/size-1", "plain/size-4097", "plain/size-262144", "plain/size-9437191", "links/sub/three", zoo.Deep} {
		want, err := os.ReadFile(zoo.path(name))
		if err != nil {
			t.Fatal(err)
		}
		r := m.On("nfs-cat", m.url("www/"+name))
		if r.Code != 0 || r.Stdout != string(want) {
			t.Errorf("nfs-cat %s: exit code %d, %d bytes (SHA-256 %x), want %d (%x): %s", name, r.Code,
				len(r.Stdout), sha256.Sum256([]byte(r.Stdout)), len(want), sha256.Sum256(want), clip(r.Stderr))
		}
	}
}

func libnfsCopies(t *testing.T, m *Master, zoo *Zoo) {
	to := filepath.Join(t.TempDir(), "copy")
	if r := m.On("nfs-cp", m.url("www/plain/size-9437191"), to); r.Code != 0 {
		t.Fatalf("nfs-cp: %v", r)
	}
	got, _ := os.ReadFile(to)
	want, _ := os.ReadFile(zoo.path("plain/size-9437191"))
	if string(got) != string(want) {
		t.Errorf("nfs-cp brought %d bytes that are not the file's %d", len(got), len(want))
	}
	if r := m.On("nfs-cp", to, m.url("www/new")); r.Code == 0 || !strings.Contains(r.Stdout+r.Stderr, "ROFS") {
		t.Errorf("nfs-cp into a read-only tree: %v", r)
	}
}
