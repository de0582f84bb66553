// Package nfs is a small NFSv3 client in user space, for tests that read what a master serves and want to know everything it
// said: which handle, which attributes, which names stood in one reply. It caches nothing, retries nothing and hides no
// error: a master's refusal is a Status, everything else is the connection's end.
//
// A Conn is one TCP connection with one call at a time. It is not safe for concurrent use, but for Close. After an error
// that is no Status the Conn is of no more use.
package nfs
