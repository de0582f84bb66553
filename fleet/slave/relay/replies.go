package relay

import "encoding/binary"

const (
	replyBuffer = 64 << 10
	bigReply    = 32 << 10  // replies from this size on are spliced
	batchBytes  = 512 << 10 // of whole replies are collected before they are given to the kernel
	awaitMost   = 512 << 10 // of a reply are waited for at once
)

// downstream is the half of a session that comes from the master. Small replies are copied, large ones spliced; of those
// only the mark is looked at.
type downstream struct {
	framer  framer
	big     bool   // the last reply was
	splices bool   // the present fragment is spliced
	seen    int    // bytes that framer knows and that are still to be taken: a mark
	held    []byte // read, and not taken by the kernel yet; replyBuffer at the most
	pipe    *pipe  // nil: nothing was spliced yet
	first   bool   // what is pending is delivered before more is taken
}

func (d *downstream) pending() bool { return len(d.held) > 0 || d.pipe != nil && d.pipe.held > 0 }

// whole says that the kernel has got the last byte of each reply that it has begun to get.
func (d *downstream) whole() bool { return d.framer.between() && d.seen == 0 && !d.pending() }

// due says that what is pending is to be delivered now.
func (d *downstream) due(more bool) bool {
	return d.pending() && (d.first || !more || len(d.held) > 0 || d.pipe.held >= batchBytes)
}

// passReplies passes replies until there are no more, the kernel takes no more, or it is the turn of others.
func (s *session) passReplies(l *loop) (more bool) {
	d := &s.back
	for left := turnBytes; left > 0; {
		if d.due(s.master.readable) && !s.deliver(l) {
			return false
		}
		if !s.master.readable {
			s.master.await(d.want())
			return false
		}
		n, err := s.take(l)
		if err != nil {
			if d.pending() {
				s.deliver(l)
			}
			s.fail(err)
			return false
		}
		left -= n
	}
	return true
}

// want is how many bytes are worth being woken for.
func (d *downstream) want() int {
	if !d.splices {
		return 1
	}
	return min(d.framer.left+d.seen, awaitMost)
}

// take takes some bytes of replies.
func (s *session) take(l *loop) (n int, err error) {
	d := &s.back
	if d.big && !d.splices && d.framer.fresh() {
		var mark [4]byte
		if s.master.peek(mark[:]) && binary.BigEndian.Uint32(mark[:])&^lastFragment >= bigReply {
			d.framer.feed(mark[:])
			d.splices, d.seen = true, len(mark)
		}
	}
	switch {
	case d.splices:
		n, err = s.spliceReply(l)
	case !s.master.readable:
		return 0, nil
	case d.pending():
		d.first = true
		return 0, nil
	default:
		n, err = s.copyReplies(l)
	}
	if n > 0 {
		s.down.Add(int64(n))
		s.heard.Store(l.now)
	}
	return n, err
}

// copyReplies reads replies and gives them to the kernel.
func (s *session) copyReplies(l *loop) (int, error) {
	d := &s.back
	n, err := s.master.read(l.buf[:replyBuffer])
	if n == 0 || err != nil {
		return n, err
	}
	b := l.buf[:n]
	s.replies.Add(int64(d.framer.feed(b)))
	d.big = d.framer.left >= bigReply
	d.splices = d.big
	taken, err := s.kernel.write(b)
	if err != nil {
		s.up.gone, s.over = true, true
	}
	if taken < n {
		d.held = append([]byte(nil), b[taken:]...)
	}
	return n, nil
}

// spliceReply moves what there is of the present fragment to the pipe.
func (s *session) spliceReply(l *loop) (int, error) {
	d := &s.back
	if d.pipe == nil {
		var err error
		if d.pipe, err = l.takePipe(); err != nil {
			return 0, err
		}
	}
	want := d.framer.left + d.seen
	n, err := d.pipe.fill(s.master, want)
	if n == 0 {
		d.first = d.pipe.held > 0
		return 0, err
	}
	mark := min(n, d.seen)
	d.seen -= mark
	if n > mark {
		s.replies.Add(int64(d.framer.pass(n - mark)))
	}
	d.splices = d.framer.left > 0
	d.first = n < want
	return n, nil
}

// deliver gives the kernel what is pending, and says whether it has taken all.
func (s *session) deliver(l *loop) bool {
	d := &s.back
	var err error
	for len(d.held) > 0 && s.kernel.writable && err == nil {
		var n int
		if n, err = s.kernel.write(d.held); n == len(d.held) {
			d.held = nil
		} else {
			d.held = d.held[n:]
		}
	}
	if d.pipe != nil && len(d.held) == 0 && err == nil {
		err = d.pipe.empty(s.kernel)
	}
	if err != nil {
		s.up.gone, s.over = true, true
		return false
	}
	if d.pending() {
		return false
	}
	d.first = false
	d.release(l)
	return true
}

// release gives the pipe back to the loop.
func (d *downstream) release(l *loop) {
	if d.pipe != nil {
		l.givePipe(d.pipe)
		d.pipe = nil
	}
}
