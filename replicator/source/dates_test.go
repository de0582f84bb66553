package source

import (
	"os"
	"sync"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"github.com/go-git/go-billy/v5"
)

// dates are a test's word on when files were changed. With it a scan waits for a writer in the time of a synctest bubble,
// where nobody is late.
type dates struct {
	mu sync.Mutex // guards of
	of map[string]time.Time
}

// change says that a file in the source's root changes now.
func (d *dates) change(name string) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.of[name] = time.Now()
}

// info gives what the kernel says of a file the test's date, if it has one.
func (d *dates) info(name string, info os.FileInfo, err error) (os.FileInfo, error) {
	d.mu.Lock()
	at, ok := d.of[name]
	d.mu.Unlock()
	if err != nil || !ok {
		return info, err
	}
	st := *info.Sys().(*syscall.Stat_t)
	st.Ctim = syscall.NsecToTimespec(at.UnixNano())
	return &datedInfo{info, &st}, nil
}

type datedInfo struct {
	os.FileInfo
	st *syscall.Stat_t
}

func (i *datedInfo) Sys() any { return i.st }

// paced runs f in a synctest bubble, with dates that are no whole seconds: those come from another kind of file system.
func paced(t *testing.T, f func(t *testing.T, d *dates)) {
	synctest.Test(t, func(t *testing.T) {
		time.Sleep(time.Microsecond)
		f(t, &dates{of: map[string]time.Time{}})
	})
}

// withDates is a Config change that puts the dates between the Source and its directory.
func withDates(d *dates) func(*Config) { return func(c *Config) { c.FS = &dated{c.FS, d} } }

// dated is a source's root with a test's dates.
type dated struct {
	billy.Filesystem
	dates *dates
}

func (f *dated) Close() error { return closeFS(f.Filesystem) }

func (f *dated) Reopen() (billy.Filesystem, error) {
	fs, err := f.Filesystem.(interface {
		Reopen() (billy.Filesystem, error)
	}).Reopen()
	return &dated{fs, f.dates}, err
}

func (f *dated) Lstat(name string) (os.FileInfo, error) {
	info, err := f.Filesystem.Lstat(name)
	return f.dates.info(name, info, err)
}

func (f *dated) ReadDir(name string) ([]os.FileInfo, error) {
	infos, err := f.Filesystem.ReadDir(name)
	for i := range infos {
		infos[i], _ = f.dates.info(infos[i].Name(), infos[i], nil)
	}
	return infos, err
}

func (f *dated) Open(name string) (billy.File, error) {
	file, err := f.Filesystem.Open(name)
	if err != nil {
		return nil, err
	}
	return &datedFile{file.(rootFile), name, f.dates}, nil
}

type datedFile struct {
	rootFile
	name  string
	dates *dates
}

func (f *datedFile) Stat() (os.FileInfo, error) {
	info, err := f.rootFile.Stat()
	return f.dates.info(f.name, info, err)
}
