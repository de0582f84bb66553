// Package trust is how the masters of a fleet know each other, and how others get in.
//
// A fleet has one certificate authority (Authority), made at its birth. Each master holds a key and a certificate of it
// that names the master and its instance (Credentials), with which it serves its peer listener and its embedded etcd,
// and presents itself to other masters (Caller). Whoever has no certificate has a Token: one line of text with a secret,
// and the fingerprint of the CA, so that it talks to that fleet and to nobody else (PinnedTLS). The fleet keeps a hash of
// the secret alone.
//
// The package knows no etcd and does no I/O, but for Credentials.WriteFiles. What is refused although its certificate is
// good, such as a removed master, is the caller's business.
package trust
