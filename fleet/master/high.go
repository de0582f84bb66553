package master

import (
	"os"

	"golang.org/x/sys/unix"
)

// highEnough is the descriptor that the NFS listener has at least: above those of all connections.
const highEnough = 4096

// high calls open such that what it opens has a high descriptor. Linux closes the files of a process that is killed from the
// highest down: a listener below its connections still accepts those that come back at once after their reset, and resets them
// as well. The kernel of a slave that mounts via direct then waits for its next try in a way in which it takes no other
// address, for 3 s and after those for 6 more. Without enough descriptors open is called as it is.
func high(open func() error) error {
	var below []int
	defer func() {
		for _, fd := range below {
			_ = unix.Close(fd)
		}
	}()
	if null, err := os.Open(os.DevNull); err == nil {
		defer null.Close()
		for last := 0; last < highEnough-1; {
			if last, err = unix.FcntlInt(null.Fd(), unix.F_DUPFD_CLOEXEC, 0); err != nil {
				break
			}
			below = append(below, last)
		}
	}
	return open()
}
