package tree

import (
	"encoding/binary"
	"fmt"
	"hash/maphash"
)

// headLen is the length of what every record begins with, in fixed places: type, length of the name, mode, mtime, ctime
// and tag. minRecord is the least that an entry takes in a block, its slot and name included: what bounds an allocation
// by the input.
const (
	headLen   = 1 + 1 + 2 + 12 + 12 + 8
	minRecord = 1 + headLen + 5 + 1
)

// appendRecord appends what an entry has beside its slot and its strings.
func appendRecord(dst []byte, e *Entry) []byte {
	dst = append(dst, byte(e.Type), byte(len(e.Name)))
	dst = binary.BigEndian.AppendUint16(dst, uint16(e.Mode))
	dst = appendTime(dst, e.Mtime)
	dst = appendTime(dst, e.Ctime)
	dst = binary.BigEndian.AppendUint64(dst, e.Tag)
	dst = binary.AppendUvarint(dst, uint64(e.UID))
	dst = binary.AppendUvarint(dst, uint64(e.GID))
	dst = binary.AppendUvarint(dst, uint64(e.Links))
	dst = binary.AppendUvarint(dst, e.Ino)
	dst = binary.AppendUvarint(dst, e.Born)
	switch e.Type {
	case Regular:
		dst = binary.AppendUvarint(dst, e.Size)
		dst = binary.AppendUvarint(dst, zigzag(int64(e.Size-e.Used)))
		if e.Size > 0 {
			dst = append(dst, e.Content.Digest[:]...)
		}
	case Directory:
		dst = binary.AppendUvarint(dst, e.Size)
		dst = append(dst, e.Content.Digest[:]...)
	case Symlink:
		dst = binary.AppendUvarint(dst, uint64(len(e.Target)))
	case Block, Char:
		dst = binary.AppendUvarint(dst, uint64(e.Rdev.Major))
		dst = binary.AppendUvarint(dst, uint64(e.Rdev.Minor))
	}
	return dst
}

// record reads what appendRecord wrote, into a zero entry, and returns the lengths of its strings.
func (c *cursor) record(e *Entry) (name, target int) {
	if c.left() < headLen {
		c.fail("cut short")
		return 0, 0
	}
	head := c.b[c.i : c.i+headLen]
	c.i += headLen
	e.Type = Type(head[0])
	name = int(head[1])
	e.Mode = uint32(binary.BigEndian.Uint16(head[2:]))
	e.Mtime = timeOf(head[4:])
	e.Ctime = timeOf(head[16:])
	e.Tag = binary.BigEndian.Uint64(head[28:])
	if e.Mode > 0o7777 || e.Mtime.Nsec > 999_999_999 || e.Ctime.Nsec > 999_999_999 {
		c.fail("mode %#o, times %v and %v", e.Mode, e.Mtime, e.Ctime)
	}
	e.UID = c.uint32("uid")
	e.GID = c.uint32("gid")
	e.Links = c.uint32("links")
	e.Ino = c.atMost(MaxIno, "ino")
	e.Born = c.atMost(MaxBorn, "born")
	switch e.Type {
	case Regular:
		e.Size = c.uvarint()
		e.Used = e.Size - uint64(unzigzag(c.uvarint()))
		if e.Size > 0 {
			c.digest(&e.Content.Digest)
		}
	case Directory:
		e.Size = c.uvarint()
		e.Used = e.Size
		c.digest(&e.Content.Digest)
		if e.Links < 2 {
			c.fail("directory with %d links", e.Links)
		}
	case Symlink:
		target = int(c.atMost(maxTarget, "target length"))
		e.Size, e.Used = uint64(target), uint64(target)
	case Block, Char:
		e.Rdev.Major = c.uint32("major")
		e.Rdev.Minor = c.uint32("minor")
	case Socket, FIFO:
	default:
		c.fail("type %d", e.Type)
	}
	e.Content.Form = formOf(e.Type, e.Size)
	if e.Links == 0 || e.Ino == 0 || e.Born == 0 {
		c.fail("%d links, ino %d, born %d", e.Links, e.Ino, e.Born)
	}
	return name, target
}

// appendBlock appends entries, which are in slot order and of the page that begins behind slot base: first a record of
// each, then all their strings.
func appendBlock(dst []byte, base uint64, entries []Entry) []byte {
	last := base
	for i := range entries {
		dst = binary.AppendUvarint(dst, entries[i].Slot-last-1)
		dst = appendRecord(dst, &entries[i])
		last = entries[i].Slot
	}
	for i := range entries {
		dst = append(dst, entries[i].Name...)
		dst = append(dst, entries[i].Target...)
	}
	return dst
}

// block reads count entries that appendBlock wrote, to the end of the object. Their strings share one allocation.
func (c *cursor) block(base, count uint64) []Entry {
	if count > PageSlots || count*minRecord > uint64(c.left()) {
		c.fail("%d entries in %d bytes", count, c.left())
		return nil
	}
	entries := make([]Entry, count)
	lengths := make([]uint16, 2*count)
	slot := base
	for i := range entries {
		slot += c.atMost(PageSlots-1, "slot") + 1
		entries[i].Slot = slot
		name, target := c.record(&entries[i])
		lengths[2*i], lengths[2*i+1] = uint16(name), uint16(target)
	}
	if slot > base+PageSlots {
		c.fail("slot %d beyond its page", slot)
	}
	if c.err != nil {
		return nil
	}
	c.strings(entries, lengths)
	if c.err != nil {
		return nil
	}
	if i := duplicate(entries); i >= 0 {
		c.fail("name %q twice", entries[i].Name)
		return nil
	}
	return entries
}

// strings reads the names and targets of entries.
func (c *cursor) strings(entries []Entry, lengths []uint16) {
	total := 0
	for _, n := range lengths {
		total += int(n)
	}
	if total != c.left() {
		c.fail("%d bytes of names, want %d", c.left(), total)
		return
	}
	all := string(c.b[c.i:])
	for i := range entries {
		e := &entries[i]
		e.Name, all = all[:lengths[2*i]], all[lengths[2*i]:]
		e.Target, all = all[:lengths[2*i+1]], all[lengths[2*i+1]:]
		err := checkName(e.Name)
		if err == nil && e.Type == Symlink {
			err = checkTarget(e.Target)
		}
		if err != nil {
			c.fail("%v", err)
			return
		}
	}
	c.i = len(c.b)
}

// duplicate returns the index of an entry whose name an earlier one has, or -1. It costs a few nanoseconds an entry: the
// table lives on the stack, and no input can be made to collide in it.
func duplicate(entries []Entry) int {
	if len(entries) <= 8 {
		for i := range entries {
			for j := range i {
				if entries[i].Name == entries[j].Name {
					return i
				}
			}
		}
		return -1
	}
	var table [2 * PageSlots]uint16 // index + 1 of an entry, by hash, open addressing
	seed := maphash.MakeSeed()
	for i := range entries {
		h := maphash.String(seed, entries[i].Name) % uint64(len(table))
		for table[h] != 0 {
			if entries[table[h]-1].Name == entries[i].Name {
				return i
			}
			h = (h + 1) % uint64(len(table))
		}
		table[h] = uint16(i + 1)
	}
	return -1
}

// appendPage appends a page object; there is at least one entry.
func appendPage(dst []byte, number uint64, entries []Entry) []byte {
	dst = appendMagic(dst, kindPage)
	dst = binary.AppendUvarint(dst, number)
	dst = binary.AppendUvarint(dst, uint64(len(entries)))
	return appendBlock(dst, number*PageSlots, entries)
}

// DecodePage decodes a page object into its entries, in slot order.
func DecodePage(b []byte) ([]Entry, error) {
	c, err := open(b, kindPage)
	if err != nil {
		return nil, fmt.Errorf("decode page: %w", err)
	}
	number := c.atMost(MaxSlot/PageSlots, "page number")
	count := c.uvarint()
	if count == 0 {
		c.fail("page without entries")
	}
	entries := c.block(number*PageSlots, count)
	if err := c.done(); err != nil {
		return nil, fmt.Errorf("decode page: %w", err)
	}
	return entries, nil
}
