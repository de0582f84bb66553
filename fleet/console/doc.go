// Package console is a master's HTTP face: health, metrics and the /v1/ API that the command line speaks.
//
// Control is what a master can be asked to do. The Server answers HTTP by calling a Control; the Client is a Control
// that asks a Server. What goes in at one end comes out at the other: values, errors (as the sentinels of this package,
// tested with errors.Is), progress and cancellation. docs/api.md describes the same API for other programs.
//
// The server trusts whoever reaches its port, so it is bound to loopback unless an operator says otherwise. Against
// what a browser on the same host might be talked into it defends itself: foreign Host names and cross-site requests are
// refused. Nothing here keeps state between requests; uploads, shards and terms belong to the Control.
package console
