package s3api

import (
	"net/http"

	"github.com/cmekproxy/cmekproxy/internal/stored"
)

// SentAs is the operation that a request for the store is.
func SentAs(r *http.Request) string { return sentAs(r).op }

// Row is what tests of other packages see of the table of operations.
type Row struct {
	Op, Method, Path, Match, Query, Headers, Answer string
	Refused                                         bool
}

// Rows is the table of operations.
func Rows() (rows []Row) {
	for _, r := range routes {
		rows = append(
			rows,
			Row{r.op, r.method, r.path, r.match, r.query, r.headers, string(r.answer), r.policy == refuse},
		)
	}
	return rows
}

// Forget drops what the server remembers of objects.
func (s *Server) Forget() { s.layouts = stored.NewCache() }
