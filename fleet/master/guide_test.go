package master

import (
	"fmt"
	"net/netip"
	"slices"
	"testing"

	"github.com/nfs-fleet/nfs-fleet/fleet"
	"github.com/nfs-fleet/nfs-fleet/fleet/dns"
)

// around is a fleet of these masters as m1 sees it, all of them well.
func around(names ...string) surroundings {
	s := surroundings{
		view: fleet.View{Revision: 7, Masters: map[string]fleet.Master{}, Drained: map[string]fleet.Drain{}, Removed: map[string]fleet.Removal{}},
		addresses: func(host string) []netip.Addr {
			if a, err := netip.ParseAddr(host); err == nil {
				return []netip.Addr{a}
			}
			return nil
		},
		keeps: func(string) bool { return true },
	}
	for i, name := range names {
		s.view.Masters[name] = fleet.Master{Name: name, Address: fmt.Sprintf("10.0.%d.%d", i/250, i%250+1), NFSPort: 2049, Slots: 10, State: fleet.Serving, Instance: name}
	}
	s.self = s.view.Masters["m1"]
	return s
}

func TestGuideNamesWhoServes(t *testing.T) {
	for _, tc := range []struct {
		name   string
		change func(s *surroundings)
		want   []string // the order of any slave, sorted
		last   string   // in the order
		alone  bool
	}{
		{name: "all are well", want: []string{"m1", "m2", "m3"}},
		{"one is drained", func(s *surroundings) { s.view.Drained["m2"] = fleet.Drain{Master: "m2"} }, []string{"m1", "m3"}, "", false},
		{"one says that it drains", func(s *surroundings) {
			m := s.view.Masters["m3"]
			m.State = fleet.Draining
			s.view.Masters["m3"] = m
		}, []string{"m1", "m2"}, "", false},
		{"one was removed", func(s *surroundings) { s.view.Removed["m2"] = fleet.Removal{Master: "m2", Instance: "m2"} }, []string{"m1", "m3"}, "", false},
		{"one is lost", func(s *surroundings) { delete(s.view.Masters, "m2") }, []string{"m1", "m3"}, "", false},
		{"one is behind", func(s *surroundings) { s.keeps = func(m string) bool { return m != "m2" } }, []string{"m1", "m2", "m3"}, "m2", false},
		{"this one stops", func(s *surroundings) { s.away = true }, []string{"m2", "m3"}, "", false},
		{"all are drained", func(s *surroundings) {
			for name := range s.view.Masters {
				s.view.Drained[name] = fleet.Drain{Master: name}
			}
		}, []string{"m1", "m2", "m3"}, "", true},
		{"the others are behind", func(s *surroundings) { s.keeps = func(m string) bool { return m == "m1" } }, []string{"m1", "m2", "m3"}, "", true},
		{"etcd does not list this one yet", func(s *surroundings) { delete(s.view.Masters, "m1") }, []string{"m1", "m2", "m3"}, "", false},
	} {
		s := around("m1", "m2", "m3")
		if tc.change != nil {
			tc.change(&s)
		}
		g := newGuide(s)
		got := g.order("web17")
		if tc.last != "" && got[len(got)-1] != tc.last {
			t.Errorf("%s: the order is %v", tc.name, got)
		}
		if slices.Sort(got); !slices.Equal(got, tc.want) {
			t.Errorf("%s: slaves are sent to %v", tc.name, got)
		}
		if g.alone != tc.alone {
			t.Errorf("%s: alone is %v", tc.name, g.alone)
		}
	}
}

// Whoever is asked says the same.
func TestGuidesAgree(t *testing.T) {
	s := around("m1", "m2", "m3", "m4")
	first := newGuide(s)
	s.self = s.view.Masters["m3"]
	second := newGuide(s)
	for _, slave := range []string{"web1", "web2", "a.b", "x"} {
		if a, b := first.order(slave), second.order(slave); !slices.Equal(a, b) {
			t.Errorf("%s is told %v by one and %v by another", slave, a, b)
		}
	}
}

func TestDomainOf(t *testing.T) {
	set := func(domains ...string) map[string]fleet.Master {
		all := map[string]fleet.Master{}
		for i, d := range domains {
			all[string(rune('a'+i))] = fleet.Master{Domain: d}
		}
		return all
	}
	for _, tc := range []struct {
		name   string
		own    string
		all    map[string]fleet.Master
		want   string
		others []string
	}{
		{"nobody is set to any", "", set("", ""), "nfs-fleet.internal", nil},
		{"its own", "Prod.example.", set("prod.example", ""), "prod.example", nil},
		{"the others'", "", set("prod.example", ""), "prod.example", nil},
		{"that of most", "", set("a.example", "b.example", "b.example"), "b.example", []string{"a.example"}},
		{"the first of equals", "", set("b.example", "a.example"), "a.example", []string{"b.example"}},
		{"its own, though others differ", "c.example", set("b.example", "a.example"), "c.example", []string{"a.example", "b.example"}},
	} {
		got, others := domainOf(tc.own, tc.all)
		if got != tc.want || !slices.Equal(others, tc.others) {
			t.Errorf("%s: %s, others %v", tc.name, got, others)
		}
	}
}

// throng is a fleet of many masters and slaves.
func throng(masters, slaves int) surroundings {
	var all []string
	for i := range masters {
		all = append(all, fmt.Sprint("m", i+1))
	}
	s := around(all...)
	s.view.Slaves = map[string]fleet.Slave{}
	for i := range slaves {
		name := fmt.Sprint("web", i)
		s.view.Slaves[name] = fleet.Slave{Name: name, Master: all[i%masters], Fallbacks: []string{all[(i+1)%masters], all[(i+2)%masters]}}
	}
	s.loads = loads(s.view)
	return s
}

func BenchmarkGuide(b *testing.B) {
	s := throng(1000, 10000)
	for b.Loop() {
		newGuide(s)
	}
}

func BenchmarkHelloTargets(b *testing.B) {
	g := newGuide(throng(1000, 10000))
	from := netip.MustParseAddr("10.0.0.1")
	for b.Loop() {
		g.helloTargets("web17", from)
	}
}

func BenchmarkRecords(b *testing.B) {
	g := newGuide(throng(1000, 10000))
	for b.Loop() {
		dns.SkyDNS(g.recordZone("prod"))
	}
}
