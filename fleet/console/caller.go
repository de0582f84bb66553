package console

import (
	"context"
	"strings"
	"unicode"
	"unicode/utf8"
)

// CallerKind is how a caller has shown who it is.
type CallerKind string

// The kinds of caller.
const (
	CallerLocal  CallerKind = "local"  // a process of the master's own machine: it may do everything
	CallerMaster CallerKind = "master" // another master of the fleet, by its certificate: it may do everything
	CallerToken  CallerKind = "token"  // the bearer of a publish token: only publishing, and only the token's shards
)

// Caller is who asks a master to do something. A master that passes a request on passes the first caller on with it.
// The zero Caller is nobody: the master itself, for a source that publishes by itself.
type Caller struct {
	Kind   CallerKind `json:"kind"`
	Name   string     `json:"name,omitempty"`   // the master, or the token's id
	Shards []string   `json:"shards,omitempty"` // that a token is for
	From   string     `json:"from,omitempty"`   // the IP address that the request came from; "" on the same machine
	User   string     `json:"user,omitempty"`   // user@host, as the caller says: nothing proves it
}

// String is the caller for people and records: "root@web1 token 3f9a from 10.0.0.9".
func (c Caller) String() string {
	var parts []string
	if c.User != "" {
		parts = append(parts, c.User)
	}
	switch c.Kind {
	case CallerMaster, CallerToken:
		parts = append(parts, string(c.Kind)+" "+c.Name)
	case CallerLocal:
		if c.User == "" {
			parts = append(parts, "local")
		}
	}
	if c.From != "" {
		parts = append(parts, "from "+c.From)
	}
	return strings.Join(parts, " ")
}

type callerKey struct{}

// WithCaller returns a context of what the caller has asked for.
func WithCaller(ctx context.Context, c Caller) context.Context {
	return context.WithValue(ctx, callerKey{}, c)
}

// CallerOf returns who asks: for a Control's method called by a Server, that request's caller; otherwise the zero
// Caller.
func CallerOf(ctx context.Context) Caller {
	c, _ := ctx.Value(callerKey{}).(Caller)
	return c
}

// maxUser bounds Caller.User, in bytes.
const maxUser = 128

// cleanUser makes what a caller calls itself fit for records: printable, in one line, short.
func cleanUser(text string) string {
	text = strings.Map(func(r rune) rune {
		if r == utf8.RuneError || !unicode.IsPrint(r) {
			return -1
		}
		return r
	}, text)
	for len(text) > maxUser {
		_, n := utf8.DecodeLastRuneInString(text)
		text = text[:len(text)-n]
	}
	return strings.TrimSpace(text)
}
