package hello

import (
	"bytes"
	"encoding/hex"
	"errors"
	"flag"
	"fmt"
	"math"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"testing"
	"time"

	"github.com/nfs-fleet/nfs-fleet/exporter/rpc"
)

var rewrite = flag.Bool("rewrite", false, "rewrite the golden files")

var greeting = Greeting{
	Slave: "web17", Instance: "6d0a4f0e-6d6c-4c51-8d1c-7d6e0f6b2a11", Mode: "relay", Version: "0.4.0",
	Mounts: []Mount{{"_nfs._tcp.web17.slaves.prod.example", "www", "/srv/www"}, {"_nfs._tcp.prod.example", "docs", "/srv/документы"}},
	More:   3,
	Last: Reattach{At: time.Date(2026, 11, 21, 7, 30, 0, 123, time.UTC), Took: 25 * time.Millisecond, From: "m1", To: "m2",
		Why: "the connection broke"},
}

var answer = Answer{
	Status: Leave, Master: "m1", Revision: 4711,
	Targets: []Target{{"m2", "10.77.0.2", 2049}, {"m3", "fd00::3", 2049}, {"m1", "m1.prod.example", 2050}},
	Every:   750 * time.Millisecond, Why: "it is being drained",
}

func TestRoundTrip(t *testing.T) {
	for what, g := range map[string]Greeting{"full": greeting, "empty": {}} {
		got, err := DecodeGreeting(AppendGreeting(nil, g))
		if err != nil || !reflect.DeepEqual(got, g) {
			t.Errorf("%s greeting: %+v, %v", what, got, err)
		}
	}
	got, err := DecodeAnswer(AppendAnswer(nil, answer))
	if err != nil || !reflect.DeepEqual(got, answer) {
		t.Errorf("answer: %+v, %v", got, err)
	}
}

// The masters of a first release do not say what time it is.
func TestClock(t *testing.T) {
	a := answer
	a.Now = time.Date(2026, 11, 21, 7, 30, 0, 5, time.UTC)
	b := AppendAnswer(nil, a)
	if got, err := DecodeAnswer(b); err != nil || !got.Now.Equal(a.Now) {
		t.Errorf("%s, %v", got.Now, err)
	}
	if got, err := DecodeAnswer(b[:len(b)-8]); err != nil || !reflect.DeepEqual(got, answer) {
		t.Errorf("without: %+v, %v", got, err)
	}
	if _, err := DecodeAnswer(b[:len(b)-4]); err == nil {
		t.Error("half a time was taken")
	}
}

// What goes over the wire must not change while it is version 1: the slaves of a fleet are upgraded at other times than its
// masters.
func TestGolden(t *testing.T) {
	for name, b := range map[string][]byte{"greeting.hex": AppendGreeting(nil, greeting), "answer.hex": AppendAnswer(nil, answer)} {
		file := filepath.Join("testdata", name)
		if *rewrite {
			if err := os.WriteFile(file, []byte(hex.Dump(b)), 0o644); err != nil {
				t.Fatal(err)
			}
		}
		want, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		if got := hex.Dump(b); got != string(want) {
			t.Errorf("%s:\n%s\nwant:\n%s", name, got, want)
		}
	}
}

func TestLaterFieldsAreIgnored(t *testing.T) {
	later := rpc.AppendOpaque(nil, "what a later release adds")
	if g, err := DecodeGreeting(append(AppendGreeting(nil, greeting), later...)); err != nil || !reflect.DeepEqual(g, greeting) {
		t.Errorf("greeting: %+v, %v", g, err)
	}
	full := answer
	full.Now = time.Unix(1_800_000_000, 0).UTC()
	if a, err := DecodeAnswer(append(AppendAnswer(nil, full), later...)); err != nil || !reflect.DeepEqual(a, full) {
		t.Errorf("answer: %+v, %v", a, err)
	}
	unknown := answer
	unknown.Status = 77
	if a, err := DecodeAnswer(AppendAnswer(nil, unknown)); err != nil || a.Status != Unwell {
		t.Errorf("an unknown status: %v, %v", a.Status, err)
	}
}

func TestCutShort(t *testing.T) {
	for what, c := range map[string]struct {
		b      []byte
		decode func([]byte) error
	}{
		"greeting": {AppendGreeting(nil, greeting), func(b []byte) error { _, err := DecodeGreeting(b); return err }},
		"answer":   {AppendAnswer(nil, answer), func(b []byte) error { _, err := DecodeAnswer(b); return err }},
	} {
		for n := range len(c.b) {
			if err := c.decode(c.b[:n]); !errors.Is(err, rpc.ErrGarbageArgs) {
				t.Errorf("%d of %d bytes of the %s: %v", n, len(c.b), what, err)
			}
		}
	}
}

// Too much of everything is cut down to what is allowed, and what is left can be decoded.
func TestTooMuch(t *testing.T) {
	long := strings.Repeat("ü", 5000)
	g := Greeting{Slave: long, Instance: long, Mode: long, Version: long, More: math.MaxInt - 1000,
		Last: Reattach{At: time.Date(9999, 1, 1, 0, 0, 0, 0, time.UTC), Took: -1, From: long, To: long, Why: long}}
	for range 200 {
		g.Mounts = append(g.Mounts, Mount{long, long, long})
	}
	b := AppendGreeting(nil, g)
	got, err := DecodeGreeting(b)
	if err != nil || len(b) > MaxGreeting {
		t.Fatalf("%d bytes: %v", len(b), err)
	}
	if len(got.Mounts) < 4 || got.More != maxMore || got.Slave != strings.Repeat("ü", 128) || !got.Last.At.IsZero() || got.Last.Took != 0 {
		t.Errorf("%d mounts and %d more, %q, %+v", len(got.Mounts), got.More, got.Slave, got.Last)
	}
	a := Answer{Master: long, Why: long, Revision: -1, Every: -1}
	for i := range 200 {
		a.Targets = append(a.Targets, Target{fmt.Sprint(i, long), long, 1})
	}
	if b = AppendAnswer(nil, a); len(b) > MaxAnswer {
		t.Fatalf("%d bytes", len(b))
	}
	if got, err := DecodeAnswer(b); err != nil || len(got.Targets) != MaxTargets || got.Revision != 0 || got.Every != DefaultEvery {
		t.Errorf("%+v, %v", got, err)
	}
}

func TestManySmallMounts(t *testing.T) {
	g := Greeting{Slave: "web17"}
	for i := range 100 {
		g.Mounts = append(g.Mounts, Mount{"_nfs._tcp.prod.example", "www", fmt.Sprintf("/srv/%d", i)})
	}
	got, err := DecodeGreeting(AppendGreeting(nil, g))
	if err != nil || len(got.Mounts) != MaxMounts || got.More != 100-MaxMounts {
		t.Errorf("%d mounts and %d more, %v", len(got.Mounts), got.More, err)
	}
}

// Nothing that would write on a terminal, or is no text, gets through: neither out of an honest sender nor into a receiver.
func TestUnprintable(t *testing.T) {
	g := Greeting{Slave: "a\x1b[2J", Instance: "b\xff\xfe", Mounts: []Mount{{Dir: "/srv/a\nb\u202e"}}}
	got, err := DecodeGreeting(AppendGreeting(nil, g))
	if err != nil || got.Slave != "a?[2J" || got.Instance != "b?" || got.Mounts[0].Dir != "/srv/a?b?" {
		t.Errorf("%+v, %v", got, err)
	}
	for _, bad := range []string{"\n", "\x1b", "\x00", "\xff", "\u202e", "\u2028"} {
		b := rpc.AppendOpaque(nil, bad)
		b = append(b, AppendGreeting(nil, Greeting{})[4:]...)
		if _, err := DecodeGreeting(b); !errors.Is(err, rpc.ErrGarbageArgs) {
			t.Errorf("%q was let in: %v", bad, err)
		}
	}
}

func TestHowOften(t *testing.T) {
	for asked, want := range map[time.Duration]time.Duration{0: DefaultEvery, 1: MinEvery, time.Second: time.Second, math.MaxInt64: MaxEvery} {
		if a, err := DecodeAnswer(AppendAnswer(nil, Answer{Every: asked})); err != nil || a.Every != want {
			t.Errorf("every %v: %v, %v", asked, a.Every, err)
		}
	}
}

func TestWords(t *testing.T) {
	for s, want := range map[Status]string{OK: "ok", Leave: "leave", Unwell: "unwell", Refused: "refused", 9: "status 9"} {
		if s.String() != want {
			t.Errorf("%d: %q", s, s)
		}
	}
	if a, b, c := ProcedureName(0), ProcedureName(1), ProcedureName(2); a != "NULL" || b != "HELLO" || c != "UNKNOWN" {
		t.Error(a, b, c)
	}
}

func FuzzDecodeGreeting(f *testing.F) {
	f.Add(AppendGreeting(nil, greeting))
	f.Add(AppendGreeting(nil, Greeting{}))
	f.Fuzz(func(t *testing.T, b []byte) {
		g, err := DecodeGreeting(b)
		if err != nil {
			return
		}
		again := AppendGreeting(nil, g)
		if h, err := DecodeGreeting(again); err != nil || !reflect.DeepEqual(g, h) && len(b) <= roomForMounts {
			t.Fatalf("%+v\nbecame %+v, %v", g, h, err)
		}
	})
}

func FuzzDecodeAnswer(f *testing.F) {
	f.Add(AppendAnswer(nil, answer))
	f.Add(AppendAnswer(nil, Answer{}))
	f.Fuzz(func(t *testing.T, b []byte) {
		a, err := DecodeAnswer(b)
		if err != nil {
			return
		}
		if a.Every < MinEvery || a.Every > MaxEvery || a.Status >= statuses {
			t.Fatalf("%+v cannot be acted upon", a)
		}
		if c, err := DecodeAnswer(AppendAnswer(nil, a)); err != nil || !reflect.DeepEqual(a, c) {
			t.Fatalf("%+v\nbecame %+v, %v", a, c, err)
		}
	})
}

// What is decoded takes memory in proportion to what came, whatever a count announces.
func TestAnnouncedAndNotSent(t *testing.T) {
	b := bytes.Repeat([]byte{0}, 16)        // four empty texts
	b = rpc.AppendUint32(b, math.MaxUint32) // mounts
	if _, err := DecodeGreeting(b); !errors.Is(err, rpc.ErrGarbageArgs) {
		t.Error(err)
	}
}
