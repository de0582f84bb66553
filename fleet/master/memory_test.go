package master

import (
	"context"
	"runtime"
	"runtime/debug"
	runtimemetrics "runtime/metrics"
	"testing"
)

func TestHeapHeadroomShrinksAsTheTreesGrow(t *testing.T) {
	for _, c := range []struct {
		live uint64
		want int
	}{
		{0, 100}, {8 << 20, 100}, {64 << 20, 100}, {128 << 20, 50}, {256 << 20, 25}, {320 << 20, 20}, {4 << 30, 20},
	} {
		if got := gcPercent(c.live); got != c.want {
			t.Errorf("a living heap of %d MiB may grow by %d%%, want %d%%", c.live>>20, got, c.want)
		}
	}
}

func TestSlackIsGivenBack(t *testing.T) {
	const live = 250 << 20
	for held, want := range map[uint64]bool{live: false, live + 57<<20: false, live + 58<<20: true, 2 * live: true} {
		if got := slack(held, live); got != want {
			t.Errorf("%d MiB held for %d MiB: give back: %v, want %v", held>>20, live>>20, got, want)
		}
	}
}

// While a master runs, a large heap has little headroom; afterwards the process is as it was found.
func TestHeapHeadroomWhileAMasterRuns(t *testing.T) {
	t.Setenv("GOGC", "")
	defer debug.SetGCPercent(debug.SetGCPercent(77))
	tree := make([]byte, 256<<20)
	runtime.GC() // so that it counts as alive
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- runMemory(ctx) }()
	goal := []runtimemetrics.Sample{{Name: "/gc/heap/goal:bytes"}}
	for {
		if runtimemetrics.Read(goal); goal[0].Value.Uint64() < uint64(len(tree))*3/2 {
			break
		}
		if t.Context().Err() != nil {
			t.Fatal("the goal of the heap stayed as it was")
		}
		runtime.Gosched()
	}
	runtime.KeepAlive(tree)
	cancel()
	if err := <-done; err != nil {
		t.Fatal(err)
	}
	if got := debug.SetGCPercent(77); got != 77 {
		t.Errorf("GOGC is %d afterwards, want 77", got)
	}
}

// An operator's own GOGC stands.
func TestHeapHeadroomIsTheOperators(t *testing.T) {
	t.Setenv("GOGC", "50")
	defer debug.SetGCPercent(debug.SetGCPercent(50))
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if err := runMemory(ctx); err != nil {
		t.Fatal(err)
	}
	if got := debug.SetGCPercent(50); got != 50 {
		t.Errorf("GOGC is %d, want the operator's 50", got)
	}
}
