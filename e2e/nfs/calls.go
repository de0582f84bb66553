package nfs

import (
	"encoding/binary"
	"fmt"
	"slices"
	"time"
)

// Status is a master's refusal: nfsstat3, or mountstat3, which has the same numbers for the same things.
type Status uint32

// The statuses that tests tell apart.
const (
	NoEnt     Status = 2
	IO        Status = 5
	Access    Status = 13
	Stale     Status = 70
	BadHandle Status = 10001
	Jukebox   Status = 10008
)

var statusNames = map[Status]string{
	NoEnt: "NFS3ERR_NOENT", IO: "NFS3ERR_IO", Access: "NFS3ERR_ACCES", Stale: "NFS3ERR_STALE", BadHandle: "NFS3ERR_BADHANDLE",
	Jukebox: "NFS3ERR_JUKEBOX",
}

func (s Status) Error() string {
	if name, ok := statusNames[s]; ok {
		return name
	}
	return fmt.Sprintf("nfsstat3 %d", uint32(s))
}

// Handle is a file handle, as a comparable value.
type Handle string

// Attr is what tests look at of a file's attributes.
type Attr struct {
	Type, Mode, Nlink uint32
	Size, FSID, Ino   uint64
	Mtime, Ctime      time.Time
}

// Dir and Reg are the types of directories and plain files.
const (
	Reg = 1
	Dir = 2
)

// Entry is one name of a directory, as READDIRPLUS tells it.
type Entry struct {
	Name   string
	Ino    uint64
	Cookie uint64
	Handle Handle // "" when the reply had none
	Attr   Attr   // zero when the reply had none
}

// Null calls the procedure that does nothing.
func (c *Conn) Null() error {
	_, err := c.call(ProgramNFS, 0, nil)
	return err
}

// Mount asks for the handle of path, as "/www".
func (c *Conn) Mount(path string) (Handle, error) {
	r, err := c.call(ProgramMount, 1, AppendOpaque(nil, []byte(path)))
	if err != nil {
		return "", err
	}
	if s := r.u32(); s != 0 {
		return "", fmt.Errorf("mount %s: %w", path, Status(s))
	}
	return Handle(r.opaque()), r.err
}

// Unmount says that path is not mounted any more.
func (c *Conn) Unmount(path string) error {
	_, err := c.call(ProgramMount, 3, AppendOpaque(nil, []byte(path)))
	return err
}

// Greet says HELLO, as the agent of a slave that mounts nothing yet.
func (c *Conn) Greet(slave string) error {
	var args []byte
	for _, text := range []string{slave, "e2e", "relay", "e2e"} {
		args = AppendOpaque(args, []byte(text))
	}
	args = AppendU32(args, 0, 0)       // mounts
	args = AppendU32(args, 0, 0, 0, 0) // the last reattach: when and how long
	args = AppendU32(args, 0, 0, 0)    // from where to where, why
	_, err := c.exchange(Call{Program: ProgramHello, Version: 1, Procedure: 1, Args: args})
	return err
}

// nfs makes one NFS call and takes its status off the results.
func (c *Conn) nfs(what string, procedure uint32, args []byte) (*reply, error) {
	r, err := c.call(ProgramNFS, procedure, args)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", what, err)
	}
	if s := r.u32(); s != 0 {
		return nil, fmt.Errorf("%s: %w", what, Status(s))
	}
	return r, nil
}

// GetAttr returns a file's attributes.
func (c *Conn) GetAttr(h Handle) (Attr, error) {
	r, err := c.nfs("getattr", 1, AppendOpaque(nil, []byte(h)))
	if err != nil {
		return Attr{}, err
	}
	a := r.attr()
	return a, r.err
}

// Lookup finds a name in a directory.
func (c *Conn) Lookup(dir Handle, name string) (Handle, Attr, error) {
	r, err := c.nfs("lookup "+name, 3, AppendOpaque(AppendOpaque(nil, []byte(dir)), []byte(name)))
	if err != nil {
		return "", Attr{}, err
	}
	h := Handle(r.opaque())
	a := r.maybeAttr()
	return h, a, r.err
}

// Read reads up to count bytes at off. The bytes are the caller's.
func (c *Conn) Read(h Handle, off uint64, count uint32) (data []byte, eof bool, err error) {
	args := AppendOpaque(nil, []byte(h))
	args = AppendU32(binary.BigEndian.AppendUint64(args, off), count)
	r, err := c.nfs("read", 6, args)
	if err != nil {
		return nil, false, err
	}
	r.maybeAttr()
	n := r.u32()
	eof = r.bool()
	data = slices.Clone(r.opaque())
	if r.err == nil && uint32(len(data)) != n {
		r.err = fmt.Errorf("%w: %d bytes where %d are announced", ErrProtocol, len(data), n)
	}
	return data, eof, r.err
}

// ReadDirPlus returns the part of a directory that follows cookie (0: its beginning) in one reply, "." and ".." left out.
func (c *Conn) ReadDirPlus(dir Handle, cookie uint64, max uint32) (entries []Entry, eof bool, err error) {
	args := binary.BigEndian.AppendUint64(AppendOpaque(nil, []byte(dir)), cookie)
	args = AppendU32(append(args, make([]byte, 8)...), max, max)
	r, err := c.nfs("readdirplus", 17, args)
	if err != nil {
		return nil, false, err
	}
	r.maybeAttr()
	r.u64()
	for r.bool() {
		e := Entry{Ino: r.u64(), Name: string(r.opaque()), Cookie: r.u64(), Attr: r.maybeAttr()}
		if r.bool() {
			e.Handle = Handle(r.opaque())
		}
		if e.Name != "." && e.Name != ".." {
			entries = append(entries, e)
		}
	}
	eof = r.bool()
	return entries, eof, r.err
}

func (r *reply) maybeAttr() Attr {
	if !r.bool() {
		return Attr{}
	}
	return r.attr()
}

func (r *reply) attr() Attr {
	a := Attr{Type: r.u32(), Mode: r.u32(), Nlink: r.u32()}
	r.u64() // uid, gid
	a.Size = r.u64()
	r.u64() // used
	r.u64() // rdev
	a.FSID, a.Ino = r.u64(), r.u64()
	r.u64() // atime
	a.Mtime = r.time()
	a.Ctime = r.time()
	return a
}

func (r *reply) time() time.Time {
	s, ns := r.u32(), r.u32()
	return time.Unix(int64(s), int64(ns))
}
