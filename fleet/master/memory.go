package master

import (
	"context"
	"math"
	"os"
	"runtime/debug"
	runtimemetrics "runtime/metrics"
	"time"
)

// Serving allocates nothing, so what a master keeps is nearly all the heap there is: the served trees. Go's default lets
// the heap double before it collects, and a full scan of a large tree fills that room once and leaves it resident.
// Smaller headroom costs a scan a few more collections, which are cheap, because trees are kept in memory without pointers.
const (
	heapHeadroom  = 64 << 20 // bytes that the heap may grow by before it is collected
	leastHeadroom = 20       // per cent of the living heap, whatever heapHeadroom says
	goHeadroom    = 100      // Go's own default, which is the most
	slackAllowed  = 32 << 20 // bytes beyond the living heap and a tenth that may stay with a process at rest
	memoryEvery   = 5 * time.Second
)

// gcPercent returns the GOGC for a living heap of so many bytes.
func gcPercent(live uint64) int {
	return int(min(goHeadroom, max(leastHeadroom, heapHeadroom*100/max(live, 1))))
}

// slack says whether so much of what a process at rest holds for its heap is unused that it should go back to the system
// now; by itself Go takes minutes, and keeps the headroom.
func slack(held, live uint64) bool { return held > live+live/10+slackAllowed }

// runMemory keeps the heap's headroom in proportion, until ctx ends. It leaves everything to an operator who has set
// GOGC or GOMEMLIMIT.
func runMemory(ctx context.Context) error {
	if os.Getenv("GOGC") != "" || os.Getenv("GOMEMLIMIT") != "" || debug.SetMemoryLimit(-1) != math.MaxInt64 {
		<-ctx.Done()
		return nil
	}
	tick := time.NewTicker(memoryEvery)
	defer tick.Stop()
	heap := []runtimemetrics.Sample{
		{Name: "/gc/heap/live:bytes"}, {Name: "/memory/classes/heap/objects:bytes"},
		{Name: "/memory/classes/heap/free:bytes"}, {Name: "/gc/cycles/total:gc-cycles"},
	}
	var cycles uint64
	set := goHeadroom
	before := debug.SetGCPercent(set)
	defer debug.SetGCPercent(before)
	for {
		runtimemetrics.Read(heap)
		live := heap[0].Value.Uint64()
		if p := gcPercent(live); p != set {
			debug.SetGCPercent(p)
			set = p
		}
		held := heap[1].Value.Uint64() + heap[2].Value.Uint64()
		if heap[3].Value.Uint64() == cycles && slack(held, live) { // nothing was collected since the last look: at rest
			debug.FreeOSMemory()
		}
		cycles = heap[3].Value.Uint64()
		select {
		case <-tick.C:
		case <-ctx.Done():
			return nil
		}
	}
}
