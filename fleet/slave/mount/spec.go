package mount

import (
	"fmt"
	"path"
	"strings"

	"github.com/nfs-fleet/nfs-fleet/fleet/slave/mounts"
)

// Spec is what to mount.
type Spec struct {
	Name string // SRV name, canonical
	Path string // /shard, or a directory below it
	text string // as it was written: mount -a tells by it what is mounted already
}

// String returns the spec as it was written.
func (s Spec) String() string { return s.text }

// maxPath is the longest path that MOUNT takes (RFC 1813).
const maxPath = 1024

// ParseSpec reads SRVNAME:/shard[/sub].
func ParseSpec(text string) (Spec, error) {
	name, p, ok := strings.Cut(text, ":")
	if !ok {
		return Spec{}, fmt.Errorf("%q: want SRVNAME:/SHARD, as in %sweb17.slaves.example.org:/www", text, mounts.Prefix)
	}
	s := Spec{Name: mounts.Canonical(name), Path: path.Clean(p), text: text}
	if err := mounts.CheckName(s.Name); err != nil {
		return Spec{}, err
	}
	switch {
	case !strings.HasPrefix(p, "/") || s.Path == "/":
		return Spec{}, fmt.Errorf("%q: want a shard after the colon, as in :/www", text)
	case len(s.Path) > maxPath || strings.ContainsRune(s.Path, 0):
		return Spec{}, fmt.Errorf("%q: no such path can be mounted", text)
	}
	return s, nil
}
