package fdstore

import (
	"os"
	"strings"
	"testing"
)

// FuzzInherited is any environment: no more descriptors are taken over than it counts, and none that is meant for another.
func FuzzInherited(f *testing.F) {
	f.Add("7", "2", "relay-300:relay-301")
	f.Add("", "1024", ":::")
	f.Add("8", "1", "a")
	f.Add("7", "+1", "")
	f.Fuzz(func(t *testing.T, pid, count, names string) {
		got := inherited(pid, count, names, 7)
		if len(got) > 1024 || len(got) > 0 && pid != "" && pid != "7" {
			t.Errorf("%d descriptors for pid %q, count %q", len(got), pid, count)
		}
		for _, name := range got {
			if !strings.Contains(names, name) || strings.Contains(name, ":") {
				t.Errorf("%q is no name in %q", name, names)
			}
		}
	})
}

// FuzzValidName: what is valid can be told in an environment, and comes back from it.
func FuzzValidName(f *testing.F) {
	f.Add("relay-300")
	f.Add("a:b")
	f.Add("\x00")
	f.Fuzz(func(t *testing.T, name string) {
		if ValidName(name) != nil {
			return
		}
		environment := Environment("/s", []string{name, "other"})
		if got := inherited("", "2", strings.TrimPrefix(environment[2], envNames+"="), os.Getpid()); len(got) != 2 || got[0] != name || got[1] != "other" {
			t.Errorf("%q came back as %q", name, got)
		}
	})
}
