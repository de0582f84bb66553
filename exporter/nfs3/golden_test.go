package nfs3

import (
	"bytes"
	"encoding/hex"
	"encoding/json"
	"flag"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/buildbarn/go-xdr/pkg/protocols/nfsv3"
)

var rewrite = flag.Bool("rewrite", false, "rewrite the golden transcripts in testdata")

// golden is a call, and its transcript in testdata.
type golden struct {
	name string
	args func(b *bench) []byte
	uid  uint32
}

func on(path string, rest ...any) func(*bench) []byte {
	return func(b *bench) []byte { return args(append([]any{b.handle(path)}, rest...)...) }
}

// goldens has the calls of each procedure, those that succeed and those that fail.
var goldens = [procedures][]golden{
	procNull:    {{"null", func(*bench) []byte { return nil }, 0}},
	procGetattr: {{"file", on("hello"), 0}, {"directory", on("."), 0}, {"device", on("null"), 0}, {"no handle", func(*bench) []byte { return args("x") }, 0}},
	procSetattr: {{"nothing", on("hello", noAttrs, false), 0}, {"everything, guarded", on("hello", allAttrs, true, uint64(1)), 0},
		{"no handle", func(*bench) []byte { return args("x", noAttrs, false) }, 0}},
	procLookup: {{"file", on(".", "hello"), 0}, {"self", on("dir", "."), 0}, {"parent", on("dir", ".."), 0}, {"absent", on(".", "nothing"), 0},
		{"not permitted", on("list only", "f"), 1000}, {"in a file", on("hello", "x"), 0}, {"no name", on(".", ""), 0},
		{"long name", on(".", strings.Repeat("n", 256)), 0}},
	procAccess:   {{"owner", on("hello", 0x3f), 1000}, {"directory", on("dir", 0x3f), 1000}, {"program", on("program", 0x3f), 1000}, {"asks for one", on("hello", 1), 1000}},
	procReadlink: {{"link", on("link"), 1000}, {"file", on("hello"), 1000}},
	procRead: {{"whole", on("hello", uint64(0), 100), 1000}, {"part", on("hello", uint64(7), 5), 1000}, {"at the end", on("hello", uint64(13), 5), 1000},
		{"far beyond", on("hello", uint64(1<<63), 5), 1000}, {"nothing", on("hello", uint64(1), 0), 1000}, {"directory", on("dir", uint64(0), 5), 1000},
		{"link", on("link", uint64(0), 5), 1000}, {"not permitted", on("private", uint64(0), 5), 4}},
	procWrite: {{"file", on("hello", uint64(0), 3, 2, "abc"), 0}},
	procCreate: {{"unchecked", on(".", "new", 0, noAttrs), 0}, {"guarded", on(".", "new", 1, allAttrs), 0}, {"exclusive", on(".", "new", 2, uint64(77)), 0},
		{"no handle", func(*bench) []byte { return args("x", "new", 2, uint64(77)) }, 0}},
	procMkdir:   {{"dir", on(".", "new", allAttrs), 0}},
	procSymlink: {{"link", on(".", "new", noAttrs, "target"), 0}},
	procMknod:   {{"device", on(".", "new", 4, noAttrs, 1, 3), 0}, {"fifo", on(".", "new", 7, noAttrs), 0}, {"regular", on(".", "new", 1), 0}},
	procRemove:  {{"file", on(".", "hello"), 0}},
	procRmdir:   {{"dir", on(".", "dir"), 0}},
	procRename: {{"file", func(b *bench) []byte { return args(b.handle("."), "hello", b.handle("dir"), "new") }, 0},
		{"to no handle", func(b *bench) []byte { return args(b.handle("."), "hello", "x", "new") }, 0}},
	procLink: {{"file", func(b *bench) []byte { return args(b.handle("hello"), b.handle("."), "new") }, 0}},
	procReaddir: {{"whole", on("dir", uint64(0), uint64(0), 8192), 1000}, {"from a cookie", on("dir", uint64(3), uint64(9), 8192), 1000},
		{"past the end", on("dir", uint64(99), uint64(0), 8192), 1000}, {"too small", on("dir", uint64(0), uint64(0), 100), 1000},
		{"file", on("hello", uint64(0), uint64(0), 100), 1000}, {"not permitted", on("search only", uint64(0), uint64(0), 1000), 1000}},
	procReaddirplus: {{"whole", on("dir", uint64(0), uint64(0), 8192, 8192), 1000}, {"two", on("dir", uint64(0), uint64(0), 48, 8192), 1000},
		{"names only", on("list only", uint64(0), uint64(0), 8192, 8192), 1000}, {"too small", on("dir", uint64(0), uint64(0), 8192, 100), 1000}},
	procFsstat:   {{"root", on("."), 0}, {"no handle", func(*bench) []byte { return args("x") }, 0}},
	procFsinfo:   {{"root", on("."), 0}},
	procPathconf: {{"root", on("."), 0}},
	procCommit:   {{"file", on("hello", uint64(0), 0), 0}},
}

// readResult reads a result with a decoder that is not ours.
func readResult(proc uint32, r io.Reader) (v io.WriterTo, err error) {
	switch proc {
	case procGetattr:
		v, _, err = nfsv3.ReadGetattr3res(r)
	case procSetattr:
		v, _, err = nfsv3.ReadSetattr3res(r)
	case procLookup:
		v, _, err = nfsv3.ReadLookup3res(r)
	case procAccess:
		v, _, err = nfsv3.ReadAccess3res(r)
	case procReadlink:
		v, _, err = nfsv3.ReadReadlink3res(r)
	case procRead:
		v, _, err = nfsv3.ReadRead3res(r)
	case procWrite:
		v, _, err = nfsv3.ReadWrite3res(r)
	case procCreate:
		v, _, err = nfsv3.ReadCreate3res(r)
	case procMkdir:
		v, _, err = nfsv3.ReadMkdir3res(r)
	case procSymlink:
		v, _, err = nfsv3.ReadSymlink3res(r)
	case procMknod:
		v, _, err = nfsv3.ReadMknod3res(r)
	case procRemove:
		v, _, err = nfsv3.ReadRemove3res(r)
	case procRmdir:
		v, _, err = nfsv3.ReadRmdir3res(r)
	case procRename:
		v, _, err = nfsv3.ReadRename3res(r)
	case procLink:
		v, _, err = nfsv3.ReadLink3res(r)
	case procReaddir:
		v, _, err = nfsv3.ReadReaddir3res(r)
	case procReaddirplus:
		v, _, err = nfsv3.ReadReaddirplus3res(r)
	case procFsstat:
		v, _, err = nfsv3.ReadFsstat3res(r)
	case procFsinfo:
		v, _, err = nfsv3.ReadFsinfo3res(r)
	case procPathconf:
		v, _, err = nfsv3.ReadPathconf3res(r)
	case procCommit:
		v, _, err = nfsv3.ReadCommit3res(r)
	}
	return v, err
}

// decoded reads a result, checks that nothing is left and that it is written again to the same bytes, and returns it for
// people.
func decoded(t *testing.T, proc uint32, result []byte) string {
	t.Helper()
	if proc == procNull {
		return ""
	}
	r := bytes.NewReader(result)
	v, err := readResult(proc, r)
	if err != nil || r.Len() != 0 {
		t.Errorf("%s: %v, %d bytes left over", ProcedureName(proc), err, r.Len())
		return ""
	}
	var again bytes.Buffer
	if _, err := v.WriteTo(&again); err != nil || !bytes.Equal(again.Bytes(), result) {
		t.Errorf("%s: %v, written again it is % x", ProcedureName(proc), err, again.Bytes())
	}
	b, err := json.Marshal(v)
	if err != nil {
		t.Fatal(err)
	}
	return fmt.Sprintf("%T %s", v, b)
}

func dump(sign string, b []byte) string {
	var s strings.Builder
	for len(b) > 0 {
		n := min(len(b), 32)
		fmt.Fprintf(&s, "%s %s\n", sign, hex.EncodeToString(b[:n]))
		b = b[n:]
	}
	return s.String()
}

// Every procedure answers as it always has, to the byte. Run with -rewrite to accept a change.
func TestGoldenTranscripts(t *testing.T) {
	b := newBench(t, open, nil, items()...)
	for proc := range uint32(procedures) {
		t.Run(ProcedureName(proc), func(t *testing.T) {
			var got strings.Builder
			for _, g := range goldens[proc] {
				in := g.args(b)
				out, err := b.as(g.uid, g.uid).do(proc, in)
				if err != nil {
					t.Errorf("%s: %v", g.name, err)
					continue
				}
				fmt.Fprintf(&got, "# %s\n%s%s", g.name, dump(">", in), dump("<", out))
				if what := decoded(t, proc, out); what != "" {
					fmt.Fprintf(&got, "= %s\n", what)
				}
				got.WriteByte('\n')
			}
			file := filepath.Join("testdata", "golden", strings.ToLower(ProcedureName(proc))+".txt")
			if *rewrite {
				os.MkdirAll(filepath.Dir(file), 0o755) //nolint:errcheck // shows in the next line
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
		})
	}
}
