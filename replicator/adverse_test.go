package replicator

import (
	"errors"
	"fmt"
	"os"
	"slices"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/nfs-fleet/nfs-fleet/replicator/store"
	"github.com/nfs-fleet/nfs-fleet/replicator/tree"
)

// A watch may tell of an old head after this master has moved it: etcd is not older for that.
func TestAHeadFromBeforeIsNoRegression(t *testing.T) {
	b := newBench(t)
	b.write("a", "one")
	b.lead()
	first := b.publish().Generation
	b.write("a", "two")
	second := b.publish().Generation
	b.replica.SetHead(first, 1)
	if err := b.replica.Between(t.Context(), func() {}); err != nil {
		t.Fatal(err)
	}
	if st := b.replica.Status(); st.Problem != nil || st.Head != second || !st.InStep() {
		t.Errorf("serves %d, in step %v, problem %v", st.Head.Number, st.InStep(), st.Problem)
	}
}

// What does not fit on the disk, and is not the head any more, keeps nobody from the head.
func TestAGenerationThatDoesNotFitIsLeftOut(t *testing.T) {
	g, m1, m2 := newPair(t)
	g.lose("m2", true)
	m1.write("a", "too large")
	second := m1.publish().Generation
	m1.write("a", "small again")
	m1.publish()
	g.mu.Lock()
	g.refuse = func(root tree.Digest) error {
		if root == second.Root {
			return fmt.Errorf("put: %w", store.ErrFull)
		}
		return nil
	}
	g.mu.Unlock()
	g.lose("m2", false)
	g.tell("m2")
	g.await("m2", "serving 3", serves(3))
	m2.volume.mu.Lock()
	defer m2.volume.mu.Unlock()
	if !slices.Equal(m2.volume.served, []uint64{1, 3}) {
		t.Errorf("served %v", m2.volume.served)
	}
}

// A master without the leadership that is reading its source, or is waiting for the leader, flips meanwhile.
func TestAnOfferUnderWayKeepsNobodyBehind(t *testing.T) {
	g, m1, m2 := newPair(t)
	m2.replica.SetLeader(0, 1, true)
	held, goOn := make(chan struct{}), make(chan struct{})
	g.mu.Lock()
	g.offered = func() { close(held); <-goOn }
	g.mu.Unlock()
	done := make(chan error, 1)
	m2.write("b", "from m2")
	go func() {
		_, err := m2.replica.Publish(t.Context(), Publication{})
		done <- err
	}()
	<-held
	m1.write("a", "two")
	m1.publish()
	g.tell("m2")
	deadline := time.After(3 * time.Second)
	for !serves(2)(m2.replica.Status()) {
		select {
		case <-deadline:
			t.Error("m2 does not flip while its offer is under way")
			close(goOn)
			<-done
			return
		case <-time.After(time.Millisecond):
		}
	}
	close(goOn)
	if err := <-done; err != nil && !errors.Is(err, ErrHolding) {
		t.Error(err)
	}
}

// A generation that only lived in between, and is damaged where it was served, keeps nobody from a recovery.
func TestRecoveryLeavesOutWhatNobodyHas(t *testing.T) {
	g, m1, m2 := newPair(t)
	g.lose("m2", true)
	m1.write("a", "two")
	second := m1.publish().Generation
	m1.write("a", "three")
	third := m1.publish().Generation
	g.mu.Lock()
	g.refuse = func(root tree.Digest) error {
		if root == second.Root {
			return fmt.Errorf("object: %w", tree.ErrMissing)
		}
		return nil
	}
	g.mu.Unlock()
	g.heads.mu.Lock()
	g.heads.head, g.heads.revision, g.heads.epoch = tree.Generation{}, 0, 5
	g.heads.mu.Unlock()
	m2.term = newTerm(5)
	m2.lead()
	_, after, err := m2.replica.Recover(t.Context(), Recovery{Newer: []tree.Generation{second, third}, From: "m1", Floor: Maxima{Generation: 3, NextIno: third.NextIno}})
	if err != nil || after.Number != 4 || after.Root != third.Root {
		t.Errorf("recovered to %+v, %v", after, err)
	}
}

// A ledger that finds no room is a full disk like any other: a master that meets it declines, and collects.
func TestLedgerWithoutRoom(t *testing.T) {
	err := ledgerError("www", &os.PathError{Op: "write", Path: "ledger", Err: unix.ENOSPC})
	if !errors.Is(err, store.ErrFull) || !errors.Is(err, unix.ENOSPC) {
		t.Error(err)
	}
	if err := ledgerError("www", unix.EIO); errors.Is(err, store.ErrFull) || !errors.Is(err, unix.EIO) {
		t.Error(err)
	}
}
