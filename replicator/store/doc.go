// Package store keeps objects on disk by the SHA-256 of their bytes, and reads them back for those who serve them.
//
// What it promises. An object is readable as soon as Put has returned and durable as soon as a later Sync has. After a
// SIGKILL, a power loss, a full disk or a failed write, every object that a Sync covered is there whole, and no object is
// ever there in part. No byte of a damaged object is read, by Get or through a Blob, but by ReadRaw: what comes from the
// disk is hashed before it is given away, as a whole when an object is read for the first time, and again whenever the page
// cache had to go back to the disk for it (see seals). A damaged object is quarantined, and Heal brings it back from
// elsewhere. A Blob stays readable after its object was collected. Readers take no lock that a writer holds during I/O.
//
// What it cannot know of: pages that another process brings into the page cache, by reading these files, or changes there,
// by writing to them. Whoever copies the store while it serves should read with O_DIRECT.
//
// On disk, below the store's directory:
//
//	lock         held with flock by the one process that uses the store
//	packs/ID.pack  small objects, one record after the other; a pack never changes but at its end
//	packs/ID.idx   what is alive in that pack's first so many bytes; derived from the pack, and replaced whole
//	large/DIGEST-SIZE  an object of LargeSize bytes or more; sha256sum of the file is its name
//	quarantine/  damaged objects, the latest, for whoever wants to know; nothing here is read again
//	tmp/         files in the making; emptied by Open
//
// A pack record begins with a header that says its length and digest and is checksummed together with its place, so that
// a scan finds the next good record after a damaged one, and never mistakes an object's bytes for a record. Open reads the
// index files and scans only what follows the bytes that they cover. An index that is missing or damaged costs a scan of
// its pack, nothing else.
//
// Who owns what. index is the resident map from digest to place: lock-free for readers. A pack's file is shared by the
// store and every Blob in it, and is closed by the garbage collector when the last of them has gone; a large file is
// counted, hence Blob.Close. Store.writeMu serialises appends to the one active pack; large files are written side by
// side. Locks are taken in the order verifying, blocks.mu, reindexing, writeMu, indexFiles, placing, large.mu, holdMu, a shard's mutex.
package store
