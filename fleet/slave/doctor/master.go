package doctor

import (
	"context"
	"errors"
	"net"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/nfs-fleet/nfs-fleet/exporter/hello"
	"github.com/nfs-fleet/nfs-fleet/fleet/slave/relay"
)

// probe tries everything with a master that a slave will want of it. shard is what to mount; "": the first of its exports.
func probe(ctx context.Context, to relay.Target, low bool, shard string) Master {
	m := Master{Target: to, Low: low, Shard: shard}
	var conn net.Conn
	m.Connect = step(ctx, func(ctx context.Context) (err error) {
		conn, err = dial(ctx, to, low)
		return err
	})
	if m.Connect.Err != nil {
		return m
	}
	defer conn.Close()
	c := newClient(conn)
	if m.Null = step(ctx, c.null); m.Null.Err != nil {
		return m
	}
	m.Hello = step(ctx, func(ctx context.Context) error { return m.greet(ctx, low) })
	m.Exports = step(ctx, func(ctx context.Context) (err error) {
		m.Exported, err = c.exports(ctx)
		return err
	})
	if m.Exports.Err != nil {
		return m
	}
	if m.Shard == "" && len(m.Exported) > 0 {
		m.Shard = strings.TrimPrefix(m.Exported[0], "/")
	}
	if m.Shard == "" {
		return m
	}
	m.Mount = step(ctx, func(ctx context.Context) (err error) {
		m.Root, err = c.mount(ctx, "/"+m.Shard)
		return err
	})
	if m.Mount.Err == nil {
		m.Read = step(ctx, func(ctx context.Context) (err error) {
			m.File, err = c.readSomething(ctx, m.Root)
			return err
		})
	}
	return m
}

// step does something, within its time.
func step(ctx context.Context, do func(context.Context) error) Step {
	ctx, cancel := within(ctx)
	defer cancel()
	began := time.Now()
	err := do(ctx)
	return Step{Tried: true, Took: time.Since(began), Err: err}
}

func dial(ctx context.Context, to relay.Target, low bool) (net.Conn, error) {
	conn, err := relay.Dialer{Insecure: !low}.Dial(ctx, to.Addr)
	if err != nil {
		return nil, err // not a nil *net.TCPConn in an interface
	}
	return conn, nil
}

// greet says HELLO, as nobody in particular: the master answers that it does not know such a slave, and what time it is.
func (m *Master) greet(ctx context.Context, low bool) error {
	conn, err := dial(ctx, m.Target, low)
	if err != nil {
		return err
	}
	c := hello.NewClient(conn)
	defer c.Close() //nolint:errcheck // nothing is lost
	began := time.Now()
	if m.Says, err = c.Hello(ctx, hello.Greeting{Mode: "doctor"}); err != nil {
		return err
	}
	took := time.Since(began)
	if !m.Says.Now.IsZero() {
		m.Offset, m.Accuracy = m.Says.Now.Sub(began.Add(took/2)), took/2
	}
	return nil
}

// mostDirs is how many directories are looked into for something to read.
const mostDirs = 50

// readSomething finds a plain file, looks it up and reads its beginning.
func (c *client) readSomething(ctx context.Context, root string) (path string, err error) {
	type dir struct{ path, handle string }
	dirs := []dir{{"", root}}
	for looked := 0; len(dirs) > 0 && looked < mostDirs; looked++ {
		d := dirs[0]
		dirs = dirs[1:]
		entries, listErr := c.list(ctx, d.handle)
		var denied status
		if errors.As(listErr, &denied) && d.path != "" {
			continue // not for us
		} else if listErr != nil {
			return d.path, listErr
		}
		for _, e := range entries {
			path := d.path + "/" + e.name
			switch {
			case e.kind == 2 && e.handle != "":
				dirs = append(dirs, dir{path, e.handle})
			case e.kind == 1 && e.size > 0:
				file, lookErr := c.lookup(ctx, d.handle, e.name)
				if lookErr != nil {
					return path, lookErr
				}
				n, readErr := c.read(ctx, file, uint32(min(e.size, 4096)))
				if readErr == nil && n > 0 {
					return path, nil
				}
				if readErr == nil {
					readErr = errReply
				}
				if !errors.As(readErr, &denied) {
					return path, readErr
				}
				err = readErr // not for us: another may be
			}
		}
	}
	return "", err
}

// mostMasters is how many masters are talked to.
const mostMasters = 32

// probeAll probes masters, all at the same time.
func probeAll(ctx context.Context, targets []relay.Target, low bool, shard string) []Master {
	targets = targets[:min(len(targets), mostMasters)]
	out := make([]Master, len(targets))
	var wg sync.WaitGroup
	for i, t := range targets {
		wg.Go(func() { out[i] = probe(ctx, t, low, shard) })
	}
	wg.Wait()
	return slices.Clip(out)
}
