package s3api

import (
	"net/http"

	"github.com/cmekproxy/cmekproxy/internal/stored"
)

// SentAs returns the operation of a request to the store.
func SentAs(r *http.Request) string { return sentAs(r).op }

// Row is the part of a row that tests of other packages use.
type Row struct {
	Op, Method, Path, Match, Query, Headers, Answer string
	Refused                                         bool
}

// Rows returns the table of operations.
func Rows() (rows []Row) {
	for _, r := range routes {
		rows = append(
			rows,
			Row{r.op, r.method, r.path, r.match, r.query, r.headers, string(r.answer), r.policy == refuse},
		)
	}
	return rows
}

// IgnoredRow is a row of the table of names without an effect.
type IgnoredRow struct{ In, Names, Ops string }

// IgnoredRows returns the table of names without an effect.
func IgnoredRows() (rows []IgnoredRow) {
	for _, r := range ignoredNames {
		rows = append(rows, IgnoredRow{string(r.in), r.names, r.ops})
	}
	return rows
}

// Forget clears the server's cache of layouts.
func (s *Server) Forget() { s.layouts = stored.NewCache() }

// Statuses returns the HTTP status of each error code.
func Statuses() map[string]int { return statuses }

// FormBufferCount is the number of forms that can be in memory.
const FormBufferCount = formBufferCount

// FormsInMemory returns the number of forms that are in memory.
func (s *Server) FormsInMemory() int { return len(s.formBuffers) }
