package s3api

import (
	"net/http"
	"net/url"
	"slices"
	"strings"
	"sync"

	"github.com/gorilla/mux"
)

// route is a row of the table of operations, prepared for matching requests.
type route struct {
	operation

	matchQuery  []string // required query parameters, each a name or name=value
	matchHeader []string // required headers
	queryNames  nameSet  // allowed query parameters: match and query
	headerNames nameSet  // allowed x-amz- headers
	ignores     ignores  // names without an effect
}

// routes are the operations, in the order in which they are matched.
var routes = newRoutes(operations)

func newRoutes(table []operation) []route {
	out := make([]route, len(table))
	for i, op := range table {
		row := &out[i]
		row.operation, row.ignores = op, newIgnores(op)
		row.queryNames, row.headerNames = setOf(op.query), setOf(op.headers)

		for match := range strings.FieldsSeq(op.match) {
			if name, isHeader := strings.CutPrefix(match, "header:"); isHeader {
				row.matchHeader = append(row.matchHeader, name)
				continue
			}
			row.matchQuery = append(row.matchQuery, match)
			name, _, _ := strings.Cut(match, "=")
			row.queryNames.exact[name] = true
		}
	}

	return out
}

// matcher finds the row for a request. It has one router for each kind of
// path, so that a request for an object is not compared with the many rows
// for buckets, and no row needs to match the path.
type matcher struct {
	routers map[string]*mux.Router
	rows    map[*mux.Route]*route
}

// newMatcher builds the routers. The call has found bucket and key already,
// in path and host: "a//b", ".." and %2F are parts of a key.
func newMatcher() matcher {
	m := matcher{routers: make(map[string]*mux.Router), rows: make(map[*mux.Route]*route)}
	for i := range routes {
		row := &routes[i]
		if m.routers[row.path] == nil {
			m.routers[row.path] = mux.NewRouter()
		}
		m.rows[m.routers[row.path].MatcherFunc(row.matches)] = row
	}
	return m
}

// find returns the call's operation, or nil.
func (m matcher) find(c *call) *route {
	named := object
	switch {
	case c.bucket == "":
		named = service
	case c.key == "" && "/"+c.bucket == objectLambda:
		named = objectLambda
	case c.key == "":
		named = bucket
	}

	q, _ := questions.Get().(*question)
	defer questions.Put(q)
	q.url.RawQuery = encodeQuery(c.query)
	q.request.Method, q.request.Header, q.request.URL = c.Method, c.Header, &q.url
	q.match = mux.RouteMatch{}
	if !m.routers[named].Match(&q.request, &q.match) {
		return nil
	}
	return m.rows[q.match.Route]
}

// question is what a router is asked, and its answer.
type question struct {
	request http.Request // only with what a row compares
	url     url.URL
	match   mux.RouteMatch
}

var questions = sync.Pool{New: func() any { return new(question) }}

// matches reports whether method, query and headers fit the operation.
func (row *route) matches(r *http.Request, _ *mux.RouteMatch) bool {
	if r.Method != row.method {
		return false
	}

	for _, name := range row.matchHeader {
		if len(r.Header.Values(name)) == 0 && !isHoisted(r.URL.RawQuery, name) {
			return false
		}
	}

	for _, match := range row.matchQuery {
		if !hasParameter(r.URL.RawQuery, match) {
			return false
		}
	}
	return true
}

// hasParameter reports whether an encoded query has a parameter, given as
// its name or as name=value.
func hasParameter(query, match string) bool {
	for parameter := range strings.SplitSeq(query, "&") {
		name, _, _ := strings.Cut(parameter, "=")
		if parameter == match || name == match {
			return true
		}
	}
	return false
}

// isHoisted reports whether a presigned URL has a header in its encoded query,
// as the JavaScript SDK makes it; see takeHoisted. If the request turns out to
// be signed in another way, checkNames refuses the parameter.
func isHoisted(query, header string) bool {
	if !hasParameter(query, "X-Amz-Signature") {
		return false
	}
	for parameter := range strings.SplitSeq(query, "&") {
		if name, _, _ := strings.Cut(parameter, "="); strings.EqualFold(name, header) {
			return true
		}
	}
	return false
}

// allowsQuery reports whether the operation allows the query parameter. Like
// S3, it ignores parameters that start with x-, which people put into
// presigned URLs for their access logs.
func (row *route) allowsQuery(name string) bool {
	return row.queryNames.has(name) || signatureNames.has(name) ||
		strings.HasPrefix(name, "x-") && !strings.HasPrefix(name, "x-amz-")
}

// allowsHeader reports whether the operation allows an x-amz- header, given
// in lower case.
func (row *route) allowsHeader(name string) bool {
	return commonNames.has(name) || row.headerNames.has(name)
}

// lowerName returns the name of a header in lower case.
func (row *route) lowerName(name string) string {
	if lower, ok := row.headerNames.headers[name]; ok {
		return lower
	}
	if lower, ok := commonNames.headers[name]; ok {
		return lower
	}
	return strings.ToLower(name)
}

// payloadHeader returns the headers without checksums that are not those of
// the payload.
func (row *route) payloadHeader(h http.Header) http.Header {
	if row.flags&sumsOfObject == 0 {
		return h
	}
	h = h.Clone()
	for name := range h {
		if strings.HasPrefix(name, checksumPrefix) {
			h.Del(name)
		}
	}
	return h
}

// nameSet is a set of names. An entry that ends in "-" is a prefix.
type nameSet struct {
	exact    map[string]bool
	prefixes []string
	headers  map[string]string // the names as net/http writes headers, with the names in the set
}

// setOf returns the set of the names in space-separated lists.
func setOf(lists ...string) nameSet {
	s := nameSet{exact: make(map[string]bool), headers: make(map[string]string)}
	for _, list := range lists {
		for name := range strings.FieldsSeq(list) {
			s.exact[name] = true
			s.headers[http.CanonicalHeaderKey(name)] = name
			if strings.HasSuffix(name, "-") {
				s.prefixes = append(s.prefixes, name)
			}
		}
	}
	return s
}

func (s nameSet) has(name string) bool {
	return s.exact[name] || slices.ContainsFunc(s.prefixes, func(p string) bool { return strings.HasPrefix(name, p) })
}
