package main

import (
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"reflect"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/spf13/cobra"
	"github.com/spf13/pflag"
	"go.uber.org/zap"

	"github.com/cmekproxy/cmekproxy/internal/audit"
	"github.com/cmekproxy/cmekproxy/internal/config"
	"github.com/cmekproxy/cmekproxy/internal/maintain/inventory"
	"github.com/cmekproxy/cmekproxy/internal/maintain/walk"
)

var updateInterface = flag.Bool("update-interface", false, "write testdata/interface.txt again")

const golden = "testdata/interface.txt"

// The names on which scripts, dashboards and auditors rely: settings, flags,
// metrics, fields of the audit log, of state files and of reports. Removing
// a name breaks users. Add a new one with -update-interface.
func TestPublicInterface(t *testing.T) {
	var names []string
	add := func(kind string, list []string) {
		for _, name := range list {
			names = append(names, kind+" "+name)
		}
	}
	add("setting", yamlNames(reflect.TypeFor[config.Config](), ""))
	add("metric", metricNames(t))

	add("audit", jsonNames(reflect.TypeFor[audit.Record]()))
	add("state", jsonNames(reflect.TypeFor[walk.State]()))
	add("inventory.json", jsonNames(reflect.TypeFor[inventory.Object]()))
	add("inventory.json summary", jsonNames(reflect.TypeFor[keyTotal]()))
	add("inventory.json total", jsonNames(reflect.TypeFor[inventoryTotals]()))
	add("encrypt.json and rewrap.json", jsonNames(reflect.TypeFor[swept]()))
	add("encrypt.json and rewrap.json summary", jsonNames(reflect.TypeFor[sweptTotals]()))
	add("decrypt.json", jsonNames(reflect.TypeFor[decrypted]()))
	add("check.json", jsonNames(reflect.TypeFor[finding]()))
	add("check.json capability", jsonNames(reflect.TypeFor[storeAbility]()))
	add("check.json summary", jsonNames(reflect.TypeFor[checkTotals]()))
	add("config.json", jsonNames(reflect.TypeFor[configProblem]()))
	add("config.json summary", jsonNames(reflect.TypeFor[configTotals]()))
	add("inventory.csv", csvHeader)
	add("verify.json", jsonNames(reflect.TypeFor[faulty]()))
	add("verify.json summary", jsonNames(reflect.TypeFor[faultTotals]()))
	add("verify.csv", faultColumns)
	for _, c := range byName(newRoot().Commands()) {
		add("flag "+c.Name(), flagNames(c))
		for _, sub := range byName(c.Commands()) {
			add("flag "+c.Name()+" "+sub.Name(), flagNames(sub))
		}
	}
	got := strings.Join(names, "\n") + "\n"

	if *updateInterface {
		if err := os.WriteFile(golden, []byte(got), 0o644); err != nil {
			t.Fatal(err)
		}
	}

	want, err := os.ReadFile(golden)
	if err != nil {
		t.Fatal(err)
	}

	if got != string(want) {
		t.Errorf(
			"the public interface has changed; go test ./cmd/proxy -run TestPublicInterface -update-interface, and look at the diff:\n%s",
			difference(string(want), got),
		)
	}
}

func difference(old, next string) string {
	var out strings.Builder
	before, after := strings.Split(old, "\n"), strings.Split(next, "\n")
	for _, name := range before {
		if !slices.Contains(after, name) {
			fmt.Fprintln(&out, "-", name)
		}
	}
	for _, name := range after {
		if !slices.Contains(before, name) {
			fmt.Fprintln(&out, "+", name)
		}
	}
	return out.String()
}

// yamlNames returns the paths of all settings of a type, in order.
func yamlNames(typ reflect.Type, path string) (names []string) {
	for typ.Kind() == reflect.Pointer || typ.Kind() == reflect.Slice {
		typ = typ.Elem()
	}
	if typ.Kind() != reflect.Struct {
		return []string{path}
	}
	for field := range typ.Fields() {
		name, _, _ := strings.Cut(field.Tag.Get("yaml"), ",")
		if name != "" && name != "-" {
			names = append(names, yamlNames(field.Type, strings.TrimPrefix(path+"."+name, "."))...)
		}
	}
	return names
}

func jsonNames(typ reflect.Type) (names []string) {
	for field := range typ.Fields() {
		if field.Anonymous {
			names = append(names, jsonNames(field.Type)...)
		} else if tag := field.Tag.Get("json"); tag != "" {
			names = append(names, tag)
		}
	}
	return names
}

// metricNames returns the metrics of a proxy, with their labels.
func metricNames(t *testing.T) (names []string) {
	t.Helper()
	keyFile := filepath.Join(t.TempDir(), "kms.key")
	if code := run(t.Context(), []string{"keys", "new", keyFile}, new(output), new(output)); code != 0 {
		t.Fatal("keys new:", code)
	}

	a, err := newServer(t.Context(), devConfig("127.0.0.1:0", "127.0.0.1:0", keyFile), zap.NewNop(), "")
	if err != nil {
		t.Fatal(err)
	}
	defer a.close()

	described := make(chan *prometheus.Desc)
	go func() { defer close(described); a.metrics.Describe(described) }()
	parts := regexp.MustCompile(`fqName: "([^"]*)".*variableLabels: \{([^}]*)\}`)

	for d := range described {
		m := parts.FindStringSubmatch(d.String())
		if m == nil {
			t.Fatalf("what is the name in %s?", d)
		}
		if strings.HasPrefix(m[1], "cmekproxy_") {
			names = append(names, strings.TrimSpace(m[1]+" "+m[2]))
		}
	}

	slices.Sort(names)
	return names
}

func byName(commands []*cobra.Command) []*cobra.Command {
	return slices.SortedFunc(slices.Values(commands), func(a, b *cobra.Command) int { return strings.Compare(a.Name(), b.Name()) })
}

// flagNames are the flags of a command, short forms too.
func flagNames(c *cobra.Command) (names []string) {
	c.Flags().VisitAll(func(f *pflag.Flag) {
		names = append(names, f.Name)
		if f.Shorthand != "" {
			names = append(names, f.Shorthand)
		}
	})
	slices.Sort(names)
	return names
}
