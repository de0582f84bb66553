// Package source reads a shard's source directory: what is in it, what has changed since the last look, and the bytes
// of what has.
//
// A Source owns one directory. Run watches it; Due says when a publish should be tried; Scan takes what is dirty and is
// a tree.Lister, so that tree.Merge turns the directory into the next generation; Commit or Abort ends the scan. One
// scan runs at a time. The package never writes into a source.
//
// Promises:
//
//   - Beneath the root only: every access goes through a billy.Filesystem that OpenRoot builds on os.Root. Its Chroot
//     follows no symbolic link at all, and a file that is opened must be the one that was lstat'ed, so neither a link
//     nor a rename during the scan leads elsewhere. FIFOs, sockets and devices are never opened. (osfs.BoundOS of
//     go-billy checks a path first and opens it afterwards by name, so a symlink put in between leads out of it.)
//   - Never torn: a file's attributes are the same before and after its bytes were read, and older than the clock tick
//     that could hide a change; otherwise it is read again, and in the end kept as the last generation has it, with a
//     warning. A writer with a shared memory mapping is the exception: the kernel does not date each of its stores.
//   - Never silently incomplete: a directory that cannot be listed, an I/O error or a missing root fails the scan with
//     an error that names the path. Only a file or directory that may not be read (EACCES) is left out, with a warning.
//   - Cost follows change: an incremental scan lstats the dirty names and the directories above them; a full one lstats
//     everything but reads only files whose fingerprint has changed. An idle source costs nothing between rescans.
//
// Events are hints. They say which names to look at, never what is there. A directory is watched before it is listed,
// so nothing happens unseen in between. What events cannot tell (a queue overflow, no watches left, a second name of a
// hard-linked file) makes the next scan a full one; Status says so.
//
// A fingerprint is a fact about an inode: (dev, ino, size, mtime, ctime) had this content. Facts hold whether or not
// the generation that they were found for was published, so they are stored as they are found; the content they name
// is checked to be still in Objects before it is used again. A file that changed within Config.Racy of its scan has no
// fingerprint and is hashed again at the next scan that lists it.
package source
