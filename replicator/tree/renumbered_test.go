package tree

import "testing"

func TestRenumbered(t *testing.T) {
	file := Entry{Name: "f", Type: Regular, Mode: 0o644, Links: 1, Size: 3, Ino: 7, Tag: 1, Born: 1, Slot: 1, Content: Content{Blob, Sum([]byte("abc"))}}
	dir := Entry{Name: "d", Type: Directory, Mode: 0o755, Links: 2, Size: 4096, Ino: 8, Slot: 2, Content: Content{Dir, Sum([]byte("d"))}}
	with := func(e Entry, change func(*Entry)) *Entry { change(&e); return &e }
	for name, tc := range map[string]struct {
		change Change
		want   bool
	}{
		"added":                   {Change{New: &file}, false},
		"removed":                 {Change{Old: &file}, false},
		"another ino":             {Change{Old: &file, New: with(file, func(e *Entry) { e.Ino, e.Tag, e.Born, e.Ctime = 9, 2, 2, Time{5, 0} })}, true},
		"another mode":            {Change{Old: &file, New: with(file, func(e *Entry) { e.Mode = 0o600 })}, false},
		"other bytes":             {Change{Old: &file, New: with(file, func(e *Entry) { e.Content.Digest = Sum([]byte("xyz")) })}, false},
		"one more link":           {Change{Old: &file, New: with(file, func(e *Entry) { e.Links = 2 })}, false},
		"a directory's inside":    {Change{Old: &dir, New: with(dir, func(e *Entry) { e.Links, e.Size, e.Ctime = 3, 8192, Time{5, 0} })}, true},
		"a directory's mtime":     {Change{Old: &dir, New: with(dir, func(e *Entry) { e.Mtime = Time{5, 0} })}, false},
		"a file in a dir's place": {Change{Old: &dir, New: &file}, false},
	} {
		if got := tc.change.Renumbered(); got != tc.want {
			t.Errorf("%s: %t, want %t", name, got, tc.want)
		}
	}
}
