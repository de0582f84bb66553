package replicator

import (
	"encoding/json"
	"path/filepath"
	"testing"
	"time"

	"github.com/nfs-fleet/nfs-fleet/replicator/tree"
)

func openLedger(t *testing.T, path string) *Ledger {
	t.Helper()
	l, err := OpenLedger(path)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.Close() })
	return l
}

func mustRead(t *testing.T, l *Ledger) map[string]Record {
	t.Helper()
	records, err := l.Read()
	if err != nil {
		t.Fatal(err)
	}
	return records
}

func TestLedgerKeepsAcrossRestart(t *testing.T) {
	path := filepath.Join(t.TempDir(), "ledger")
	l := openLedger(t, path)
	if err := l.SetSettings("www", json.RawMessage(`{"fsid":"01"}`)); err != nil {
		t.Fatal(err)
	}
	for n := uint64(1); n <= 5; n++ {
		g := tree.Generation{Number: n, NextIno: 10 * n, Epoch: 7, Root: tree.Sum([]byte{byte(n)}), PublishedAt: time.Unix(int64(n), 0).UTC()}
		if err := l.Append("www", g, max(n, 3)-2); err != nil {
			t.Fatal(err)
		}
	}
	if err := l.Close(); err != nil {
		t.Fatal(err)
	}
	rec := mustRead(t, openLedger(t, path))["www"]
	if string(rec.Settings) != `{"fsid":"01"}` {
		t.Errorf("settings %s", rec.Settings)
	}
	if rec.Maxima != (Maxima{Generation: 5, NextIno: 50, Epoch: 7}) {
		t.Errorf("maxima %+v", rec.Maxima)
	}
	if len(rec.Generations) != 3 || rec.Generations[0].Number != 3 || rec.Generations[2].Number != 5 {
		t.Fatalf("generations %+v, want 3 to 5", rec.Generations)
	}
	if rec.Generations[2].Root != tree.Sum([]byte{5}) || !rec.Generations[2].PublishedAt.Equal(time.Unix(5, 0)) {
		t.Errorf("generation 5 came back as %+v", rec.Generations[2])
	}
}

func TestLedgerMaximaNeverGoDown(t *testing.T) {
	l := openLedger(t, filepath.Join(t.TempDir(), "ledger"))
	for _, g := range []tree.Generation{{Number: 9, NextIno: 100, Epoch: 3}, {Number: 4, NextIno: 50, Epoch: 8}} {
		if err := l.Append("www", g, 0); err != nil {
			t.Fatal(err)
		}
	}
	if err := l.Raise("www", tree.Generation{Number: 99, NextIno: 120, Epoch: 1}); err != nil {
		t.Fatal(err)
	}
	if got := mustRead(t, l)["www"].Maxima; got != (Maxima{Generation: 9, NextIno: 120, Epoch: 8}) {
		t.Errorf("maxima %+v, want {9 120 8}: a generation counts only when it is appended", got)
	}
}

func TestLedgerForget(t *testing.T) {
	l := openLedger(t, filepath.Join(t.TempDir(), "ledger"))
	for _, shard := range []string{"a", "b"} {
		if err := l.Append(shard, tree.Generation{Number: 1}, 0); err != nil {
			t.Fatal(err)
		}
	}
	for range 2 { // the second time there is nothing to forget
		if err := l.Forget("a"); err != nil {
			t.Fatal(err)
		}
	}
	if records := mustRead(t, l); len(records) != 1 || len(records["b"].Generations) != 1 {
		t.Errorf("left: %+v", records)
	}
}

func TestLedgerIsForOneProcess(t *testing.T) {
	path := filepath.Join(t.TempDir(), "ledger")
	openLedger(t, path)
	if _, err := OpenLedger(path); err == nil {
		t.Error("a ledger in use was opened a second time")
	}
}
