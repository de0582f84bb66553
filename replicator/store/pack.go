package store

import (
	"bufio"
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"os"
	"path/filepath"
	"sync/atomic"

	"github.com/nfs-fleet/nfs-fleet/replicator/tree"
)

// A pack begins with packMagic, its number and a checksum of both, and then has records: recordMagic, the object's
// length, its digest, a checksum; the object. Numbers are little endian. The checksum is CRC-32C over the pack's number,
// the record's offset and the header: a header is good in one place only.
const (
	packMagic    = "NFFPACK1"
	packHeader   = 16
	recordMagic  = "nFr1"
	recordHeader = 44
	maxPackSize  = 2 << 30 // offsets are 32 bits, with room for the last object
	maxPackID    = 1 << 24 // a file that says more is not of ours; the store keeps a pointer for every number
)

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

// pack is one pack file. Its fields are guarded by Store.writeMu as long as it is the active one and constant
// afterwards, but for the atomic ones.
type pack struct {
	id      uint32
	file    *file
	size    atomic.Int64 // the end of the last record; what the file has beyond it is of no meaning
	synced  int64        // so much of it is durable
	covered int64        // so much of it is in its index file
	linked  bool         // its name in the directory is durable
	live    atomic.Int64 // bytes of records that the index names
	stale   atomic.Bool  // its index file names what has left
}

// record is one object in a pack.
type record struct {
	digest tree.Digest
	off    uint32
	size   uint32
}

func (r record) end() int64 { return int64(r.off) + recordHeader + int64(r.size) }

func (r record) in(p *pack) place { return place{pack: p.id, off: r.off, size: r.size} }

func packName(id uint32) string { return fmt.Sprintf("%08x.pack", id) }

func indexName(id uint32) string { return fmt.Sprintf("%08x.idx", id) }

func appendPackHeader(b []byte, id uint32) []byte {
	b = append(b, packMagic...)
	b = binary.LittleEndian.AppendUint32(b, id)
	return binary.LittleEndian.AppendUint32(b, crc32.Checksum(b, castagnoli))
}

func appendRecordHeader(b []byte, id uint32, r record) []byte {
	start := len(b)
	b = append(b, recordMagic...)
	b = binary.LittleEndian.AppendUint32(b, r.size)
	b = append(b, r.digest[:]...)
	return binary.LittleEndian.AppendUint32(b, recordSum(id, r.off, b[start:]))
}

func recordSum(id, off uint32, header []byte) uint32 {
	var at [8]byte
	binary.LittleEndian.PutUint32(at[:], id)
	binary.LittleEndian.PutUint32(at[4:], off)
	return crc32.Update(crc32.Checksum(at[:], castagnoli), castagnoli, header)
}

// decodeRecordHeader reads the header b of the record at off in pack id; ok is false when it is none.
func decodeRecordHeader(b []byte, id uint32, off int64) (r record, ok bool) {
	if len(b) < recordHeader || off < packHeader || off > 1<<32-1 || string(b[:4]) != recordMagic {
		return record{}, false
	}
	r = record{off: uint32(off), size: binary.LittleEndian.Uint32(b[4:])}
	copy(r.digest[:], b[8:])
	return r, r.size <= MaxObject && recordSum(id, r.off, b[:40]) == binary.LittleEndian.Uint32(b[40:])
}

// tail is what scanPack found.
type tail struct {
	records []record
	end     int64 // of the last good record, or where the scan began
	damaged int64 // bytes before end that are in no good record
}

// scanPack reads the records of a pack's bytes from off to size, and hashes them. Bytes that are no good record are
// stepped over: what follows a damaged record is found again. Only reading can fail.
func scanPack(r io.ReaderAt, id uint32, off, size int64) (tail, error) {
	t := tail{end: off}
	var buf []byte
	in := bufio.NewReaderSize(nil, int(min(size-off+recordHeader, 1<<20)))
	seek := func(to int64) { off = to; in.Reset(io.NewSectionReader(r, to, size-to)) }
	seek(off)
	for off+recordHeader <= size {
		head, err := in.Peek(recordHeader)
		if err != nil {
			return t, fmt.Errorf("scan: %w", err)
		}
		rec, ok := decodeRecordHeader(head, id, off)
		if !ok || rec.end() > size {
			next, err := nextRecord(r, id, off+1, size)
			if err != nil || next < 0 {
				return t, err
			}
			seek(next)
			continue
		}
		if cap(buf) < int(rec.size) {
			buf = make([]byte, rec.size)
		}
		_, _ = in.Discard(recordHeader)
		if _, err := io.ReadFull(in, buf[:rec.size]); err != nil {
			return t, fmt.Errorf("scan: %w", err)
		}
		if off = rec.end(); tree.Sum(buf[:rec.size]) == rec.digest {
			t.damaged += int64(rec.off) - t.end
			t.records, t.end = append(t.records, rec), off
		}
	}
	return t, nil
}

// nextRecord returns the offset of the first record header at off or later that fits before size, or -1.
func nextRecord(r io.ReaderAt, id uint32, off, size int64) (int64, error) {
	window := make([]byte, max(0, min(size-off, 256<<10)))
	for off+recordHeader <= size {
		n := int(min(int64(len(window)), size-off))
		if m, err := r.ReadAt(window[:n], off); m < n {
			return -1, fmt.Errorf("scan: %w", err)
		}
		for i := 0; i+recordHeader <= n; i++ {
			next := bytes.Index(window[i:n], []byte(recordMagic))
			if next < 0 {
				break
			}
			i += next
			if rec, ok := decodeRecordHeader(window[i:n], id, off+int64(i)); ok && rec.end() <= size {
				return off + int64(i), nil
			}
		}
		off += int64(n - recordHeader + 1)
	}
	return -1, nil
}

// An index file: indexMagic, the pack's number, flags, the bytes covered, the number of records; digest, offset and size
// of each in the order of offsets; CRC-32C of all that.
const (
	indexMagic  = "NFFPIDX1"
	indexHeader = 32
	indexRecord = 40
	indexSealed = 1 // flag: nothing was or will be appended after what is covered
)

// packIndex is what an index file says.
type packIndex struct {
	id      uint32
	sealed  bool
	covered int64
	records []record // those alive, in the order of offsets
}

func (x packIndex) encode() []byte {
	b := make([]byte, 0, indexHeader+indexRecord*len(x.records)+4)
	b = append(b, indexMagic...)
	b = binary.LittleEndian.AppendUint32(b, x.id)
	flags := uint32(0)
	if x.sealed {
		flags = indexSealed
	}
	b = binary.LittleEndian.AppendUint32(b, flags)
	b = binary.LittleEndian.AppendUint64(b, uint64(x.covered))
	b = binary.LittleEndian.AppendUint64(b, uint64(len(x.records)))
	for _, r := range x.records {
		b = append(b, r.digest[:]...)
		b = binary.LittleEndian.AppendUint32(b, r.off)
		b = binary.LittleEndian.AppendUint32(b, r.size)
	}
	return binary.LittleEndian.AppendUint32(b, crc32.Checksum(b, castagnoli))
}

// decodePackIndex is the inverse of encode; it wraps tree.ErrCorrupt for anything that encode does not write.
func decodePackIndex(b []byte) (packIndex, error) {
	corrupt := func(what string) (packIndex, error) {
		return packIndex{}, fmt.Errorf("pack index: %s: %w", what, tree.ErrCorrupt)
	}
	if len(b) < indexHeader+4 || (len(b)-indexHeader-4)%indexRecord != 0 {
		return corrupt("length")
	}
	if string(b[:8]) != indexMagic {
		return corrupt("magic")
	}
	body, le := b[:len(b)-4], binary.LittleEndian
	if crc32.Checksum(body, castagnoli) != le.Uint32(b[len(body):]) {
		return corrupt("checksum")
	}
	n := (len(body) - indexHeader) / indexRecord
	flags, covered := le.Uint32(b[12:]), le.Uint64(b[16:])
	if flags&^indexSealed != 0 || covered < packHeader || covered > 1<<32 || le.Uint64(b[24:]) != uint64(n) {
		return corrupt("header")
	}
	x := packIndex{id: le.Uint32(b[8:]), sealed: flags != 0, covered: int64(covered), records: make([]record, n)}
	end := int64(packHeader)
	for i := range x.records {
		e, r := body[indexHeader+i*indexRecord:][:indexRecord], &x.records[i]
		copy(r.digest[:], e)
		r.off, r.size = le.Uint32(e[32:]), le.Uint32(e[36:])
		if int64(r.off) < end || r.size > MaxObject || r.end() > x.covered {
			return corrupt("record")
		}
		end = r.end()
	}
	return x, nil
}

// readPackIndex reads the index file of pack id. One that is absent is neither an error nor ok.
func (k *disk) readPackIndex(path string, id uint32) (x packIndex, ok bool, err error) {
	if err := k.check("read", path); err != nil {
		return packIndex{}, false, err
	}
	b, err := os.ReadFile(path)
	if errors.Is(err, os.ErrNotExist) {
		return packIndex{}, false, nil
	}
	if err != nil {
		return packIndex{}, false, err
	}
	if x, err = decodePackIndex(b); err == nil && x.id != id {
		err = fmt.Errorf("%s is of pack %08x: %w", filepath.Base(path), x.id, tree.ErrCorrupt)
	}
	return x, err == nil, err
}
