package main

import (
	"net/netip"
	"strings"
	"testing"
)

// An address whose mask was forgotten would shut every reader out: it is not taken for one host.
func TestNetworks(t *testing.T) {
	for _, test := range []struct{ text, want, says string }{
		{"10.0.0.0", "", "10.0.0.0 is one address; did you mean 10.0.0.0/8? write 10.0.0.0/32 if not"},
		{"10.77.0.0", "", "did you mean 10.77.0.0/16?"},
		{"192.168.7.0", "", "did you mean 192.168.7.0/24?"},
		{"fd00::", "", "did you mean fd00::/16? write fd00::/128 if not"},
		{"2001:db8:7::", "", "did you mean 2001:db8:7::/48?"},
		{"0.0.0.0", "", "say all"},
		{"::", "", "say all"},
		{"10.0.0", "", "use an address, a network as in 10.0.0.0/8, or all"},
		{"all,10.0.0.0/8", "", "name it alone"},
		{"10.0.0.0/8,all", "", "name it alone"},
		{"10.0.0.0/32", "10.0.0.0/32", ""},
		{"10.0.0.7", "10.0.0.7/32", ""},
		{"10.0.1.7/8,fd00::1", "10.0.0.0/8,fd00::1/128", ""},
		{"all", "", ""},
		{"", "", ""},
	} {
		got := []netip.Prefix{netip.MustParsePrefix("192.0.2.0/24")}
		n := &networks{p: &got}
		err := n.Set(test.text)
		if (err == nil) != (test.says == "") || err != nil && !strings.Contains(err.Error(), test.says) {
			t.Errorf("%q: %v, want %q", test.text, err, test.says)
		}
		if err == nil && n.String() != test.want {
			t.Errorf("%q: %s, want %s", test.text, n, test.want)
		}
	}
}

// Who reads the shard and may not any more is told of at once, and named.
func TestShuttingReadersOutIsSaid(t *testing.T) {
	b := newBench(t)
	for line, want := range map[string]string{
		"shard set www --network 203.0.113.0/24": "warning: 1 reader of shard www shut out by its networks: web17\n",
		"shard set www --network all":            "",
		"shard set zoo --network 203.0.113.0/24": "",
	} {
		if s := b.command(t, strings.Fields(line)...); s.code != 0 || s.err != want {
			t.Errorf("%s: exit %d, stderr %q, want %q", line, s.code, s.err, want)
		}
	}
	if s := b.command(t, "shard", "delete", "none"); s.code != 3 || !strings.Contains(s.err, "no shard") {
		t.Errorf("a shard that is not there: exit %d, stderr %q", s.code, s.err)
	}
}
