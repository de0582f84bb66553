package exporter

import (
	"net/netip"

	"github.com/nfs-fleet/nfs-fleet/exporter/mount3"
	"github.com/nfs-fleet/nfs-fleet/exporter/nfs3"
)

// Procedure names one procedure of a program on the NFS port, for an Observer that wants words.
type Procedure struct {
	Program, Number   uint32
	ProgramName, Name string // "nfs", "GETATTR"
}

// Procedures returns every procedure of NFS version 3 and of MOUNT.
func Procedures() []Procedure {
	var all []Procedure
	for n := uint32(0); nfs3.ProcedureName(n) != "UNKNOWN"; n++ {
		all = append(all, Procedure{nfs3.Number, n, "nfs", nfs3.ProcedureName(n)})
	}
	for n, name := range []string{"NULL", "MNT", "DUMP", "UMNT", "UMNTALL", "EXPORT"} { // RFC 1813, section 5.2
		all = append(all, Procedure{mount3.Number, uint32(n), "mount", name})
	}
	return all
}

// Clients returns the addresses that have an NFS connection open.
func (s *Server) Clients() map[netip.Addr]bool { return s.stream.Clients() }
