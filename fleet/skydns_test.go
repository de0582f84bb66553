package fleet

import (
	"errors"
	"fmt"
	"maps"
	"testing"

	"github.com/nfs-fleet/nfs-fleet/election/etcdtest"
)

func TestRecords(t *testing.T) {
	client := etcdtest.New(t).Dial(t)
	r := NewRegistry(client, etcdtest.FleetName())
	ctx := t.Context()
	leader := r.Keys().Leader(CoordinatorSubject)
	resp, err := client.Put(ctx, leader, "{}")
	if err != nil {
		t.Fatal(err)
	}
	fence := Fence{leader, resp.Header.Revision}
	base := "/skydns/test/" + r.Keys().Prefix()[1:]
	prefix := base + "a/"

	if s, err := r.SkyDNS(ctx); err != nil || len(s.Domains) != 0 {
		t.Errorf("before anything was written: %v, %v", s, err)
	}
	want := map[string]string{}
	for i := range 2*skyPage + 10 {
		want[fmt.Sprintf("%s%05d", prefix, i)] = fmt.Sprint("v", i)
	}
	var batch map[string]string
	for key, value := range want {
		if batch == nil {
			batch = map[string]string{}
		}
		if batch[key] = value; len(batch) == MaxRecords {
			if err := r.WriteRecords(ctx, fence, nil, batch, nil); err != nil {
				t.Fatal(err)
			}
			batch = nil
		}
	}
	if err := r.WriteRecords(ctx, fence, &SkyDNS{[]string{"a.test"}}, batch, []string{base + "none"}); err != nil {
		t.Fatal(err)
	}
	if _, err := client.Put(ctx, base+"b", "not ours"); err != nil {
		t.Fatal(err)
	}
	if got, err := r.Records(ctx, []string{prefix}); err != nil || !maps.Equal(got, want) {
		t.Errorf("%d records are read of %d, %v", len(got), len(want), err)
	}
	if s, err := r.SkyDNS(ctx); err != nil || len(s.Domains) != 1 || s.Domains[0] != "a.test" {
		t.Errorf("remembered: %v, %v", s, err)
	}

	first := fmt.Sprintf("%s%05d", prefix, 0)
	if err := r.WriteRecords(ctx, Fence{leader, fence.Epoch + 1}, &SkyDNS{}, nil, []string{first}); !errors.Is(err, ErrFenced) {
		t.Errorf("who coordinates no more writes: %v", err)
	}
	if err := r.WriteRecords(ctx, fence, &SkyDNS{}, nil, []string{first}); err != nil {
		t.Fatal(err)
	}
	delete(want, first)
	if got, err := r.Records(ctx, []string{prefix}); err != nil || !maps.Equal(got, want) {
		t.Errorf("after one was deleted %d are read of %d, %v", len(got), len(want), err)
	}
	if s, err := r.SkyDNS(ctx); err != nil || len(s.Domains) != 0 {
		t.Errorf("remembered for ever: %v, %v", s, err)
	}
}
