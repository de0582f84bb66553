package store

import (
	"sync"
	"sync/atomic"
	"testing"
)

var twoWords = span{first: sealWords - 1, stride: 7, n: 2}

// A read that saw pages which another had asked the kernel for sees that other, or what he counted, whatever their order.
func TestSealsTellOfALoad(t *testing.T) {
	var x seals
	for name, sp := range map[string]span{"one word": {first: 5, stride: 1, n: 1}, "two words": twoWords} {
		seal := x.now(sp)
		if seal == 0 {
			t.Error("a seal that is none")
		}
		missing, reader := x.enter(sp), x.enter(sp)
		if x.leave(sp, reader) {
			t.Errorf("%s: alone with another", name)
		}
		if x.settle(sp) || x.now(sp) != seal {
			t.Errorf("%s: settled while another is in there", name)
		}
		late := x.enter(sp)
		x.missed(sp, missing)
		if !x.leave(sp, late) {
			t.Errorf("%s: not alone", name)
		}
		if !x.settle(sp) || x.now(sp) == seal {
			t.Errorf("%s: the other's load is not known", name)
		}
		seal = x.now(sp)
		if r := x.enter(sp); !x.leave(sp, r) || x.now(sp) != seal {
			t.Errorf("%s: a hit broke the seal", name)
		}
		if x.load(sp); x.now(sp) == seal {
			t.Errorf("%s: a load did not break the seal", name)
		}
	}
	apart := span{first: 100, stride: 1, n: 1}
	seal, joined := x.now(apart), x.enter(twoWords)
	if x.missed(twoWords, joined); x.now(apart) != seal {
		t.Error("pages far from each other share a word")
	}
	neighbour := span{first: twoWords.first + twoWords.stride, stride: 1, n: 1}
	seal = x.now(neighbour)
	if x.load(twoWords); x.now(neighbour) == seal {
		t.Error("the page that two objects share has two words")
	}
}

// Who waits for those in there does not wait for those who come after.
func TestSealsSettleUnderNewcomers(t *testing.T) {
	var x seals
	var stop atomic.Bool
	var in sync.WaitGroup
	for range 3 {
		in.Go(func() {
			held := x.enter(twoWords)
			for !stop.Load() { // never is nobody in there
				next := x.enter(twoWords)
				x.leave(twoWords, held)
				held = next
			}
			x.leave(twoWords, held)
		})
	}
	settled := 0
	for range 10_000 {
		if x.settle(twoWords) {
			settled++
		}
		if settled == 20 {
			break
		}
	}
	stop.Store(true)
	in.Wait()
	if settled < 20 {
		t.Errorf("settled %d times", settled)
	}
	for i := range x.words {
		if w := x.words[i].Load() % joinSecond; w != 0 {
			t.Errorf("word %d: %x is in there", i, w)
		}
	}
}
