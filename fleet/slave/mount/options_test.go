package mount

import (
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/nfs-fleet/nfs-fleet/fleet/slave/control"
)

func TestParseSpec(t *testing.T) {
	for text, want := range map[string]Spec{
		"_nfs._tcp.web17.slaves.prod.example:/www":  {Name: "_nfs._tcp.web17.slaves.prod.example", Path: "/www"},
		"_NFS._tcp.Prod.Example.:/www/a/../b/":      {Name: "_nfs._tcp.prod.example", Path: "/www/b"},
		"_nfs._tcp.prod.example:/with space/and:co": {Name: "_nfs._tcp.prod.example", Path: "/with space/and:co"},
	} {
		got, err := ParseSpec(text)
		want.text = text
		if err != nil || got != want || got.String() != text {
			t.Errorf("%q: %+v, %v", text, got, err)
		}
	}
	for text, word := range map[string]string{
		"": "SRVNAME", "/www": "SRVNAME", "filer:/www": "no SRV name", "_nfs._tcp.a b:/www": "label", "_nfs._tcp.:/www": "SRV name",
		"_nfs._tcp.prod.example:": "shard", "_nfs._tcp.prod.example:/": "shard", "_nfs._tcp.prod.example:www": "shard",
		"_nfs._tcp.prod.example:/../..": "shard", "_nfs._tcp." + strings.Repeat("a.", 130) + "b:/www": "bytes",
		"_nfs._tcp.prod.example:/" + strings.Repeat("x", 2000): "path",
	} {
		if got, err := ParseSpec(text); err == nil || !strings.Contains(err.Error(), word) {
			t.Errorf("%.60q: %+v, %v; want an error with %q", text, got, err, word)
		}
	}
}

func TestParseOptions(t *testing.T) {
	for text, want := range map[string]Options{
		"": {},
		"_netdev,noauto,nofail,x-systemd.automount,x-gvfs-show,comment=ours,user=me,defaults": {},
		"ro,hard,nolock,nosuid,nodev,tcp,vers=3,proto=tcp,sec=sys,intr":                       {},
		"via=direct,dns=10.0.0.1,dns=10.0.0.2:5353,name=web17,wait=5":                         {Via: "direct", DNS: []string{"10.0.0.1", "10.0.0.2:5353"}, Slave: "web17", Wait: 5 * time.Second},
		"master=m1,master=10.0.0.2:2049,wait=1m30s":                                           {Masters: []string{"m1", "10.0.0.2:2049"}, Wait: 90 * time.Second},
		"noexec,noatime,nconnect=4,actimeo=1,rsize=65536,nocto":                               {flags: unix.MS_NOEXEC | unix.MS_NOATIME, kernel: []string{"nconnect=4", "actimeo=1", "rsize=65536", "nocto"}},
		"noexec,exec":  {},
		"readahead=4M": {Readahead: Readahead{readaheadBytes, 4 << 20}}, "readahead=512k": {Readahead: Readahead{readaheadBytes, 512 << 10}},
		"readahead=131072": {Readahead: Readahead{readaheadBytes, 128 << 10}}, "readahead=1024M": {Readahead: Readahead{readaheadBytes, 1 << 30}},
		"readahead=0": {Readahead: Readahead{how: readaheadKernel}}, "readahead=1M,readahead=default": {Readahead: Readahead{how: readaheadKernel}},
		`context="system_u:object_r:nfs_t:s0:c1,c2",fsc`: {kernel: []string{`context="system_u:object_r:nfs_t:s0:c1,c2"`, "fsc"}},
	} {
		if want.Wait == 0 {
			want.Wait = DefaultWait
		}
		got, err := ParseOptions(text, false)
		if err != nil || got.Via != want.Via || got.Slave != want.Slave || got.Wait != want.Wait || got.flags != want.flags || got.Readahead != want.Readahead ||
			!slices.Equal(got.DNS, want.DNS) || !slices.Equal(got.Masters, want.Masters) || !slices.Equal(got.kernel, want.kernel) {
			t.Errorf("%q: %+v, %v; want %+v", text, got, err, want)
		}
	}
	for text, word := range map[string]string{
		"rw": "read-only", "ro,rw": "read-only", "soft": "hard", "softerr": "hard", "softreval": "hard", "udp": "TCP", "proto=udp": "tcp", "vers=4.2": "3", "v4": "version 3",
		"port=2049": "agent", "addr=10.0.0.1": "agent", "noresvport": "1024", "lock": "lock", "suid": "rights", "dev": "rights",
		"bg": "nofail", "retry=5": "nofail", "remount": "again", "sec=krb5": "sys", "nonsense": "not known", "nconnect=17": "16",
		"rsize=big": "number", "rsize": "number", "nocto=1": "no value", "via=magic": "relay", "dns=": "name server", "wait=0": "duration", "wait=1h": "duration",
		"name=": "value", `context="a`: "quotation", "context=a\nb": "control", "lookupcache=some": "positive",
		"readahead": "size", "readahead=": "size", "readahead=M": "size", "readahead=-1M": "size", "readahead=1025M": "size", "readahead=1G": "size", "readahead=100": "size",
		`fsc="a,soft,fsc=b"`: "commas", `nconnect="2"`: "16",
	} {
		if got, err := ParseOptions(text, false); err == nil || !strings.Contains(err.Error(), word) {
			t.Errorf("%q: %+v, %v; want an error with %q", text, got, err, word)
		}
	}
	if _, err := ParseOptions("nonsense,nonsense=1", true); err != nil {
		t.Errorf("sloppy: %v", err)
	}
	if _, err := ParseOptions("soft", true); err == nil {
		t.Error("sloppy lets unsafe options pass")
	}
}

// mount(8) says rw whenever nobody says ro; only whoever runs the command can be told that it is not to be had.
func TestMountHandsOverRw(t *testing.T) {
	for text, want := range map[string]string{
		"rw": "", "rw,_netdev": "_netdev", "dns=a,rw": "dns=a", "ro": "ro", "": "", `context="a,b",rw`: `context="a,b"`, "rw=1": "rw=1",
	} {
		if got := HelperOptions(text); got != want {
			t.Errorf("%q: %q, want %q", text, got, want)
		}
	}
}

// What the kernel is told is complete, safe, and ends with what the user asked for.
func TestKernelOptions(t *testing.T) {
	o, err := ParseOptions("nconnect=2,actimeo=9,noexec", false)
	if err != nil {
		t.Fatal(err)
	}
	flags, data, err := o.Kernel(netip.MustParseAddrPort("127.0.0.1:300"))
	const want = "vers=3,proto=tcp,hard,nolock,sec=sys,port=300,acregmin=1,acregmax=5,acdirmin=1,acdirmax=5,nconnect=2,actimeo=9," +
		"mountvers=3,mountproto=tcp,mountport=300,mountaddr=127.0.0.1,addr=127.0.0.1"
	if err != nil || data != want || flags != unix.MS_RDONLY|unix.MS_NOSUID|unix.MS_NODEV|unix.MS_NOEXEC {
		t.Errorf("%#x %s, %v", flags, data, err)
	}
	if _, data, _ = o.Kernel(netip.MustParseAddrPort("[fd00::1]:2049")); !strings.Contains(data, "proto=tcp6,") || !strings.HasSuffix(data, "addr=fd00::1") {
		t.Errorf("IPv6: %s", data)
	}
	long := Options{kernel: slices.Repeat([]string{"actimeo=1"}, 500)}
	if _, _, err := long.Kernel(netip.MustParseAddrPort("127.0.0.1:300")); err == nil {
		t.Error("options of any length are passed")
	}
}

func TestWant(t *testing.T) {
	o, err := ParseOptions("dns=a,name=w", false)
	if err != nil {
		t.Fatal(err)
	}
	w := o.Want(Spec{Name: "_nfs._tcp.x"})
	if w.Via != control.Relay || w.Name != "_nfs._tcp.x" || w.Slave != "w" || w.Wait != DefaultWait || len(w.DNS) != 1 {
		t.Errorf("%+v", w)
	}
}

// No text makes an option reach the kernel that is not one of the known ones, or an address.
func FuzzParseOptions(f *testing.F) {
	for _, seed := range []string{"", HelperOptions("rw,_netdev"), "nconnect=4", `context="a,b"`, "soft", "a=b=c", ",,,", `"`, "via=direct,dns=1.2.3.4"} {
		f.Add(seed)
	}
	f.Fuzz(func(t *testing.T, text string) {
		o, err := ParseOptions(text, true)
		if err != nil {
			return
		}
		for _, item := range o.kernel {
			key, _, _ := strings.Cut(item, "=")
			r, ok := rules[key]
			quoted := strings.HasPrefix(item, key+`="`) && strings.HasSuffix(item, `"`)
			if !ok || !r.kernel || strings.Contains(item, ",") && !quoted && strings.Count(item, `"`) < 2 {
				t.Errorf("%q lets %q reach the kernel", text, item)
			}
		}
	})
}
