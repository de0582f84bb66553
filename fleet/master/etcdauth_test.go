package master

import (
	"context"
	"net"
	"strconv"
	"sync"
	"testing"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"
)

// forgetful is an etcd with users that forgets its tokens, and refuses to authenticate whoever shows one.
type forgetful struct {
	pb.UnimplementedAuthServer
	pb.UnimplementedKVServer

	mu    sync.Mutex // guards the rest
	given int        // the last token
	known bool
}

func tokenIn(ctx context.Context) string {
	md, _ := metadata.FromIncomingContext(ctx)
	if all := md.Get(rpctypes.TokenFieldNameGRPC); len(all) > 0 {
		return all[0]
	}
	return ""
}

func (f *forgetful) Authenticate(ctx context.Context, r *pb.AuthenticateRequest) (*pb.AuthenticateResponse, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	switch {
	case tokenIn(ctx) != "":
		return nil, rpctypes.ErrGRPCInvalidAuthToken
	case r.Name != "fleet" || r.Password != "secret":
		return nil, rpctypes.ErrGRPCAuthFailed
	}
	f.given, f.known = f.given+1, true
	return &pb.AuthenticateResponse{Token: strconv.Itoa(f.given)}, nil
}

func (f *forgetful) Range(ctx context.Context, _ *pb.RangeRequest) (*pb.RangeResponse, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if !f.known || tokenIn(ctx) != strconv.Itoa(f.given) {
		return nil, rpctypes.ErrGRPCInvalidAuthToken
	}
	return &pb.RangeResponse{}, nil
}

func (f *forgetful) forget() {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.known = false
}

func TestEtcdForgetsItsTokens(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	f, server := &forgetful{}, grpc.NewServer()
	pb.RegisterAuthServer(server, f)
	pb.RegisterKVServer(server, f)
	go server.Serve(l) // ends with Stop
	t.Cleanup(server.Stop)
	a := &etcdAuth{user: "fleet", password: "secret"}
	conn, err := grpc.NewClient(l.Addr().String(), append(a.options(), grpc.WithTransportCredentials(insecure.NewCredentials()))...)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	kv := pb.NewKVClient(conn)
	for i := range 3 {
		for range 2 {
			if _, err := kv.Range(t.Context(), &pb.RangeRequest{}); err != nil {
				t.Fatalf("after etcd has forgotten %d tokens: %v", i, err)
			}
		}
		if f.given != i+1 {
			t.Errorf("%d tokens were fetched, want %d", f.given, i+1)
		}
		f.forget()
	}
	late := status.Error(codes.DeadlineExceeded, "late")
	for range lateCalls - 1 {
		a.note(late, lateCall)
	}
	a.note(nil, 0)
	a.note(late, lateCall)
	if a.token == "" {
		t.Error("the token is suspect although calls were answered")
	}
	for range lateCalls {
		a.note(late, lateCall)
	}
	if a.token != "" {
		t.Error("the token is not suspect although nothing is answered")
	}
}
