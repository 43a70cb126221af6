package tenantkit_test

import (
	"encoding/xml"
	"errors"
	"io"
	"slices"
	"strings"
	"testing"
)

// wellFormed parses a page as XML, which it is except for void elements, so
// that unclosed tags are found. It refuses everything that runs or loads
// something. It returns the texts of the checks.
func wellFormed(t *testing.T, page string) (rows []string) {
	t.Helper()
	d := xml.NewDecoder(strings.NewReader(page))
	d.Strict = false
	d.AutoClose = xml.HTMLAutoClose
	d.Entity = xml.HTMLEntity
	var path, row []string
	for {
		token, err := d.Token()
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			t.Fatalf("the page is not well-formed: %v", err)
		}

		switch token := token.(type) {
		case xml.StartElement:
			path = append(path, token.Name.Local)
			for _, a := range token.Attr {
				if slices.Contains([]string{"src", "style", "href", "srcset", "data"}, a.Name.Local) ||
					strings.HasPrefix(a.Name.Local, "on") {
					t.Errorf("<%s %s=%q>", token.Name.Local, a.Name.Local, a.Value)
				}
			}
			if slices.Contains([]string{"script", "link", "img", "iframe", "object", "form"}, token.Name.Local) {
				t.Errorf("<%s>", token.Name.Local)
			}
			if token.Name.Local == "li" {
				row = nil
			}
		case xml.EndElement:
			path = path[:len(path)-1]
			if token.Name.Local == "li" && len(row) > 2 {
				rows = append(rows, strings.Join(row, "|"))
			}
		case xml.CharData:
			if text := strings.TrimSpace(string(token)); text != "" && slices.Contains(path, "li") {
				row = append(row, text)
			}
		}
	}

	if len(path) != 0 {
		t.Errorf("left open: %v", path)
	}
	return rows
}
