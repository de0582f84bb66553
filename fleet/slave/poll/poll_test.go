package poll

import (
	"context"
	"errors"
	"os"
	"testing"

	"golang.org/x/sys/unix"
)

func TestWait(t *testing.T) {
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	defer w.Close()
	p, err := New(r.Fd(), unix.POLLIN)
	if err != nil {
		t.Fatal(err)
	}
	defer p.Close()
	for range 2 {
		done := make(chan error, 1)
		go func() { done <- p.Wait(t.Context()) }()
		if _, err := w.Write([]byte("x")); err != nil {
			t.Fatal(err)
		}
		if err := <-done; err != nil {
			t.Error(err)
		}
		if _, err := r.Read(make([]byte, 1)); err != nil {
			t.Fatal(err)
		}
	}
	cause := errors.New("enough")
	ctx, cancel := context.WithCancelCause(t.Context())
	done := make(chan error, 1)
	go func() { done <- p.Wait(ctx) }()
	cancel(cause)
	if err := <-done; !errors.Is(err, cause) {
		t.Errorf("%v, want %v", err, cause)
	}
}
