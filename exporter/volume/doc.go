// Package volume is what NFS calls are answered from: the inodes, names, handles and bytes of one shard's served
// generation, in memory but for the bytes.
package volume
