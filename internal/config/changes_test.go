package config_test

import (
	"os"
	"reflect"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/cmekproxy/cmekproxy/internal/config"
)

// reloadTags returns the reload tag of each setting.
func reloadTags(t *testing.T) map[string]string {
	t.Helper()
	tags := make(map[string]string)
	collectReloadTags(t, reflect.TypeFor[config.Config](), "", "", tags)
	return tags
}

func collectReloadTags(t *testing.T, of reflect.Type, path, inherited string, tags map[string]string) {
	t.Helper()
	for f := range of.Fields() {
		name, reload := strings.TrimPrefix(path+"."+f.Tag.Get("yaml"), "."), f.Tag.Get("reload")
		if reload == "" {
			reload = inherited
		}
		inner := f.Type
		if inner.Kind() == reflect.Slice {
			inner = inner.Elem()
		}
		if inner.Kind() == reflect.Struct {
			collectReloadTags(t, inner, name, reload, tags)
			continue
		}
		if reload != "live" && reload != "restart" {
			t.Errorf("%s has the reload tag %q", name, reload)
		}
		tags[name] = reload
	}
}

// docs/configuration.md says of each setting whether it is reloaded, as the
// tag does.
func TestReloadIsDocumented(t *testing.T) {
	text, err := os.ReadFile("../../docs/configuration.md")
	if err != nil {
		t.Fatal(err)
	}
	rows := regexp.MustCompile("(?m)^\\| `([a-z0-9_.]+)` \\|.*\\| ([A-Za-z; ,]+) \\|$").FindAllStringSubmatch(string(text), -1)
	changes := make(map[string]string)
	for _, row := range rows {
		changes[row[1]] = row[2]
	}

	allowed := map[string][]string{"live": {"reload", "reload; file"}, "restart": {"restart", "restart; file"}}
	for name, reload := range reloadTags(t) {
		t.Run(name, func(t *testing.T) {
			if !slices.Contains(allowed[reload], changes[name]) {
				t.Errorf("docs/configuration.md says %q, the tag says %q", changes[name], reload)
			}
		})
	}
}

func TestCompare(t *testing.T) {
	for _, row := range []struct {
		name          string
		change        func(c *config.Config)
		live, restart []string
	}{
		{"nothing", func(*config.Config) {}, nil, nil},
		{"a secret", func(c *config.Config) { c.AdminToken = "x" }, []string{"admin_token"}, nil},
		{"the store", func(c *config.Config) { c.Origin.Endpoint = "http://x" }, nil, []string{"origin.endpoint"}},
		{
			"its login", func(c *config.Config) { c.Origin.AccessKey, c.Origin.SecretKey = "x", "y" },
			[]string{"origin.access_key", "origin.secret_key"},
			nil,
		},
		{
			"of a list", func(c *config.Config) { c.Keys[0].Login.Token = "x" },
			[]string{"keys.login.token"},
			nil,
		},
		{"a longer list", func(c *config.Config) { c.Keys = append(c.Keys, c.Keys[0]) }, []string{"keys"}, nil},
		{"both", func(c *config.Config) { c.Listen, c.Log.Level = "x", "y" }, []string{"log.level"}, []string{"listen"}},
	} {
		t.Run(row.name, func(t *testing.T) {
			next := parse(t, base)
			row.change(next)
			got := config.Compare(parse(t, base), next)
			if !slices.Equal(got.Live, row.live) || !slices.Equal(got.Restart, row.restart) {
				t.Errorf("%+v", got)
			}
		})
	}
}

func TestLogAccess(t *testing.T) {
	for value, want := range map[string]int{"on": 1, "off": 0, "2": 2, "1000": 1000, "1": -1, "0": -1, "often": -1, "-5": -1} {
		t.Run(value, func(t *testing.T) {
			cfg, err := config.Parse("test", []byte(base+"\nlog: {access: "+value+"}\n"), environment(nil))
			if (err == nil) != (want >= 0) {
				t.Fatal(err)
			}
			if err != nil {
				if !strings.Contains(err.Error(), "log.access must be on, off, or a number") {
					t.Error(err)
				}
				return
			}
			if n, ok := cfg.Log.AccessEvery(); n != want || !ok {
				t.Errorf("one in %d", n)
			}
		})
	}
}
