// Command gonfs serves a directory read-only with github.com/willscott/go-nfs, as its own examples do, to be measured beside
// other servers: gonfs ADDRESS DIR.
package main

import (
	"fmt"
	"net"
	"os"

	"github.com/go-git/go-billy/v5/osfs"
	"github.com/willscott/go-nfs"
	"github.com/willscott/go-nfs/helpers"
)

// cached is how many handles it remembers: more than the tree has names, or else they turn stale under a walk.
const cached = 1 << 16

func main() {
	if len(os.Args) != 3 {
		fmt.Fprintln(os.Stderr, "usage: gonfs ADDRESS DIR")
		os.Exit(2)
	}
	l, err := net.Listen("tcp", os.Args[1])
	if err == nil {
		handler := helpers.NewCachingHandler(helpers.NewNullAuthHandler(osfs.New(os.Args[2])), cached)
		err = nfs.Serve(l, handler)
	}
	fmt.Fprintln(os.Stderr, "gonfs:", err)
	os.Exit(1)
}
