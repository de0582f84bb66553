package fdstore

import (
	"errors"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

func TestInherited(t *testing.T) {
	for _, c := range []struct {
		pid, count, names string
		want              []string
	}{
		{"", "", "", nil},
		{"", "2", "a:b", []string{"a", "b"}},
		{"7", "1", "a", []string{"a"}},
		{"8", "1", "a", nil}, // somebody else's
		{"7", "2", "a", []string{"a", ""}},
		{"7", "1", "a:b", []string{"a"}},
		{"7", "-1", "a", nil},
		{"7", "x", "a", nil},
		{"7", "100000", "a", nil},
	} {
		if got := inherited(c.pid, c.count, c.names, 7); !slices.Equal(got, c.want) {
			t.Errorf("%+v: %q", c, got)
		}
	}
}

func TestValidName(t *testing.T) {
	for name, valid := range map[string]bool{
		"relay-300": true, "a.b_c": true, "": false, "a:b": false, "a b": false, "a\n": false, "é": false, strings.Repeat("x", 256): false,
	} {
		if err := ValidName(name); (err == nil) != valid {
			t.Errorf("%q: %v", name, err)
		}
	}
}

// What one process tells, the other hears: words, and an open file that both then have.
func TestAFileIsHandedOver(t *testing.T) {
	path := filepath.Join(t.TempDir(), "notify")
	t.Setenv(envSocket, path)
	heard, err := net.ListenUnixgram("unixgram", &net.UnixAddr{Name: path, Net: "unixgram"})
	if err != nil {
		t.Fatal(err)
	}
	if !Supervised() {
		t.Error("it does not know that it is supervised")
	}
	s, files := Inherit()
	if len(files) != 0 || Supervised() {
		t.Errorf("files %v; a child would take itself for this process: %v", files, Supervised())
	}
	ln, err := net.ListenTCP("tcp", &net.TCPAddr{IP: net.IPv4(127, 0, 0, 1)})
	if err != nil {
		t.Fatal(err)
	}
	if err := s.Keep("relay", ln); err != nil {
		t.Fatal(err)
	}
	m, err := Receive(heard)
	if err != nil || !m.Has("FDSTORE=1") || m.Get("FDNAME") != "relay" || len(m.FDs) != 1 {
		t.Fatalf("%+v, %v", m, err)
	}
	f := os.NewFile(uintptr(m.FDs[0]), "relay")
	other, err := net.FileListener(f)
	f.Close()
	if err != nil {
		t.Fatal(err)
	}
	ln.Close()
	conn, err := net.Dial("tcp", other.Addr().String())
	if err != nil {
		t.Errorf("the listener went with the one that gave it: %v", err)
	} else {
		conn.Close()
	}
	other.Close()

	if err := errors.Join(s.Notify("READY=1", "X=a=b"), s.Drop("relay")); err != nil {
		t.Fatal(err)
	}
	if m, err := Receive(heard); err != nil || !m.Has("READY=1") || m.Get("X") != "a=b" || m.Get("Y") != "" || len(m.FDs) != 0 {
		t.Errorf("%+v, %v", m, err)
	}
	if m, err := Receive(heard); err != nil || !m.Has("FDSTOREREMOVE=1") || m.Get("FDNAME") != "relay" {
		t.Errorf("%+v, %v", m, err)
	}
	if err := s.Keep("a:b", ln); err == nil {
		t.Error("a name with a colon is taken")
	}
	heard.Close()
	if _, err := Receive(heard); !errors.Is(err, net.ErrClosed) {
		t.Errorf("the end of the socket is %v", err)
	}
	if err := s.Notify("READY=1"); err == nil {
		t.Error("nobody hears, and that is no error")
	}
	if err := (Store{}).Notify("READY=1"); err != nil {
		t.Errorf("nobody is there to be told: %v", err)
	}
}
