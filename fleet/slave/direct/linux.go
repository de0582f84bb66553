package direct

import (
	"bufio"
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
)

// Linux is the real System.
type Linux struct {
	// Root is put before the paths of files in /sys and /proc. Only for tests.
	Root string
}

// Where Linux shows what.
const (
	switchesDir = "/sys/kernel/sunrpc/xprt-switches"
	nfsDir      = "/sys/fs/nfs"
	mountInfo   = "/proc/self/mountinfo"
)

// Transports implements System.
func (l *Linux) Transports() ([]Transport, error) {
	switches, err := os.ReadDir(l.Root + switchesDir)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("%s is not there: %w (Linux 5.14 and later, with the module sunrpc)", switchesDir, ErrUnsupported)
	}
	if err != nil {
		return nil, err
	}
	devices, err := l.devices()
	if err != nil {
		return nil, err
	}
	var out []Transport
	for _, s := range switches {
		xprts, err := os.ReadDir(filepath.Join(l.Root+switchesDir, s.Name()))
		if err != nil {
			continue // it went away
		}
		for _, x := range xprts {
			if !strings.HasSuffix(x.Name(), "-tcp") {
				continue
			}
			t, err := l.Transport(s.Name() + "/" + x.Name())
			if err != nil {
				continue // it went away, or has no address yet
			}
			if devices != nil {
				t.Devices = append([]string{}, devices[s.Name()]...)
			}
			out = append(out, t)
		}
	}
	return out, nil
}

// Transport implements System.
func (l *Linux) Transport(id string) (Transport, error) {
	dir := filepath.Join(l.Root+switchesDir, id)
	var texts [4]string
	for i, name := range []string{"dstaddr", "xprt_info", "xprt_state", "../xprt_switch_info"} {
		b, err := os.ReadFile(filepath.Join(dir, name))
		if err != nil {
			return Transport{}, err
		}
		texts[i] = string(b)
	}
	return parseTransport(id, texts[0], texts[1], texts[2], texts[3])
}

// parseTransport reads what sysfs says of a transport. Since 5.17 info is "<closed>" while it is not connected; then all that
// is known of its calls is how many there are on all transports of its switch.
func parseTransport(id, dstaddr, info, state, switchInfo string) (Transport, error) {
	t := Transport{ID: id}
	addr, err := netip.ParseAddr(strings.TrimRight(dstaddr, "\n\x00"))
	if err != nil {
		return t, fmt.Errorf("address of %s: %w", id, err)
	}
	values := parseInfo(info)
	if len(values) > 0 {
		t.Waiting = values["pending_q_len"] + values["sending_q_len"] + values["backlog_q_len"]
	} else {
		t.Waiting = parseInfo(switchInfo)["queue_len"]
	}
	t.LocalPort = uint16(values["src_port"])
	t.Addr = netip.AddrPortFrom(addr.Unmap(), uint16(values["dst_port"]))
	words := strings.FieldsFunc(state, func(r rune) bool { return r == '=' || r == ' ' || r == '\n' || r == 0 })
	t.Connected = slices.Contains(words, "CONNECTED")
	return t, nil
}

// parseInfo reads lines of KEY=NUMBER. Others are passed over, and so are numbers that nothing here can have.
func parseInfo(info string) map[string]int {
	out := make(map[string]int)
	for line := range strings.Lines(info) {
		key, value, _ := strings.Cut(strings.TrimRight(line, "\n\x00"), "=")
		if n, err := strconv.ParseUint(value, 10, 20); err == nil {
			out[key] = int(n)
		}
	}
	return out
}

// devices says which file systems use a transport switch; nil: the kernel does not say.
func (l *Linux) devices() (map[string][]string, error) {
	entries, err := os.ReadDir(l.Root + nfsDir)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, err
	}
	var out map[string][]string
	for _, e := range entries {
		if major, _, ok := strings.Cut(e.Name(), ":"); !ok || strings.Trim(major, "0123456789") != "" {
			continue
		}
		target, err := filepath.EvalSymlinks(filepath.Join(l.Root+nfsDir, e.Name(), "nfs_client", "switch"))
		if err != nil {
			continue // no client yet, or none any more
		}
		if out == nil {
			out = make(map[string][]string)
		}
		name := filepath.Base(target)
		out[name] = append(out[name], e.Name())
	}
	return out, nil
}

// Aim implements System.
func (l *Linux) Aim(transport string, to netip.Addr) error {
	f, err := os.OpenFile(filepath.Join(l.Root+switchesDir, transport, "dstaddr"), os.O_WRONLY, 0)
	if err != nil {
		return err
	}
	defer f.Close()
	// Early kernels take all but the last byte for the address: it must be a newline.
	if _, err := f.WriteString(to.String() + "\n"); err != nil {
		return fmt.Errorf("send %s to %s: %w", transport, to, err)
	}
	return nil
}

// Mounts implements System.
func (l *Linux) Mounts() ([]Mount, error) {
	b, err := os.ReadFile(l.Root + mountInfo)
	if err != nil {
		return nil, err
	}
	return parseMounts(b), nil
}

// parseMounts finds the NFS mounts in a mountinfo.
func parseMounts(info []byte) []Mount {
	var out []Mount
	for lines := bufio.NewScanner(bytes.NewReader(info)); lines.Scan(); {
		before, after, ok := strings.Cut(lines.Text(), " - ")
		fields, super := strings.Fields(before), strings.Fields(after)
		if !ok || len(fields) < 5 || len(super) < 3 || super[0] != "nfs" {
			continue
		}
		m := Mount{Dir: unescape(fields[4]), Device: fields[2]}
		var addr netip.Addr
		port := uint64(DefaultPort)
		for option := range strings.SplitSeq(super[2], ",") {
			key, value, _ := strings.Cut(option, "=")
			switch key {
			case "addr":
				addr, _ = netip.ParseAddr(value) //nolint:errcheck // not valid then, and passed over below
			case "port":
				if n, err := strconv.ParseUint(value, 10, 16); err == nil && n != 0 {
					port = n
				}
			}
		}
		if addr.IsValid() {
			m.Addr = netip.AddrPortFrom(addr.Unmap(), uint16(port))
			out = append(out, m)
		}
	}
	return out
}

// unescape undoes what mountinfo does to spaces and the like: a backslash and three octal digits.
func unescape(s string) string {
	var out strings.Builder
	for i := 0; i < len(s); i++ {
		if s[i] == '\\' && i+3 < len(s) {
			if n, err := strconv.ParseUint(s[i+1:i+4], 8, 8); err == nil {
				out.WriteByte(byte(n))
				i += 3
				continue
			}
		}
		out.WriteByte(s[i])
	}
	return out.String()
}
