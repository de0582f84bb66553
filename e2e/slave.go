package e2e

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"net/rpc"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/nfs-fleet/nfs-fleet/e2e/wire"
)

// mountOptions are those of the README, for one port.
const mountOptions = "vers=3,ro,nolock,tcp,port=2049,mountport=2049,mountproto=tcp"

// Slave is a stock Linux kernel with its NFS client, as a process. Its root is this machine's file system, read-only: a
// path of the test is the same file there. /mnt is a tmpfs of its own.
type Slave struct {
	Addr string
	t    testing.TB
	proc *proc
	rpc  *rpc.Client
}

// Slave boots a slave on the LAN and waits until it obeys.
func (l *LAN) Slave(t testing.TB) *Slave {
	t.Helper()
	needCommands(t, "linux.uml", "modprobe", "taskset", "mount.nfs")
	tap, addr := l.tap(t)
	ours, theirs := serialLine(t)
	defer theirs.Close()
	state := t.TempDir()
	// The machine's memory is a file in /dev/shm, which may be small (containers): it gets one of its own, in the mount
	// namespace that `ip netns exec` makes.
	script := `mount -t tmpfs -o size=1g shm /dev/shm && exec "$@"`
	argv := []string{"sh", "-c", script, "sh", "env", "LD_PRELOAD=" + umlPreload(t),
		"taskset", "-c", processorOf(t, l.slaves), "linux.uml", "mem=384M",
		"root=/dev/root", "rootfstype=hostfs", "rootflags=/", "ro", "init=" + built(t, "./e2e/slaveinit"),
		"uml_dir=" + state, "umid=slave", "con=null", "con0=null,fd:1", "ssl0=fd:3",
		// It sends by the tap device and receives by a packet socket on it: a tap device signals that a packet has come before epoll says
		// so (tun_net_xmit), and one in some thousand then lay there until the next came.
		"vec0:transport=hybrid,ifname=" + tap + ",depth=128,gro=1"}
	s := &Slave{Addr: addr, t: t}
	log := &procLog{}
	s.proc = start(t, "slave "+addr, l.bridge, log, argv, func(c *exec.Cmd) {
		c.ExtraFiles = []*os.File{theirs}
		// A process-id namespace: the kernel runs its processes as traced children, and they must all end with it.
		c.SysProcAttr.Cloneflags = syscall.CLONE_NEWPID
	})
	t.Cleanup(func() {
		if t.Failed() {
			t.Logf("console of the slave %s:\n%s", addr, log.tail(25))
		}
	})
	s.greet(ours)
	s.call("Setup", wire.Setup{Address: addr + "/24"}, &struct{}{})
	return s
}

// processorOf is the processor that the n-th slave stays on. Its kernel and each of its processes are processes of this machine that
// take turns at every system call and page fault: where a turn has to wake another processor, that is most of its time, and the
// slave stands still for 40 to 100 ms again and again on a machine that is half idle.
func processorOf(t testing.TB, n int) string {
	t.Helper()
	var ours unix.CPUSet
	if err := unix.SchedGetaffinity(0, &ours); err != nil {
		t.Fatalf("ask for our processors: %v", err)
	}
	var all []int
	for cpu := 0; len(all) < ours.Count(); cpu++ {
		if ours.IsSet(cpu) {
			all = append(all, cpu)
		}
	}
	return strconv.Itoa(all[n%len(all)])
}

// serialLine makes the two ends of a serial line.
func serialLine(t testing.TB) (ours, theirs *os.File) {
	t.Helper()
	fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatalf("make a serial line: %v", err)
	}
	if err := unix.SetNonblock(fds[0], true); err != nil { // so that Go can poll it, and Close ends a Read
		t.Fatalf("make a serial line: %v", err)
	}
	ours, theirs = os.NewFile(uintptr(fds[0]), "serial line"), os.NewFile(uintptr(fds[1]), "serial line")
	t.Cleanup(func() { ours.Close() })
	return ours, theirs
}

// greet waits for the slave's first words.
func (s *Slave) greet(line *os.File) {
	s.t.Helper()
	line.SetReadDeadline(time.Now().Add(time.Minute))
	r := bufio.NewReader(line)
	for {
		got, err := r.ReadString('\n')
		if err != nil {
			s.t.Fatalf("slave %s does not boot: %v\n%s", s.Addr, err, s.proc.log.tail(40))
		}
		if strings.HasSuffix(got, wire.Ready) {
			break
		}
	}
	line.SetReadDeadline(time.Time{})
	s.rpc = rpc.NewClient(struct {
		io.Reader
		io.WriteCloser
	}{r, line})
}

func (s *Slave) call(method string, args, reply any) {
	s.t.Helper()
	call := s.rpc.Go("Slave."+method, args, reply, make(chan *rpc.Call, 1))
	select {
	case <-call.Done:
		if call.Error != nil {
			s.t.Fatalf("slave %s: %s %v: %v", s.Addr, method, args, call.Error)
		}
	case <-time.After(callLimit):
		s.t.Fatalf("slave %s: %s %v: no answer within %s: it stands still", s.Addr, method, args, callLimit)
	}
}

// callLimit is longer than anything that a slave is asked to do may take.
const callLimit = 3 * time.Minute

// Run runs a command to its end, within a minute and a half.
func (s *Slave) Run(args ...string) Result {
	s.t.Helper()
	var r wire.Result
	s.call("Run", wire.Command{Args: args, Limit: 90 * time.Second}, &r)
	return Result{Code: r.Code, Stdout: string(r.Stdout), Stderr: string(r.Stderr)}
}

// Must is Run for what must succeed; it returns the output.
func (s *Slave) Must(args ...string) string {
	s.t.Helper()
	r := s.Run(args...)
	if r.Code != 0 {
		s.t.Fatalf("slave %s: %q: %v", s.Addr, args, r)
	}
	return r.Stdout
}

// Mount mounts what (HOST:/PATH) below /mnt and returns the directory. Extra options are added to the usual ones.
func (s *Slave) Mount(what, name string, options ...string) string {
	s.t.Helper()
	dir := filepath.Join("/mnt", name)
	s.Must("mkdir", "-p", dir)
	s.Must("mount", "-t", "nfs", "-o", strings.Join(append([]string{mountOptions}, options...), ","), what, dir)
	return dir
}

// DropCaches forgets all that the client has cached, so that what follows comes from the server.
func (s *Slave) DropCaches() {
	s.t.Helper()
	s.Must("sh", "-c", "echo 3 >/proc/sys/vm/drop_caches")
}

// SameTree compares a mounted tree with its source to the byte, as rsync sees it: content, types, modes, owners, times, links.
func (s *Slave) SameTree(source, mounted string, options ...string) {
	s.t.Helper()
	args := append([]string{"rsync", "-nacH", "--delete", "-i"}, options...)
	if out := s.Must(append(args, source+"/", mounted+"/")...); out != "" {
		s.t.Errorf("slave %s: %s differs from %s:\n%s", s.Addr, mounted, source, clip(out))
	}
}

// Lstat looks a name up.
func (s *Slave) Lstat(path string) (wire.Attr, error) {
	s.t.Helper()
	var r wire.Stat
	s.call("Lstat", path, &r)
	return r.Attr, kernelError(r.Errno)
}

// MustLstat looks up a name that must be there.
func (s *Slave) MustLstat(path string) wire.Attr {
	s.t.Helper()
	a, err := s.Lstat(path)
	if err != nil {
		s.t.Fatalf("slave %s: lstat %q: %v", s.Addr, path, err)
	}
	return a
}

// ReadFile reads a whole file.
func (s *Slave) ReadFile(path string) (string, error) {
	s.t.Helper()
	f, err := s.Open(path)
	if err != nil {
		return "", err
	}
	defer f.Close()
	return f.Read(0, int(f.Attr.Size))
}

// ReadDir lists a directory in the kernel's order.
func (s *Slave) ReadDir(path string) []string {
	s.t.Helper()
	var r wire.Names
	s.call("ReadDir", path, &r)
	if r.Errno != 0 {
		s.t.Fatalf("slave %s: list %q: %v", s.Addr, path, r.Errno)
	}
	return r.Names
}

// Summarize digests a tree; wire.Summarize on the source must agree.
func (s *Slave) Summarize(l wire.Listing) wire.Summary {
	s.t.Helper()
	var r wire.Summary
	s.call("Summarize", l, &r)
	return r
}

// File is a file that is open on the slave.
type File struct {
	Attr wire.Attr // as it was opened
	s    *Slave
	id   int
	path string
}

// Open opens a file and keeps it open.
func (s *Slave) Open(path string) (*File, error) {
	s.t.Helper()
	var r wire.Opened
	s.call("Open", path, &r)
	return &File{Attr: r.Attr, s: s, id: r.Handle, path: path}, kernelError(r.Errno)
}

// MustOpen opens a file that must be there.
func (s *Slave) MustOpen(path string) *File {
	s.t.Helper()
	f, err := s.Open(path)
	if err != nil {
		s.t.Fatalf("slave %s: open %q: %v", s.Addr, path, err)
	}
	return f
}

// Read reads up to n bytes at off.
func (f *File) Read(off int64, n int) (string, error) {
	f.s.t.Helper()
	var r wire.Data
	f.s.call("ReadAt", wire.ReadAt{Handle: f.id, Offset: off, Length: n}, &r)
	return string(r.Data), kernelError(r.Errno)
}

// Stat asks for the open file's attributes.
func (f *File) Stat() (wire.Attr, error) {
	f.s.t.Helper()
	var r wire.Stat
	f.s.call("Fstat", f.id, &r)
	return r.Attr, kernelError(r.Errno)
}

// Close closes the file.
func (f *File) Close() {
	f.s.t.Helper()
	f.s.call("Close", f.id, &struct{}{})
}

// Loop reads a file again and again in the background; the function that it returns ends that and says what was seen.
func (s *Slave) Loop(l wire.Loop) (collect func() wire.Report) {
	s.t.Helper()
	var number int
	s.call("StartLoop", l, &number)
	return func() wire.Report {
		s.t.Helper()
		var r wire.Report
		s.call("Collect", number, &r)
		return r
	}
}

// ErrStale is what the fleet promises never to show.
var ErrStale = syscall.ESTALE

// kernelError makes an error of the slave's errno.
func kernelError(errno syscall.Errno) error {
	if errno == 0 {
		return nil
	}
	if errors.Is(errno, ErrStale) {
		return fmt.Errorf("stale file handle: %w", errno)
	}
	return errno
}
