package config_test

import (
	"maps"
	"os"
	"reflect"
	"slices"
	"strings"
	"testing"

	"go.yaml.in/yaml/v4"

	"github.com/cmekproxy/cmekproxy/internal/config"
)

const exampleFile = "../../config.example.yaml"

func TestExampleFile(t *testing.T) {
	c, err := load(exampleFile, environment(map[string]string{
		"ORIGIN_ACCESS_KEY": "AKORIGIN", "ORIGIN_SECRET_KEY": "origin-secret",
		"APP_ACCESS_KEY": "AKAPP", "APP_SECRET_KEY": "app-secret",
		"REPORTS_ACCESS_KEY": "AKREPORTS", "REPORTS_SECRET_KEY": "reports-secret",
		"VAULT_SECRET_ID": "vault-secret-id", "VAULT_TOKEN": "vault-token", "HSM_PIN": "1234",
		"OTLP_AUTHORIZATION":    "Bearer otlp-token",
		"CMEKPROXY_ADMIN_TOKEN": "an-admin-token-of-24-char",
	}))
	if err != nil {
		t.Fatal(err)
	}

	// The defaults shown in the file must be the real defaults.
	plain := parse(t, base)
	c.Tracing.Headers = nil // shown, but not the default
	if c.AdminListen != plain.AdminListen || c.DEKCache != plain.DEKCache || c.KMS != plain.KMS ||
		c.Log != plain.Log || c.Audit != plain.Audit || !reflect.DeepEqual(c.Tracing, plain.Tracing) || c.Limits != plain.Limits ||
		c.Origin.PathStyle != plain.Origin.PathStyle || c.Origin.ConnectTimeout != plain.Origin.ConnectTimeout ||
		c.Origin.ResponseTimeout != plain.Origin.ResponseTimeout ||
		c.Origin.IdleTimeout != plain.Origin.IdleTimeout ||
		c.Encryption.PlaintextObjects != plain.Encryption.PlaintextObjects {
		t.Errorf("the example does not show the defaults: %+v", c)
	}
}

// TestExampleFileIsComplete looks for each setting in the file by its path,
// because several sections may have the same key.
func TestExampleFileIsComplete(t *testing.T) {
	data, err := os.ReadFile(exampleFile)
	if err != nil {
		t.Fatal(err)
	}

	var document any
	if err := yaml.Unmarshal(data, &document); err != nil {
		t.Fatal(err)
	}

	inFile, inConfig := make(map[string]bool), make(map[string]bool)
	pathsOf(document, "", inFile)
	pathsOfType(t, reflect.TypeFor[config.Config](), "", inConfig)

	if len(inConfig) < 40 {
		t.Errorf("only %d keys found in the config: %v", len(inConfig), slices.Sorted(maps.Keys(inConfig)))
	}

	for _, path := range slices.Sorted(maps.Keys(inConfig)) {
		if !inFile[path] {
			t.Errorf("%s is not in %s", path, exampleFile)
		}
	}

	for _, path := range slices.Sorted(maps.Keys(inFile)) {
		if !inConfig[path] {
			t.Errorf("%s is in %s only", path, exampleFile)
		}
	}
}

func pathsOf(node any, path string, paths map[string]bool) {
	switch node := node.(type) {
	case map[string]any:
		for key, value := range node {
			paths[path+"."+key] = true
			pathsOf(value, path+"."+key, paths)
		}
	case []any:
		for _, item := range node {
			pathsOf(item, path, paths)
		}
	}
}

func pathsOfType(t *testing.T, typ reflect.Type, path string, paths map[string]bool) {
	t.Helper()
	for typ.Kind() == reflect.Slice {
		typ = typ.Elem()
	}

	if typ.Kind() != reflect.Struct {
		return
	}

	for f := range typ.Fields() {
		name := f.Tag.Get("yaml")
		if name == "" || strings.Contains(name, ",") || !f.IsExported() {
			t.Errorf("%s.%s has no key", typ, f.Name)
		}
		if tag := f.Tag.Get("config"); tag != "" && tag != "required" {
			t.Errorf("%s.%s has the tag %q", typ, f.Name, tag)
		}

		paths[path+"."+name] = true
		pathsOfType(t, f.Type, path+"."+name, paths)
	}
}
