package relay

import (
	"testing"
	"time"
)

// ringing has the loop wait, with the bell rung after a while. The window is as it was when that came before the loop slept.
func ringing(l *loop, after time.Duration) {
	rung := make(chan struct{})
	time.AfterFunc(after, func() {
		l.mu.Lock()
		defer l.mu.Unlock()
		l.ring()
		close(rung)
	})
	l.await(-1)
	<-rung
	l.answer()
}

func newWindow(t *testing.T, maxSpin, window time.Duration) *loop {
	t.Helper()
	l, err := newLoop(time.Now())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(l.close)
	l.maxSpin, l.window = maxSpin, window
	return l
}

// The loop looks for longer before it sleeps, from nothing up to maxSpin, while events come soon after.
func TestTheWindowGrows(t *testing.T) {
	l := newWindow(t, time.Minute, 0) // however busy the machine is, the bell rings sooner
	for want := minSpin; want <= 8*minSpin; want *= 2 {
		before := l.window
		await(t, "it sleeps and is woken", func() bool { ringing(l, time.Millisecond); return l.window != before })
		if l.window != want {
			t.Fatalf("it looks for %s after %s, want %s", l.window, before, want)
		}
	}
	const most = 50 * time.Millisecond
	l = newWindow(t, most, 0)
	await(t, "it is as long as it may be", func() bool {
		l.window = most * 3 / 5
		ringing(l, most*4/5)
		return l.window >= most
	})
	if l.window > most {
		t.Errorf("it looks for %s, which is more than %s", l.window, most)
	}
}

// What comes while the loop looks is no reason to look for longer, or for less.
func TestTheWindowStays(t *testing.T) {
	l := newWindow(t, time.Hour, time.Minute)
	ringing(l, time.Millisecond)
	if l.window != time.Minute {
		t.Errorf("it looks for %s", l.window)
	}
}

// Where events come later than maxSpin, looking for them is given up.
func TestTheWindowShrinks(t *testing.T) {
	l := newWindow(t, maxSpin, maxSpin)
	for want := maxSpin / 2; ; want /= 2 {
		if want < minSpin {
			want = 0
		}
		if n := l.await(1); n != 0 {
			t.Fatalf("%d events", n)
		}
		if l.window != want {
			t.Fatalf("it looks for %s, want %s", l.window, want)
		}
		if want == 0 {
			return
		}
	}
}

// On one processor the loop looks for nothing: whoever is to bring it about needs the processor.
func TestNoWindowOnOneProcessor(t *testing.T) {
	l := newWindow(t, 0, 0)
	for range 10 {
		ringing(l, 100*time.Microsecond)
		if l.window != 0 {
			t.Fatalf("it looks for %s", l.window)
		}
	}
}
