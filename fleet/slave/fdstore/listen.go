package fdstore

import (
	"errors"
	"fmt"
	"net"
	"slices"
	"strings"

	"golang.org/x/sys/unix"
)

// maxMessage is how long a message may be, and maxFiles how many files one may carry.
const (
	maxMessage = 4096
	maxFiles   = 8
)

// Message is what a supervised process tells.
type Message struct {
	Lines []string // assignments
	FDs   []int    // open files that came with it; they belong to whoever receives the message
}

// Has says whether an assignment is among the lines.
func (m Message) Has(line string) bool { return slices.Contains(m.Lines, line) }

// Get returns the value of a variable, the last if there are several, or "".
func (m Message) Get(key string) (value string) {
	for _, l := range m.Lines {
		if k, v, ok := strings.Cut(l, "="); ok && k == key {
			value = v
		}
	}
	return value
}

// Receive waits for the next message on a supervisor's socket. An error that is net.ErrClosed is the end of the socket; any
// other concerns one message.
func Receive(conn *net.UnixConn) (Message, error) {
	text, control := make([]byte, maxMessage), make([]byte, unix.CmsgSpace(maxFiles*4))
	n, c, flags, _, err := conn.ReadMsgUnix(text, control)
	if err != nil {
		return Message{}, err
	}
	m := Message{Lines: strings.Split(string(text[:n]), "\n")}
	m.FDs, err = rights(control[:c])
	if flags&(unix.MSG_TRUNC|unix.MSG_CTRUNC) != 0 {
		err = errors.Join(err, fmt.Errorf("a message is longer than %d bytes, or has more than %d files", maxMessage, maxFiles))
	}
	if err != nil {
		m.Close()
		return Message{}, err
	}
	return m, nil
}

// rights returns the descriptors in a control message. Go's net package has set close-on-exec for them.
func rights(control []byte) ([]int, error) {
	messages, err := unix.ParseSocketControlMessage(control)
	if err != nil {
		return nil, err
	}
	var out []int
	for _, m := range messages {
		if m.Header.Level == unix.SOL_SOCKET && m.Header.Type == unix.SCM_RIGHTS {
			fds, err := unix.ParseUnixRights(&m)
			if err != nil {
				return out, err
			}
			out = append(out, fds...)
		}
	}
	return out, nil
}

// Close closes the files of the message.
func (m Message) Close() {
	for _, fd := range m.FDs {
		unix.Close(fd) //nolint:errcheck // nobody wants it
	}
}
