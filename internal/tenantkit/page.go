package tenantkit

import (
	_ "embed"
	"html/template"
	"io"
	"strings"
)

//go:embed page.html
var pageText string

var pageTemplate = template.Must(template.New("page").Funcs(template.FuncMap{
	"class": func(r Result) string { return strings.ReplaceAll(strings.ToLower(string(r)), " ", "") },
}).Parse(pageText))

// WritePage writes the report as an HTML page that needs no other file, and
// runs no script. It contains the JSON, whose SHA-256 it states.
func (r *Report) WritePage(w io.Writer) error {
	text, sum, err := r.JSON()
	if err != nil {
		return err
	}
	return pageTemplate.Execute(w, struct {
		*Report
		JSON, Sum string
		Proved    int
		OfRows    int
	}{r, string(text), sum, len(r.Rows) - r.Failed - r.Warned - r.NotChecked, len(r.Rows)})
}
