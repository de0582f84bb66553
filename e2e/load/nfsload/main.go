// Command nfsload runs one operation of package load against an NFSv3 server and prints what came of it.
//
//	nfsload [-each] nfs://HOST/EXPORT?nfsport=P&mountport=P OP [conns [depth [seconds [PATH[:BLOCK]]]]]
package main

import (
	"context"
	"flag"
	"fmt"
	"os"
	"runtime"
	"runtime/debug"
	"strconv"
	"strings"
	"time"

	"github.com/nfs-fleet/nfs-fleet/e2e/load"
)

func main() {
	each := flag.Bool("each", false, "send every call with a write of its own")
	flag.Parse()
	op, err := parse(flag.Args())
	if err != nil {
		fmt.Fprintln(os.Stderr, "nfsload:", err)
		os.Exit(2)
	}
	op.Each = *each
	runtime.GOMAXPROCS(1)
	debug.SetGCPercent(400)
	r, err := load.Run(context.Background(), op)
	if err != nil {
		fmt.Fprintln(os.Stderr, "nfsload:", err)
		os.Exit(2)
	}
	fmt.Printf("op=%s conns=%d depth=%d %v\n", op.Name, op.Conns, op.Depth, r)
	if r.Errors > 0 {
		os.Exit(1)
	}
}

// parse reads the arguments, which are those of shared nfsload programs elsewhere.
func parse(args []string) (load.Op, error) {
	if len(args) < 2 {
		return load.Op{}, fmt.Errorf("usage: nfsload [-each] URL OP [conns [depth [seconds [PATH[:BLOCK]]]]]")
	}
	op, err := load.ParseURL(args[0])
	if err != nil {
		return op, err
	}
	op.Name, op.Conns, op.Depth, op.For = args[1], 1, 1, 3*time.Second
	numbers := []*int{&op.Conns, &op.Depth}
	for i, p := range numbers {
		if len(args) > 2+i {
			if *p, err = strconv.Atoi(args[2+i]); err != nil {
				return op, err
			}
		}
	}
	if len(args) > 4 {
		s, err := strconv.ParseFloat(args[4], 64)
		if err != nil {
			return op, err
		}
		op.For = time.Duration(s * float64(time.Second))
	}
	if len(args) > 5 {
		path, block, ok := strings.Cut(args[5], ":")
		op.Path = path
		if ok {
			if op.Block, err = strconv.Atoi(block); err != nil {
				return op, err
			}
		}
	}
	return op, nil
}
