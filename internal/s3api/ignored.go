package s3api

import (
	"slices"
	"strings"

	"go.uber.org/zap"

	"github.com/cmekproxy/cmekproxy/internal/sigv4"
)

// S3 ignores many names that it does not know. The proxy ignores those of
// this file, which cannot change what a request reads, stores or removes, and
// refuses all others. An ignored name is never sent to the store, so it has no
// effect even at a store that knows it. Signatures still cover it.

// carrier is where a name is sent.
type carrier string

const (
	inHeader    carrier = "header"
	inQuery     carrier = "query"
	inPresigned carrier = "presigned URL" // in the query of a presigned URL
)

// Values of ignored.names and ignored.ops.
const (
	unknownNames = "unknown" // those that no operation of S3 has
	reads        = "GET and HEAD"
	everyOp      = "every operation"
)

// ignored is a row of the table of names without an effect.
type ignored struct {
	in carrier
	// Space-separated names, headers in lower case, or unknownNames. A query
	// parameter can be name=value.
	names string
	ops   string // space-separated operations, reads or everyOp
	why   string
}

// ignoredNames is the table of names without an effect.
// docs/s3-compatibility.md has it, and TestIgnored has an example of each row.
var ignoredNames = []ignored{
	{inHeader, unknownNames, reads, "a read changes nothing; SDKs and CDNs add headers of their own"},
	{inHeader, "x-amz-api-version", everyOp, "the SDKs for C++ and .NET name the only version of S3's API"},
	{inHeader, "x-amz-cf-id", everyOp, "CloudFront's id of the request"},
	{inQuery, unknownNames, "GetObject HeadObject", "cache busters and campaign tags, as in `style.css?v=3`"},
	{inQuery, "list-type=1 start-after", "ListObjects", "`start-after` is of version 2, and S3 ignores it here"},
	{
		inQuery, "metadata unsorted", "ListObjectsV2 ListObjects ListObjectVersions",
		"minio-go asks MinIO for metadata, and for any order",
	},
	{
		inPresigned, digestHeaders + " x-amz-sdk-checksum-algorithm", everyOp,
		"the JavaScript SDK signs the checksum of an empty body; it is not verified, stored or returned",
	},
}

// ignores is the part of ignoredNames that applies to an operation.
type ignores struct {
	headers, query, hoisted       nameSet
	unknownHeaders, unknownParams bool
}

func newIgnores(op operation) ignores {
	sets := map[carrier][]string{}
	var out ignores

	for _, row := range ignoredNames {
		applies := row.ops == everyOp || row.ops == reads && op.isRead() ||
			slices.Contains(strings.Fields(row.ops), op.op)
		switch {
		case !applies:
		case row.names != unknownNames:
			sets[row.in] = append(sets[row.in], row.names)
		case row.in == inHeader:
			out.unknownHeaders = true
		default:
			out.unknownParams = true
		}
	}

	out.headers, out.query = setOf(sets[inHeader]...), setOf(sets[inQuery]...)
	out.hoisted = setOf(sets[inPresigned]...)
	return out
}

func (op operation) isRead() bool { return op.method == "GET" || op.method == "HEAD" }

// ignoresHeader reports whether an x-amz- header, given in lower case, has no
// effect on the operation.
func (row *route) ignoresHeader(name string) bool {
	return row.ignores.headers.has(name) || row.ignores.unknownHeaders && !knownHeader(name)
}

// ignoresParameter reports whether a query parameter has no effect on the
// operation.
func (row *route) ignoresParameter(name string, values []string) bool {
	if row.allowsQuery(name) || signatureNames.has(name) {
		return false
	}
	if row.ignores.query.has(name) || len(values) == 1 && row.ignores.query.has(name+"="+values[0]) {
		return true
	}
	return row.ignores.unknownParams && !known.subresources.has(name) && !knownHeader(strings.ToLower(name))
}

// ignoresHoisted reports whether a parameter of a presigned URL, given in
// lower case, has no effect on the operation.
func (row *route) ignoresHoisted(name string) bool {
	return row.ignores.hoisted.has(name) || sigv4.IsAmz(name) && row.ignoresHeader(name)
}

// known are the names that S3 has for any operation. An operation that does
// not have such a name refuses it.
var known = newKnown(operations)

type knownNames struct {
	headers      nameSet // x-amz- headers
	subresources nameSet // query parameters that choose an operation
}

func newKnown(table []operation) knownNames {
	var headers []string
	subresources := []string{"select-type"} // of SelectObjectContent, beside select
	for _, op := range table {
		headers = append(headers, op.headers)
		for match := range strings.FieldsSeq(op.match) {
			if name, isHeader := strings.CutPrefix(match, "header:"); isHeader {
				headers = append(headers, name)
			} else if name, _, _ := strings.Cut(match, "="); name != "id" { // of analytics, and so on
				subresources = append(subresources, name)
			}
		}
	}
	return knownNames{headers: setOf(headers...), subresources: setOf(subresources...)}
}

// knownHeader reports whether S3 has an x-amz- header, given in lower case,
// for any operation.
func knownHeader(name string) bool {
	return commonNames.has(name) || known.headers.has(name) || refusedHeaders.has(name) ||
		strings.HasPrefix(name, strings.ToLower(checksumPrefix)) // of an algorithm that is not supported
}

// refusedHeaders are the x-amz- headers of S3 that no row has, because the
// operation, or what the header asks for, is not supported.
var refusedHeaders = setOf(
	"x-amz-write-offset-bytes",
	"x-amz-create-session-mode x-amz-s3session-token x-amz-request-route x-amz-request-token x-amz-fwd-",
	"x-amz-object-if-match",
)

// dropParameters removes the query parameters that have no effect.
func (c *call) dropParameters() {
	for name, values := range c.query {
		if c.route.ignoresParameter(name, values) {
			delete(c.query, name)
		}
	}
}

// logIgnored names the headers that have no effect in the log. A query
// parameter is not logged: its name alone may be a secret.
func (c *call) logIgnored(headers []string) {
	if len(headers) == 0 {
		return
	}
	slices.Sort(headers)
	c.server.Log.Debug(
		"ignored headers",
		zap.String("request_id", c.id),
		zap.String("operation", c.op),
		zap.Strings("headers", headers),
	)
}
