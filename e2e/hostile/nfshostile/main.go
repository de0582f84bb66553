// Command nfshostile is one of the clients of package hostile, until its standard input ends.
//
//	nfshostile [-conns N] [-seed N] [-at HOST:PORT] [-from ADDRESS] nfs://HOST/EXPORT?nfsport=P&mountport=P KIND PATH
//
// PATH is a file below the export that can be read. -at names another address than that of NFS.
package main

import (
	"context"
	"flag"
	"fmt"
	"io"
	"net"
	"os"
	"runtime"
	"strings"
	"time"

	"github.com/nfs-fleet/nfs-fleet/e2e/hostile"
	"github.com/nfs-fleet/nfs-fleet/e2e/load"
	"github.com/nfs-fleet/nfs-fleet/e2e/nfs"
)

func main() {
	var t hostile.Target
	flag.IntVar(&t.Conns, "conns", 0, "connections at once; 0: as many as the kind has by itself")
	flag.Uint64Var(&t.Seed, "seed", 1, "what is sent is drawn by it")
	flag.StringVar(&t.From, "from", "", "`address` of this host that is attacked from")
	at := flag.String("at", "", "`host:port` that is attacked; that of NFS if empty")
	flag.Parse()
	runtime.GOMAXPROCS(1)
	if err := run(t, *at, flag.Args()); err != nil {
		fmt.Fprintln(os.Stderr, "nfshostile:", err)
		os.Exit(1)
	}
}

func run(t hostile.Target, at string, args []string) error {
	if len(args) != 3 {
		return fmt.Errorf("usage: nfshostile [flags] URL KIND PATH; kinds: %s", strings.Join(hostile.Kinds(), " "))
	}
	op, err := load.ParseURL(args[0])
	if err != nil {
		return err
	}
	if err := find(&t, op, args[2]); err != nil {
		return err
	}
	if t.Addr = op.Addr; at != "" {
		t.Addr = at
	}
	ctx, cancel := context.WithCancel(context.Background())
	go func() {
		_, _ = io.Copy(io.Discard, os.Stdin) // its end is what matters
		cancel()
	}()
	began := time.Now()
	done, err := hostile.Run(ctx, args[1], t)
	fmt.Printf("kind=%s done=%d seconds=%.3f\n", args[1], done, time.Since(began).Seconds())
	return err
}

// find gets the handles of a file and of its directory.
func find(t *hostile.Target, op load.Op, path string) error {
	c, err := nfs.Dial(context.Background(), (&net.Dialer{}).DialContext, op.Addr, hostile.Patience)
	if err != nil {
		return err
	}
	defer c.Close()
	if t.Dir, err = c.Mount(op.Export); err != nil {
		return err
	}
	for name := range strings.SplitSeq(path, "/") {
		if t.File != "" {
			t.Dir = t.File
		}
		if t.File, _, err = c.Lookup(t.Dir, name); err != nil {
			return err
		}
	}
	return nil
}
