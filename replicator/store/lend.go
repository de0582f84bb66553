package store

import (
	"os"
	"runtime"
	"sync"
	"sync/atomic"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"
)

// What is read with pread to be written to a socket is copied twice. Where much is read it is lent instead: the large
// object's file is mapped, and the socket is given the mapping, from which the kernel copies once.
//
// A read through a mapping may load pages too, and says so only afterwards, in the thread's count of major faults. So it is
// made like one with RWF_NOWAIT: it enters the words first, and what was given away is good if this thread has loaded
// nothing, nobody else was in there, and the seal holds. What is found to be not so certain has been given away by then:
// hence the borrower withholds the end until he has been told. It is rare, for pages that are not in memory are not lent at
// all: one must leave it while a block is being written.

// view is a large object's file as memory, mapped when it is first lent.
type view struct {
	mu  sync.Mutex // held to map
	mem atomic.Pointer[[]byte]
}

// open returns the mapping of f's first size bytes; nothing when the system does not map it.
func (v *view) open(f *file, size int64) []byte {
	if m := v.mem.Load(); m != nil {
		return *m
	}
	v.mu.Lock()
	defer v.mu.Unlock()
	if m := v.mem.Load(); m != nil {
		return *m
	}
	mem, err := unix.Mmap(f.fd, 0, int(size), unix.PROT_READ, unix.MAP_SHARED)
	if err == nil {
		if err = unix.Madvise(mem, unix.MADV_RANDOM); err != nil { // it would read ahead
			_ = unix.Munmap(mem)
		}
	}
	if err != nil {
		mem = nil
	}
	v.mem.Store(&mem)
	return mem
}

// whole reports whether it is known that all pages from off to end are in memory. It is not before they were mapped.
func (v *view) whole(off, end int64) bool {
	m := v.mem.Load()
	return m != nil && end <= int64(len(*m)) && inMemory((*m)[off:end])
}

// drop lets go of the pages from off to end, so that the kernel can forget them.
func (v *view) drop(off, end int64) {
	if m := v.mem.Load(); m != nil && off < int64(len(*m)) {
		_ = unix.Madvise((*m)[off:min(end, int64(len(*m)))], unix.MADV_DONTNEED)
	}
}

// close unmaps it. Nobody uses it any more.
func (v *view) close() {
	if m := v.mem.Load(); m != nil && len(*m) > 0 {
		_ = unix.Munmap(*m)
	}
}

// lendable returns the block of a large object that has byte off, as memory, and its sum; nil unless it was hashed.
func (b Blob) lendable(off int64) ([]byte, *blockSum) {
	if b.e.pack != 0 || off < 0 || off >= b.Size() || b.file.disk.fault != nil && b.file.disk.check("read", b.file.f.Name()) != nil {
		return nil, nil
	}
	sums := b.file.blocks.sums.Load()
	if sums == nil {
		return nil, nil
	}
	mem := b.file.view.open(b.file, b.Size())
	if mem == nil {
		return nil, nil
	}
	i := off / blockSize
	return mem[i*blockSize : min((i+1)*blockSize, b.Size())], &(*sums)[i]
}

// Lendable reports whether it is worth trying to Lend n bytes of the object from off on, of which there is one at least:
// whether they are in memory and were hashed since they came there. It does not wait.
func (b Blob) Lendable(off, n int64) bool {
	for end := off + n; off < end; off = (off/blockSize + 1) * blockSize {
		block, sum := b.lendable(off)
		if block == nil || atomic.LoadUint32(&sum.seal) != b.s.seals.now(b.span(off, 1)) || !inMemory(block) {
			return false
		}
	}
	return true
}

// Lend calls use with bytes of the object from off on, n of them or as many as it lends at a time. use gives them to the
// system, to be written without waiting; it must not look at them, for they may be gone from the disk as from memory, nor keep
// them. It returns how many it has lent, which is none unless they are Lendable. good means that use was given bytes that
// were hashed since they came from the disk, as ReadAt says; otherwise what it has written must not be used.
func (b Blob) Lend(off, n int64, use func(mem []byte)) (lent int, good bool) {
	block, sum := b.lendable(off)
	x, sp := &b.s.seals, b.span(off, 1)
	if block == nil || atomic.LoadUint32(&sum.seal) != x.now(sp) {
		return 0, false
	}
	mem := block[off%blockSize:]
	mem = mem[:min(n, int64(len(mem)))]
	joined := x.enter(sp)
	if !inMemory(block) { // all of it: another's load of the rest would break the seal
		x.leave(sp, joined)
		return 0, false
	}
	if loads(func() { use(mem) }) {
		x.missed(sp, joined)
		return len(mem), false
	}
	alone := x.leave(sp, joined)
	runtime.KeepAlive(b.file)
	return len(mem), (alone || x.settleSealed(sp, sum)) && atomic.LoadUint32(&sum.seal) == x.now(sp)
}

// settlePatience is how often settleSealed rests: a second in all, and then something is wrong with the disk.
const settlePatience = int(time.Second / settleRest)

// settleSealed is settle that takes its time, as long as the seal holds.
func (x *seals) settleSealed(sp span, sum *blockSum) bool {
	for range settlePatience {
		if x.settle(sp) {
			return true
		}
		if atomic.LoadUint32(&sum.seal) != x.now(sp) {
			return false
		}
		time.Sleep(settleRest) // some thread was stopped by the system in the middle of its read
	}
	return false
}

// loads calls f and reports whether that has loaded pages from the disk, through a mapping.
func loads(f func()) bool {
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	before, ok := majorFaults()
	f()
	after, still := majorFaults()
	return !ok || !still || after != before
}

// majorFaults returns how often this thread has waited for a page.
func majorFaults() (n int64, ok bool) {
	var u unix.Rusage
	err := unix.Getrusage(unix.RUSAGE_THREAD, &u)
	return int64(u.Majflt), err == nil
}

// inMemory reports whether a block's pages are in memory.
func inMemory(block []byte) bool {
	var pages [blockSize / 4096]byte
	n := (len(block) + os.Getpagesize() - 1) / os.Getpagesize()
	_, _, errno := unix.RawSyscall(unix.SYS_MINCORE, uintptr(unsafe.Pointer(unsafe.SliceData(block))), uintptr(len(block)), uintptr(unsafe.Pointer(&pages[0])))
	if errno != 0 {
		return false
	}
	for _, p := range pages[:n] {
		if p&1 == 0 {
			return false
		}
	}
	return true
}
