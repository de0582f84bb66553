package wire

import "time"

// Watch is a reader of a file of known blocks (package known) that goes on until it is ended: it opens the file, reads, checks
// every byte, closes the file, and so on, and measures how long each of these makes it wait.
type Watch struct {
	Path string
	Name string // of the file, as its blocks know it
	// Stream reads the file from beginning to end in pieces of 256 KiB, as programs do, with the kernel's read-ahead and past
	// what the page cache had. Otherwise single blocks are read past the cache, at random places, Reads of them an open.
	Stream bool
	Reads  int
	Pace   time.Duration // between two reads
}

// Pause is one wait of a reader.
type Pause struct {
	What  string        // open, read or close
	After time.Duration // since the window began
	Took  time.Duration
	At    time.Time // by the slave's clock, for people who compare logs
}

// Window is what a watch saw since its last window ended. Windows meet between two waits: each one is in one window, whole.
type Window struct {
	Span    time.Duration // by the slave's clock
	Reads   int
	Opens   int
	Longest Pause
	Pauses  []Pause // those of at least PauseWorthNoting, at most 100
	// Stall is the longest that a sleep of 5 ms overslept: how long the slave as a whole was held up by its machine.
	Stall time.Duration

	Versions map[uint64]int // of the file, seen → by how many opens
	Back     int            // opens that met an older version than the one before
	Failed   int            // waits that ended in an error, wrong bytes among them
	Errors   []string       // of them, at most 20
}

// PauseWorthNoting is the shortest pause that a Window lists.
const PauseWorthNoting = 20 * time.Millisecond

// NextWindow asks for the window that ends now: between two waits, or with an error when the present one takes longer than
// Limit. Last ends the watch.
type NextWindow struct {
	Number int
	Limit  time.Duration
	Last   bool
}

// Process is a program that runs in the background.
type Process struct {
	Args []string
	Env  []string // beside the slave's own
}

// Signal is sent to a background process.
type Signal struct {
	Number int
	Signal int
}

// Output is what a background process has said, and whether it has ended.
type Output struct {
	Said  []byte // the last 256 KiB of its standard output and error
	Ended bool
	Code  int // its exit code, -1 for a signal
}

// Mapped asks for some blocks of a file that is mapped into memory: they are faulted in again, and checked.
type Mapped struct {
	Number   int
	Name     string // of the file, as its blocks know it
	From, To int    // blocks
}
