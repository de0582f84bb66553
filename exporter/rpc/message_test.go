package rpc

import (
	"bytes"
	"context"
	"encoding/hex"
	"strings"
	"testing"
)

func TestHeaderVerdicts(t *testing.T) {
	good := callWith(7, 1, sys("host", 1, 2, 3), []byte("args"))
	edit := func(at int, v byte) []byte {
		b := bytes.Clone(good)
		b[at] = v
		return b
	}
	long := strings.Repeat("m", 256)
	credEnd := 24 + len(sys("host", 1, 2, 3))
	cases := []struct {
		name string
		rec  []byte
		want verdict
	}{
		{"good", good, headerOK},
		{"nothing", nil, headerNoCall},
		{"part of an xid", good[:3], headerNoCall},
		{"xid only", good[:4], headerNoCall},
		{"a reply", edit(7, msgReply), headerNoCall},
		{"neither call nor reply", edit(7, 9), headerNoCall},
		{"no version", good[:8], headerNoCall},
		{"version 1", edit(11, 1), headerVersion},
		{"version 1 and no more", edit(11, 1)[:12], headerVersion},
		{"ends after the version", good[:12], headerBadCred},
		{"ends before the procedure", good[:20], headerBadCred},
		{"ends before the credential", good[:24], headerBadCred},
		{"ends in the credential", good[:30], headerBadCred},
		{"flavor RPCSEC_GSS", edit(27, 6), headerBadCred},
		{"flavor AUTH_SHORT", edit(27, 2), headerBadCred},
		{"credential longer than the record", edit(29, 1), headerBadCred},
		{"credential of 401 bytes", callWith(7, 1, AppendOpaque(AppendUint32(nil, AuthNone), strings.Repeat("c", 401)), nil), headerBadCred},
		{"AUTH_NONE with a body", callWith(7, 1, AppendOpaque(AppendUint32(nil, AuthNone), "body"), nil), headerOK},
		{"AUTH_SYS without a body", callWith(7, 1, AppendOpaque(AppendUint32(nil, AuthSys), ""), nil), headerBadCred},
		{"16 gids", callWith(7, 1, sys("h", 1, 2, make([]uint32, 16)...), nil), headerOK},
		{"17 gids", callWith(7, 1, sys("h", 1, 2, make([]uint32, 17)...), nil), headerBadCred},
		{"a machine name of 255", callWith(7, 1, sys(long[:255], 1, 2), nil), headerOK},
		{"a machine name of 256", callWith(7, 1, sys(long, 1, 2), nil), headerBadCred},
		{"ends before the verifier", good[:credEnd], headerBadVerf},
		{"ends in the verifier", good[:credEnd+4], headerBadVerf},
		{"verifier longer than the record", edit(credEnd+5, 1), headerBadVerf},
	}
	for _, c := range cases {
		call := new(Call)
		if got := call.parse(c.rec); got != c.want {
			t.Errorf("%s: verdict %d, want %d", c.name, got, c.want)
		} else if got != headerNoCall && call.XID != 7 {
			t.Errorf("%s: XID %d, want 7", c.name, call.XID)
		} else if got == headerOK && c.name == "good" && string(call.Args) != "args" {
			t.Errorf("%s: arguments %q", c.name, call.Args)
		}
	}
}

// A credential that cannot be decoded must not be taken for the remembered one, nor spoil it.
func TestBadCredentialIsNotRemembered(t *testing.T) {
	c := new(Call)
	bad := callWith(1, 1, AppendOpaque(AppendUint32(nil, AuthSys), "abcd"), nil)
	for range 3 {
		if got := c.parse(bad); got != headerBadCred {
			t.Fatalf("verdict %d, want %d", got, headerBadCred)
		}
		if got := c.parse(callWith(2, 1, sys("h", 10, 20, 30), nil)); got != headerOK || c.Cred.UID != 10 || c.Cred.GIDs[0] != 30 {
			t.Fatalf("verdict %d, credential %+v", got, c.Cred)
		}
	}
}

func TestDenials(t *testing.T) {
	for v, want := range map[verdict]string{
		headerVersion: "80000018" + "00000009" + "00000001" + "00000001" + "00000000" + "00000002" + "00000002",
		headerBadCred: "80000014" + "00000009" + "00000001" + "00000001" + "00000001" + "00000001",
		headerBadVerf: "80000014" + "00000009" + "00000001" + "00000001" + "00000001" + "00000003",
	} {
		if got := hex.EncodeToString(appendDenial(nil, 9, v)); got != want {
			t.Errorf("verdict %d: %s, want %s", v, got, want)
		}
	}
}

func TestDecoder(t *testing.T) {
	d := NewDecoder([]byte{0, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0, 2, 0, 0, 0, 3, 'a', 'b', 'c', 0, 'd', 'e', 0, 0, 0, 0, 0, 0})
	if !d.Bool() || d.Uint64() != 2 || string(d.Opaque(3)) != "abc" || string(d.Fixed(2)) != "de" || len(d.Opaque(0)) != 0 {
		t.Error("a value differs")
	}
	if d.Err() != nil || d.Len() != 0 {
		t.Errorf("error %v, %d bytes left", d.Err(), d.Len())
	}
	bad := map[string]func(d *Decoder){
		"uint32":           func(d *Decoder) { d.Fixed(10); d.Uint32() },
		"uint64":           func(d *Decoder) { d.Fixed(5); d.Uint64() },
		"bool of 2":        func(d *Decoder) { d.Bool() },
		"over its limit":   func(d *Decoder) { d.Opaque(1) },
		"padding missing":  func(d *Decoder) { d.Fixed(9) },
		"negative length":  func(d *Decoder) { d.Fixed(-1) },
		"said by a caller": func(d *Decoder) { d.Fail() },
	}
	for name, take := range bad {
		d := NewDecoder([]byte{0, 0, 0, 2, 1, 2, 3, 4, 5, 6})
		take(&d)
		if d.Err() == nil {
			t.Errorf("%s: no error", name)
		}
		if d.Uint32() != 0 || d.Uint64() != 0 || d.Opaque(9) != nil || d.Err() == nil {
			t.Errorf("%s: values after the first that failed", name)
		}
	}
}

func FuzzDecoder(f *testing.F) {
	f.Add([]byte{0, 0, 0, 3, 'a', 'b', 'c', 0, 0, 0, 0, 1}, []byte{0, 1, 2, 3, 4})
	f.Add([]byte{0xff, 0xff, 0xff, 0xff}, []byte{4})
	f.Fuzz(func(t *testing.T, b, program []byte) {
		d := NewDecoder(b)
		for _, op := range program {
			before := d.Len()
			switch op % 5 {
			case 0:
				d.Uint32()
			case 1:
				d.Uint64()
			case 2:
				d.Bool()
			case 3:
				if v := d.Fixed(int(op)); len(v) > before {
					t.Fatal("more bytes than there were")
				}
			case 4:
				if v := d.Opaque(int(op)); len(v) > int(op) {
					t.Fatal("more bytes than allowed")
				}
			}
			if d.Len() > before {
				t.Fatal("went backwards")
			}
		}
	})
}

// FuzzCall gives the engine a whole record: whatever it holds, the answer is one well-formed record or none.
func FuzzCall(f *testing.F) {
	f.Add(call(1, echoNull))
	f.Add(call(1, echoBytes, opaque("seed")...))
	f.Add(callWith(1, echoCred, sys("machine", 1, 2, 3, 4), nil))
	f.Add(call(1, echoPanic))
	f.Add(call(1, 77))
	for _, at := range []int{7, 11, 14, 19, 27} {
		b := call(1, echoNull)
		b[at]++
		f.Add(b)
	}
	f.Add([]byte{})
	s := New(Config{Programs: []Program{newEcho()}})
	f.Fuzz(func(t *testing.T, rec []byte) {
		c := &Call{out: getBuffer(0)}
		defer putBuffer(c.out)
		c.out.b = append(c.out.b, "before"...)
		err := s.respond(context.Background(), c, rec)
		if !bytes.HasPrefix(c.out.b, []byte("before")) {
			t.Fatal("what was in the buffer is spoilt")
		}
		in := input{buf: c.out.b[6:], end: len(c.out.b) - 6}
		reply, ok, _ := in.next(2 << 20)
		if ok != (err == nil) || in.partial() {
			t.Fatalf("error %v, but a whole reply: %t", err, ok)
		}
		if ok && (!bytes.Equal(reply[:4], rec[:4]) || reply[7] != msgReply) {
			t.Fatalf("% x is no reply to % x", reply, rec)
		}
	})
}
