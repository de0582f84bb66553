package tree

import (
	"context"
	"fmt"
)

// EncodeRoot encodes the root object of a tree whose root directory is e, with an empty name and slot 0.
func EncodeRoot(e Entry) []byte {
	e.Name, e.Slot = "", 0
	return appendRecord(appendMagic(nil, kindRoot), &e)
}

// DecodeRoot decodes a root object.
func DecodeRoot(b []byte) (Entry, error) {
	c, err := open(b, kindRoot)
	if err != nil {
		return Entry{}, fmt.Errorf("decode root: %w", err)
	}
	var e Entry
	if name, _ := c.record(&e); name != 0 || e.Type != Directory {
		c.fail("not a root directory")
	}
	if err := c.done(); err != nil {
		return Entry{}, fmt.Errorf("decode root: %w", err)
	}
	return e, nil
}

// LoadRoot gets and decodes the root object named root.
func LoadRoot(ctx context.Context, objs Objects, root Digest) (Entry, error) {
	b, err := objs.Get(ctx, root)
	if err != nil {
		return Entry{}, fmt.Errorf("load root: %w", err)
	}
	e, err := DecodeRoot(b)
	if err != nil {
		return Entry{}, fmt.Errorf("object %s: %w", root, err)
	}
	return e, nil
}
