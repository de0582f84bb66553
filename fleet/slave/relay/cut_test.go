package relay

import (
	"fmt"
	"os"
	"os/exec"
	"strings"
	"syscall"
	"testing"
)

// inOwnNetwork runs the test in a process with a network of its own, in which links can be cut, and is done with it here.
func inOwnNetwork(t *testing.T) {
	t.Helper()
	if os.Getenv("RELAY_OWN_NETWORK") != "" {
		command(t, "ip link set lo up; nft add table ip cut; nft add chain ip cut in '{ type filter hook input priority 0; }'")
		return
	}
	if os.Geteuid() != 0 {
		t.Skip("needs root, for a network of its own")
	}
	for _, name := range []string{"ip", "nft"} {
		if _, err := exec.LookPath(name); err != nil {
			t.Skip(err)
		}
	}
	cmd := exec.Command("/proc/self/exe", "-test.run=^"+t.Name()+"$", "-test.v", "-test.count=1", "-test.short="+fmt.Sprint(testing.Short()))
	cmd.Env = append(os.Environ(), "RELAY_OWN_NETWORK=1")
	cmd.SysProcAttr = &syscall.SysProcAttr{Cloneflags: syscall.CLONE_NEWNET, Pdeathsig: syscall.SIGKILL}
	out, err := cmd.CombinedOutput()
	switch {
	case err != nil && strings.Contains(string(out), noFilter):
		t.Skipf("this kernel has no nftables:\n%s", out)
	case err != nil:
		t.Errorf("%v\n%s", err, out)
	default:
		t.Skipf("passed in a network of its own:\n%s", out)
	}
	t.FailNow()
}

const noFilter = "cannot set up the network"

func command(t *testing.T, script string) {
	t.Helper()
	if out, err := exec.Command("sh", "-ec", script).CombinedOutput(); err != nil {
		t.Fatalf("%s: %s: %v: %s", noFilter, script, err, out)
	}
}

// cut cuts the link to masters: whatever is sent to or from them is lost.
func cut(t *testing.T, masters ...*fakeMaster) {
	t.Helper()
	for _, m := range masters {
		command(t, fmt.Sprintf("nft add rule ip cut in tcp dport %d drop; nft add rule ip cut in tcp sport %[1]d drop", m.addr.Port()))
	}
}

// join mends all links.
func join(t *testing.T) {
	t.Helper()
	command(t, "nft flush chain ip cut in")
}
