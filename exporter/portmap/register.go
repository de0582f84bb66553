package portmap

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"

	"github.com/nfs-fleet/nfs-fleet/exporter/rpc"
)

// Socket is where the host's rpcbind takes registrations from root.
const Socket = "/run/rpcbind.sock"

// ErrRefused is wrapped when rpcbind answers that it will not have a registration.
var ErrRefused = errors.New("refused by rpcbind")

// Register tells the rpcbind that listens at socket of services, in place of whatever was registered for the same
// programs, versions and networks before. Unregister takes them back. rpcbind forgets nothing by itself.
func Register(ctx context.Context, socket string, services []Service) error {
	return eachBinding(ctx, socket, services, func(c *client, b binding) error {
		if _, err := c.call(procUnset, b); err != nil {
			return err
		}
		done, err := c.call(procSet, b)
		if err == nil && !done {
			err = fmt.Errorf("register program %d version %d on %s: %w", b.program, b.version, b.netid, ErrRefused)
		}
		return err
	})
}

// Unregister undoes Register. That something was not registered is no error.
func Unregister(ctx context.Context, socket string, services []Service) error {
	return eachBinding(ctx, socket, services, func(c *client, b binding) error {
		_, err := c.call(procUnset, b)
		return err
	})
}

func eachBinding(ctx context.Context, socket string, services []Service, do func(*client, binding) error) error {
	var dialer net.Dialer
	conn, err := dialer.DialContext(ctx, "unix", socket)
	if err != nil {
		return fmt.Errorf("reach rpcbind: %w", err)
	}
	defer conn.Close()
	stop := context.AfterFunc(ctx, func() { conn.Close() })
	defer stop()
	c := &client{conn: conn}
	for _, s := range services {
		for _, e := range endpoints(s) {
			if err := do(c, binding{e.Program, e.Version, e.netid, uaddr(e.Addr), "superuser"}); err != nil {
				return err
			}
		}
	}
	return nil
}

// client makes SET and UNSET calls of rpcbind version 4.
type client struct {
	conn net.Conn
	xid  uint32
}

// maxReply is more than a bool and its headers can take, in bytes.
const maxReply = 1024

// call returns the bool that rpcbind answers.
func (c *client) call(proc uint32, b binding) (bool, error) {
	c.xid++
	msg := make([]byte, 4, 256)
	for _, v := range [...]uint32{c.xid, 0, 2, Number, Version, proc, 0, 0, 0, 0} { // CALL, RPC 2, no credential, no verifier
		msg = rpc.AppendUint32(msg, v)
	}
	msg = appendBinding(msg, b)
	binary.BigEndian.PutUint32(msg, 1<<31|uint32(len(msg)-4))
	if _, err := c.conn.Write(msg); err != nil {
		return false, fmt.Errorf("call rpcbind: %w", err)
	}
	var mark [4]byte
	if _, err := io.ReadFull(c.conn, mark[:]); err != nil {
		return false, fmt.Errorf("read rpcbind's reply: %w", err)
	}
	n := binary.BigEndian.Uint32(mark[:]) &^ (1 << 31)
	if n > maxReply {
		return false, fmt.Errorf("rpcbind's reply of %d bytes is too long", n)
	}
	reply := make([]byte, n)
	if _, err := io.ReadFull(c.conn, reply); err != nil {
		return false, fmt.Errorf("read rpcbind's reply: %w", err)
	}
	return decodeReply(reply, c.xid)
}

// decodeReply takes the bool out of an accepted reply.
func decodeReply(reply []byte, xid uint32) (bool, error) {
	d := rpc.NewDecoder(reply)
	gotXID, kind, denied := d.Uint32(), d.Uint32(), d.Uint32()
	d.Uint32()
	d.Opaque(400)
	stat := d.Uint32()
	done := d.Bool()
	if d.Err() != nil || gotXID != xid || kind != 1 || denied != 0 || stat != 0 {
		return false, fmt.Errorf("rpcbind does not take the call (denied %d, status %d)", denied, stat)
	}
	return done, nil
}
