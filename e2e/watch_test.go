package e2e

import (
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/nfs-fleet/nfs-fleet/e2e/known"
	"github.com/nfs-fleet/nfs-fleet/e2e/wire"
)

// The slave's readers tell the truth: how long a pause was, on a clock that agrees with this machine's, and which bytes were
// wrong.
func TestWatch(t *testing.T) {
	const blocks = 2048
	source := t.TempDir()
	f := newFixture(t, ",mode=manual", func(dir string) {
		source = dir
		writeFile(t, dir+"/big", string(known.File("big", 1, blocks)))
		wrong := known.File("wrong", 1, 16)
		wrong[5*known.Size+100] ^= 1
		writeFile(t, dir+"/wrong", string(wrong))
	})
	began := time.Now()
	single := f.slave.Watch(wire.Watch{Path: f.mnt + "/big", Name: "big", Reads: 100, Pace: time.Millisecond})
	stream := f.slave.Watch(wire.Watch{Path: f.mnt + "/big", Name: "big", Stream: true, Pace: 5 * time.Millisecond})
	wrong := f.slave.Watch(wire.Watch{Path: f.mnt + "/wrong", Name: "wrong", Reads: 100})
	both := map[string]*Watch{"single blocks": single, "stream": stream}
	time.Sleep(3 * time.Second) // of undisturbed reading
	for what, w := range both {
		r := w.Window()
		faultless(t, what, r)
		t.Logf("%s: %d reads, %d opens in %v, longest %v, stall %v", what, r.Reads, r.Opens, r.Span, r.Longest.Took, r.Stall)
		if here := time.Since(began); r.Span > here || r.Span < here*9/10-100*time.Millisecond {
			t.Errorf("%v passed on the slave, %v here", r.Span, here)
		}
		if len(r.Versions) != 1 || r.Versions[1] == 0 || r.Opens == 0 {
			t.Errorf("%s saw the versions %v in %d opens", what, r.Versions, r.Opens)
		}
	}
	if r := wrong.Stop(); r.Failed == 0 || r.Failed > r.Reads/4 || !strings.Contains(r.Errors[0], "block 5 of wrong, version 1, byte 96") {
		t.Errorf("one block of 16 is wrong, and %d of %d reads: %q", r.Failed, r.Reads, r.Errors)
	}

	f.replace(t, "big", string(known.File("big", 2, blocks)))
	f.Publish("www")
	const pause = 400 * time.Millisecond
	f.proc.signal(t, syscall.SIGSTOP)
	time.Sleep(pause)
	f.proc.signal(t, syscall.SIGCONT)
	for what, w := range both {
		eventually(t, restLimit, "an open meets the new version", func() bool {
			r := w.Window()
			faultless(t, what, r)
			if len(r.Pauses) > 0 {
				t.Logf("%s: %+v, stall %v", what, r.Pauses, r.Stall)
			}
			return r.Versions[2] > 0
		})
	}

	f.proc.signal(t, syscall.SIGSTOP)
	time.Sleep(pause)
	f.proc.signal(t, syscall.SIGCONT)
	for what, w := range both {
		if r := w.Stop(); r.Longest.Took < pause*8/10 || r.Longest.Took > pause+300*time.Millisecond+r.Stall {
			t.Errorf("%s waited %+v (stall %v) for a master that was stopped for %v", what, r.Longest, r.Stall, pause)
		} else {
			faultless(t, what, r)
		}
	}
	if _, err := os.Stat(filepath.Join(source, "big")); err != nil {
		t.Error(err)
	}

	p := f.slave.Start([]string{"WORD=hello"}, "sh", "-c", "echo $WORD; trap 'echo bye; exit 3' TERM; while :; do sleep 0.05; done")
	eventually(t, restLimit, "the program speaks", func() bool { return string(p.Output().Said) == "hello\n" })
	p.Signal(syscall.SIGTERM)
	if r := p.Wait(restLimit); r.Code != 3 || string(r.Said) != "hello\nbye\n" {
		t.Errorf("the program ended with %d: %q", r.Code, r.Said)
	}
	f.slave.Must("sh", "-c", "(sleep 0.1 &)") // an orphan, which process 1 has to collect
	eventually(t, restLimit, "no process is left behind", func() bool {
		return !strings.Contains(f.slave.Must("sh", "-c", "cat /proc/[0-9]*/stat 2>/dev/null; :"), ") Z ")
	})
}
