package etcdtest

import (
	"net"
	"sync"
	"testing"
)

// Proxy is a TCP proxy whose link can be cut without anybody being told: what is sent is swallowed, connections stay
// open, new ones are accepted and lead nowhere.
type Proxy struct {
	listener net.Listener
	to       string

	mu    sync.Mutex // guards cut, open and conns
	cut   bool
	open  chan struct{} // closed when the link is whole again
	conns []net.Conn
	work  sync.WaitGroup
}

// NewProxy returns a proxy before the address to (host:port), which ends with the test.
func NewProxy(t testing.TB, to string) *Proxy {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	p := &Proxy{listener: l, to: to, open: make(chan struct{})}
	close(p.open)
	p.work.Go(p.accept)
	t.Cleanup(p.close)
	return p
}

// URL is what a client of etcd calls the proxy.
func (p *Proxy) URL() string { return "http://" + p.listener.Addr().String() }

// Cut cuts the link, or mends it.
func (p *Proxy) Cut(cut bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	switch {
	case cut && !p.cut:
		p.open = make(chan struct{})
	case !cut && p.cut:
		close(p.open)
	}
	p.cut = cut
}

func (p *Proxy) accept() {
	for {
		c, err := p.listener.Accept()
		if err != nil {
			return
		}
		up, err := net.Dial("tcp", p.to)
		if err != nil {
			c.Close()
			continue
		}
		p.mu.Lock()
		p.conns = append(p.conns, c, up)
		p.mu.Unlock()
		p.work.Go(func() { p.copy(up, c) })
		p.work.Go(func() { p.copy(c, up) })
	}
}

// copy holds back what arrives while the link is cut, as TCP would send it again later.
func (p *Proxy) copy(to, from net.Conn) {
	defer to.Close()
	buf := make([]byte, 32<<10)
	for {
		n, err := from.Read(buf)
		p.mu.Lock()
		open := p.open
		p.mu.Unlock()
		<-open
		if n > 0 {
			if _, err := to.Write(buf[:n]); err != nil {
				return
			}
		}
		if err != nil {
			return
		}
	}
}

func (p *Proxy) close() {
	p.Cut(false)
	p.listener.Close()
	p.mu.Lock()
	for _, c := range p.conns {
		c.Close()
	}
	p.mu.Unlock()
	p.work.Wait()
}
