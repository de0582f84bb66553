package rpc

import (
	"bytes"
	"errors"
	"testing"
)

// takeAll feeds wire to an input in pieces of the sizes given, over and over, and returns the records.
func takeAll(wire []byte, sizes []byte, limit int) (records [][]byte, in *input, err error) {
	in = new(input)
	defer in.release()
	for i := 0; len(wire) > 0; i++ {
		n := len(wire)
		if len(sizes) > 0 {
			n = min(n, 1+int(sizes[i%len(sizes)]))
		}
		n = copy(in.space(), wire[:n])
		in.end += n
		wire = wire[n:]
		for {
			rec, ok, err := in.next(limit)
			if err != nil {
				return records, in, err
			}
			if !ok {
				break
			}
			records = append(records, bytes.Clone(rec))
		}
	}
	return records, in, nil
}

func TestRecordsAreTakenApart(t *testing.T) {
	want := [][]byte{[]byte("one"), {}, bytes.Repeat([]byte("large"), 30000), []byte("four"), bytes.Repeat([]byte("x"), inputSize), []byte("six")}
	for _, fragment := range []int{0, 1, 2, 5, 1000} {
		var wire []byte
		for _, w := range want {
			wire = append(wire, record(w, fragment)...)
		}
		for _, sizes := range [][]byte{nil, {0}, {3, 0, 250}, {255}} {
			got, in, err := takeAll(wire, sizes, 1<<20)
			if err != nil || in.partial() {
				t.Fatalf("fragments of %d, pieces %v: %v, partial %t", fragment, sizes, err, in.partial())
			}
			if len(got) != len(want) {
				t.Fatalf("fragments of %d, pieces %v: %d records, want %d", fragment, sizes, len(got), len(want))
			}
			for i := range want {
				if !bytes.Equal(got[i], want[i]) {
					t.Errorf("fragments of %d, pieces %v: record %d differs", fragment, sizes, i)
				}
			}
		}
	}
}

func TestRecordLimitIsExact(t *testing.T) {
	for _, fragment := range []int{0, 1, 7} {
		if _, _, err := takeAll(record(make([]byte, 100), fragment), nil, 100); err != nil {
			t.Errorf("fragments of %d: 100 bytes of 100: %v", fragment, err)
		}
		if _, _, err := takeAll(record(make([]byte, 101), fragment), nil, 100); !errors.Is(err, errRecordTooLong) {
			t.Errorf("fragments of %d: 101 bytes of 100: %v", fragment, err)
		}
	}
}

// Memory follows what was sent: a header alone makes nothing grow, nor do endless empty fragments.
func TestInputMemoryIsBounded(t *testing.T) {
	header := AppendUint32(nil, lastFragment|1<<20)
	_, in, err := takeAll(append(header, make([]byte, 1000)...), []byte{0}, 1<<20)
	if err != nil || len(in.buf) > inputSize {
		t.Errorf("%v, %d bytes held for 1000", err, len(in.buf))
	}
	_, in, err = takeAll(make([]byte, 4<<20), []byte{255}, 1<<20)
	if err != nil || len(in.buf) > inputSize {
		t.Errorf("%v, %d bytes held for empty fragments", err, len(in.buf))
	}
	_, in, err = takeAll(record(make([]byte, 1<<20), 1)[:4<<20], []byte{255}, 1<<20)
	if err != nil || len(in.buf) > 4<<20 {
		t.Errorf("%v, %d bytes held for fragments of a byte", err, len(in.buf))
	}
	if in := new(input); true {
		in.space()
		in.release()
		if in.buf != nil {
			t.Error("an idle input holds memory")
		}
	}
}

// FuzzRecords: however the wire is cut into pieces, the records are the same, and no longer than allowed.
func FuzzRecords(f *testing.F) {
	f.Add(record([]byte("hello"), 0), []byte{0})
	f.Add(append(record([]byte("hello, world"), 5), record(nil, 0)...), []byte{3, 1})
	f.Add([]byte{0, 0, 0, 0, 0, 0, 0, 0, 0x80, 0, 0, 1, 'x'}, []byte{6})
	f.Add([]byte{0xff, 0xff, 0xff, 0xff, 0}, []byte{2})
	f.Add([]byte{0x80, 0, 0, 9, 1, 2}, []byte{})
	f.Fuzz(func(t *testing.T, wire, sizes []byte) {
		const limit = 1000
		whole, _, err1 := takeAll(wire, nil, limit)
		pieces, in, err2 := takeAll(wire, sizes, limit)
		if !errors.Is(err1, err2) || len(whole) != len(pieces) {
			t.Fatalf("%d records and %v at once, %d and %v in pieces", len(whole), err1, len(pieces), err2)
		}
		for i := range whole {
			if !bytes.Equal(whole[i], pieces[i]) {
				t.Fatalf("record %d differs", i)
			}
			if len(whole[i]) > limit {
				t.Fatalf("record of %d bytes", len(whole[i]))
			}
		}
		if len(in.buf) > inputSize+4*(limit+len(wire)) {
			t.Fatalf("%d bytes held", len(in.buf))
		}
	})
}
