package console

import (
	"os"
	"reflect"
	"strings"
	"testing"

	"github.com/nfs-fleet/nfs-fleet/replicator/tree"
)

// Every field of the JSON and every kind of error is in docs/api.md.
func TestEverythingIsDocumented(t *testing.T) {
	b, err := os.ReadFile("../../docs/api.md")
	if err != nil {
		t.Fatal(err)
	}
	doc := string(b)
	mentioned := func(name string) bool {
		return strings.Contains(doc, "`"+name+"`") || strings.Contains(doc, "`"+name+".") || strings.Contains(doc, "."+name+"`") || strings.Contains(doc, `"`+name+`"`)
	}
	seen := map[reflect.Type]bool{}
	var look func(typ reflect.Type)
	look = func(typ reflect.Type) {
		switch typ.Kind() {
		case reflect.Pointer, reflect.Slice:
			look(typ.Elem())
			return
		case reflect.Struct:
		default:
			return
		}
		if seen[typ] || !strings.Contains(typ.PkgPath(), "nfs-fleet") {
			return
		}
		seen[typ] = true
		for i := range typ.NumField() {
			f := typ.Field(i)
			name, _, _ := strings.Cut(f.Tag.Get("json"), ",")
			if name == "-" {
				continue
			}
			if name != "" && !mentioned(name) {
				t.Errorf("docs/api.md lacks %s.%s: `%s`", typ.Name(), f.Name, name)
			}
			look(f.Type)
		}
	}
	for _, v := range []any{
		Status{}, Shard{}, ShardPatch{}, PublishRequest{}, RollbackRequest{}, Published{}, Progress{}, tree.Generation{}, changeJSON{},
		VerifyRequest{}, VerifyReport{}, RecoverRequest{}, RecoverReport{}, TokenRequest{}, TokenMade{}, RecoverShardRequest{}, RecoverShardReport{}, SlaveMove{}, RebalanceRequest{}, DrainRequest{}, leadership{}, uploadID{}, digests{}, diffed{}, apiError{},
	} {
		look(reflect.TypeOf(v))
	}
	for _, k := range kinds {
		if k.kind != "cancelled" && !mentioned(k.kind) { // nobody is left to read that one
			t.Errorf("docs/api.md lacks the kind %s", k.kind)
		}
	}
}
