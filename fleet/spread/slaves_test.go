package spread

import (
	"fmt"
	"math/rand/v2"
	"reflect"
	"runtime"
	"slices"
	"syscall"
	"testing"
	"time"
)

// crowd is the slaves and masters of a fleet whose coordinator does what Place says.
type crowd struct {
	random *rand.Rand
	slaves []Slave
	hosts  []Host
}

func newCrowd(seed uint64, slaves, hosts int) *crowd {
	c := &crowd{random: rand.New(rand.NewPCG(seed, 7))}
	for i := range slaves {
		c.slaves = append(c.slaves, Slave{Name: fmt.Sprintf("web%d-%d", i, c.random.IntN(1000))})
	}
	for i := range hosts {
		c.join(fmt.Sprintf("m%d-%d", i, c.random.IntN(1000)), DefaultSlots)
	}
	return c
}

func (c *crowd) join(name string, slots int) {
	c.hosts = append(c.hosts, Host{Name: name, Slots: slots, InStep: true, Serving: true})
}

// lose takes a living master away.
func (c *crowd) lose(i int) Host {
	gone := c.hosts[i]
	c.hosts = slices.Delete(c.hosts, i, i+1)
	return gone
}

func (c *crowd) slave(name string) *Slave {
	i := slices.IndexFunc(c.slaves, func(s Slave) bool { return s.Name == name })
	if i < 0 {
		return nil
	}
	return &c.slaves[i]
}

// place does what Place says. It returns the slaves with a home that got another, as they were.
func (c *crowd) place(t testing.TB) (moved []Slave) {
	t.Helper()
	byName := make(map[string]*Slave, len(c.slaves))
	for i := range c.slaves {
		byName[c.slaves[i].Name] = &c.slaves[i]
	}
	for _, now := range Place(c.slaves, c.hosts) {
		was := byName[now.Name]
		if was == nil {
			t.Fatalf("%+v is nobody", now)
		}
		if was.Master != "" && was.Master != now.Master {
			moved = append(moved, *was)
		}
		*was = now
	}
	return moved
}

// loads counts the slaves of each master.
func (c *crowd) loads() map[string]int {
	loads := map[string]int{}
	for _, h := range c.hosts {
		loads[h.Name] = 0
	}
	for _, s := range c.slaves {
		loads[s.Master]++
	}
	return loads
}

func extremes[K comparable](loads map[K]int) (least, most int) {
	first := true
	for _, n := range loads {
		if first {
			least, most, first = n, n, false
		}
		least, most = min(least, n), max(most, n)
	}
	return least, most
}

// The figures that the fleet is designed for: ten slots each, a hundred slaves on ten masters.
func TestAHundredOnTen(t *testing.T) {
	const trials = 200
	var onLoss, onSecond, atFallback, onJoin, worst, worstSecond, refreshed int
	for seed := range uint64(trials) {
		c := newCrowd(seed, 100, 10)
		c.place(t)
		if least, most := extremes(c.loads()); least != 10 || most != 10 {
			t.Fatalf("trial %d: %d to %d slaves a master", seed, least, most)
		}
		gone := c.lose(c.random.IntN(10))
		refreshed += len(Place(c.slaves, c.hosts))
		for _, was := range c.place(t) {
			if was.Master != gone.Name {
				t.Fatalf("trial %d: %+v was moved", seed, was)
			}
			onLoss++
			if c.slave(was.Name).Master == was.Fallbacks[0] {
				atFallback++
			}
		}
		_, most := extremes(c.loads())
		worst = max(worst, most)

		second := c.lose(c.random.IntN(9))
		for _, was := range c.place(t) {
			if was.Master != second.Name {
				t.Fatalf("trial %d: %+v was moved", seed, was)
			}
			onSecond++
		}
		_, most = extremes(c.loads())
		worstSecond = max(worstSecond, most)

		c.join(gone.Name, gone.Slots)
		onJoin += len(c.place(t))
	}
	t.Logf("a loss moves %.1f slaves, %.1f%% to the first fallback, and changes %.1f records; the fullest then has %d",
		float64(onLoss)/trials, 100*float64(atFallback)/float64(onLoss), float64(refreshed)/trials, worst)
	t.Logf("a second loss moves %.1f, the fullest then has %d; a join moves %d", float64(onSecond)/trials, worstSecond, onJoin)
	if onLoss != 10*trials || onJoin != 0 || worst > 12 || worstSecond > 13 {
		t.Error("that is more than it takes")
	}
	if atFallback < onLoss*9/10 {
		t.Error("slaves are moved away from where they have gone by themselves")
	}
}

// A loss is felt alike by all others, and so is one after it.
func TestFallbacksAreSpread(t *testing.T) {
	for seed := range uint64(50) {
		c := newCrowd(seed, 100, 10)
		c.place(t)
		for k := range MaxFallbacks {
			count, chains := map[string]int{}, map[[2]string]int{}
			for _, s := range c.slaves {
				chain := append([]string{s.Master}, s.Fallbacks...)[k : k+2]
				count[chain[1]]++
				chains[[2]string(chain)]++
			}
			if least, most := extremes(count); least < 8 || most > 12 {
				t.Errorf("trial %d: masters are fallback %d of %d to %d", seed, k, least, most)
			}
			if _, most := extremes(chains); most > 2+k { // 100 of 90 kinds
				t.Errorf("trial %d: one is fallback %d behind one other %d times", seed, k, most)
			}
		}
	}
}

// New slaves come one at a time as evenly as all at once.
func TestNewcomers(t *testing.T) {
	c := newCrowd(1, 130, 10)
	all := c.slaves
	for n := range all {
		c.slaves = all[:n+1]
		if moved := c.place(t); len(moved) > 0 {
			t.Fatalf("slave %d moves %v", n, moved)
		}
		least, most := extremes(c.loads())
		if part := float64(n+1) / 10; float64(most) >= 1.25*part+1 || n < 100 && most > 10 || n >= 100 && (float64(most) >= part+1 || least < 10) {
			t.Errorf("of %d slaves masters have %d to %d", n+1, least, most)
		}
	}
}

// A new slave stays where it reads from, if there is room.
func TestNewcomerThatReadsAlready(t *testing.T) {
	c := newCrowd(1, 50, 10)
	for i := range c.slaves {
		c.slaves[i].Fallbacks = []string{c.hosts[i/25].Name}
	}
	c.place(t)
	if loads := c.loads(); loads[c.hosts[0].Name] < 10 || loads[c.hosts[1].Name] < 10 {
		t.Errorf("%v", loads)
	}
	if _, most := extremes(c.loads()); most > 10 {
		t.Errorf("%v", c.loads())
	}
}

func TestSlotsAreHeeded(t *testing.T) {
	for _, slaves := range []int{30, 60, 300} {
		c := newCrowd(2, slaves, 4)
		for i := range c.hosts {
			c.hosts[i].Slots = 5 * (i + 1) // 50 together
		}
		c.place(t)
		for i, h := range c.hosts {
			part := float64(slaves) * float64(5*(i+1)) / 50
			if n := float64(c.loads()[h.Name]); n >= 1.25*part+1 || slaves > 50 && (n < part-4 || n >= part+1) {
				t.Errorf("%d slaves: %v with %d slots", slaves, n, h.Slots)
			}
		}
		c.lose(3)
		c.place(t)
		for i, h := range c.hosts {
			part := float64(slaves) * float64(5*(i+1)) / 30
			if n := float64(c.loads()[h.Name]); slaves >= 30 && n >= part+1 {
				t.Errorf("%d slaves, after a loss: %v with %d slots", slaves, n, h.Slots)
			}
		}
	}
}

func TestNobodyMovesWhileNoneIsInStep(t *testing.T) {
	c := newCrowd(3, 30, 3)
	c.place(t)
	for i := range c.hosts {
		c.hosts[i].InStep = false
	}
	c.lose(0)
	if got := Place(c.slaves, c.hosts); got != nil {
		t.Errorf("%v", got)
	}
	if got := Rebalance(c.slaves, c.hosts); got != nil {
		t.Errorf("%v", got)
	}
	if got := Place(c.slaves, nil); got != nil {
		t.Errorf("without masters: %v", got)
	}
	if got := Place(nil, c.hosts); got != nil {
		t.Errorf("without slaves: %v", got)
	}
}

func TestFewMasters(t *testing.T) {
	one := []Host{{Name: "m1", InStep: true, Serving: true}}
	got := Place([]Slave{{Name: "a"}, {Name: "b", Master: "gone", Fallbacks: []string{"gone too", "m1"}}}, one)
	if want := []Slave{{Name: "a", Master: "m1", Fallbacks: []string{}}, {Name: "b", Master: "m1", Fallbacks: []string{}}}; !equal(got, want) {
		t.Errorf("one master: %+v", got)
	}
	two := append(one, Host{Name: "m2", InStep: true, Serving: true})
	got = Place([]Slave{{Name: "a", Master: "m1", Fallbacks: []string{"gone", "m2"}}, {Name: "b", Master: "m1"}}, two)
	if want := []Slave{{Name: "a", Master: "m1", Fallbacks: []string{"m2"}}, {Name: "b", Master: "m1", Fallbacks: []string{"m2"}}}; !equal(got, want) {
		t.Errorf("two masters: %+v", got)
	}
}

// Records that make no sense are mended.
func TestStrangeRecords(t *testing.T) {
	c := newCrowd(4, 0, 4)
	a, b, d := c.hosts[0].Name, c.hosts[1].Name, c.hosts[2].Name
	for what, fallbacks := range map[string][]string{"own": {a, b}, "twice": {b, b}, "many": {b, d, c.hosts[3].Name}, "empty": {"", b}} {
		c.slaves = append(c.slaves, Slave{what, a, fallbacks})
	}
	c.place(t)
	for _, s := range c.slaves {
		if s.Master != a || len(s.Fallbacks) != 2 || !slices.Contains(s.Fallbacks, b) || slices.Contains(s.Fallbacks, a) || s.Fallbacks[0] == s.Fallbacks[1] {
			t.Errorf("%+v", s)
		}
	}
}

func equal(a, b []Slave) bool {
	return slices.EqualFunc(a, b, func(x, y Slave) bool {
		return x.Name == y.Name && x.Master == y.Master && slices.Equal(x.Fallbacks, y.Fallbacks)
	})
}

// cloneAll copies deeply.
func cloneAll(slaves []Slave) []Slave {
	out := slices.Clone(slaves)
	for i := range out {
		out[i].Fallbacks = slices.Clone(out[i].Fallbacks)
	}
	return out
}

// TestPlaceThroughALife lets fleets of all sizes live through whatever happens, and holds Place to what it promises.
func TestPlaceThroughALife(t *testing.T) {
	for seed := range uint64(40) {
		random := rand.New(rand.NewPCG(seed, 99))
		c := newCrowd(seed, random.IntN(150), 1+random.IntN(14))
		if seed%3 == 0 {
			for i := range c.hosts {
				c.hosts[i].Slots = random.IntN(30)
			}
		}
		for range 40 {
			c.happen(random)
			c.check(t, random)
			if t.Failed() {
				t.Fatalf("seed %d", seed)
			}
		}
	}
}

// happen changes something.
func (c *crowd) happen(random *rand.Rand) {
	host := func() *Host { return &c.hosts[random.IntN(len(c.hosts))] }
	switch n := random.IntN(8); {
	case n == 0 || len(c.hosts) == 0:
		c.join(fmt.Sprintf("m%d", random.IntN(1e6)), random.IntN(30))
	case n == 1:
		c.lose(random.IntN(len(c.hosts)))
	case n == 2:
		h := host()
		h.Serving = !h.Serving
	case n == 3:
		h := host()
		h.InStep = !h.InStep
	case n == 4:
		c.slaves = append(c.slaves, Slave{Name: fmt.Sprintf("new%d", random.IntN(1e6))})
	case n == 5 && len(c.slaves) > 0:
		i := random.IntN(len(c.slaves))
		c.slaves = slices.Delete(c.slaves, i, i+1)
	case n == 6 && len(c.slaves) > 0: // an administrator moves one
		c.slaves[random.IntN(len(c.slaves))].Master = host().Name
	case n == 7:
		for i := range c.hosts {
			c.hosts[i].Serving, c.hosts[i].InStep = true, true
		}
	}
}

// check places, and looks at the result.
func (c *crowd) check(t *testing.T, random *rand.Rand) {
	t.Helper()
	before := cloneAll(c.slaves)
	got := Place(c.slaves, c.hosts)
	if !reflect.DeepEqual(before, c.slaves) {
		t.Fatal("what was passed in is changed")
	}
	mixed, hosts := cloneAll(c.slaves), slices.Clone(c.hosts)
	random.Shuffle(len(mixed), func(i, j int) { mixed[i], mixed[j] = mixed[j], mixed[i] })
	random.Shuffle(len(hosts), func(i, j int) { hosts[i], hosts[j] = hosts[j], hosts[i] })
	if !equal(got, Place(mixed, hosts)) {
		t.Fatal("the order of the arguments matters")
	}
	fit, slots := map[string]Host{}, 0
	for _, h := range c.hosts {
		if h.Serving && h.InStep {
			fit[h.Name] = h
			slots += slotsOf(h)
		}
	}
	if len(fit) == 0 {
		if got != nil {
			t.Fatalf("without a master in step: %v", got)
		}
		return
	}
	c.place(t)
	if again := Place(c.slaves, c.hosts); again != nil {
		t.Fatalf("not settled: %+v", again)
	}
	loads, grown := c.loads(), map[string]bool{}
	for i, now := range c.slaves {
		was := before[i]
		if _, ok := fit[was.Master]; ok && now.Master != was.Master {
			t.Fatalf("%+v became %+v for nothing", was, now)
		}
		if now.Master != was.Master {
			grown[now.Master] = true
		}
		checkRecord(t, was, now, fit)
	}
	for name := range grown {
		h, total := fit[name], len(c.slaves)
		limit := slotsOf(h)
		if total > slots {
			limit = (total*slotsOf(h) + slots - 1) / slots
		}
		if loads[name] > limit {
			t.Fatalf("%s got slaves until it had %d, and should have %d", name, loads[name], limit)
		}
	}
}

// checkRecord looks at one slave's record.
func checkRecord(t *testing.T, was, now Slave, fit map[string]Host) {
	t.Helper()
	if _, ok := fit[now.Master]; !ok || len(now.Fallbacks) != min(MaxFallbacks, len(fit)-1) {
		t.Fatalf("%+v, of %d masters", now, len(fit))
	}
	for i, f := range now.Fallbacks {
		if _, ok := fit[f]; !ok || f == now.Master || slices.Contains(now.Fallbacks[:i], f) {
			t.Fatalf("%+v", now)
		}
	}
	for _, f := range was.Fallbacks {
		if _, ok := fit[f]; ok && f != now.Master && !slices.Contains(now.Fallbacks, f) {
			t.Fatalf("%+v became %+v: %s was good", was, now, f)
		}
	}
}

// cpuTime is what this thread has used of a processor: other processes do not count.
func cpuTime(t testing.TB) time.Duration {
	t.Helper()
	const thread = 1 // RUSAGE_THREAD
	var u syscall.Rusage
	if err := syscall.Getrusage(thread, &u); err != nil {
		t.Fatal(err)
	}
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
}

func TestLargeFleet(t *testing.T) {
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	c := newCrowd(5, 10_000, 1000)
	began := cpuTime(t)
	Place(c.slaves, c.hosts)
	took := cpuTime(t) - began
	c.place(t)
	t.Logf("10,000 slaves are spread over 1,000 masters in %v", took)
	if took > 2*time.Second { // a build with -race takes ten times what others do
		t.Errorf("took %v", took)
	}
	if least, most := extremes(c.loads()); least != 10 || most != 10 {
		t.Errorf("%d to %d slaves a master", least, most)
	}
	first := map[string]int{}
	for _, s := range c.slaves {
		first[s.Fallbacks[0]]++
	}
	least, most := extremes(first)
	t.Logf("masters are the first fallback of %d to %d", least, most)
	if least < 7 || most > 13 {
		t.Error("that is not even")
	}
	gone := c.lose(500)
	changes := Place(c.slaves, c.hosts)
	for _, was := range c.place(t) {
		if was.Master != gone.Name {
			t.Fatalf("%+v was moved", was)
		}
	}
	_, most = extremes(c.loads())
	t.Logf("after a loss the fullest has %d, and %d records are others", most, len(changes))
	if most > 11 || len(changes) > 60 {
		t.Error("that is more than it takes")
	}
}

func BenchmarkPlace(b *testing.B) {
	fresh := newCrowd(6, 10_000, 1000)
	placed := newCrowd(6, 10_000, 1000)
	placed.place(b)
	mixed := newCrowd(6, 10_000, 1000)
	for i := range mixed.hosts {
		mixed.hosts[i].Slots = 5 + i%11
	}
	lost := &crowd{slaves: cloneAll(placed.slaves), hosts: slices.Clone(placed.hosts)}
	lost.lose(500)
	half := &crowd{slaves: cloneAll(placed.slaves), hosts: placed.hosts[:500]}
	for _, c := range []struct {
		name string
		*crowd
	}{{"new", fresh}, {"new, mixed slots", mixed}, {"settled", placed}, {"one lost", lost}, {"half lost", half}} {
		b.Run(c.name, func(b *testing.B) {
			runtime.LockOSThread()
			defer runtime.UnlockOSThread()
			began := cpuTime(b)
			for b.Loop() {
				Place(c.slaves, c.hosts)
			}
			b.ReportMetric(float64(cpuTime(b)-began)/float64(b.N)/1e6, "cpu-ms/op")
		})
	}
}
