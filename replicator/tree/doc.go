// Package tree is the format that everything served, replicated and rolled back goes through: one immutable tree of
// entries as a Merkle tree of objects, each named by the SHA-256 of its bytes.
//
// A root object holds the root directory's entry; an entry of a directory names its directory object; a directory object
// holds its entries, or lists pages that do, 4,096 slots each; an entry of a regular file names its content, a blob or,
// over ChunkSize, a list of extents. docs/format.md gives the bytes.
//
// Promises:
//
//   - Canonical: a value has one encoding and every decoder refuses all others with ErrCorrupt, in time and memory
//     bounded by the length of its input. Equal trees have equal digests.
//   - Cost follows change: an unchanged subtree is the same object, so Merge, Diff and Reach look only at the pages and
//     directories on the path of what differs.
//   - Merge alone allots ino, tag, slot, born and ctime. An ino and a slot are never issued twice and a ctime never goes
//     back, not even by a rollback, which is a Merge with the Lister that FromTree returns.
//
// The package keeps no state and owns no goroutine. Objects (replicator/store) owns the bytes; what Get returns is never
// modified here. Decoded entries own their strings.
package tree
