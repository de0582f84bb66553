package hello

import (
	"math"
	"strings"
	"time"
	"unicode"
	"unicode/utf8"

	"github.com/nfs-fleet/nfs-fleet/exporter/rpc"
)

// AppendGreeting appends g in XDR, MaxGreeting bytes at the most. It always succeeds: a text that is too long is cut, what
// cannot be printed in it becomes '?', and mounts that find no room are counted in More instead.
func AppendGreeting(dst []byte, g Greeting) []byte {
	for _, s := range []string{g.Slave, g.Instance, g.Mode, g.Version} {
		dst = appendText(dst, s, maxText)
	}
	var mounts []byte
	n := 0
	for _, m := range g.Mounts {
		longer := appendMount(mounts, m)
		if n == MaxMounts || len(longer) > roomForMounts {
			break
		}
		mounts = longer
		n++
	}
	dst = rpc.AppendUint32(dst, uint32(n))
	dst = append(dst, mounts...)
	dst = rpc.AppendUint32(dst, uint32(min(max(g.More, 0)+len(g.Mounts)-n, maxMore)))
	dst = appendTime(dst, g.Last.At)
	dst = rpc.AppendUint64(dst, uint64(max(g.Last.Took, 0)))
	for _, s := range []string{g.Last.From, g.Last.To, g.Last.Why} {
		dst = appendText(dst, s, maxText)
	}
	return dst
}

// roomForMounts is what the other fields of a greeting leave at the least: they are seven texts, two counts, two hypers.
const roomForMounts = MaxGreeting - 7*(4+maxText) - 2*4 - 2*8

// maxMore is the most mounts that are counted.
const maxMore = 1 << 20

func appendMount(dst []byte, m Mount) []byte {
	dst = appendText(dst, m.Name, maxText)
	dst = appendText(dst, m.Shard, maxText)
	return appendText(dst, m.Dir, maxDir)
}

// DecodeGreeting is the inverse of AppendGreeting. Bytes left over are ignored. The error is rpc.ErrGarbageArgs.
func DecodeGreeting(b []byte) (Greeting, error) {
	if len(b) > MaxGreeting {
		return Greeting{}, rpc.ErrGarbageArgs
	}
	d := decoder{rpc.NewDecoder(b)}
	g := Greeting{Slave: d.text(maxText), Instance: d.text(maxText), Mode: d.text(maxText), Version: d.text(maxText)}
	if n := d.count(MaxMounts); n > 0 {
		g.Mounts = make([]Mount, n)
		for i := range g.Mounts {
			g.Mounts[i] = Mount{Name: d.text(maxText), Shard: d.text(maxText), Dir: d.text(maxDir)}
		}
	}
	g.More = d.count(maxMore)
	g.Last.At = d.time()
	g.Last.Took = time.Duration(d.hyper())
	g.Last.From, g.Last.To, g.Last.Why = d.text(maxText), d.text(maxText), d.text(maxText)
	if err := d.Err(); err != nil {
		return Greeting{}, err
	}
	return g, nil
}

// AppendAnswer appends a in XDR, MaxAnswer bytes at the most. It always succeeds, as AppendGreeting; targets past
// MaxTargets are left out.
func AppendAnswer(dst []byte, a Answer) []byte {
	dst = rpc.AppendUint32(dst, uint32(a.Status))
	dst = appendText(dst, a.Master, maxText)
	dst = rpc.AppendUint64(dst, uint64(max(a.Revision, 0)))
	targets := a.Targets[:min(len(a.Targets), MaxTargets)]
	dst = rpc.AppendUint32(dst, uint32(len(targets)))
	for _, t := range targets {
		dst = appendText(dst, t.Name, maxText)
		dst = appendText(dst, t.Host, maxText)
		dst = rpc.AppendUint32(dst, uint32(t.Port))
	}
	dst = rpc.AppendUint64(dst, uint64(max(a.Every, 0)))
	dst = appendText(dst, a.Why, maxText)
	if a.Now.IsZero() {
		return dst
	}
	return appendTime(dst, a.Now)
}

// DecodeAnswer is the inverse of AppendAnswer: what it returns can be acted upon as it is, a status that is not known is
// Unwell, and Every is between MinEvery and MaxEvery. Bytes left over are ignored. The error is rpc.ErrGarbageArgs.
func DecodeAnswer(b []byte) (Answer, error) {
	if len(b) > MaxAnswer {
		return Answer{}, rpc.ErrGarbageArgs
	}
	d := decoder{rpc.NewDecoder(b)}
	a := Answer{Status: Status(d.Uint32()), Master: d.text(maxText), Revision: d.hyper()}
	if a.Status >= statuses {
		a.Status = Unwell
	}
	if n := d.count(MaxTargets); n > 0 {
		a.Targets = make([]Target, n)
		for i := range a.Targets {
			a.Targets[i] = Target{Name: d.text(maxText), Host: d.text(maxText), Port: uint16(d.count(1<<16 - 1))}
		}
	}
	a.Every = time.Duration(d.hyper())
	if a.Every == 0 {
		a.Every = DefaultEvery
	}
	a.Every = min(max(a.Every, MinEvery), MaxEvery)
	a.Why = d.text(maxText)
	if d.Len() > 0 {
		a.Now = d.time()
	}
	if err := d.Err(); err != nil {
		return Answer{}, err
	}
	return a, nil
}

// decoder adds what the messages here are made of.
type decoder struct{ rpc.Decoder }

// text takes a string of at most limit bytes, all of them printable.
func (d *decoder) text(limit int) string {
	s := string(d.Opaque(limit))
	if !utf8.ValidString(s) || strings.ContainsFunc(s, unprintable) {
		d.Fail()
		return ""
	}
	return s
}

// count takes a number that is at most limit.
func (d *decoder) count(limit uint32) int {
	n := d.Uint32()
	if n > limit {
		d.Fail()
		return 0
	}
	return int(n)
}

// hyper takes a number that is not negative.
func (d *decoder) hyper() int64 {
	n := int64(d.Uint64())
	if n < 0 {
		d.Fail()
		return 0
	}
	return n
}

// time takes a time.
func (d *decoder) time() time.Time {
	if at := d.hyper(); at > 0 {
		return time.Unix(0, at).UTC()
	}
	return time.Time{}
}

// appendTime appends t, or 0 for what is none, or what nanoseconds since 1970 do not reach.
func appendTime(dst []byte, t time.Time) []byte {
	at := int64(0)
	if t.After(time.Unix(0, 0)) && !t.After(time.Unix(0, math.MaxInt64)) {
		at = t.UnixNano()
	}
	return rpc.AppendUint64(dst, uint64(at))
}

// appendText appends s, made printable and cut to limit bytes.
func appendText(dst []byte, s string, limit int) []byte {
	s = strings.Map(func(r rune) rune {
		if unprintable(r) {
			return '?'
		}
		return r
	}, strings.ToValidUTF8(s, "?"))
	if len(s) > limit {
		for !utf8.RuneStart(s[limit]) {
			limit--
		}
		s = s[:limit]
	}
	return rpc.AppendOpaque(dst, s)
}

// unprintable is true of what must not reach a terminal or a log.
func unprintable(r rune) bool { return !unicode.IsPrint(r) }
