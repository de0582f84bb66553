package mount

import (
	"context"
	"errors"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"github.com/nfs-fleet/nfs-fleet/fleet/slave/control"
	"github.com/nfs-fleet/nfs-fleet/fleet/slave/mounts"
)

func TestWhatTheKernelMeans(t *testing.T) {
	s := Spec{Name: "_nfs._tcp.x", Path: "/www", text: "_nfs._tcp.x:/www"}
	route := control.Route{Addr: netip.MustParseAddrPort("127.0.0.1:300"), Master: "m1"}
	for errno, words := range map[syscall.Errno]string{
		syscall.ENOENT: "m1 has no directory /www", syscall.EACCES: "does not let this host in", syscall.ENODEV: "no NFS client",
		syscall.EPROTONOSUPPORT: "nfsv3", syscall.ENOTDIR: "not a directory", syscall.EBUSY: "in use", syscall.EINVAL: "options",
		syscall.ETIMEDOUT: "does not answer", syscall.EPERM: "root", syscall.ESTALE: "deleted", syscall.ENOMEM: "refuses",
	} {
		err := explain(errno, s, "/srv/www", route)
		if !errors.Is(err, ErrFailed) || !errors.Is(err, errno) || !strings.Contains(err.Error(), words) || !strings.Contains(err.Error(), "/srv/www") {
			t.Errorf("%v: %v", errno, err)
		}
	}
}

func TestDirectory(t *testing.T) {
	root, err := filepath.EvalSymlinks(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	if err := errors.Join(os.Mkdir(root+"/dir", 0o755), os.WriteFile(root+"/file", nil, 0o600),
		os.Symlink("dir", root+"/link"), os.Symlink("gone", root+"/dangling")); err != nil {
		t.Fatal(err)
	}
	// What is mounted is not asked: here it is not even there.
	table := []mounts.Mount{{Name: "_nfs._tcp.x", Path: "/www", Dir: root + "/hung"}, {Name: "_nfs._tcp.x", Path: "/www", Dir: root + "/dir/m"}}
	for dir, want := range map[string]string{"/dir": "/dir", "/link": "/dir", "/dir/../dir/": "/dir", "/hung": "/hung"} {
		if got, err := directory(table, root+dir); err != nil || got != root+want {
			t.Errorf("%s: %s, %v", dir, got, err)
		}
	}
	for dir, words := range map[string]string{"/absent": "does not exist", "/file": "not a directory", "/file/x": "not a directory", "/dangling": "does not exist"} {
		if _, err := directory(table, root+dir); err == nil || !errors.Is(err, ErrFailed) || !strings.Contains(err.Error(), words) {
			t.Errorf("%s: %v", dir, err)
		}
	}
	if err := os.Symlink("dir/m", root+"/to"); err != nil {
		t.Fatal(err)
	}
	for dir, want := range map[string]string{"/hung": "/hung", "/link/m": "/dir/m", "/to": "/dir/m", "/dir/x/../m": "/dir/m"} {
		if got, err := mountPoint(table, root+dir); err != nil || got != root+want {
			t.Errorf("unmount %s: %s, %v", dir, got, err)
		}
	}
	if _, err := mountPoint(table, root+"/dir"); !errors.Is(err, ErrUnmount) || !strings.Contains(err.Error(), "nothing of a fleet") {
		t.Errorf("unmount what is not mounted: %v", err)
	}
}

// Without an agent one is started, once; when that fails the command says so.
func TestAnAgentIsStarted(t *testing.T) {
	socket := filepath.Join(t.TempDir(), "agent.sock")
	starts := 0
	r := Request{Spec: Spec{Name: "_nfs._tcp.x", Path: "/www"}, Agent: control.NewClient(socket)}
	if _, err := r.route(t.Context(), "/srv/www"); !errors.Is(err, control.ErrNoAgent) || !strings.Contains(err.Error(), socket) {
		t.Errorf("no agent: %v", err)
	}
	r.Start = func(context.Context) error { starts++; return errors.New("no such program") }
	if _, err := r.route(t.Context(), "/srv/www"); !errors.Is(err, ErrFailed) || !strings.Contains(err.Error(), "no such program") || starts != 1 {
		t.Errorf("an agent that does not start: %v, %d starts", err, starts)
	}
}

// A program that is no agent is noticed when it ends, not when time is up.
func TestAnAgentThatEndsAtOnce(t *testing.T) {
	l := Launcher{Agent: control.NewClient(filepath.Join(t.TempDir(), "agent.sock")), Program: "/bin/false"}
	if err := l.Start(t.Context()); err == nil || !strings.Contains(err.Error(), "exit status 1") {
		t.Errorf("%v", err)
	}
	l.Program = "/bin/true"
	if err := l.Start(t.Context()); err == nil || !strings.Contains(err.Error(), "says nothing") {
		t.Errorf("%v", err)
	}
	l.Program = "/no/such/program"
	if err := l.Start(t.Context()); err == nil || !strings.Contains(err.Error(), "program") {
		t.Errorf("%v", err)
	}
}

// fakeAgent has one mount, and a way to its masters when it is told a name server.
type fakeAgent struct {
	state string
	wants []control.Want // that it was told
}

func (a *fakeAgent) Status() control.Status {
	return control.Status{Mounts: []control.Mount{{Dir: "/srv/www", State: a.state}}}
}

func (a *fakeAgent) Release(control.Want) {}

func (a *fakeAgent) Route(_ context.Context, w control.Want) (control.Route, error) {
	a.wants = append(a.wants, w)
	if len(w.DNS) == 0 {
		return control.Route{}, control.ErrNoMaster
	}
	a.state = control.Reading
	return control.Route{Master: "m1"}, nil
}

// serve has the agent answer at a socket until the test ends.
func (a *fakeAgent) serve(t *testing.T, socket string) {
	ln, err := control.Listen(socket)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan error, 1)
	go func() { ended <- control.Serve(ctx, ln, a) }()
	t.Cleanup(func() {
		cancel()
		if err := <-ended; err != nil {
			t.Error(err)
		}
	})
}

// Mounting again what is mounted fails, but gives a mount that hangs what it needs: an agent, and a way to its masters.
func TestMountingAgainSeesToTheAgent(t *testing.T) {
	for name, c := range map[string]struct {
		runs    bool
		state   string
		options string
		words   string
		told    int
	}{
		"all is well":                   {true, control.Reading, "", "at /srv/www", 0},
		"all is well, and more is told": {true, control.Reading, "dns=a", "at /srv/www", 1},
		"no agent runs":                 {false, control.Searching, "dns=a", "its agent did not run, and does now: it reads from m1", 1},
		"the agent finds nobody":        {true, control.Searching, "dns=a", "it reads from m1 now", 1},
		"and is told nothing new":       {true, control.Searching, "", "no master answers", 1},
		"no agent, and nothing is told": {false, control.Searching, "", "no master answers", 1},
	} {
		t.Run(name, func(t *testing.T) {
			socket := filepath.Join(t.TempDir(), "agent.sock")
			agent := &fakeAgent{state: c.state}
			if c.runs {
				agent.serve(t, socket)
			}
			options, err := ParseOptions(c.options, false)
			if err != nil {
				t.Fatal(err)
			}
			r := Request{
				Spec: Spec{Name: "_nfs._tcp.x", Path: "/www", text: "_nfs._tcp.x:/www"}, Options: options, Agent: control.NewClient(socket),
				Start: func(context.Context) error { agent.serve(t, socket); return nil },
			}
			err = r.again(t.Context(), "/srv/www")
			if !errors.Is(err, ErrMounted) || !strings.Contains(err.Error(), c.words) || len(agent.wants) != c.told {
				t.Errorf("%v, told %+v; want an error with %q, told %d times", err, agent.wants, c.words, c.told)
			}
			if len(agent.wants) > 0 && agent.wants[0].Dir != "/srv/www" {
				t.Errorf("the agent is not told where: %+v", agent.wants)
			}
		})
	}
}

// What is mounted already is not hidden by something else of a fleet.
func TestADirectoryIsOccupied(t *testing.T) {
	m := mounts.Mount{Name: "_nfs._tcp.x", Path: "/www/", Dir: "/srv/www"}
	for text, free := range map[string]bool{"_nfs._tcp.x:/www": true, "_nfs._tcp.y:/www": false, "_nfs._tcp.x:/other": false} {
		s, err := ParseSpec(text)
		if err != nil {
			t.Fatal(err)
		}
		err = occupied(m, s)
		if free && err != nil || !free && (!errors.Is(err, ErrMounted) || !strings.Contains(err.Error(), "_nfs._tcp.x:/www/ is at /srv/www")) {
			t.Errorf("%s: %v", text, err)
		}
	}
}
