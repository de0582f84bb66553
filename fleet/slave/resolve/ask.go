package resolve

import (
	"context"
	"errors"
	"fmt"
	"net"
	"slices"
	"strings"
	"time"

	"github.com/miekg/dns"
)

// Times of a question.
const (
	stagger   = 300 * time.Millisecond // then the next server is asked, too
	tryTime   = 2 * time.Second        // of one server, for one question
	datagrams = 1232                   // bytes: what passes every network whole
)

// reply is what became of asking one server.
type reply struct {
	server int // which it was; for those who have asked several
	answer *dns.Msg
	err    error
}

// refusal is a name server's word that it does not answer for such names.
type refusal struct{ error }

// IsRefusal reports whether an error, of an Opinion, is a name server's word that it does not answer for such names.
func IsRefusal(err error) bool {
	_, refused := err.(refusal)
	return refused
}

// verdict is what became of a question that nobody has answered.
func verdict(failed []error) error {
	all := errors.Join(failed...)
	for _, err := range failed {
		if !IsRefusal(err) {
			return all
		}
	}
	return fmt.Errorf("%w: %w", ErrRefused, all)
}

// ask puts a question to servers, to each twice if need be because datagrams get lost, and returns the first answer that is
// one: with records, or that there are none.
func ask(ctx context.Context, servers []string, name string, kind uint16) (*dns.Msg, error) {
	failed := make([]error, len(servers)) // the last of each
	servers = slices.Concat(servers, servers)
	ctx, cancel := context.WithCancel(ctx)
	replies := make(chan reply, len(servers)) // room for all: nobody waits to tell
	defer cancel()
	next := time.NewTimer(0)
	defer next.Stop()
	for asked, open := 0, 0; ; {
		select {
		case <-next.C:
			if asked < len(servers) {
				i := asked
				asked, open = asked+1, open+1
				go func() {
					r := put(ctx, servers[i], name, kind)
					r.server = i % len(failed)
					replies <- r
				}()
				next.Reset(stagger)
			}
		case r := <-replies:
			open--
			if r.err == nil || errors.Is(r.err, ErrNoName) {
				return r.answer, r.err
			}
			if failed[r.server] == nil || ctx.Err() == nil { // to have been given up says less than an answer
				failed[r.server] = r.err
			}
			switch {
			case asked < len(servers):
				next.Reset(0)
			case open == 0:
				return nil, verdict(failed)
			}
		case <-ctx.Done():
			return nil, errors.Join(fmt.Errorf("ask DNS for %s: %w", name, context.Cause(ctx)), errors.Join(failed...))
		}
	}
}

// put puts a question to one server.
func put(ctx context.Context, server, name string, kind uint16) reply {
	ctx, cancel := context.WithTimeout(ctx, tryTime)
	defer cancel()
	q := new(dns.Msg)
	q.SetQuestion(dns.Fqdn(name), kind)
	q.SetEdns0(datagrams, false)
	udp := dns.Client{Net: "udp", UDPSize: datagrams}
	answer, _, err := udp.ExchangeContext(ctx, q, server)
	if err == nil && answer.Truncated {
		tcp := dns.Client{Net: "tcp"}
		answer, _, err = tcp.ExchangeContext(ctx, q, server)
	}
	return judge(answer, err, server, name)
}

// judge says what an answer is worth.
func judge(answer *dns.Msg, err error, server, name string) reply {
	name = strings.TrimSuffix(name, ".")
	switch {
	case err != nil:
		if op := (*net.OpError)(nil); errors.As(err, &op) {
			err = op.Err // the rest are its own addresses
		}
		return reply{err: fmt.Errorf("name server %s: %w", server, err)}
	case answer.Rcode == dns.RcodeNameError:
		return reply{err: fmt.Errorf("%w: name server %s knows no %s", ErrNoName, server, name)}
	case answer.Rcode != dns.RcodeSuccess:
		err = fmt.Errorf("name server %s answers %s for %s", server, dns.RcodeToString[answer.Rcode], name)
		if answer.Rcode == dns.RcodeRefused {
			err = refusal{err}
		}
		return reply{err: err}
	}
	return reply{answer: answer}
}
