package master

import (
	"context"
	"errors"
	"strings"
	"sync"
	"time"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"
)

const (
	// lateCalls is how many calls in a row may run out of time before the token that goes with them is suspected.
	lateCalls = 3
	// lateCall is the least time after which a call that was given up counts as late.
	lateCall = 200 * time.Millisecond
)

// etcdAuth proves a user's password to an etcd with users, and sends the token that it gets for it with every call.
//
// The client could do that itself, but not over a restart or a restore of etcd: it sends the token that etcd has forgotten
// when it asks for a new one, which etcd 3.4 refuses; and an etcd that was restored from a backup takes a token of before
// for one that it will know later, and says nothing until the call's time is over.
type etcdAuth struct {
	user, password string

	mu    sync.Mutex // guards the rest; held while a token is fetched, so that it is fetched once
	token string     // "": none
	late  int        // calls in a row that ran out of time
}

// options are what a client needs to call through a.
func (a *etcdAuth) options() []grpc.DialOption {
	return []grpc.DialOption{grpc.WithChainUnaryInterceptor(a.unary), grpc.WithChainStreamInterceptor(a.stream)}
}

// unary is a grpc.UnaryClientInterceptor. A call whose token etcd does not know is made again with a new one.
func (a *etcdAuth) unary(ctx context.Context, method string, req, reply any, cc *grpc.ClientConn, invoke grpc.UnaryInvoker, opts ...grpc.CallOption) error {
	if strings.HasPrefix(method, "/etcdserverpb.Auth/") {
		return invoke(ctx, method, req, reply, cc, opts...)
	}
	used, err := a.authenticate(ctx, cc, "")
	if err != nil {
		return err
	}
	began := time.Now()
	err = invoke(withToken(ctx, used), method, req, reply, cc, opts...)
	if unknownToken(err) {
		if used, err = a.authenticate(ctx, cc, used); err == nil {
			err = invoke(withToken(ctx, used), method, req, reply, cc, opts...)
		}
	}
	a.note(err, time.Since(began))
	return err
}

// stream is a grpc.StreamClientInterceptor. A stream that etcd ends because of its token is opened again by whoever
// needs it; the next call that is none has another token by then.
func (a *etcdAuth) stream(ctx context.Context, d *grpc.StreamDesc, cc *grpc.ClientConn, method string, open grpc.Streamer, opts ...grpc.CallOption) (grpc.ClientStream, error) {
	token, err := a.authenticate(ctx, cc, "")
	if err != nil {
		return nil, err
	}
	return open(withToken(ctx, token), d, cc, method, opts...)
}

func withToken(ctx context.Context, token string) context.Context {
	return metadata.AppendToOutgoingContext(ctx, rpctypes.TokenFieldNameGRPC, token)
}

func unknownToken(err error) bool {
	is := rpctypes.Error(err)
	return errors.Is(is, rpctypes.ErrInvalidAuthToken) || errors.Is(is, rpctypes.ErrAuthOldRevision) || errors.Is(is, rpctypes.ErrUserEmpty)
}

// authenticate returns the present token, or fetches one when there is none but stale.
func (a *etcdAuth) authenticate(ctx context.Context, cc *grpc.ClientConn, stale string) (string, error) {
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.token != "" && a.token != stale {
		return a.token, nil
	}
	resp, err := pb.NewAuthClient(cc).Authenticate(ctx, &pb.AuthenticateRequest{Name: a.user, Password: a.password})
	if err != nil {
		return "", err
	}
	a.token, a.late = resp.Token, 0
	return a.token, nil
}

// note forgets the token after calls in a row that have run out of time.
func (a *etcdAuth) note(err error, took time.Duration) {
	a.mu.Lock()
	defer a.mu.Unlock()
	code := status.Code(err)
	switch {
	case code != codes.DeadlineExceeded && code != codes.Canceled:
		a.late = 0
	case took >= lateCall: // others were given up for another reason, such as the end of the connection
		if a.late++; a.late >= lateCalls {
			a.token, a.late = "", 0
		}
	}
}
