package console

import (
	"context"
	"errors"
	"fmt"
	"net/http"
)

// The kinds of error that travel between server and client, tested with errors.Is. Error texts are whole sentences for
// an operator, with what to do where that is not obvious; Errorf gives one a kind without adding words.
var (
	ErrInvalid     = errors.New("invalid request")
	ErrNotFound    = errors.New("not found")
	ErrConflict    = errors.New("conflict")       // the thing exists already, has changed meanwhile, or is in use
	ErrNoLeader    = errors.New("no leader")      // no master leads the shard now, or another one does
	ErrNoQuorum    = errors.New("no etcd quorum") // nothing can be changed now; serving goes on
	ErrUnavailable = errors.New("unavailable")    // this master cannot do it now: it starts, drains, or has no space
	// ErrUnauthorized: there is no token with the request, or one that is unknown, expired or revoked.
	ErrUnauthorized = errors.New("unauthorized")
	// ErrForbidden: the caller may not do that, or the request came by way of a browser from another site.
	ErrForbidden = errors.New("forbidden")
	// ErrGone: the upload has ended, or lies at a master that leads the shard no more. Begin anew.
	ErrGone        = errors.New("gone")
	ErrUnreachable = errors.New("no answer") // the client had no HTTP answer
)

// kinds is the one table between sentinels, their names in JSON and their HTTP status codes.
var kinds = []struct {
	err    error
	kind   string
	status int
}{
	{ErrInvalid, "invalid", http.StatusBadRequest},
	{ErrNotFound, "not_found", http.StatusNotFound},
	{ErrConflict, "conflict", http.StatusConflict},
	{ErrNoLeader, "no_leader", http.StatusServiceUnavailable},
	{ErrNoQuorum, "no_quorum", http.StatusServiceUnavailable},
	{ErrUnavailable, "unavailable", http.StatusServiceUnavailable},
	{ErrUnauthorized, "unauthorized", http.StatusUnauthorized},
	{ErrForbidden, "forbidden", http.StatusForbidden},
	{ErrGone, "gone", http.StatusGone},
	{context.Canceled, "cancelled", 499}, // nobody is left to read it; nginx's number, for the log
	{context.DeadlineExceeded, "timeout", http.StatusGatewayTimeout},
}

const kindInternal = "internal"

// apiError is an error in JSON: the body of every answer that is not 2xx, and a stream's last line.
type apiError struct {
	Message string `json:"error"`
	Kind    string `json:"kind"`
}

func toAPI(err error) (apiError, int) {
	for _, k := range kinds {
		if errors.Is(err, k.err) {
			return apiError{err.Error(), k.kind}, k.status
		}
	}
	return apiError{err.Error(), kindInternal}, http.StatusInternalServerError
}

// kindError is a text with a kind that the text does not repeat.
type kindError struct {
	error
	kind error // a sentinel, or nil
}

func (e *kindError) Unwrap() []error {
	if e.kind == nil {
		return []error{e.error}
	}
	return []error{e.error, e.kind}
}

// Errorf returns an error that reads as fmt.Errorf's and is of the given kind, a sentinel, without saying its text.
func Errorf(kind error, format string, args ...any) error {
	return &kindError{fmt.Errorf(format, args...), kind}
}

func (a apiError) err() error {
	for _, k := range kinds {
		if a.Kind == k.kind {
			return &kindError{errors.New(a.Message), k.err}
		}
	}
	return errors.New(a.Message)
}
