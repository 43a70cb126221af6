package main

import (
	"bytes"
	"errors"
	"os"
	"strings"
	"testing"

	"github.com/grafana/grafana-foundation-sdk/go/cog"
	"github.com/grafana/grafana-foundation-sdk/go/cog/plugins"
	"github.com/grafana/grafana-foundation-sdk/go/dashboard"
)

const file = "../../prometheus/dashboard.json"

func TestIsUpToDate(t *testing.T) {
	want, err := generate()
	if err != nil {
		t.Fatal(err)
	}
	got, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(got, want) {
		t.Errorf("%s is not what the generator makes: run go run . >%s in this directory", file, file)
	}
}

// decode reads a dashboard as Grafana's types describe it: unknown fields, wrong
// types and missing fields are errors.
//
//nolint:staticcheck // see build
func decode(text []byte) (d dashboard.Dashboard, err error) {
	plugins.RegisterDefaultPlugins()
	err = d.UnmarshalJSONStrict(text)
	if problems, ok := errors.AsType[cog.BuildErrors](err); err != nil && (!ok || len(problems) > 0) {
		return d, err // an empty list is no error
	}
	return d, d.Validate()
}

func TestSchema(t *testing.T) {
	text, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	d, err := decode(text)
	if err != nil {
		t.Fatal(err)
	}
	if *d.Uid != "cmekproxy" || len(d.Templating.List) != 3 {
		t.Errorf("uid %v, %d variables", *d.Uid, len(d.Templating.List))
	}

	for name, change := range map[string][2]string{
		"an unknown field of the dashboard": {`"refresh":`, `"refreshes":`},
		"an unknown field of a panel":       {`"gridPos":`, `"position":`},
		"an unknown field of a query":       {`"legendFormat":`, `"legend":`},
		"an unknown option of a plot":       {`"fillOpacity":`, `"opacity":`},
		"a text for a number":               {`"fillOpacity": 8`, `"fillOpacity": "8"`},
	} {
		t.Run(name, func(t *testing.T) {
			wrong := strings.Replace(string(text), change[0], change[1], 1)
			if wrong == string(text) {
				t.Fatalf("%s is not in the dashboard", change[0])
			}
			if _, err := decode([]byte(wrong)); err == nil {
				t.Error("accepted")
			}
		})
	}
}

// TestDataSource finds panels and queries with a data source of their own.
func TestDataSource(t *testing.T) {
	text, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	all := strings.Count(string(text), `"datasource": {`)
	if chosen := strings.Count(string(text), `"uid": "${datasource}"`); chosen != all || all < 50 {
		t.Errorf("%d of %d data sources are the variable", chosen, all)
	}
}

func TestRules(t *testing.T) {
	var out bytes.Buffer
	if err := run([]string{"rules"}, &out); err != nil {
		t.Fatal(err)
	}
	if strings.Contains(out.String(), "$__") || strings.Contains(out.String(), "{}") {
		t.Errorf("a variable or a selector is left:\n%s", out.String())
	}
	if err := run([]string{"other"}, &out); err == nil {
		t.Error("an unknown operand is accepted")
	}
}
