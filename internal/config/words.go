package config

import (
	"reflect"
	"strings"

	"go.yaml.in/yaml/v4"
)

// field is the content of a struct field's tags.
type field struct {
	name     string
	required bool
	server   bool     // only the server needs it
	reload   string   // "live", "restart", or "" for that of the struct
	values   []string // all allowed values; nil for any
}

func fieldsOf(t reflect.Type) []field {
	fields := make([]field, t.NumField())
	for i := range fields {
		tag := t.Field(i).Tag
		fields[i] = field{
			name:     tag.Get("yaml"),
			required: tag.Get("config") == "required",
			server:   tag.Get("scope") == "server",
			reload:   tag.Get("reload"),
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

// clip shortens text for an error.
func clip(s string) string {
	if len(s) <= 60 {
		return s
	}
	return strings.ToValidUTF8(s[:60], "") + "..."
}

// describe returns a description of a node's type. It never contains the
// value.
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
