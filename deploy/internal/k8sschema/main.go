// K8sschema makes JSON schemas for kubeconform from what describes kinds of
// Kubernetes.
//
//	k8sschema DIR SOURCE...
//
// A source is the OpenAPI document of Kubernetes, which is in its repository
// and Go module as api/openapi-spec/swagger.json, or a YAML file with a
// CustomResourceDefinition.
//
// It writes DIR/KIND-GROUP-VERSION.json for each kind, in lower case, with the
// first label of the group only, and without "-GROUP" for the core group. That
// is the template '{{.ResourceKind}}{{.KindSuffix}}.json' of kubeconform. The
// schemas are strict: they refuse fields that the source does not name.
package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"strings"

	"go.yaml.in/yaml/v4"
)

func main() {
	if err := run(os.Args[1:]); err != nil {
		fmt.Fprintln(os.Stderr, "k8sschema:", err)
		os.Exit(1)
	}
}

// schema is a JSON schema, or a part of one.
type schema = map[string]any

// definition is a type of a source. kinds are those that it defines.
type definition struct {
	schema
	kinds []kind
}

type kind struct{ Group, Version, Kind string }

func run(args []string) error {
	if len(args) < 2 { //nolint:mnd // a directory, and a source
		return errors.New("too few operands: give a directory and at least one source")
	}

	for _, source := range args[1:] {
		readDefinitions := readOpenAPI
		if filepath.Ext(source) != ".json" {
			readDefinitions = readCustom
		}
		definitions, err := readDefinitions(source)
		if err != nil {
			return fmt.Errorf("%s: %w", source, err)
		}

		written := 0
		for _, d := range definitions {
			if len(d.kinds) != 1 {
				continue // no kind, or one that all groups share, such as DeleteOptions
			}
			if err := write(filepath.Join(args[0], fileName(d.kinds[0])), d, definitions); err != nil {
				return err
			}
			written++
		}
		if written == 0 {
			return fmt.Errorf("%s defines no kind: give swagger.json or a CustomResourceDefinition", source)
		}
	}
	return nil
}

func readOpenAPI(path string) (map[string]definition, error) {
	text, err := os.ReadFile(path) //nolint:gosec // the path is an operand
	if err != nil {
		return nil, err
	}
	var document struct {
		Definitions map[string]schema `json:"definitions"`
	}
	if err := json.Unmarshal(text, &document); err != nil {
		return nil, err
	}

	definitions := make(map[string]definition)
	for name, s := range document.Definitions {
		kinds, err := kindsOf(s)
		if err != nil {
			return nil, fmt.Errorf("definition %s: %w", name, err)
		}
		strict(s)
		if strings.HasSuffix(name, ".Quantity") {
			s["type"] = []string{"string", "number"} // the server takes "1" and 1
		}
		definitions[name] = definition{s, kinds}
	}
	return definitions, nil
}

// readCustom reads a CustomResourceDefinition.
func readCustom(path string) (map[string]definition, error) {
	text, err := os.ReadFile(path) //nolint:gosec // the path is an operand
	if err != nil {
		return nil, err
	}
	var document struct {
		Spec struct {
			Group    string
			Names    struct{ Kind string }
			Versions []struct {
				Name   string
				Schema struct {
					OpenAPI schema `yaml:"openAPIV3Schema"`
				}
			}
		}
	}
	if err := yaml.Unmarshal(text, &document); err != nil {
		return nil, err
	}

	definitions := make(map[string]definition)
	for _, v := range document.Spec.Versions {
		strict(v.Schema.OpenAPI)
		kinds := []kind{{document.Spec.Group, v.Name, document.Spec.Names.Kind}}
		definitions[v.Name] = definition{v.Schema.OpenAPI, kinds}
	}
	return definitions, nil
}

const kindsExtension = "x-kubernetes-group-version-kind"

func kindsOf(s schema) ([]kind, error) {
	text, err := json.Marshal(s[kindsExtension])
	if err != nil {
		return nil, err
	}
	var kinds []kind
	return kinds, json.Unmarshal(text, &kinds)
}

// strict changes a schema and all within it: objects with named fields take no
// others, and int-or-string means what it says.
func strict(s schema) {
	if s["format"] == "int-or-string" { // of OpenAPI 2
		s["type"] = []string{"integer", "string"}
		delete(s, "format")
	}
	fields, named := s["properties"].(schema)
	_, open := s["additionalProperties"]
	if _, any := s["x-kubernetes-preserve-unknown-fields"]; named && !open && !any {
		s["additionalProperties"] = false
	}

	for _, field := range fields {
		strict(field.(schema)) //nolint:forcetypeassert // each is a schema
	}
	for _, inner := range []string{"items", "additionalProperties"} {
		if inner, ok := s[inner].(schema); ok {
			strict(inner)
		}
	}
}

func fileName(k kind) string {
	name := k.Kind
	if group, _, _ := strings.Cut(k.Group, "."); group != "" {
		name += "-" + group
	}
	return strings.ToLower(name+"-"+k.Version) + ".json"
}

// write writes the schema of a kind, with the definitions that it refers to.
func write(path string, d definition, all map[string]definition) error {
	used := make(schema)
	collect(d.schema, all, used)

	whole := schema{"$schema": "http://json-schema.org/draft-07/schema#", "definitions": used}
	maps.Copy(whole, d.schema)
	// Without these, the server does not know what the object is.
	required, _ := whole["required"].([]any)
	whole["required"] = append([]any{"apiVersion", "kind"}, required...)

	text, err := json.Marshal(whole)
	if err != nil {
		return fmt.Errorf("encoding %s: %w", path, err)
	}
	return os.WriteFile(path, text, 0o600) //nolint:gosec // the directory is an operand
}

// collect adds to used all definitions that a schema refers to.
func collect(value any, all map[string]definition, used schema) {
	switch value := value.(type) {
	case schema:
		if ref, ok := value["$ref"].(string); ok {
			name := strings.TrimPrefix(ref, "#/definitions/")
			if _, done := used[name]; !done {
				used[name] = all[name].schema
				collect(all[name].schema, all, used)
			}
		}
		for _, inner := range value {
			collect(inner, all, used)
		}
	case []any:
		for _, inner := range value {
			collect(inner, all, used)
		}
	}
}
