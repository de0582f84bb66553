package exporter

import (
	"context"
	"math/rand/v2"
	"testing"
	"testing/synctest"
	"time"

	"github.com/nfs-fleet/nfs-fleet/exporter/export/exporttest"
	"github.com/nfs-fleet/nfs-fleet/exporter/nfs3"
	"github.com/nfs-fleet/nfs-fleet/exporter/rpc"
	"github.com/nfs-fleet/nfs-fleet/replicator/tree"
)

// held is a program whose calls end when they are told to.
type held struct {
	rpc.Program
	ends chan chan struct{} // one for each call, as it begins
}

func (h held) Append(context.Context, *rpc.Call, []byte) ([]byte, error) {
	end := make(chan struct{})
	h.ends <- end
	<-end
	return nil, nil
}

func TestOldestOfManyReads(t *testing.T) {
	if nfs3.ProcedureName(procRead) != "READ" {
		t.Fatalf("procedure %d is %s", procRead, nfs3.ProcedureName(procRead))
	}
	synctest.Test(t, func(t *testing.T) {
		h := held{ends: make(chan chan struct{})}
		r := &reads{Program: h}
		s := &Server{reads: r}
		type under struct {
			began time.Time
			end   chan struct{}
		}
		var all []under // the oldest first
		random := rand.New(rand.NewPCG(1, 2))
		for range 2000 {
			time.Sleep(time.Duration(1+random.IntN(1000)) * time.Millisecond)
			if n := random.IntN(60); n < len(all) {
				close(all[n].end)
				all = append(all[:n], all[n+1:]...)
			} else {
				go r.Append(t.Context(), &rpc.Call{Proc: procRead, Blocking: true}, nil) //nolint:errcheck // there is none
				all = append(all, under{time.Now(), <-h.ends})
			}
			synctest.Wait()
			want := time.Duration(0)
			if len(all) > 0 {
				want = time.Since(all[0].began)
			}
			if got := s.OldestRead(); got != want {
				t.Fatalf("%d under way: the oldest is %v old, not %v", len(all), got, want)
			}
		}
		for _, u := range all {
			close(u.end)
		}
		synctest.Wait()
		if got := s.OldestRead(); got != 0 {
			t.Errorf("none under way: %v", got)
		}
	})
}

// Calls that are answered in place, and other procedures, are no READs that wait.
func TestOnlyWaitingReadsCount(t *testing.T) {
	h := held{ends: make(chan chan struct{}, 2)}
	r := &reads{Program: h}
	done := make(chan struct{})
	for _, c := range []*rpc.Call{{Proc: procRead}, {Proc: 3, Blocking: true}} {
		go func() {
			defer func() { done <- struct{}{} }()
			r.Append(t.Context(), c, nil) //nolint:errcheck // there is none
		}()
		end := <-h.ends
		if got := r.oldest(time.Now().Add(time.Hour)); got != 0 {
			t.Errorf("%+v: %v", c, got)
		}
		close(end)
		<-done
	}
}

// A READ that its program panics in is over all the same.
func TestReadThatPanics(t *testing.T) {
	r := &reads{Program: bug{}}
	func() {
		defer func() { _ = recover() }()
		_, _ = r.Append(t.Context(), &rpc.Call{Proc: procRead, Blocking: true}, nil)
	}()
	if got := r.oldest(time.Now().Add(time.Hour)); got != 0 {
		t.Errorf("%v", got)
	}
}

type bug struct{ rpc.Program }

func (bug) Append(context.Context, *rpc.Call, []byte) ([]byte, error) { panic("told to") }

// TestOldestRead has a READ wait for content that is being brought back.
func TestOldestRead(t *testing.T) {
	v := exporttest.New(t, 77, exporttest.Item{Path: "file", Data: []byte("bytes")})
	healing, healed := make(chan struct{}), make(chan struct{})
	mend := func(ctx context.Context, _ tree.Digest) error {
		close(healing)
		select {
		case <-healed:
		case <-ctx.Done():
		}
		v.Broken.Store(false)
		return nil
	}
	v.Mend.Store(&mend)
	v.Broken.Store(true)
	s, addr := serve(t, Config{}, Export{Name: "www", Volume: v.Volume, Rules: Rules{Insecure: true}})
	if got := s.OldestRead(); got != 0 {
		t.Errorf("before: %v", got)
	}
	c := dial(t, addr)
	_, root := c.mount("/www")
	_, found := c.call(nfs3.Number, 3, 3, rpc.AppendOpaque(rpc.AppendOpaque(nil, root), "file"))
	d := rpc.NewDecoder(found)
	d.Uint32()
	fh := append([]byte(nil), d.Opaque(64)...)
	answered := make(chan uint32, 1)
	go func() {
		args := rpc.AppendUint32(rpc.AppendUint64(rpc.AppendOpaque(nil, fh), 0), 100)
		stat, rest := c.call(nfs3.Number, 3, procRead, args)
		d := rpc.NewDecoder(rest)
		answered <- stat<<16 | d.Uint32()
	}()
	<-healing
	for began := time.Now(); s.OldestRead() < 20*time.Millisecond; time.Sleep(time.Millisecond) {
		if time.Since(began) > 10*time.Second {
			t.Fatalf("a READ that waits is %v old", s.OldestRead())
		}
	}
	close(healed)
	if status := <-answered; status != 0 && status != 10008 { // NFS3ERR_JUKEBOX: this test was kept from running for 2 s
		t.Errorf("READ: %#x", status)
	}
	if got := s.OldestRead(); got != 0 {
		t.Errorf("afterwards: %v", got)
	}
}
