package tree

import (
	"context"
	"sync/atomic"
)

// counter counts what reaches an Objects.
type counter struct {
	Objects
	gets, puts, putBytes atomic.Int64
}

func (c *counter) Get(ctx context.Context, d Digest) ([]byte, error) {
	c.gets.Add(1)
	return c.Objects.Get(ctx, d)
}

func (c *counter) Put(ctx context.Context, b []byte) (Digest, error) {
	c.puts.Add(1)
	c.putBytes.Add(int64(len(b)))
	return c.Objects.Put(ctx, b)
}
