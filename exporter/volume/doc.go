// Package volume is what NFS calls are answered from: the inodes, names and handles of one shard's served generation, in
// memory, and the bytes of its files, through a Store.
//
// What it promises:
//
//   - A State is one generation, whole and immutable. A flip builds the next State beside it and swaps one pointer: a call
//     is answered from the State it began with, whatever happens meanwhile, and readers take no lock.
//   - Flip costs what changed. Directories and directory pages whose object is the same are the same memory in both States.
//   - An ino that left the tree stays readable through its handle, with nlink 0, until Forget; as a directory it is empty.
//   - The bytes behind a handle never change: a file's new content has a new ino.
//   - Resolve, Lookup, List, a Node's methods and ReadCached allocate nothing and never block.
//   - The volume of a fleet with a million files stays small, and costs the garbage collector little: what there is for
//     each entry has no pointers in it.
//
// How it is built. A directory (dir) is pages of 4,096 slots, as in replicator/tree, and an index from hashed names to
// slots. A page is a buffer of fixed records in slot order, each beginning with its fattr3 in wire form, and the names after
// them. Every page has a number in the State's page table; an entry's location is its page's number and its slot's place
// in the page, and stays the same while the name lives. The ino table leads from inos to locations. Both tables, the
// directories and their indexes are copied on write, a leaf at a time.
//
// Who owns what. The Volume owns the present State and a bounded cache of opened contents. States and everything below them
// are shared and are modified by nobody; the slices that Node and Cursor return point into them and must not be modified.
package volume
