package mounts

import (
	"fmt"
	"strings"
)

// CheckName reports what is wrong with a SRV name in canonical form.
func CheckName(name string) error {
	domain, ok := strings.CutPrefix(name, Prefix)
	if !ok {
		return fmt.Errorf("%q is no SRV name of NFS: want %sDOMAIN or %sSLAVE.slaves.DOMAIN", name, Prefix, Prefix)
	}
	if len(name) > 253 {
		return fmt.Errorf("a SRV name of %d bytes: want 253 at most", len(name))
	}
	for label := range strings.SplitSeq(domain, ".") {
		if label == "" || len(label) > 63 || strings.Trim(label, "abcdefghijklmnopqrstuvwxyz0123456789-_") != "" {
			return fmt.Errorf("%q is no SRV name: %q is no label", name, label)
		}
	}
	return nil
}

// SlaveName returns the slave's name in a SRV name of its own, "" when it is the fleet's name.
func SlaveName(name string) string {
	slave, _, ok := strings.Cut(strings.TrimPrefix(name, Prefix), ".slaves.")
	if !ok {
		return ""
	}
	return slave
}
