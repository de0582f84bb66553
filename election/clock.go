package election

import (
	"time"

	"golang.org/x/sys/unix"
)

// instant is a point in time on the clock that deadlines are kept on, as the time since that clock's origin. The zero
// instant is before every other.
type instant time.Duration

func (t instant) add(d time.Duration) instant { return t + instant(d) }

func (t instant) sub(u instant) time.Duration { return time.Duration(t - u) }

// clock tells the present instant.
type clock func() instant

// bootClock counts the time that the machine was suspended: etcd's lease ran on meanwhile. Go's own monotonic clock and
// its timers do not count it, which is why a timer alone cannot enforce a deadline.
func bootClock() instant {
	var ts unix.Timespec
	if err := unix.ClockGettime(unix.CLOCK_BOOTTIME, &ts); err != nil {
		return monotonicClock() // the call cannot fail on a Linux that Go supports
	}
	return instant(ts.Nano())
}

var processStart = time.Now()

// monotonicClock is Go's clock, which testing/synctest controls. Inside its bubbles it is the year 2000, long before the
// process started; the century added keeps instants positive.
func monotonicClock() instant { return instant(time.Since(processStart) + 100*365*24*time.Hour) }
