// Package hostile is clients that mean no good to an NFSv3 server, for tests that show that such cost themselves only. Each does
// one bad thing over and over, as well as it can be done from one machine, until it is told to end. What they send is drawn by a
// seed.
//
// A server owes them little: to answer what is a whole call, in the protocol's terms, or to close the connection; to take no
// longer for it than Patience; and to be there for the next one. What it fails to do is an error that ends the client. A
// connection that is closed or refused is none.
package hostile
