package main

import (
	"encoding/json"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"testing"
)

const openAPI = `{"definitions": {
  "io.k8s.Pod": {
    "type": "object",
    "required": ["spec"],
    "properties": {
      "apiVersion": {"type": "string"}, "kind": {"type": "string"},
      "spec": {"$ref": "#/definitions/io.k8s.PodSpec"}
    },
    "x-kubernetes-group-version-kind": [{"group": "", "version": "v1", "kind": "Pod"}]
  },
  "io.k8s.PodSpec": {"type": "object", "properties": {
    "port": {"type": "string", "format": "int-or-string"},
    "memory": {"$ref": "#/definitions/io.k8s.Quantity"},
    "labels": {"type": "object", "additionalProperties": {"type": "string"}}
  }},
  "io.k8s.Quantity": {"type": "string"},
  "io.k8s.Other": {"type": "object"}
}}`

const custom = `
spec:
  group: cert-manager.io
  names: {kind: Certificate}
  versions:
    - name: v1
      schema:
        openAPIV3Schema:
          type: object
          properties:
            spec: {type: object, properties: {secretName: {type: string}}}
            free: {type: object, properties: {a: {type: string}}, x-kubernetes-preserve-unknown-fields: true}
`

func TestRun(t *testing.T) {
	dir := t.TempDir()
	sources := []string{dir, writeFile(t, "swagger.json", openAPI), writeFile(t, "crd.yaml", custom)}
	if err := run(sources); err != nil {
		t.Fatal(err)
	}

	pod, certificate := readSchema(t, dir, "pod-v1.json"), readSchema(t, dir, "certificate-cert-manager-v1.json")
	for name, row := range map[string]struct {
		schema any
		path   string
		want   any
	}{
		"unknown fields of a kind":      {pod, "additionalProperties", false},
		"unknown fields of a type":      {pod, "definitions io.k8s.PodSpec additionalProperties", false},
		"required fields":               {pod, "required", []any{"apiVersion", "kind", "spec"}},
		"a port":                        {pod, "definitions io.k8s.PodSpec properties port type", []any{"integer", "string"}},
		"a quantity":                    {pod, "definitions io.k8s.Quantity type", []any{"string", "number"}},
		"labels":                        {pod, "definitions io.k8s.PodSpec properties labels additionalProperties type", "string"},
		"a type that is not used":       {pod, "definitions io.k8s.Other", nil},
		"unknown fields of a resource":  {certificate, "properties spec additionalProperties", false},
		"a field that takes all fields": {certificate, "properties free additionalProperties", nil},
	} {
		t.Run(name, func(t *testing.T) {
			got := row.schema
			for field := range strings.FieldsSeq(row.path) {
				got = got.(schema)[field] //nolint:forcetypeassert // a panic fails the test
			}
			if !reflect.DeepEqual(got, row.want) {
				t.Errorf("%s is %v, want %v", row.path, got, row.want)
			}
		})
	}
}

func TestRunRefuses(t *testing.T) {
	for name, row := range map[string]struct{ file, text, problem string }{
		"no kind": {"swagger.json", `{"definitions": {}}`, "defines no kind"},
		"no JSON": {"swagger.json", `definitions:`, "invalid character"},
		"no YAML": {"crd.yaml", "\tspec", "yaml"},
		"a pod":   {"crd.yaml", "kind: Pod", "defines no kind"},
	} {
		t.Run(name, func(t *testing.T) {
			err := run([]string{t.TempDir(), writeFile(t, row.file, row.text)})
			if err == nil || !strings.Contains(err.Error(), row.problem) {
				t.Errorf("error %v, want one with %q", err, row.problem)
			}
		})
	}
	if err := run([]string{t.TempDir()}); err == nil {
		t.Error("no error without a source")
	}
}

func writeFile(t *testing.T, name, text string) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), name)
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}

func readSchema(t *testing.T, dir, name string) (s schema) {
	t.Helper()
	text, err := os.ReadFile(filepath.Join(dir, name))
	if err != nil {
		t.Fatal(err)
	}
	if err := json.Unmarshal(text, &s); err != nil {
		t.Fatal(err)
	}
	return s
}
