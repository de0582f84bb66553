package e2e

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/nfs-fleet/nfs-fleet/e2e/wire"
)

// The harness itself: a slave sees this machine's files, byte for byte, and its own network only.
func TestSlaveObeys(t *testing.T) {
	lan := NewLAN(t)
	host := lan.Host(t, "h1")
	s := lan.Slave(t)
	dir := t.TempDir()
	if err := os.WriteFile(filepath.Join(dir, "odd \xff\n name"), []byte("content\n"), 0o640); err != nil {
		t.Fatal(err)
	}
	// The slave's view of this machine's files has whole seconds only; what it mounts is not seen through that.
	second := time.Unix(1_700_000_000, 0)
	for _, name := range []string{"odd \xff\n name", ""} {
		if err := os.Chtimes(filepath.Join(dir, name), second, second); err != nil {
			t.Fatal(err)
		}
	}
	here, there := wire.Summarize(wire.Listing{Root: dir, Contents: true}), s.Summarize(wire.Listing{Root: dir, Contents: true})
	if here != there || here.Error != "" || here.Entries != 2 {
		t.Errorf("the slave sees %+v, this machine %+v", there, here)
	}
	if got := s.ReadDir(dir); len(got) != 1 || got[0] != "odd \xff\n name" {
		t.Errorf("names: %q", got)
	}
	if r := s.Run("sh", "-c", "echo out; echo err >&2; exit 3"); r != (Result{Code: 3, Stdout: "out\n", Stderr: "err\n"}) {
		t.Errorf("run: %v", r)
	}
	// A closed port refuses at once where there is a host; without one the connect hangs.
	reached := func() bool {
		return strings.Contains(s.Run("timeout", "2", "bash", "-c", "</dev/tcp/"+host.Addr+"/1").Stderr, "refused")
	}
	if !reached() {
		t.Error("the slave does not reach a host on its LAN")
	}
	host.Cut(t)
	if reached() {
		t.Error("a host whose cable is cut answers")
	}
	host.Mend(t)
	eventually(t, 5*time.Second, "the host answers again", reached)
	// The serial line carries bulk, and every byte.
	bulk := noise(1, 9<<20)
	if err := os.WriteFile(filepath.Join(dir, "bulk"), []byte(bulk), 0o644); err != nil {
		t.Fatal(err)
	}
	if got, err := s.ReadFile(filepath.Join(dir, "bulk")); err != nil || got != bulk {
		t.Errorf("%d bytes over the line instead of %d: %v", len(got), len(bulk), err)
	}
	if got := s.Must("printf", "%s", "\xff\n\r\x11\x13\x03"); got != "\xff\n\r\x11\x13\x03" {
		t.Errorf("control bytes came back as %q", got)
	}
	if _, err := s.Lstat(filepath.Join(dir, "absent")); err == nil {
		t.Error("a name that is not there has attributes")
	}
}
