package main

import (
	"context"
	"errors"
	"fmt"
	"strings"

	"github.com/nfs-fleet/nfs-fleet/fleet/slave/mount"
)

// helperName is the name by which mount(8) calls this program for the type nfs-fleet.
const helperName = "mount.nfs-fleet"

// Exit codes of mount(8).
const (
	mountUsage       = 1  // incorrect invocation or permissions
	mountInterrupted = 8  // by the user
	mountFailure     = 32 // the mount has failed
)

// helperCall is how mount(8) calls a helper: SPEC DIR [-sfnv] [-N NAMESPACE] [-o OPTIONS] [-t TYPE.SUBTYPE].
type helperCall struct {
	what, dir string
	options   []string
	sloppy    bool
	fake      bool
	verbose   bool
}

// parseHelper reads the arguments of a mount helper.
func parseHelper(args []string) (helperCall, error) {
	var c helperCall
	var words []string
	for i := 0; i < len(args); i++ {
		arg := args[i]
		if len(arg) < 2 || arg[0] != '-' {
			words = append(words, arg)
			continue
		}
		for j := 1; j < len(arg); j++ {
			switch arg[j] {
			case 's':
				c.sloppy = true
			case 'f':
				c.fake = true
			case 'v':
				c.verbose = true
			case 'n', 'r', 'w': // no mtab is written, and every mount is read-only
			case 'o', 't', 'N':
				value := arg[j+1:]
				if value == "" {
					if i++; i == len(args) {
						return c, fmt.Errorf("-%c wants a value", arg[j])
					}
					value = args[i]
				}
				switch arg[j] {
				case 'o':
					c.options = append(c.options, value)
				case 'N':
					return c, errors.New("-N: other mount namespaces are not supported: use nsenter")
				}
				j = len(arg)
			default:
				return c, fmt.Errorf("-%c is not known", arg[j])
			}
		}
	}
	if len(words) != 2 {
		return c, fmt.Errorf("want SRVNAME:/SHARD DIR [-sfnv] [-o OPTIONS], have %q", strings.Join(args, " "))
	}
	c.what, c.dir = words[0], words[1]
	return c, nil
}

// runHelper is mount.nfs-fleet.
func (a *app) runHelper(ctx context.Context, args []string) int {
	err := a.helper(ctx, args)
	if err != nil {
		fmt.Fprintf(a.err, "%s: %s\n", helperName, oneLine(err.Error()))
	}
	return helperCode(err)
}

func (a *app) helper(ctx context.Context, args []string) error {
	c, err := parseHelper(args)
	if err != nil {
		return fmt.Errorf("%w: %w", mount.ErrUsage, err)
	}
	spec, err := mount.ParseSpec(c.what)
	if err != nil {
		return fmt.Errorf("%w: %w", mount.ErrUsage, err)
	}
	options, err := mount.ParseOptions(mount.HelperOptions(strings.Join(c.options, ",")), c.sloppy)
	if err != nil {
		return fmt.Errorf("%w: %w", mount.ErrUsage, err)
	}
	return mount.Do(ctx, a.request(spec, c.dir, options, mountFlags{runDir: defaultRunDir, verbose: c.verbose, fake: c.fake}))
}

// helperCode returns what mount(8) documents for an error.
func helperCode(err error) int {
	switch {
	case err == nil:
		return 0
	case errors.Is(err, mount.ErrUsage), errors.Is(err, mount.ErrNotRoot):
		return mountUsage
	case errors.Is(err, errInterrupted):
		return mountInterrupted
	}
	return mountFailure
}
