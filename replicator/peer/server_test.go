package peer

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"testing"
	"testing/synctest"
	"time"

	"github.com/nfs-fleet/nfs-fleet/replicator/store"
	"github.com/nfs-fleet/nfs-fleet/replicator/tree"
)

// answers sends requests to a Server without a network.
func answer(h http.Handler, method, target string, body []byte, header ...string) *http.Response {
	r := httptest.NewRequest(method, target, bytes.NewReader(body))
	for i := 0; i+1 < len(header); i += 2 {
		r.Header.Set(header[i], header[i+1])
	}
	w := httptest.NewRecorder()
	h.ServeHTTP(w, r)
	return w.Result()
}

func TestBatchAnswer(t *testing.T) {
	s := openStore(t, store.Options{})
	small, empty, large := mustPut(t, s, []byte("small")), mustPut(t, s, nil), mustPut(t, s, noise(1, largeObject))
	nearly := noise(2, largeObject-1)
	just := mustPut(t, s, nearly)
	body := appendDigests(nil, []tree.Digest{small, tree.Sum([]byte("none")), large, empty, just})
	resp := answer(Server(s), "POST", Path, body)
	got, err := io.ReadAll(resp.Body)
	if err != nil || resp.StatusCode != http.StatusOK || resp.Header.Get("Content-Type") != contentType {
		t.Fatal(resp.Status, err)
	}
	want := appendHead(nil, recordFound, 5)
	want = append(want, "small"...)
	want = appendHead(want, recordMissing, 0)
	want = appendHead(want, recordLarge, largeObject)
	want = appendHead(want, recordFound, 0)
	want = append(appendHead(want, recordFound, uint32(len(nearly))), nearly...)
	want = appendHead(want, recordEnd, 5)
	if !bytes.Equal(got, want) {
		t.Errorf("%d bytes, want %d", len(got), len(want))
	}
}

func TestObjectAnswer(t *testing.T) {
	s := openStore(t, store.Options{})
	content := noise(1, 2<<20)
	d := mustPut(t, s, content)
	h := Server(s)
	url := Path + "/" + d.String()
	for _, c := range []struct {
		name, method, target, ranges string
		status                       int
		body                         []byte
	}{
		{"whole", "GET", url, "", 200, content},
		{"from the middle", "GET", url, "bytes=1000000-", 206, content[1000000:]},
		{"from the beginning", "GET", url, "bytes=0-", 200, content},
		{"the last byte", "GET", url, fmt.Sprintf("bytes=%d-", len(content)-1), 206, content[len(content)-1:]},
		{"behind the end", "GET", url, fmt.Sprintf("bytes=%d-", len(content)), 416, nil},
		{"a piece", "GET", url, "bytes=1-5", 416, nil},
		{"nonsense", "GET", url, "bites=7-", 416, nil},
		{"negative", "GET", url, "bytes=-7-", 416, nil},
		{"verified", "GET", url + "?verify=1", "", 200, content},
		{"head", "HEAD", url + "?verify=1", "", 200, []byte{}},
		{"not there", "GET", Path + "/" + tree.Sum([]byte("none")).String(), "", 404, nil},
		{"not there, verified", "HEAD", Path + "/" + tree.Sum([]byte("none")).String() + "?verify=1", "", 404, nil},
		{"no digest", "GET", Path + "/abc", "", 400, nil},
		{"zero digest", "GET", Path + "/" + tree.Digest{}.String(), "", 400, nil},
		{"put", "PUT", url, "", 405, nil},
		{"get without a digest", "GET", Path, "", 405, nil},
		{"elsewhere", "GET", "/peer/v1/else", "", 404, nil},
	} {
		t.Run(c.name, func(t *testing.T) {
			resp := answer(h, c.method, c.target, nil, "Range", c.ranges)
			got, _ := io.ReadAll(resp.Body)
			if resp.StatusCode != c.status || c.body != nil && !bytes.Equal(got, c.body) {
				t.Errorf("%s, %d bytes", resp.Status, len(got))
			}
			if missing := resp.Header.Get(objectHeader) == objectMissing; missing != (c.name == "not there" || c.name == "not there, verified") {
				t.Errorf("says missing: %v", missing)
			}
		})
	}
	for name, body := range map[string][]byte{"empty": nil, "odd": make([]byte, 33), "too many": make([]byte, 32*(maxDigests+1))} {
		if resp := answer(h, "POST", Path, body); resp.StatusCode != http.StatusBadRequest {
			t.Errorf("%s body: %s", name, resp.Status)
		}
	}
}

// TestRotIsNotGivenAwayTwice: who had wrong bytes asks again with verify, and the object is quarantined.
func TestRotIsNotGivenAwayTwice(t *testing.T) {
	dir := t.TempDir()
	s, err := store.Open(dir, store.Options{})
	if err != nil {
		t.Fatal(err)
	}
	d := mustPut(t, s, noise(1, 2<<20))
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	names, _ := filepath.Glob(filepath.Join(dir, "large", d.String()+"*"))
	f, err := os.OpenFile(names[0], os.O_WRONLY, 0)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := f.WriteAt([]byte("rot"), 1000); err != nil {
		t.Fatal(err)
	}
	f.Close()
	if s, err = store.Open(dir, store.Options{}); err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	h := Server(s)
	if resp := answer(h, "GET", Path+"/"+d.String()+"?verify=1", nil); resp.StatusCode != 404 || resp.Header.Get(objectHeader) != objectMissing {
		t.Error(resp.Status)
	}
	if s.Has(d) {
		t.Error("it is there still")
	}
}

func TestServerOfAClosedStore(t *testing.T) {
	s := openStore(t, store.Options{})
	d := mustPut(t, s, []byte("x"))
	s.Close()
	func() {
		defer func() {
			if r := recover(); r != http.ErrAbortHandler {
				t.Errorf("a batch of a closed store: %v", r)
			}
		}()
		answer(Server(s), "POST", Path, d[:])
	}()
	if resp := answer(Server(s), "GET", Path+"/"+d.String(), nil); resp.StatusCode != http.StatusServiceUnavailable {
		t.Error(resp.Status)
	}
}

// TestSlots: as many as there is room for are served, the next waits a while, and is then told to come back.
func TestSlots(t *testing.T) {
	s := openStore(t, store.Options{})
	d := mustPut(t, s, []byte("x"))
	synctest.Test(t, func(t *testing.T) {
		h := &handler{store: s, slots: make(chan struct{}, 1)}
		h.buffers.New = func() any { b := make([]byte, 0, writeSize+largeObject); return &b }
		h.slots <- struct{}{}
		start := time.Now()
		w := httptest.NewRecorder()
		h.batch(w, httptest.NewRequest("POST", Path, bytes.NewReader(d[:])))
		if w.Code != http.StatusServiceUnavailable || time.Since(start) != slotWait {
			t.Errorf("%d after %s", w.Code, time.Since(start))
		}
		go func() {
			time.Sleep(slotWait / 2)
			<-h.slots
		}()
		w = httptest.NewRecorder()
		h.batch(w, httptest.NewRequest("POST", Path, bytes.NewReader(d[:])))
		if w.Code != http.StatusOK {
			t.Errorf("%d when there was room", w.Code)
		}
		if len(h.slots) != 0 {
			t.Error("a slot is lost")
		}
	})
}

func FuzzReadDigests(f *testing.F) {
	d := tree.Sum(nil)
	f.Add(d[:], int64(32))
	f.Add(append(d[:], d[:]...), int64(64))
	f.Add([]byte("x"), int64(-1))
	f.Fuzz(func(t *testing.T, b []byte, length int64) {
		got, err := readDigests(bytes.NewReader(b), length)
		if err != nil {
			return
		}
		if int64(len(got))*32 != length || !bytes.Equal(appendDigests(nil, got), b[:length]) {
			t.Fatalf("%d digests of %d bytes", len(got), length)
		}
	})
}

// FuzzAnswer: whatever a peer answers, the receiver hands on whole records only, each once, and in the order of the
// request.
func FuzzAnswer(f *testing.F) {
	found := append(appendHead(nil, recordFound, 3), "abc"...)
	f.Add(appendHead(append(found, found...), recordEnd, 2), uint16(2), uint16(0))
	f.Add(appendHead(appendHead(appendHead(nil, recordMissing, 0), recordLarge, 5<<20), recordEnd, 2), uint16(2), uint16(3))
	f.Add(append(appendHead(nil, recordFound, 3000), noise(1, 3000)...), uint16(1), uint16(100))
	f.Fuzz(func(t *testing.T, b []byte, asked, step uint16) {
		items := make([]item, asked%100)
		for i := range items {
			items[i].digest[0] = byte(i)
		}
		r := &run{ctx: t.Context(), work: make(chan task, len(b)/recordHeader+10)}
		req := &request{items: items, left: items, src: &source{}, watch: newWatch(func(error) {})}
		err := r.takeBatch(&stepReader{b, int(step)}, req)
		close(r.work)
		order, bytesIn := -1, 0
		for got := range r.work {
			for _, o := range got.slab.objects {
				if int(o.item.digest[0]) <= order {
					t.Fatal("not in order, or twice")
				}
				order = int(o.item.digest[0])
				bytesIn += recordHeader + len(o.data)
			}
			got.slab.free()
		}
		answered := req.sent + len(req.missing) + len(req.large)
		if answered+len(req.left) != len(items) || bytesIn > len(b) {
			t.Fatalf("%d answered, %d left of %d", answered, len(req.left), len(items))
		}
		if err == nil && len(req.left) > 0 {
			t.Fatal("an answer is whole, and something is left")
		}
		if err != nil && !errors.Is(err, errProtocol) && !errors.Is(err, io.ErrUnexpectedEOF) {
			t.Fatal(err)
		}
	})
}

// stepReader gives at most step bytes at a time; 0: all.
type stepReader struct {
	b    []byte
	step int
}

func (r *stepReader) Read(p []byte) (int, error) {
	if len(r.b) == 0 {
		return 0, io.EOF
	}
	if r.step > 0 && len(p) > r.step {
		p = p[:r.step]
	}
	n := copy(p, r.b)
	r.b = r.b[n:]
	return n, nil
}
