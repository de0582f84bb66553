package spread

import (
	"cmp"
	"iter"
	"slices"
)

const (
	// DefaultSlots is how many slaves a Host that names no number takes before others are fuller.
	DefaultSlots = 10
	// MaxFallbacks is how many masters a slave knows beside its own.
	MaxFallbacks = 2
	// MaxOrder is how many masters Order names.
	MaxOrder = 5
)

// Slave is a slave and where it reads from.
type Slave struct {
	Name string
	// Master is the home of the slave; "" is none yet: it is new.
	Master string
	// Fallbacks are where it goes when the master is lost, in this order. A new slave that reads from somewhere already is
	// to have that here: it stays there, if there is room.
	Fallbacks []string
}

// Host is a master, as a home of slaves.
type Host struct {
	Name  string
	Slots int // slaves that it takes before others are fuller; 0 and less: DefaultSlots
	// InStep says that it serves every shard's head. A master that is behind for the moments that a publish takes should
	// still be called in step: one that is not loses its slaves.
	InStep bool
	// Serving says that it is alive and not drained.
	Serving bool
	// Load is the number of slaves that have it as their master. Order wants to know; Place and Rebalance count.
	Load int
}

// SlaveMove is a slave that gets another home.
type SlaveMove struct {
	Slave, From, To string
	Fallbacks       []string // with its new home
}

// Place gives every slave a home and fallbacks, and returns the slaves for which that is a change, by name.
//
//   - Homes are sticky: nobody moves from a master that serves and is in step, be it over-full or others empty.
//   - Whoever has to move goes to the first of its fallbacks that has room, else to the master that is the least full by
//     its slots, and of those alike to the one that its name is hashed to.
//   - Who is new goes where its name is hashed to, except that no master gets more than a quarter above the average.
//   - A master has room while a slot of it is free. When there are more slaves than slots, all masters are filled alike.
//   - Fallbacks are such that the slaves of one master have many, and that all masters are fallbacks of as many: after a
//     loss the fleet is as even as before, after another one too. They are kept while they last.
//   - While no master is in step nobody is given anything.
//
// A master's loss moves exactly its slaves, and a new master none.
func Place(slaves []Slave, hosts []Host) []Slave {
	s := newSeating(slaves, hosts)
	if len(s.tables) == 0 {
		return nil
	}
	s.concern(s.lacks)
	s.home()
	s.fallBack()
	var out []Slave
	for _, now := range s.changed() {
		out = append(out, now)
	}
	return out
}

// Rebalance returns the fewest moves that even the masters out, by their slots, and give a home to whoever needs one, by
// name. They cost the slaves a moment each and are therefore for when an administrator wants them.
func Rebalance(slaves []Slave, hosts []Host) []SlaveMove {
	s := newSeating(slaves, hosts)
	if len(s.tables) == 0 {
		return nil
	}
	s.concern(func(*seat) bool { return true })
	s.even()
	s.fallBack()
	var moves []SlaveMove
	for was, now := range s.changed() {
		if was.Master != now.Master {
			moves = append(moves, SlaveMove{now.Name, was.Master, now.Master, now.Fallbacks})
		}
	}
	return moves
}

// seating is the state of one run: who is where, and will be.
type seating struct {
	tables  []table          // the masters that serve and are in step, by name
	tickets []ticket         // of tables; apart from them because all are looked at so often
	index   map[string]int32 // of tables, by name
	slots   int              // of all tables
	seats   []seat
	open    []*seat // those that may change, by name
	seated  int     // slaves that have a table
}

// table is a master that slaves can be at.
type table struct {
	name   string
	slots  int
	load   int               // slaves at it
	behind [MaxFallbacks]int // slaves whose first, second, … fallback it is
}

// seat is one slave.
type seat struct {
	was   *Slave
	hash  uint64              // of its name; set in open ones
	table int32               // nowhere: has none
	next  [MaxFallbacks]int32 // tables; nowhere: to be found
}

const nowhere int32 = -1

func newSeating(slaves []Slave, hosts []Host) *seating {
	s := &seating{index: make(map[string]int32, len(hosts))}
	hosts = slices.DeleteFunc(slices.Clone(hosts), func(h Host) bool { return !h.Serving || !h.InStep })
	slices.SortFunc(hosts, func(x, y Host) int { return cmp.Compare(x.Name, y.Name) })
	for i, h := range hosts {
		s.tables = append(s.tables, table{name: h.Name, slots: slotsOf(h)})
		s.tickets = append(s.tickets, newTicket(h))
		s.index[h.Name] = int32(i)
		s.slots += slotsOf(h)
	}
	s.seats = make([]seat, len(slaves))
	for i := range slaves {
		s.seats[i] = s.seatOf(&slaves[i])
		if at := s.seats[i].table; at != nowhere {
			s.tables[at].load++
			s.seated++
		}
	}
	return s
}

// concern lets the seats change that which is true of.
func (s *seating) concern(which func(*seat) bool) {
	for i := range s.seats {
		if t := &s.seats[i]; which(t) {
			t.hash = hashOf(t.was.Name)
			s.open = append(s.open, t)
		}
	}
	slices.SortFunc(s.open, func(x, y *seat) int { return cmp.Compare(x.was.Name, y.was.Name) })
}

// lacks is true of a seat whose slave's record is not as it should be.
func (s *seating) lacks(t *seat) bool {
	have := slices.IndexFunc(t.next[:], func(at int32) bool { return at == nowhere })
	if have < 0 {
		have = MaxFallbacks
	}
	return t.table == nowhere || have != len(t.was.Fallbacks) || have < min(MaxFallbacks, len(s.tables)-1)
}

func slotsOf(h Host) int {
	if h.Slots <= 0 {
		return DefaultSlots
	}
	return min(h.Slots, maxSlots)
}

// seatOf reads a slave's record: what it names that is no home now is nowhere.
func (s *seating) seatOf(w *Slave) seat {
	t := seat{was: w, table: s.find(w.Master)}
	for i := range t.next {
		t.next[i] = nowhere
		if i < len(w.Fallbacks) {
			if at := s.find(w.Fallbacks[i]); at != t.table && !slices.Contains(t.next[:i], at) {
				t.next[i] = at
			}
		}
	}
	return t
}

func (s *seating) find(name string) int32 {
	if i, ok := s.index[name]; ok {
		return i
	}
	return nowhere
}

// sit gives a seat its table. When that was a fallback the later ones are moved up.
func (s *seating) sit(t *seat, at int32) {
	t.table = at
	s.tables[at].load++
	s.seated++
	if i := slices.Index(t.next[:], at); i >= 0 {
		copy(t.next[i:], t.next[i+1:])
		t.next[MaxFallbacks-1] = nowhere
	}
}

// changed yields the slaves whose record is to be another, by name: as they were passed in, and as they are to be.
func (s *seating) changed() iter.Seq2[*Slave, Slave] {
	return func(yield func(*Slave, Slave) bool) {
		for _, t := range s.open {
			var buf [MaxFallbacks]string
			next := buf[:0]
			for _, at := range t.next {
				if at != nowhere {
					next = append(next, s.tables[at].name)
				}
			}
			master := s.tables[t.table].name
			if t.was.Master == master && slices.Equal(t.was.Fallbacks, next) {
				continue
			}
			if !yield(t.was, Slave{t.was.Name, master, slices.Clone(next)}) {
				return
			}
		}
	}
}
