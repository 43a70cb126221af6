package config

import (
	"reflect"
	"strings"

	"go.yaml.in/yaml/v4"
)

// field is what the tags of a struct's field say.
type field struct {
	name     string
	required bool
	server   bool     // for the server alone
	values   []string // all that it can be; nil for no limit
}

func fieldsOf(t reflect.Type) []field {
	fields := make([]field, t.NumField())
	for i := range fields {
		tag := t.Field(i).Tag
		fields[i] = field{
			name:     tag.Get("yaml"),
			required: tag.Get("config") == "required",
			server:   tag.Get("scope") == "server",
			values:   strings.Fields(tag.Get("values")),
		}
	}

	return fields
}

func join(path, name string) string {
	if path == "" {
		return name
	}
	return path + "." + name
}

func orFile(path string) string {
	if path == "" {
		return "the file"
	}
	return path
}

// clip keeps a line of errors a line.
func clip(s string) string {
	if len(s) <= 60 {
		return s
	}
	return strings.ToValidUTF8(s[:60], "") + "..."
}

// describe names the type of a node in plain words, and never its value.
func describe(n *yaml.Node) string {
	switch n.Kind {
	case yaml.MappingNode:
		return "a mapping"
	case yaml.SequenceNode:
		return "a list"
	default:
	}

	switch n.Tag {
	case "!!bool":
		return "a boolean"
	case "!!int", "!!float":
		return "a number"
	case "!!null":
		return "nothing"
	default:
		return "a string"
	}
}
