package mount3

import (
	"bytes"
	"context"
	"encoding/hex"
	"errors"
	"flag"
	"fmt"
	"io"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/buildbarn/go-xdr/pkg/protocols/mount"
	"github.com/rs/zerolog"

	"github.com/nfs-fleet/nfs-fleet/exporter/export"
	"github.com/nfs-fleet/nfs-fleet/exporter/export/exporttest"
	"github.com/nfs-fleet/nfs-fleet/exporter/rpc"
	"github.com/nfs-fleet/nfs-fleet/replicator/tree"
)

var rewrite = flag.Bool("rewrite", false, "rewrite the golden transcripts in testdata")

// register is a Mounts that remembers what it was told.
type register struct{ told []string }

func (r *register) Mounted(shard, path string, _ netip.Addr, machine string) {
	r.told = append(r.told, strings.TrimSuffix("mounted "+shard+" "+path+" by "+machine, " by "))
}

func (r *register) Unmounted(shard, path string, _ netip.Addr) {
	r.told = append(r.told, "unmounted "+shard+" "+path)
}

func (r *register) List() []Mount {
	return []Mount{{Shard: "www", Path: "/www", Client: netip.MustParseAddr("192.0.2.1"), Since: time.Unix(0, 0)},
		{Shard: "www", Path: "/www/dir", Client: netip.MustParseAddr("2001:db8::7"), Since: time.Unix(0, 0)}}
}

func newProgram(t testing.TB) (*Program, *register) {
	www := exporttest.New(t, 7, exporttest.Item{Path: "dir/sub/file", Data: []byte("x")},
		exporttest.Item{Path: "link", Entry: tree.Entry{Type: tree.Symlink, Target: "dir"}},
		exporttest.Item{Path: "closed/in", Entry: tree.Entry{Type: tree.Directory}})
	nets := []netip.Prefix{netip.MustParsePrefix("10.0.0.0/8"), netip.MustParsePrefix("2001:db8::/32")}
	table := export.NewTable([]export.Export{{Name: "www", Volume: www.Volume},
		{Name: "far", Volume: exporttest.New(t, 8, exporttest.Item{Path: "f"}).Volume, Rules: export.Rules{Networks: nets}},
		{Name: "soon", Volume: exporttest.New(t, 9).Volume}})
	r := new(register)
	return New(Config{Exports: func() *export.Table { return table }, Mounts: r, Log: zerolog.Nop(), Patience: time.Millisecond}), r
}

func do(p *Program, version, proc uint32, args []byte) ([]byte, error) {
	c := rpc.Call{Conn: new(rpc.Conn), Vers: version, Proc: proc, Args: args}
	out, err := p.Append(context.Background(), &c, nil)
	if errors.Is(err, rpc.ErrDefer) {
		c.Blocking = true
		out, err = p.Append(context.Background(), &c, nil)
	}
	return out, err
}

func str(s string) []byte { return rpc.AppendOpaque(nil, s) }

func TestMnt(t *testing.T) {
	for _, c := range []struct {
		path   string
		status byte
		told   string
	}{
		{"/www", statusOK, "mounted www /www"},
		{"/www/", statusOK, "mounted www /www"},
		{"//www//dir/./sub", statusOK, "mounted www /www/dir/sub"},
		{"/www/dir/../closed", statusOK, "mounted www /www/closed"},
		{"/www/../../www/dir", statusOK, "mounted www /www/dir"},
		{"/", statusNoEnt, ""},
		{"/ww", statusNoEnt, ""},
		{"/www/..", statusNoEnt, ""},
		{"/www/nothing", statusNoEnt, ""},
		{"/www/dir/sub/file", statusNotDir, ""},
		{"/www/dir/sub/file/x", statusNotDir, ""},
		{"/www/link", statusNotDir, ""},
		{"/www/link/sub", statusNotDir, ""},
		{"/far", statusAcces, ""},
		{"www", statusInval, ""},
		{"", statusInval, ""},
		{"/www/\x00", statusInval, ""},
		{"/www/" + strings.Repeat("n", 256), statusNameTooLong, ""},
		{"/" + strings.Repeat("n", 1024), statusNameTooLong, ""},
	} {
		p, r := newProgram(t)
		out, err := do(p, 3, procMnt, str(c.path))
		if err != nil || out[3] != c.status {
			t.Errorf("%.40q: % x, %v, want status %d", c.path, out, err, c.status)
		}
		if told := strings.Join(r.told, ";"); told != c.told {
			t.Errorf("%.40q: %q, want %q", c.path, told, c.told)
		}
	}
}

func TestMntOfWhatIsNotServedYet(t *testing.T) {
	p, _ := newProgram(t)
	out, err := do(p, 3, procMnt, str("/soon"))
	if want := []byte{0, 0, 0x27, 0x16}; err != nil || !bytes.Equal(out, want) {
		t.Errorf("% x, %v, want % x", out, err, want)
	}
}

// What anybody may send does not fill the disk that the log is on.
func TestLongPathsAreNotLoggedWhole(t *testing.T) {
	p, _ := newProgram(t)
	var log bytes.Buffer
	p.cfg.Log = zerolog.New(&log)
	out, err := do(p, Version, procMnt, rpc.AppendOpaque(nil, "/www/"+strings.Repeat("\x01", 1<<20)))
	if want := rpc.AppendUint32(nil, statusNameTooLong); err != nil || !bytes.Equal(out, want) {
		t.Errorf("%x, %v", out, err)
	}
	if log.Len() > 8*maxPath {
		t.Errorf("%d bytes are logged for one call", log.Len())
	}
}

func TestUnmounts(t *testing.T) {
	p, r := newProgram(t)
	for _, path := range []string{"/www/dir/", "/gone", "/"} {
		if out, err := do(p, 3, procUmnt, str(path)); err != nil || len(out) != 0 {
			t.Errorf("%s: % x, %v", path, out, err)
		}
	}
	if out, err := do(p, 3, procUmntAll, nil); err != nil || len(out) != 0 {
		t.Errorf("UMNTALL: % x, %v", out, err)
	}
	// a shard that is no more may still be unmounted
	if want := []string{"unmounted www /www/dir", "unmounted gone /gone", "unmounted  "}; !slices.Equal(r.told, want) {
		t.Errorf("told %q, want %q", r.told, want)
	}
}

func TestNobodyKeepsMounts(t *testing.T) {
	p, _ := newProgram(t)
	p.cfg.Mounts = nil
	for proc, args := range map[uint32][]byte{procMnt: str("/www"), procDump: nil, procUmnt: str("/www"), procUmntAll: nil} {
		if _, err := do(p, 3, proc, args); err != nil {
			t.Errorf("procedure %d: %v", proc, err)
		}
	}
}

func TestGarbage(t *testing.T) {
	p, _ := newProgram(t)
	for _, args := range [][]byte{nil, {0}, {0, 0, 0, 9, 'x'}, {0xff, 0xff, 0xff, 0xff}} {
		for _, proc := range []uint32{procMnt, procUmnt} {
			if _, err := do(p, 3, proc, args); !errors.Is(err, rpc.ErrGarbageArgs) {
				t.Errorf("procedure %d, % x: %v", proc, args, err)
			}
		}
	}
	if _, err := do(p, 3, 6, nil); !errors.Is(err, rpc.ErrProcUnavail) {
		t.Errorf("procedure 6: %v", err)
	}
}

// read reads a result with a decoder that is not ours.
func read(version, proc uint32, b []byte) (io.WriterTo, int, error) {
	r := bytes.NewReader(b)
	var v io.WriterTo
	var err error
	switch {
	case proc == procMnt && version == 3:
		v, _, err = mount.ReadMountres3(r)
	case proc == procMnt:
		v, _, err = mount.ReadFhstatus(r)
	case proc == procDump:
		_, _, err = mount.ReadMountlist(r)
	case proc == procExport:
		_, _, err = mount.ReadExports(r)
	}
	return v, r.Len(), err
}

func TestGoldenTranscripts(t *testing.T) {
	p, _ := newProgram(t)
	var got strings.Builder
	for version := uint32(1); version <= 3; version++ {
		for proc, args := range [][]byte{nil, str("/www/dir"), nil, str("/www"), nil, nil} {
			out, err := do(p, version, uint32(proc), args)
			if err != nil {
				t.Fatalf("version %d, procedure %d: %v", version, proc, err)
			}
			if _, left, err := read(version, uint32(proc), out); err != nil || left != 0 {
				t.Errorf("version %d, procedure %d: %v, %d bytes left over", version, proc, err, left)
			}
			fmt.Fprintf(&got, "# version %d procedure %d\n> %s\n< %s\n\n", version, proc, hex.EncodeToString(args), hex.EncodeToString(out))
		}
	}
	file := filepath.Join("testdata", "golden.txt")
	if *rewrite {
		os.MkdirAll("testdata", 0o755) //nolint:errcheck // shows in the next line
		if err := os.WriteFile(file, []byte(got.String()), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	if got.String() != string(want) {
		t.Errorf("%s differs; now:\n%s", file, got.String())
	}
}

func FuzzProcedures(f *testing.F) {
	p, _ := newProgram(f)
	for _, path := range []string{"/www", "/www/dir/../dir", "/far", "", "//", "/www/link/x"} {
		f.Add(uint32(3), uint32(procMnt), str(path))
		f.Add(uint32(1), uint32(procUmnt), str(path))
	}
	f.Add(uint32(2), uint32(procExport), []byte{1})
	f.Fuzz(func(t *testing.T, version, proc uint32, args []byte) {
		version, proc = 1+version%3, proc%6
		out, err := do(p, version, proc, args)
		if err != nil {
			if !errors.Is(err, rpc.ErrGarbageArgs) {
				t.Fatal(err)
			}
			return
		}
		if _, left, err := read(version, proc, out); err != nil || left != 0 {
			t.Fatalf("% x: %v, %d bytes left over", out, err, left)
		}
	})
}

func TestMountTellsWhoMounts(t *testing.T) {
	p, r := newProgram(t)
	c := rpc.Call{Conn: new(rpc.Conn), Vers: Version, Proc: procMnt, Args: str("/www"), Cred: rpc.Cred{Flavor: rpc.AuthSys, Machine: []byte("web17")}}
	if _, err := p.Append(context.Background(), &c, nil); err != nil {
		t.Fatal(err)
	}
	if want := []string{"mounted www /www by web17"}; !slices.Equal(r.told, want) {
		t.Errorf("told %q, want %q", r.told, want)
	}
}
