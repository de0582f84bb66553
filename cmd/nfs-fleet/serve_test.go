package main

import (
	"context"
	"errors"
	"net/netip"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"testing"
	"time"

	"github.com/spf13/pflag"

	"github.com/nfs-fleet/nfs-fleet/fleet/master"
)

// flagNames are the flags that are not called as their key in the file is.
var flagNames = map[string]string{"sources": "source", "etcd.endpoints": "etcd", "new_shards.networks": "network"}

// flagOf is the flag of a key in the file.
func flagOf(key string) string {
	if name, ok := flagNames[key]; ok {
		return name
	}
	return strings.NewReplacer(".", "-", "_", "-").Replace(strings.TrimPrefix(key, "new_shards."))
}

func keys(prefix string, typ reflect.Type) (out []string) {
	for i := range typ.NumField() {
		f := typ.Field(i)
		key := prefix + f.Tag.Get("yaml")
		if f.Type.Kind() == reflect.Struct {
			out = append(out, keys(key+".", f.Type)...)
			continue
		}
		out = append(out, key)
	}
	return out
}

// Every setting of the file is a flag, and every flag but --config a setting; the sample names the flag of each.
func TestEverySettingIsAFlag(t *testing.T) {
	sample, err := os.ReadFile("../../deploy/nfs-fleet.yaml")
	if err != nil {
		t.Fatal(err)
	}
	flags := map[string]bool{}
	(&app{}).serveCommand().Flags().VisitAll(func(f *pflag.Flag) { flags[f.Name] = true })
	for _, key := range keys("", reflect.TypeFor[master.Config]()) {
		name := flagOf(key)
		if !flags[name] {
			t.Errorf("setting %s has no flag --%s", key, name)
		}
		delete(flags, name)
		if !strings.Contains(string(sample), "--"+name) {
			t.Errorf("the sample does not name --%s", name)
		}
	}
	delete(flags, "config")
	if len(flags) > 0 {
		t.Errorf("flags without a setting: %v", flags)
	}
}

func TestServeHelpShowsDefaults(t *testing.T) {
	s := speak(t, &app{}, "serve", "--help")
	for _, want := range []string{`":2049"`, `"127.0.0.1:7049"`, `"off"`, `":7050"`, "127.0.0.1:2379", `":2380"`, "default 5s", "default 24h0m0s", "default 10)", "default 1024", `"info"`, "SHARD=DIR[,mode=manual]"} {
		if !strings.Contains(s.out, want) {
			t.Errorf("serve --help lacks %s", want)
		}
	}
	if strings.Contains(s.out, "[])") {
		t.Error("an empty list is shown as []")
	}
}

func TestFlagsOverrideTheFile(t *testing.T) {
	file := filepath.Join(t.TempDir(), "c.yaml")
	text := "name: file\nfleet: file\nlease_ttl: 9s\nsources: {a: /file/a, b: /file/b}\netcd: {endpoints: [http://file:1]}\nnew_shards: {insecure: true, networks: [10.0.0.0/8]}\n"
	if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	var got master.Config
	s := speak(t, &app{serve: runMaster(&got, nil)}, "serve", "--name", "flag", "--source", "b=/flag/b,mode=manual", "--source", "c=/flag/c",
		"--etcd", "http://x:1,http://y:2", "--insecure=false", "--network", "fd00::/8", "--network", "192.0.2.1", "--listen-http", "127.0.0.1:0", "--config", file)
	if s.code != 0 {
		t.Fatalf("%+v", s)
	}
	want := master.Default()
	want.Name, want.Fleet, want.LeaseTTL = "flag", "file", 9*time.Second
	want.Sources = map[string]master.SourceConfig{"a": {Dir: "/file/a"}, "b": {Dir: "/flag/b", Mode: "manual"}, "c": {Dir: "/flag/c"}}
	want.Etcd.Endpoints, want.Listen.HTTP = []string{"http://x:1", "http://y:2"}, "127.0.0.1:0"
	want.NewShards.Networks = []netip.Prefix{netip.MustParsePrefix("fd00::/8"), netip.MustParsePrefix("192.0.2.1/32")}
	if !reflect.DeepEqual(got, want) {
		t.Errorf("got  %+v\nwant %+v", got, want)
	}
}

func TestServeReportsItsEnd(t *testing.T) {
	var got master.Config
	if s := speak(t, &app{serve: runMaster(&got, errors.New("port 2049 is taken: stop nfsd, or choose another with --listen-nfs"))}, "serve"); s.code != 1 || s.err != "nfs-fleet: port 2049 is taken: stop nfsd, or choose another with --listen-nfs\n" {
		t.Errorf("%+v", s)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	a := &app{serve: runMaster(&got, context.Canceled), err: os.Stderr, out: os.Stdout, terminal: func(any) bool { return false }}
	if code := a.run(ctx, []string{"serve"}); code != 0 {
		t.Errorf("an ordered stop exits %d", code)
	}
}

func TestLogFormats(t *testing.T) {
	for format, want := range map[string]string{"json": `"level":"warn","err":"why"`, "console": "WRN hello err=why"} {
		var out strings.Builder
		a := &app{err: &out, terminal: func(any) bool { return false }}
		log := a.logger(master.LogConfig{Level: "warn", Format: format})
		log.Info().Msg("quiet")
		log.Warn().Err(errors.New("why")).Msg("hello")
		if !strings.Contains(out.String(), want) || strings.Contains(out.String(), "quiet") || strings.Contains(out.String(), "\x1b") {
			t.Errorf("%s: %q", format, out.String())
		}
	}
}
