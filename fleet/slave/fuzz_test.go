package slave

import (
	"bytes"
	"os"
	"path/filepath"
	"testing"
)

// FuzzState is any file where an agent looks for what the one before has left: it is read or refused, and what is read can be
// left to the next one.
func FuzzState(f *testing.F) {
	f.Add([]byte(`{"format":1,"boot":"b","routes":[{"name":"_nfs._tcp.x","via":"relay","port":300,"dns":["10.0.0.1:53"],"masters":["10.0.0.1:2049"],` +
		`"slave":"web17","order":[{"name":"m1","addr":"10.0.0.1:2049"}],"last":{"at":"2026-01-02T03:04:05Z","took":1},"used":"2026-01-02T03:04:05Z"}]}`))
	f.Add([]byte(`{"format":2}`))
	f.Add([]byte(`{"format":1,"routes":[null,{}]}`))
	f.Add([]byte(`null`))
	dir := f.TempDir()
	path := filepath.Join(dir, stateFile)
	f.Fuzz(func(t *testing.T, text []byte) {
		if err := os.WriteFile(path, text, 0o600); err != nil {
			t.Fatal(err)
		}
		s, err := loadState(dir)
		if err != nil {
			if s.Format != stateFormat || len(s.Routes) > 0 {
				t.Errorf("%v, and %+v", err, s)
			}
			return
		}
		var texts [2][]byte
		for i := range texts {
			if err := s.save(dir); err != nil {
				t.Fatalf("what was read cannot be written: %v", err)
			}
			if texts[i], err = os.ReadFile(path); err != nil {
				t.Fatal(err)
			}
			if s, err = loadState(dir); err != nil {
				t.Fatalf("what was written cannot be read: %v in %s", err, texts[i])
			}
		}
		if !bytes.Equal(texts[0], texts[1]) {
			t.Errorf("%s became %s", texts[0], texts[1])
		}
	})
}
