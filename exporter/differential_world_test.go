package exporter_test

import (
	"crypto/sha256"
	"fmt"
	"maps"
	"math"
	"math/rand/v2"
	"path"
	"slices"
	"strings"

	"github.com/nfs-fleet/nfs-fleet/exporter/volume/volumetest"
	"github.com/nfs-fleet/nfs-fleet/replicator/tree"
)

// world is a tree that a source might have: some of everything that Linux allows, and what a seed makes.
type world struct {
	r     *rand.Rand
	noise string // what files are cut from
	files map[string]volumetest.File
	crowd []volumetest.File // what crowdDir holds
	made  int               // names given to random objects
}

const (
	crowdDir  = "crowd" // a directory of more than one page
	crowdSize = 5000
	maxCrowd  = 40 // bytes; each file in it has less
)

func newWorld(seed uint64) *world {
	var key [32]byte
	copy(key[:], fmt.Sprint(seed))
	noise := make([]byte, 10<<20)
	rand.NewChaCha8(key).Read(noise) //nolint:errcheck // there is none
	w := &world{r: rand.New(rand.NewPCG(seed, 1)), noise: string(noise), files: make(map[string]volumetest.File)}
	w.zoo()
	w.add(w.folder(crowdDir))
	for i := range crowdSize {
		w.crowd = append(w.crowd, w.plain(fmt.Sprintf("%s/file-%d", crowdDir, i), w.r.IntN(maxCrowd)))
	}
	for range 400 {
		w.grow()
	}
	return w
}

func (w *world) add(f volumetest.File) { w.files[f.Name] = f }

// entry is an object of a type with attributes that the seed makes.
func (w *world) entry(name string, t tree.Type) volumetest.File {
	f := volumetest.File{Entry: tree.Entry{Name: name, Type: t}}
	w.chown(&f)
	f.Mtime = tree.Time{Sec: 1_500_000_000 + w.r.Int64N(400_000_000), Nsec: w.r.Uint32N(1e9)}
	return f
}

func (w *world) chown(f *volumetest.File) {
	ids := []uint32{0, 1, 1000, 65534, math.MaxUint32, w.r.Uint32()}
	f.Mode, f.UID, f.GID = w.r.Uint32N(0o10000), ids[w.r.IntN(len(ids))], ids[w.r.IntN(len(ids))]
}

func (w *world) folder(name string) volumetest.File { return w.entry(name, tree.Directory) }

// plain is a regular file of n bytes.
func (w *world) plain(name string, n int) volumetest.File {
	f := w.entry(name, tree.Regular)
	f.Data = w.bytes(n)
	return f
}

func (w *world) bytes(n int) string {
	at := w.r.IntN(len(w.noise) - n)
	return w.noise[at : at+n]
}

// zoo adds one of everything.
func (w *world) zoo() {
	for _, dir := range []string{"sizes", "holes", "names", "times", "modes", "special", "links", "links/below", "empty"} {
		w.add(w.folder(dir))
	}
	const chunk = tree.ChunkSize
	for _, n := range []int{0, 1, 3, 4095, 4096, 4097, 1<<20 + 1, chunk - 1, chunk, chunk + 1, 9 << 20} {
		w.add(w.plain(fmt.Sprint("sizes/", n), n))
	}
	type x = volumetest.Extent
	for name, extents := range map[string][]x{
		"small": {{Data: w.bytes(10), Hole: 100_000}, {Data: w.bytes(10)}},
		"front": {{Hole: chunk - 50}, {Data: w.bytes(100)}},
		"inner": {{Data: w.bytes(10), Hole: chunk - 50}, {Data: w.bytes(100_000), Hole: 1}, {Data: w.bytes(1)}},
		"end":   {{Data: w.bytes(10), Hole: chunk}},
		"all":   {{Hole: chunk + 1}},
		"huge":  {{Data: w.bytes(10), Hole: 10 << 30}, {Data: w.bytes(10)}},
	} {
		f := w.entry("holes/"+name, tree.Regular)
		f.Extents = extents
		w.add(f)
	}
	for i, name := range []string{" a space ", "new\nline", "\xff\xfe", "h\u00e9llo", strings.Repeat("x", 255), strings.Repeat("\xff", 255), "-rf",
		`back\slash`, `"quotes'`, "...", "..x", ".hidden", "\x01\x7f", "*?[", "%00%s", "UPPER", "upper"} {
		w.add(w.plain("names/"+name, i))
		w.add(w.folder("names/" + name[1:] + "d"))
		w.add(w.plain("names/"+name[1:]+"d/"+name, 1))
	}
	for i, sec := range []int64{-1 << 40, -1, 0, 1, math.MaxInt32, math.MaxInt32 + 1, math.MaxUint32, math.MaxUint32 + 1, 1 << 40} {
		for _, nsec := range []uint32{0, 999_999_999} {
			f := w.plain(fmt.Sprintf("times/%d.%d", i, nsec), 1)
			f.Mtime = tree.Time{Sec: sec, Nsec: nsec}
			w.add(f)
		}
	}
	w.modes()
	w.linked()
	deep := "deep"
	for range 60 {
		w.add(w.folder(deep))
		deep += "/d"
	}
	w.add(w.plain(deep, 5))
}

func (w *world) modes() {
	for _, mode := range []uint32{0o4755, 0o2755, 0o1777, 0o7777, 0o001, 0o400} {
		f := w.plain(fmt.Sprintf("modes/f%o", mode), 1)
		d := w.folder(fmt.Sprintf("modes/d%o", mode))
		f.Mode, d.Mode = mode, mode
		w.add(f)
		w.add(d)
	}
	for i, t := range []tree.Type{tree.FIFO, tree.Socket, tree.Char, tree.Block, tree.Char, tree.Block} {
		f := w.entry(fmt.Sprint("special/", i), t)
		if t == tree.Char || t == tree.Block {
			f.Rdev = []tree.Device{{Major: 1, Minor: 3}, {Major: 0xfff, Minor: 0xfffff}}[i/4]
		}
		w.add(f)
	}
}

func (w *world) linked() {
	w.add(w.plain("links/one", 5000))
	for _, name := range []string{"links/two", "links/below/three", "sizes/four"} {
		w.add(w.link(name, "links/one"))
	}
	for i, target := range []string{"one", "/absolute", "\xff\n", strings.Repeat("t", 4095)} {
		f := w.entry(fmt.Sprint("links/sym", i), tree.Symlink)
		f.Target = target
		w.add(f)
	}
	w.add(w.link("links/sym0 again", "links/sym0"))
}

func (w *world) link(name, to string) volumetest.File {
	return volumetest.File{Entry: tree.Entry{Name: name}, Link: to}
}

// pick returns a name of the world that ok allows. The crowd is not picked from, nor added to.
func (w *world) pick(ok func(volumetest.File) bool) string {
	var all []string
	for p, f := range w.files {
		if p != crowdDir && ok(f) {
			all = append(all, p)
		}
	}
	slices.Sort(all)
	return all[w.r.IntN(len(all))]
}

func isFolder(f volumetest.File) bool { return f.Type == tree.Directory }

// isMain reports whether f can be given a further name.
func isMain(f volumetest.File) bool { return f.Link == "" && f.Type != tree.Directory }

// grow adds something anywhere.
func (w *world) grow() {
	w.made++
	name := path.Join(w.pick(isFolder), fmt.Sprint("made ", w.made))
	switch n := w.r.IntN(100); {
	case n < 15:
		w.add(w.folder(name))
	case n < 22:
		f := w.entry(name, tree.Symlink)
		f.Target = strings.ReplaceAll(w.bytes(1+w.r.IntN(100)), "\x00", "-")
		w.add(f)
	case n < 30:
		w.add(w.link(name, w.pick(isMain)))
	case n < 36:
		w.add(w.entry(name, []tree.Type{tree.FIFO, tree.Socket}[w.r.IntN(2)]))
	case n < 40:
		f := w.entry(name, []tree.Type{tree.Char, tree.Block}[w.r.IntN(2)])
		f.Rdev = tree.Device{Major: w.r.Uint32N(1 << 12), Minor: w.r.Uint32N(1 << 20)}
		w.add(f)
	case n < 45:
		f := w.entry(name, tree.Regular)
		for range 1 + w.r.IntN(4) {
			f.Extents = append(f.Extents, volumetest.Extent{Data: w.bytes(w.r.IntN(70_000)), Hole: w.r.Uint64N(100_000)})
		}
		w.add(f)
	default:
		w.add(w.plain(name, w.r.IntN(1<<w.r.IntN(18))))
	}
}

// remove takes a name and all below it away. A file that has another name keeps that.
func (w *world) remove(p string) {
	for gone, f := range maps.Clone(w.files) {
		if gone == p || strings.HasPrefix(gone, p+"/") {
			delete(w.files, gone)
			defer w.inherit(f)
		}
	}
}

// inherit gives what f was to the first of its other names.
func (w *world) inherit(f volumetest.File) {
	var names []string
	for p, other := range w.files {
		if other.Link == f.Name {
			names = append(names, p)
		}
	}
	slices.Sort(names)
	for i, p := range names {
		to := w.link(p, names[0])
		if i == 0 {
			to = f
			to.Name = p
		}
		w.add(to)
	}
}

// edit changes one thing.
func (w *world) edit() {
	anything := func(f volumetest.File) bool { return f.Link == "" }
	switch w.r.IntN(10) {
	case 0, 1, 2:
		w.grow()
	case 3, 4: // other bytes, or another type, in the same place
		p := w.pick(isMain)
		if f := w.files[p]; f.Type == tree.Regular {
			f.Extents, f.Data = nil, w.bytes(w.r.IntN(50_000))
			w.add(f)
			return
		}
		w.remove(p)
		w.add(w.plain(p, 100))
	case 5, 6: // other attributes
		f := w.files[w.pick(anything)]
		w.chown(&f)
		w.add(f)
	case 7: // another time only
		f := w.files[w.pick(anything)]
		f.Mtime = f.Mtime.Next()
		w.add(f)
	case 8:
		w.remove(w.pick(func(f volumetest.File) bool { return !isFolder(f) }))
	case 9: // made only: the zoo's directories stay
		if p := w.pick(anything); w.files[p].Type == tree.Directory && strings.Contains(p, "made ") {
			w.remove(p)
		}
	}
}

// churn is what happens between two generations: edits everywhere, and a crowd whose pages get gaps and a new end.
func (w *world) churn() {
	for range 150 {
		w.edit()
	}
	for range crowdSize / 10 {
		w.made++
		w.crowd[w.r.IntN(crowdSize)] = w.plain(fmt.Sprintf("%s/made %d", crowdDir, w.made), w.r.IntN(maxCrowd))
	}
}

// list returns what is to be published, in an order of the seed's.
func (w *world) list() []volumetest.File {
	all := append(slices.Clone(w.crowd), w.entry(".", tree.Directory)) // a root with other attributes each time
	for _, p := range slices.Sorted(maps.Keys(w.files)) {
		all = append(all, w.files[p])
	}
	w.r.Shuffle(len(all), func(i, j int) { all[i], all[j] = all[j], all[i] })
	return all
}

// sum returns the SHA-256 of a file, or zero when it has more bytes than whole, and its size.
func sum(f volumetest.File, whole uint64) (sum [sha256.Size]byte, size uint64) {
	h := sha256.New()
	for _, x := range append([]volumetest.Extent{{Data: f.Data}}, f.Extents...) {
		size += uint64(len(x.Data)) + x.Hole
		if size <= whole {
			h.Write([]byte(x.Data))
			h.Write(make([]byte, x.Hole))
		}
	}
	if size <= whole {
		h.Sum(sum[:0])
	}
	return sum, size
}
