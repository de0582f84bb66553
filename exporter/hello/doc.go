// Package hello is HELLO: a private RPC program by which a slave's agent and a master talk, on the NFS port, over a
// connection of its own. It does three things with one call. It enrols the slave: the greeting says who it is, what it
// mounts and how its last reattach went. It is the agent's health probe: it comes the way that reads come, and a master
// that is not fit to serve says so. And it tells the slave where to read from: the answer has the slave's present order.
//
// The protocol in the language of RFC 4506. Strings are printable UTF-8 of a bounded length; hypers of time count
// nanoseconds, since 1970 or as a duration, with 0 for none.
//
//	struct mount    { string name<256>; string shard<256>; string dir<1024>; };
//	struct reattach { hyper at; hyper took; string from<256>; string to<256>; string why<256>; };
//	struct greeting { string slave<256>; string instance<256>; string mode<256>; string version<256>;
//	                  mount mounts<64>; unsigned int more; reattach last; };
//
//	struct target { string name<256>; string host<256>; unsigned int port; };
//	struct answer { unsigned int status; string master<256>; hyper revision; target targets<16>;
//	                hyper every; string why<256>; hyper now; };
//
//	program HELLO { version HELLO_1 {
//		void   NULL(void)      = 0;
//		answer HELLO(greeting) = 1;
//	} = 1; } = 0x2F1EE702;
//
// What a later release wants to add comes after these fields: whoever does not know it ignores the bytes that are left
// over, and whoever knows it takes their absence for zero. A change that old peers would misunderstand makes version 2,
// which they answer with PROG_MISMATCH. Greetings have at most 8 KiB, answers at most 16 KiB.
//
// [Program] answers on a master, for exporter.Config.Programs; [Client] asks. Neither starts a goroutine that outlives a
// call.
package hello
