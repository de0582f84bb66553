package e2e

import (
	"fmt"
	"os"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"
)

// statFields returns what /proc says of a process after its name, which may hold spaces: field 3 of proc(5) comes first.
func statFields(pid int) ([]string, error) {
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return nil, err
	}
	stat := string(b)
	fields := strings.Fields(stat[strings.LastIndexByte(stat, ')')+1:])
	if len(fields) < 20 {
		return nil, fmt.Errorf("%d fields in /proc/%d/stat", len(fields), pid)
	}
	return fields, nil
}

// processesOf returns the processes that have arg among their arguments.
func processesOf(t testing.TB, arg string) (pids []int) {
	t.Helper()
	entries, err := os.ReadDir("/proc")
	if err != nil {
		t.Fatal(err)
	}
	for _, e := range entries {
		pid, err := strconv.Atoi(e.Name())
		if err != nil {
			continue
		}
		args, err := os.ReadFile(fmt.Sprintf("/proc/%d/cmdline", pid)) // one that has ended is none
		if err == nil && slices.Contains(strings.Split(string(args), "\x00"), arg) {
			pids = append(pids, pid)
		}
	}
	return pids
}

// processorTime is what a process has used.
type processorTime struct{ user, system time.Duration }

func processorTimeOf(pid int) (out processorTime, err error) {
	const ticksASecond = 100 // of /proc, on every Linux
	fields, err := statFields(pid)
	if err != nil {
		return out, err
	}
	for i, to := range []*time.Duration{&out.user, &out.system} {
		n, err := strconv.Atoi(fields[11+i])
		if err != nil {
			return out, err
		}
		*to = time.Duration(n) * time.Second / ticksASecond
	}
	return out, nil
}

// residentOf returns the bytes of a process in memory: VmRSS is all of them, RssAnon those of its own, without mapped files.
func residentOf(pid int, field string) (int, error) {
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
	if err != nil {
		return 0, err
	}
	_, after, _ := strings.Cut(string(b), "\n"+field+":")
	kib := 0
	if _, err := fmt.Sscan(after, &kib); err != nil {
		return 0, fmt.Errorf("%s of process %d: %w", field, pid, err)
	}
	return kib << 10, nil
}
