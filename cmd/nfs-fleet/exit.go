package main

import (
	"errors"
	"fmt"

	"github.com/nfs-fleet/nfs-fleet/fleet/console"
)

const (
	exitDone   = 0
	exitFailed = 1
	exitUsage  = 2
	exitAbsent = 3
	exitLeader = 4
)

// exitCodes is the one table from errors to exit codes; what is not in it is exitFailed.
var exitCodes = []struct {
	err  error
	code int
}{
	{errUsage, exitUsage},
	{console.ErrInvalid, exitUsage},
	{console.ErrNotFound, exitAbsent},
	{console.ErrNoLeader, exitLeader},
	{console.ErrNoQuorum, exitLeader},
}

var errUsage = errors.New("usage")

// usageError is a mistake in flags, arguments or configuration. command is whose help to read.
type usageError struct {
	err     error
	command string
}

func (e *usageError) Error() string { return fmt.Sprintf("%v; see `%s --help`", e.err, e.command) }

func (e *usageError) Is(target error) bool { return target == errUsage }

func exitCode(err error) int {
	for _, e := range exitCodes {
		if errors.Is(err, e.err) {
			return e.code
		}
	}
	if err == nil {
		return exitDone
	}
	return exitFailed
}
