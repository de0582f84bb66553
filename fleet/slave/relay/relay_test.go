package relay

import (
	"context"
	"net"
	"net/netip"
	"os"
	"testing"

	"github.com/rs/zerolog"
)

// startRelay starts a relay without a target, and returns where it listens.
func startRelay(t testing.TB) (*Relay, netip.AddrPort) {
	ln, err := net.ListenTCP("tcp", &net.TCPAddr{IP: net.IPv4(127, 0, 0, 1)})
	if err != nil {
		t.Fatal(err)
	}
	insecure := os.Geteuid() != 0
	r := New(Config{Listener: ln, Dialer: Dialer{Insecure: insecure}, Insecure: insecure, Logger: zerolog.New(zerolog.NewTestWriter(t))})
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- r.Run(ctx) }()
	t.Cleanup(func() {
		cancel()
		if err := <-done; err != nil {
			t.Errorf("Run: %v", err)
		}
		ln.Close()
	})
	return r, ln.Addr().(*net.TCPAddr).AddrPort()
}

func TestBytesPassWhole(t *testing.T) {
	m := startMaster(t, "m0")
	r, addr := startRelay(t)
	r.Switch(m.addr)
	for _, size := range []uint32{0, 4, 4096, 65536, 1 << 20} {
		k := startKernel(t, t.Context(), addr, size, 4)
		k.goOn(200)
	}
}

func TestAPlannedMoveIsNotNoticed(t *testing.T) {
	a, b := startMaster(t, "a"), startMaster(t, "b")
	r, addr := startRelay(t)
	r.Switch(a.addr)
	var kernels []*kernel
	for _, size := range []uint32{4096, 1 << 20} {
		kernels = append(kernels, startKernel(t, t.Context(), addr, size, 8))
	}
	for i := range 20 {
		for _, k := range kernels {
			k.goOn(20)
		}
		to := []*fakeMaster{b, a}[i%2]
		if err := r.Move(t.Context(), to.addr); err != nil {
			t.Fatal(err)
		}
		n := to.reads.Load()
		await(t, "reads at the new master", func() bool { return to.reads.Load() > n })
	}
	for _, k := range kernels {
		t.Logf("%d replies, worst wait %s, %d connections", k.done.Load(), k.pause(), k.redial.Load())
		if k.redial.Load() != 1 {
			t.Errorf("the kernel made %d connections", k.redial.Load())
		}
	}
}
