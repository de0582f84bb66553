package console

import (
	"bytes"
	"errors"
	"io"
	"strings"
	"testing"
	"testing/iotest"

	"github.com/nfs-fleet/nfs-fleet/replicator/tree"
)

func decodeAll(r io.Reader) (out []string, err error) {
	for object, err := range DecodeObjects(r) {
		if err != nil {
			return out, err
		}
		out = append(out, string(object))
	}
	return out, nil
}

func TestObjectStream(t *testing.T) {
	big := strings.Repeat("large ", 1<<20)
	got, err := decodeAll(iotest.HalfReader(objectStream("a", big, "b", "a")))
	if err != nil || len(got) != 4 || got[0] != "a" || got[1] != big || got[2] != "b" || got[3] != "a" {
		t.Fatalf("%d objects, %v", len(got), err)
	}
	if got, err := decodeAll(objectStream()); err != nil || got != nil {
		t.Errorf("no objects: %q, %v", got, err)
	}
	for object := range DecodeObjects(objectStream("a", "b")) {
		if string(object) != "a" {
			t.Errorf("%q", object)
		}
		break // a reader may stop early
	}
}

func TestObjectStreamThatIsNone(t *testing.T) {
	whole := objectStream("first", "second").Bytes()
	for n := range len(whole) {
		if _, err := decodeAll(bytes.NewReader(whole[:n])); !errors.Is(err, ErrStream) || !errors.Is(err, ErrInvalid) {
			t.Fatalf("cut off after %d of %d bytes: %v", n, len(whole), err)
		}
	}
	for i := range whole {
		damaged := bytes.Clone(whole)
		damaged[i] ^= 0x41
		if _, err := decodeAll(bytes.NewReader(damaged)); !errors.Is(err, ErrStream) {
			t.Fatalf("byte %d damaged: %v", i, err)
		}
	}
	huge := append(make([]byte, 31), 1, 0xff, 0xff, 0xff, 0xff)
	if _, err := decodeAll(bytes.NewReader(huge)); !errors.Is(err, ErrStream) {
		t.Errorf("an object of 4 GiB: %v", err)
	}
	if _, err := decodeAll(iotest.ErrReader(io.ErrNoProgress)); !errors.Is(err, io.ErrNoProgress) || errors.Is(err, ErrStream) {
		t.Errorf("a reader's own error: %v", err)
	}
}

func FuzzDecodeObjects(f *testing.F) {
	f.Add(objectStream().Bytes())
	f.Add(objectStream("a", "bb").Bytes())
	f.Add(objectStream("a").Bytes()[:20])
	f.Add(append(make([]byte, 31), 1, 0x03, 0xff, 0xff, 0xff))
	f.Fuzz(func(t *testing.T, b []byte) {
		var again bytes.Buffer
		for object, err := range DecodeObjects(bytes.NewReader(b)) {
			if err != nil {
				if !errors.Is(err, ErrStream) {
					t.Fatalf("%v", err)
				}
				return
			}
			d, err := EncodeObject(&again, object)
			if err != nil || d != tree.Sum(object) {
				t.Fatal(d, err)
			}
		}
		if err := EncodeEnd(&again); err != nil || !bytes.HasPrefix(b, again.Bytes()) {
			t.Fatalf("%x decodes, and encodes to %x", b, again.Bytes())
		}
	})
}
