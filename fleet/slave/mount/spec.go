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
}

// String returns the spec as one writes it.
func (s Spec) String() string { return s.Name + ":" + s.Path }

// maxPath is the longest path that MOUNT takes (RFC 1813).
const maxPath = 1024

// ParseSpec reads SRVNAME:/shard[/sub].
func ParseSpec(text string) (Spec, error) {
	name, p, ok := strings.Cut(text, ":")
	if !ok {
		return Spec{}, fmt.Errorf("%q: want SRVNAME:/SHARD, as in %sweb17.slaves.example.org:/www", text, mounts.Prefix)
	}
	s := Spec{Name: mounts.Canonical(name), Path: path.Clean(p)}
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
