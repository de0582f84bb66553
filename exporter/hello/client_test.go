package hello

import (
	"context"
	"encoding/binary"
	"errors"
	"io"
	"net"
	"testing"
	"testing/synctest"
	"time"

	"github.com/nfs-fleet/nfs-fleet/exporter/rpc"
)

// peer is the other end of a client's connection, in the hands of a test.
type peer struct {
	t *testing.T
	net.Conn
}

// pair returns a client and its peer, joined in memory.
func pair(t *testing.T) (*Client, peer) {
	a, b := net.Pipe()
	t.Cleanup(func() { a.Close(); b.Close() })
	return NewClient(a), peer{t, b}
}

// take reads a call and returns its xid.
func (p peer) take() uint32 {
	p.t.Helper()
	head := make([]byte, 8)
	if _, err := io.ReadFull(p, head); err != nil {
		p.t.Error(err)
		return 0
	}
	rest := make([]byte, binary.BigEndian.Uint32(head)&^lastFragment-4)
	if _, err := io.ReadFull(p, rest); err != nil {
		p.t.Error(err)
	}
	return binary.BigEndian.Uint32(head[4:])
}

// give writes bytes.
func (p peer) give(b []byte) {
	p.t.Helper()
	if _, err := p.Write(b); err != nil {
		p.t.Error(err)
	}
}

// replyTo is the record that accepts a call, with an answer of that master.
func replyTo(xid uint32, master string) []byte {
	b := []byte{0, 0, 0, 0}
	for _, v := range []uint32{xid, msgReply, replyAccepted, 0, 0, acceptSuccess} {
		b = rpc.AppendUint32(b, v)
	}
	b = AppendAnswer(b, Answer{Master: master})
	binary.BigEndian.PutUint32(b, lastFragment|uint32(len(b)-4))
	return b
}

func TestDeadline(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c, p := pair(t)
		go p.take()
		began := time.Now()
		if _, err := c.Hello(t.Context(), greeting); !errors.Is(err, context.DeadlineExceeded) || time.Since(began) != Patience {
			t.Errorf("%v after %v", err, time.Since(began))
		}
		synctest.Wait()
		go p.take()
		ctx, cancel := context.WithTimeout(t.Context(), 80*time.Millisecond)
		defer cancel()
		began = time.Now()
		if _, err := c.Hello(ctx, greeting); !errors.Is(err, context.DeadlineExceeded) || time.Since(began) != 80*time.Millisecond {
			t.Errorf("%v after %v", err, time.Since(began))
		}
	})
}

func TestCancelled(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c, p := pair(t)
		why := errors.New("the mount is gone")
		ctx, cancel := context.WithCancelCause(t.Context())
		go func() {
			p.take()
			cancel(why)
		}()
		if _, err := c.Hello(ctx, greeting); !errors.Is(err, why) {
			t.Error(err)
		}
		if _, err := c.Hello(ctx, greeting); !errors.Is(err, why) {
			t.Errorf("with a context that is over: %v", err)
		}
		synctest.Wait()
		go func() { p.give(replyTo(p.take(), "m1")) }()
		if a, err := c.Hello(t.Context(), greeting); err != nil || a.Master != "m1" {
			t.Errorf("the next one: %+v, %v", a, err)
		}
	})
}

// An answer that comes late, even in two pieces with the deadline between them, is not taken for that to a later call.
func TestLateAnswer(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c, p := pair(t)
		go func() {
			late := replyTo(p.take(), "late")
			p.give(late[:10])
			time.Sleep(Patience + time.Millisecond)
			second := p.take()
			p.give(late[10:])
			p.give(replyTo(second, "m1"))
		}()
		if _, err := c.Hello(t.Context(), greeting); !errors.Is(err, context.DeadlineExceeded) {
			t.Fatal(err)
		}
		if a, err := c.Hello(t.Context(), greeting); err != nil || a.Master != "m1" {
			t.Errorf("%+v, %v", a, err)
		}
		if len(c.owed) != 0 {
			t.Errorf("%d answers are still waited for", len(c.owed))
		}
	})
}

func TestNeverAnswered(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c, p := pair(t)
		go io.Copy(io.Discard, p) //nolint:errcheck // ends with the connection
		for range maxOwed {
			if _, err := c.Hello(t.Context(), greeting); !errors.Is(err, context.DeadlineExceeded) {
				t.Fatal(err)
			}
		}
		for range 2 {
			if _, err := c.Hello(t.Context(), greeting); !errors.Is(err, ErrBehind) {
				t.Fatal(err)
			}
		}
		c.Close()
		synctest.Wait()
	})
}

// A peer that does not even read fails the call, and what was sent of it is not followed by another.
func TestPeerThatDoesNotRead(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c, p := pair(t)
		if _, err := c.Hello(t.Context(), greeting); !errors.Is(err, context.DeadlineExceeded) || c.broken != nil {
			t.Errorf("nothing taken: %v", err)
		}
		go p.Read(make([]byte, 10)) //nolint:errcheck // ends with the connection
		if _, err := c.Hello(t.Context(), greeting); !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("half taken: %v", err)
		}
		began := time.Now()
		if _, err := c.Hello(t.Context(), greeting); err == nil || time.Since(began) != 0 {
			t.Errorf("after half a call: %v, after %v", err, time.Since(began))
		}
	})
}

func TestPeerGoesAway(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c, p := pair(t)
		go func() {
			p.take()
			p.Close()
		}()
		for range 2 {
			if _, err := c.Hello(t.Context(), greeting); !errors.Is(err, io.EOF) {
				t.Error(err)
			}
		}
	})
}

// words is a record of some numbers.
func words(of ...uint32) []byte {
	b := rpc.AppendUint32(nil, lastFragment|uint32(4*len(of)))
	for _, v := range of {
		b = rpc.AppendUint32(b, v)
	}
	return b
}

func TestStrangeReplies(t *testing.T) {
	for what, c := range map[string]struct {
		reply func(xid uint32) []byte
		want  error
		after bool // the client goes on
	}{
		"another call's":      {func(xid uint32) []byte { return replyTo(xid+1, "m1") }, ErrProtocol, false},
		"a call":              {func(xid uint32) []byte { return words(xid, msgCall, 2, 3, 4, 5) }, ErrProtocol, false},
		"an empty record":     {func(uint32) []byte { return words() }, ErrProtocol, false},
		"only an xid":         {func(xid uint32) []byte { return words(xid) }, ErrProtocol, false},
		"a fragment":          {func(uint32) []byte { return []byte{0, 0, 0, 8, 1, 2, 3, 4} }, ErrProtocol, false},
		"a huge record":       {func(uint32) []byte { return []byte{0xff, 0xff, 0xff, 0xff} }, ErrProtocol, false},
		"no answer in it":     {func(xid uint32) []byte { return words(xid, msgReply, 0, 0, 0, acceptSuccess, 0) }, ErrProtocol, false},
		"text":                {func(uint32) []byte { return []byte("HTTP/1.1 400 Bad Request\r\n\r\n") }, ErrProtocol, false},
		"a denial":            {func(xid uint32) []byte { return words(xid, msgReply, 1, 1, 2) }, ErrFailed, true},
		"no such program":     {func(xid uint32) []byte { return words(xid, msgReply, 0, 0, 0, 1) }, ErrNoHello, true},
		"no such version":     {func(xid uint32) []byte { return words(xid, msgReply, 0, 0, 0, 2, 3, 4) }, ErrVersion, true},
		"no such procedure":   {func(xid uint32) []byte { return words(xid, msgReply, 0, 0, 0, 3) }, ErrFailed, true},
		"an unknown accepted": {func(xid uint32) []byte { return words(xid, msgReply, 0, 0, 0, 99) }, ErrFailed, true},
	} {
		t.Run(what, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				k, p := pair(t)
				go func() { p.give(c.reply(p.take())) }()
				if _, err := k.Hello(t.Context(), greeting); !errors.Is(err, c.want) {
					t.Errorf("%v, want %v", err, c.want)
				}
				if !c.after {
					if _, err := k.Hello(t.Context(), greeting); !errors.Is(err, c.want) {
						t.Errorf("and then: %v", err)
					}
					p.Close()
					return
				}
				go func() { p.give(replyTo(p.take(), "m1")) }()
				if a, err := k.Hello(t.Context(), greeting); err != nil || a.Master != "m1" {
					t.Errorf("and then: %+v, %v", a, err)
				}
			})
		})
	}
}

// FuzzReply has a peer answer with any bytes: the client returns, with an answer that can be acted upon or an error.
func FuzzReply(f *testing.F) {
	f.Add(replyTo(1, "m1"))
	f.Add(words(1, msgReply, 0, 0, 0, 2, 3, 4))
	f.Fuzz(func(t *testing.T, b []byte) {
		c := &Client{conn: &canned{in: b}}
		for range 3 {
			a, err := c.Hello(context.Background(), Greeting{Slave: "web17"})
			if err == nil && (a.Every < MinEvery || a.Every > MaxEvery || a.Status >= statuses) {
				t.Fatalf("%+v", a)
			}
			if len(c.in) > len(b) || cap(c.in) > 2*maxReply+4096 {
				t.Fatalf("%d bytes are held in %d", len(c.in), cap(c.in))
			}
		}
	})
}

// canned is a connection over which comes what it holds, whatever is sent.
type canned struct {
	net.Conn
	in []byte
}

func (c *canned) SetDeadline(time.Time) error { return nil }
func (c *canned) Write(p []byte) (int, error) { return len(p), nil }
func (c *canned) Read(p []byte) (int, error) {
	if len(c.in) == 0 {
		return 0, io.EOF
	}
	n := copy(p, c.in)
	c.in = c.in[n:]
	return n, nil
}
