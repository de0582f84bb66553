// Package spread says which leadership goes to which master, and which slave reads from which.
//
// It is for the coordinator, which carries out what is said here. Everything is a pure function of what is passed in:
// the same arguments, in any order, give the same answer, nothing passed in is changed or kept, and calls may run at once.
// The election fills what is vacant by itself; this package looks at what is led, and says what had better be led
// elsewhere: after a master joined or came back, was drained, or got a source.
package spread
