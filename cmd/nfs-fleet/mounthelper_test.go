package main

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"reflect"
	"strings"
	"testing"
	"time"
	"unicode/utf8"

	"github.com/nfs-fleet/nfs-fleet/fleet/slave/control"
	"github.com/nfs-fleet/nfs-fleet/fleet/slave/mount"
)

// mount(8) calls its helpers in more than one way.
func TestParseHelper(t *testing.T) {
	const what, dir = "_nfs._tcp.prod.example:/www", "/srv/www"
	for line, want := range map[string]helperCall{
		"SPEC DIR":                         {},
		"SPEC DIR -o rw,_netdev":           {options: []string{"rw,_netdev"}},
		"SPEC DIR -orw -sfnv":              {options: []string{"rw"}, sloppy: true, fake: true, verbose: true},
		"SPEC DIR -s -f -n -v -o rw":       {options: []string{"rw"}, sloppy: true, fake: true, verbose: true},
		"SPEC DIR -r -o ro,_netdev":        {options: []string{"ro,_netdev"}},
		"SPEC DIR -w -t nfs-fleet -orw":    {options: []string{"rw"}},
		"-t nfs-fleet -n -o rw SPEC DIR":   {options: []string{"rw"}},
		"-v SPEC DIR -o a -o b":            {options: []string{"a", "b"}, verbose: true},
		"SPEC DIR -t nfs-fleet.sub -o rw":  {options: []string{"rw"}},
		"SPEC DIR -nrvo rw,x-systemd.auto": {options: []string{"rw,x-systemd.auto"}, verbose: true},
	} {
		args := strings.Fields(strings.NewReplacer("SPEC", what, "DIR", dir).Replace(line))
		want.what, want.dir = what, dir
		if got, err := parseHelper(args); err != nil || !reflect.DeepEqual(got, want) {
			t.Errorf("%q: %+v, %v; want %+v", line, got, err, want)
		}
	}
	for _, line := range []string{"", "SPEC", "SPEC DIR more", "SPEC DIR -o", "SPEC DIR -x", "SPEC DIR -N /proc/1/ns/mnt", "SPEC DIR -N/proc/1/ns/mnt", "SPEC DIR -N", "SPEC DIR -t", "SPEC DIR --verbose"} {
		if got, err := parseHelper(strings.Fields(line)); err == nil {
			t.Errorf("%q: %+v", line, got)
		}
	}
}

func TestHelperCodes(t *testing.T) {
	for err, want := range map[error]int{
		nil: 0, mount.ErrUsage: 1, mount.ErrNotRoot: 1, errInterrupted: 8, mount.ErrFailed: 32, mount.ErrMounted: 32,
		control.ErrNoMaster: 32, control.ErrNoName: 32, control.ErrNoAgent: 32, errors.New("other"): 32,
	} {
		if err != nil {
			err = fmt.Errorf("so it is: %w", err)
		}
		if got := helperCode(err); got != want {
			t.Errorf("%v: exit %d, want %d", err, got, want)
		}
	}
}

func TestHelperSaysWhatIsWrong(t *testing.T) {
	var out bytes.Buffer
	a := &app{out: io.Discard, err: &out, now: time.Now}
	for _, c := range []struct{ line, word string }{
		{"filer:/www /srv -o rw", "no SRV name"}, {"_nfs._tcp.x:/www /srv -o rw,soft", "option soft is refused"}, {"one", "want SRVNAME"},
	} {
		out.Reset()
		if code := a.runHelper(t.Context(), strings.Fields(c.line)); code != mountUsage || !strings.HasPrefix(out.String(), helperName+": ") || !strings.Contains(out.String(), c.word) {
			t.Errorf("%q: exit %d, %q", c.line, code, out.String())
		}
	}
}

// Flags and -o are one list of options, flags last.
func TestMountFlags(t *testing.T) {
	f := mountFlags{options: []string{"nconnect=4,via=relay", "noexec"}, via: "direct", dns: []string{"a", "b:5353"}, masters: []string{"m1"}, name: "web17", wait: time.Minute}
	const want = "nconnect=4,via=relay,noexec,via=direct,dns=a,dns=b:5353,master=m1,name=web17,wait=1m0s"
	if got := f.text(); got != want {
		t.Errorf("%s, want %s", got, want)
	}
	if got := (mountFlags{wait: mount.DefaultWait}).text(); got != "" {
		t.Errorf("nothing is asked for, and that is %q", got)
	}
	var out bytes.Buffer
	for _, c := range []struct {
		line string
		code int
		word string
	}{
		{"mount", exitUsage, "accepts 2 arg"}, {"mount filer:/www /srv", exitUsage, "no SRV name"},
		{"mount _nfs._tcp.x:/www /srv -o bg", exitUsage, "nfs-fleet mount --help"}, {"mount _nfs._tcp.x:/www /srv -o json", exitUsage, "json is not known"},
		{"umount", exitUsage, "accepts 1 arg"}, {"mounts --run-dir /nonexistent", exitFailed, "no agent runs"}, {"mounts -o xml", exitUsage, "table or json"},
	} {
		out.Reset()
		a := &app{out: io.Discard, err: &out, now: time.Now, terminal: func(any) bool { return false }}
		if code := a.run(t.Context(), strings.Fields(c.line)); code != c.code || !strings.Contains(out.String(), c.word) {
			t.Errorf("%q: exit %d, %q", c.line, code, out.String())
		}
	}
}

func TestMountsTable(t *testing.T) {
	now := time.Date(2026, 1, 1, 12, 0, 0, 0, time.UTC)
	ago := func(d time.Duration) string { return control.Time(now.Add(-d)) }
	s := control.Status{Mounts: []control.Mount{
		{Name: "_nfs._tcp.web17.slaves.prod.example", Path: "/www", Dir: "/srv/www", Via: "relay", Master: "m2", State: control.Reading,
			Since: ago(3 * time.Minute), Why: "m1 has lost the connection", Reattach: &control.Change{At: ago(3 * time.Minute), TookMS: 21.4, From: "m1", To: "m2"}},
		{Name: "_nfs._tcp.b.example", Path: "/x", Dir: "/x", Via: "direct", Master: "m1", State: control.Searching, Since: ago(time.Hour),
			Why: "its masters are not known: name server 10.0.0.1:5353: i/o timeout; name server 10.0.0.2:5353: i/o timeout"},
		{Name: "_nfs._tcp.c.example", Via: "relay", State: control.Searching},
	}}
	var out bytes.Buffer
	a := &app{out: &out, now: func() time.Time { return now }}
	a.mountsTable(&out, s)
	for line := range strings.Lines(out.String()) {
		if n := utf8.RuneCountInString(strings.TrimSuffix(line, "\n")); n > 120 && !strings.HasPrefix(line, "/x: ") {
			t.Errorf("a line of %d columns: %s", n, line)
		}
	}
	fmt.Fprintln(&out, "\n$ nfs-fleet mounts -o wide")
	a.wide = true
	a.mountsTable(&out, s)
	transcript(t, "mounts", out.String())
	out.Reset()
	a.mountsTable(&out, control.Status{})
	if out.String() != "Nothing is mounted.\n" {
		t.Errorf("%q", out.String())
	}
}
