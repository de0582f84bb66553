package e2e

import (
	_ "embed"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
)

// xstateSource is a library that lets linux.uml run on a processor with AMX.
//
//go:embed xstate/xstate.c
var xstateSource string

var buildXstate = sync.OnceValues(func() (path string, err error) {
	source := filepath.Join(theRun.dir, "xstate.c")
	if err := os.WriteFile(source, []byte(xstateSource), 0o644); err != nil {
		return "", err
	}
	path = filepath.Join(theRun.dir, "xstate.so")
	out, err := exec.Command("cc", "-O2", "-shared", "-fPIC", "-o", path, source).CombinedOutput()
	if err != nil {
		return "", &exec.Error{Name: string(out), Err: err}
	}
	return path, nil
})

// umlPreload returns what has to be loaded before linux.uml on this machine; "": nothing.
func umlPreload(t testing.TB) string {
	t.Helper()
	cpu, err := os.ReadFile("/proc/cpuinfo")
	if err != nil || !strings.Contains(string(cpu), " amx_tile") {
		return ""
	}
	needCommands(t, "cc")
	path, err := buildXstate()
	if err != nil {
		t.Fatalf("build what linux.uml needs on this processor: %v", err)
	}
	return path
}
