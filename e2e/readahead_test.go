package e2e

import (
	"fmt"
	"strings"
	"testing"
)

// reads returns how many READs the slave's kernel has sent for a mount, and the bytes that they brought.
func (s *Slave) reads(dir string) (calls, bytes int) {
	s.t.Helper()
	_, mount, ok := strings.Cut(s.Must("cat", "/proc/self/mountstats"), " mounted on "+dir+" ")
	if !ok {
		s.t.Fatalf("no mount at %s", dir)
	}
	mount, _, _ = strings.Cut(mount, "\ndevice ")
	_, line, _ := strings.Cut(mount, " READ: ")
	var transmissions, timeouts, sent int
	if _, err := fmt.Sscan(line, &calls, &transmissions, &timeouts, &sent, &bytes); err != nil {
		s.t.Fatalf("statistics of %s: %v\n%s", dir, err, mount)
	}
	return calls, bytes
}

// sizeOfReads reads a file from front to back, as most programs do, and returns how much a READ asked for on average.
func (s *Slave) sizeOfReads(dir, file string) int {
	s.t.Helper()
	s.DropCaches()
	calls, bytes := s.reads(dir)
	s.Must("dd", "if="+dir+"/"+file, "of=/dev/null", "bs=64k", "status=none")
	after, all := s.reads(dir)
	if after == calls {
		s.t.Fatalf("%s/%s was read without a READ", dir, file)
	}
	return (all - bytes) / (after - calls)
}

// A program that reads a file from front to back has the kernel send READs as large as the master takes, not of the 128 KiB that
// Linux reads ahead on NFS by itself; whoever wants another readahead gets it.
func TestReadahead(t *testing.T) {
	f, s, _ := newAgentFleet(t)
	for _, c := range []struct {
		via, options string
		least, most  int
	}{
		{"relay", "", 800 << 10, 1200 << 10},
		{"direct", "", 800 << 10, 1200 << 10},
		{"relay", "readahead=default", 0, 140 << 10},
		{"relay", "readahead=512K", 400 << 10, 600 << 10},
	} {
		dir := "/mnt/" + c.via
		s.Must("mkdir", "-p", dir)
		s.Must(product(t), "mount", "-v", "--via", c.via, "--dns", f.nameServers(), "-o", c.options, slaveName+":/www", dir)
		if size := s.sizeOfReads(dir, "big"); size < c.least || size > c.most {
			t.Errorf("via %s, options %q: READs of %d bytes, want %d to %d", c.via, c.options, size, c.least, c.most)
		} else {
			t.Logf("via %s, options %q: READs of %d bytes", c.via, c.options, size)
		}
		s.Must(product(t), "umount", dir)
	}
}
