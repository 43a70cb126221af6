// Package webpage is what the pages of the admin port have in common: the style,
// who gets which form of a report, and how figures are written.
//
// A page is rendered here, in one piece, without anything from another
// server. It works without JavaScript; a live page replaces its main element
// by that of a new answer.
//
// There is no example: packages advisor and statuspage are short ones.
package webpage

import (
	"bytes"
	"crypto/sha256"
	_ "embed"
	"encoding/base64"
	"encoding/json"
	"html/template"
	"mime"
	"net/http"
	"strings"
)

//go:embed style.css
var style string

//go:embed live.js
var live string

// Parse parses the template of a page. It panics if the text is not valid.
// The template can call
//
//	style  the style sheet of all pages
//	live   the script of a page that stays up to date
func Parse(text string) *template.Template {
	return template.Must(template.New("page").Funcs(template.FuncMap{
		"style": func() template.CSS { return template.CSS(style) }, //nolint:gosec // constant
		"live":  func() template.JS { return template.JS(live) },    //nolint:gosec // constant
	}).Parse(text))
}

// Report is the content of a page.
type Report[T any] struct {
	Now  func() T    // is also encoded as JSON
	View func(T) any // what the template shows of it
	Page *template.Template
}

// policy is the Content-Security-Policy of all pages: only what this package
// wrote is used.
var policy = "default-src 'none'; connect-src 'self'; frame-ancestors 'none'; base-uri 'none'; form-action 'none'" +
	"; style-src " + hashOf(style) + "; script-src " + hashOf(live)

func hashOf(text string) string {
	sum := sha256.Sum256([]byte(text))
	return "'sha256-" + base64.StdEncoding.EncodeToString(sum[:]) + "'"
}

// ServeHTTP implements http.Handler. It answers JSON for "Accept:
// application/json" or "?format=json", and otherwise the page.
func (r *Report[T]) ServeHTTP(w http.ResponseWriter, req *http.Request) {
	if req.Method != http.MethodGet && req.Method != http.MethodHead {
		w.Header().Set("Allow", "GET, HEAD")
		http.Error(w, "only GET and HEAD", http.StatusMethodNotAllowed)
		return
	}

	h := w.Header()
	h.Set("Cache-Control", "no-store")
	h.Set("Vary", "Accept")
	h.Set("X-Content-Type-Options", "nosniff")

	switch formOf(req) {
	case "json":
		h.Set("Content-Type", "application/json")
		enc := json.NewEncoder(w)
		enc.SetIndent("", "  ")
		_ = enc.Encode(r.Now()) // fails only if the client has left
	case "html":
		var text bytes.Buffer
		if err := r.Page.Execute(&text, r.View(r.Now())); err != nil {
			http.Error(w, "the page cannot be written: "+err.Error(), http.StatusInternalServerError)
			return
		}
		h.Set("Content-Type", "text/html; charset=utf-8")
		h.Set("Content-Security-Policy", policy)
		_, _ = w.Write(text.Bytes()) // as above
	default:
		http.Error(w, "format is html or json", http.StatusBadRequest)
	}
}

func formOf(req *http.Request) string {
	if format := req.URL.Query().Get("format"); format != "" {
		return format
	}
	if acceptsJSON(req.Header.Values("Accept")) {
		return "json"
	}
	return "html"
}

// acceptsJSON reports whether an Accept header contains JSON explicitly.
// Those of browsers do not.
func acceptsJSON(accept []string) bool {
	for _, line := range accept {
		for element := range strings.SplitSeq(line, ",") {
			if kind, _, err := mime.ParseMediaType(element); err == nil && kind == "application/json" {
				return true
			}
		}
	}

	return false
}
