package config

import (
	"bytes"
	"errors"
	"io"
	"strings"
	"unicode/utf8"

	"go.yaml.in/yaml/v4"
)

// document parses the YAML document in data. It returns nil after a problem
// that makes decoding impossible.
func (d *decoder) document(data []byte) *yaml.Node {
	if len(data) > maxFileSize {
		d.problem(place{1, 1}, "the file is larger than 1 MiB")
		return nil
	}
	if at, ok := findNoText(data); ok {
		d.problem(at, "a character that YAML does not allow")
		return nil
	}

	// Duplicate keys are found later, with a better position and message.
	loader, err := yaml.NewLoader(bytes.NewReader(data), yaml.WithUniqueKeys(false))
	if err != nil {
		d.problem(place{1, 1}, "the YAML parser does not start")
		return nil
	}

	var first, second yaml.Node
	switch err := loader.Load(&first); {
	case errors.Is(err, io.EOF):
		d.problem(place{1, 1}, "the file is empty")
		return nil
	case err != nil:
		d.syntax(err)
		return nil
	}

	switch err := loader.Load(&second); {
	case err == nil:
		d.problem(place{second.Line, second.Column}, "a second YAML document; there can be only one")
	case !errors.Is(err, io.EOF):
		d.syntax(err)
		return nil
	}

	return first.Content[0]
}

// syntax reports an error of the YAML parser. The parser's message is kept
// unless it quotes the file, which may contain secrets.
func (d *decoder) syntax(err error) {
	at, text := place{1, 1}, "this is not YAML"
	if e, ok := errors.AsType[*yaml.LoadError](err); ok {
		if e.Mark.Line > 0 {
			at = place{e.Mark.Line, max(e.Mark.Column, 1)}
		}

		switch {
		case strings.HasPrefix(e.Message, "unknown anchor"):
			text = "anchors (&) and aliases (*) are not allowed; quote a value that begins with one"
		case strings.HasPrefix(e.Message, "found character '"):
			text = "tags (!) are not allowed; quote a value that begins with one"
		default:
			text += ": " + e.Message
		}

		if inFlow(e.ContextMsg) {
			text += "; within {} and [], a value such as ${NAME} needs quotes"
		}
	}

	d.problem(at, "%s", text)
}

// inFlow reports whether the parser was inside braces or brackets,
// according to its message.
func inFlow(context string) bool { return strings.Contains(context, "flow") }

// findNoText finds the first character that YAML does not allow. The YAML
// parser reports no position for it.
func findNoText(data []byte) (place, bool) {
	at := place{1, 1}
	for i := 0; i < len(data); {
		r, n := utf8.DecodeRune(data[i:])
		switch {
		case r == utf8.RuneError && n == 1, r < ' ' && r != '\t' && r != '\n' && r != '\r', r == 0x7f:
			return at, true
		case r == '\n':
			at = place{at.line + 1, 1}
		case r != '\ufeff':
			at.column++
		}

		i += n
	}

	return place{}, false
}
