// Package peer moves objects between masters: Server gives away what a store holds, Fetcher brings into a store what a tree
// needs and the store lacks.
//
// What it promises. After a Fetch without an error the store holds every object of the tree, hashed on its way in and
// durable. What came from a peer is never trusted: a wrong byte costs the peer its turn, not the store its truth. A peer
// that dies, stalls, lies or lacks objects holds nothing up as long as another one has them. That all living peers lack
// an object is an error of its own (tree.ErrMissing) and never said because one did not answer.
//
// On the wire, over HTTP/1.1 (who may ask is decided before a request comes here):
//
//	POST /peer/v1/objects          body: digests; answer: one stream of objects in the order of the request
//	GET  /peer/v1/objects/DIGEST   one object, also from an offset on; 404 with the header Nfs-Fleet-Object: missing
//
// wire.go has the bytes of the stream. Objects of 1 MiB or more are only announced in it and fetched with GET, a chunk at a
// time from whoever is free, and go on at another peer where the first one stopped.
//
// Who owns what. One goroutine (run) owns the state of a fetch: what is wanted, who lacks what, who is asked. A goroutine a
// request reads an answer and hands it in slabs to workers, which hash, store, and say what a directory object names.
// Everything between them is bounded, so that a slow disk slows the network down and not the other way round.
package peer
