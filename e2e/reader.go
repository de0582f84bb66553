package e2e

import (
	"context"
	"errors"
	"fmt"
	"math/rand"
	"strings"
	"time"

	"github.com/nfs-fleet/nfs-fleet/e2e/history"
	"github.com/nfs-fleet/nfs-fleet/e2e/nfs"
)

// reader reads a fleet's shards as a slave does, without a cache, and records every read. One at home reads from one master
// for ever, from that master's own host, so that no cable matters. One that roams goes on at the next master when its own
// does not answer, or when it feels like it, with the handles that it has.
type reader struct {
	name   string
	fleet  *Fleet
	record *history.Recorder
	random *rand.Rand
	shards []string
	roams  bool
	home   *Master // of a reader that does not roam; else the present one
	pace   time.Duration

	conn  *nfs.Conn
	began time.Time             // when conn was
	roots map[string]nfs.Handle // by shard; good on every master
	open  []openFile
}

// openFile is a handle that is kept, and what it gave.
type openFile struct {
	shard, path, digest string
	handle              nfs.Handle
}

// How long a reader waits for one reply. One at home has no other choice; one that roams is as impatient as a slave.
const (
	homeLimit = 10 * time.Second
	roamLimit = 3 * time.Second
)

// mostOpen is how many handles a reader keeps.
const mostOpen = 12

func newReader(f *Fleet, record *history.Recorder, shards []string, home *Master, seed int64) *reader {
	r := &reader{
		fleet: f, record: record, random: rand.New(rand.NewSource(seed)), shards: shards, home: home, pace: 15 * time.Millisecond,
		roots: map[string]nfs.Handle{},
	}
	if home != nil {
		r.name = "at-" + home.Name
		return r
	}
	r.name, r.roams, r.home = fmt.Sprintf("roams-%d", seed&0xff), true, f.Masters[r.random.Intn(len(f.Masters))]
	return r
}

// run reads until ctx ends; the read under way is finished.
func (r *reader) run(ctx context.Context) error {
	defer r.hangUp()
	for ctx.Err() == nil {
		if r.roams && r.random.Intn(100) == 0 {
			r.next()
		}
		r.once(ctx)
		wait(ctx, r.pace)
	}
	return nil
}

func (r *reader) hangUp() {
	if r.conn != nil {
		r.conn.Close()
		r.conn = nil
	}
}

// next goes to another master.
func (r *reader) next() {
	r.hangUp()
	if !r.roams || len(r.fleet.Masters) < 2 {
		return
	}
	for was := r.home; r.home == was; {
		r.home = r.fleet.Masters[r.random.Intn(len(r.fleet.Masters))]
	}
}

// dial makes sure of a connection.
func (r *reader) dial() error {
	if r.conn != nil {
		return nil
	}
	host, addr, limit := r.home.Host, "127.0.0.1:2049", homeLimit
	if r.roams {
		host, addr, limit = r.fleet.Outside, r.home.Host.Addr+":2049", roamLimit
	}
	began := time.Now()
	conn, err := nfs.Dial(context.Background(), host.dial, addr, limit)
	if err != nil {
		return err
	}
	r.conn, r.began = conn, began
	return nil
}

// once makes one read, recorded as one. A reader that roams tries until somebody answers.
func (r *reader) once(ctx context.Context) {
	rd := history.Read{Reader: r.name, Roams: r.roams, Shard: r.shards[r.random.Intn(len(r.shards))], Path: listing}
	if r.random.Intn(4) > 0 {
		rd.Path = statePaths[r.random.Intn(len(statePaths))]
	}
	var held *openFile
	if len(r.open) > 0 && r.random.Intn(5) == 0 {
		held = &r.open[r.random.Intn(len(r.open))]
		rd.Shard, rd.Path, rd.Held = held.shard, held.path, held.digest
	}
	rd.Began = time.Now()
	for {
		handle, sum, err := r.read(rd.Shard, rd.Path, held)
		rd.Master, rd.Conn, rd.Ended = r.home.Name, r.began, time.Now()
		var refused nfs.Status
		switch {
		case err == nil:
			rd.Digest = sum
			r.keep(rd, handle)
		case errors.Is(err, nfs.Jukebox) && time.Since(rd.Began) < homeLimit: // "ask again": Linux does, in silence
			wait(ctx, 100*time.Millisecond)
			continue
		case errors.As(err, &refused):
			rd.Status = err.Error()
		default:
			r.next()
			if r.roams && ctx.Err() == nil {
				wait(ctx, 20*time.Millisecond)
				continue
			}
			rd.Lost = err.Error()
			wait(ctx, 100*time.Millisecond)
		}
		break
	}
	r.record.Read(rd)
}

// keep remembers a handle now and then.
func (r *reader) keep(rd history.Read, h nfs.Handle) {
	if rd.Held != "" || rd.Path == listing || r.random.Intn(40) > 0 {
		return
	}
	o := openFile{shard: rd.Shard, path: rd.Path, digest: rd.Digest, handle: h}
	if len(r.open) < mostOpen {
		r.open = append(r.open, o)
	} else {
		r.open[r.random.Intn(mostOpen)] = o
	}
}

// read reads a whole file or listing, through held when that is not nil, and returns its handle and digest.
func (r *reader) read(shard, path string, held *openFile) (h nfs.Handle, sum string, err error) {
	if err := r.dial(); err != nil {
		return "", "", err
	}
	if held != nil {
		sum, err := r.readFile(held.handle)
		return held.handle, sum, err
	}
	h, ok := r.roots[shard]
	if !ok {
		if h, err = r.conn.Mount("/" + shard); err != nil {
			return "", "", err
		}
		r.roots[shard] = h
	}
	for name := range strings.SplitSeq(strings.TrimSuffix(path, "/"), "/") {
		if h, _, err = r.conn.Lookup(h, name); err != nil {
			return "", "", err
		}
	}
	if path == listing {
		sum, err = r.readNames(h)
	} else {
		sum, err = r.readFile(h)
	}
	return h, sum, err
}

// readFile reads a file to its end. What does not agree with its attributes has no good digest.
func (r *reader) readFile(h nfs.Handle) (string, error) {
	attr, err := r.conn.GetAttr(h)
	if err != nil {
		return "", err
	}
	var all []byte
	for eof := false; !eof; {
		var part []byte
		if part, eof, err = r.conn.Read(h, uint64(len(all)), 1<<18); err != nil {
			return "", err
		}
		if all = append(all, part...); len(part) == 0 && !eof {
			return "no end", nil
		}
	}
	if uint64(len(all)) != attr.Size {
		return fmt.Sprintf("%d bytes of %d", len(all), attr.Size), nil
	}
	return digest(all), nil
}

// readNames reads the names of a directory that fits into one reply, which is of one generation therefore.
func (r *reader) readNames(h nfs.Handle) (string, error) {
	entries, eof, err := r.conn.ReadDirPlus(h, 0, 64<<10)
	if err != nil {
		return "", err
	}
	if !eof {
		return "more than one reply", nil
	}
	names := make([]string, len(entries))
	for i, e := range entries {
		if names[i] = e.Name; e.Handle == "" || e.Attr.Ino != e.Ino {
			return fmt.Sprintf("%s has no handle, or not the attributes of inode %d: %+v", e.Name, e.Ino, e.Attr), nil
		}
	}
	return digestNames(names), nil
}
