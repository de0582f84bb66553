package known

import (
	"errors"
	"testing"
)

func TestCheck(t *testing.T) {
	f := File("a", 7, 5)
	if len(f) != 5*Size {
		t.Fatalf("%d bytes", len(f))
	}
	for block := range int64(5) {
		if v, err := Check(f[block*Size:], "a", block); v != 7 || err != nil {
			t.Errorf("from block %d: version %d, %v", block, v, err)
		}
	}
	other := File("a", 8, 5)
	torn := append(append([]byte{}, f[:2*Size]...), other[2*Size:]...)
	flipped := append([]byte{}, f...)
	flipped[3*Size+77] ^= 4
	version := append([]byte{}, f...)
	version[7] ^= 1
	for what, wrong := range map[string]func() error{
		"two versions":          func() error { _, err := Check(torn, "a", 0); return err },
		"one bit":               func() error { _, err := Check(flipped, "a", 0); return err },
		"one bit of a version":  func() error { _, err := Check(version[:Size], "a", 0); return err },
		"another file":          func() error { _, err := Check(f, "b", 0); return err },
		"another place":         func() error { _, err := Check(f[Size:], "a", 0); return err },
		"a hole":                func() error { _, err := Check(make([]byte, Size), "a", 0); return err },
		"nothing":               func() error { _, err := Check(nil, "a", 0); return err },
		"less than whole block": func() error { _, err := Check(f[:Size+1], "a", 0); return err },
	} {
		if err := wrong(); !errors.Is(err, ErrWrong) {
			t.Errorf("%s: %v", what, err)
		}
	}
}
