package mount

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"testing"

	"github.com/nfs-fleet/nfs-fleet/fleet/slave/mounts"
)

func TestReadaheadOfAMount(t *testing.T) {
	for name, c := range map[string]struct {
		want           Readahead
		present, rsize uint64
		kib            uint64
		set            bool
	}{
		"four READs":                      {Readahead{}, 128, 1 << 20, 4096, true},
		"small READs":                     {Readahead{}, 128, 64 << 10, 256, true},
		"never less than there is":        {Readahead{}, 15360, 1 << 20, 4096, false},
		"READs of unknown size":           {Readahead{}, 128, 0, 0, false},
		"as it was asked for":             {Readahead{readaheadBytes, 1 << 20}, 15360, 1 << 20, 1024, true},
		"already as it was asked for":     {Readahead{readaheadBytes, 1 << 20}, 1024, 1 << 20, 1024, false},
		"left to the kernel":              {Readahead{how: readaheadKernel}, 128, 1 << 20, 0, false},
		"no more than a master can think": {Readahead{}, 128, 1<<32 - 1, 1 << 20, true},
	} {
		if kib, set := c.want.kib(c.present, c.rsize); set != c.set || set && kib != c.kib {
			t.Errorf("%s: %d KiB, %v; want %d, %v", name, kib, set, c.kib, c.set)
		}
	}
}

func TestReadaheadIsSetInSysfs(t *testing.T) {
	root := t.TempDir()
	file := filepath.Join(root, "class/bdi/0:50/read_ahead_kb")
	if err := errors.Join(os.MkdirAll(filepath.Dir(file), 0o755), os.WriteFile(file, []byte("128\n"), 0o600)); err != nil {
		t.Fatal(err)
	}
	m := mounts.Mount{Device: "0:50", ReadSize: 1 << 20}
	if kib, err := (Readahead{}).apply(root, m); kib != 4096 || err != nil {
		t.Errorf("%d KiB, %v", kib, err)
	}
	if b, err := os.ReadFile(file); string(b) != "4096" || err != nil {
		t.Errorf("%q, %v", b, err)
	}
	m.Device = "0:51"
	if _, err := (Readahead{}).apply(root, m); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("a kernel without it: %v", err)
	}
}
