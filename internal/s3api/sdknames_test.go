package s3api

import (
	"go/build"
	"net/http"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/cmekproxy/cmekproxy/internal/sigv4"
)

// untaken are the headers and query parameters of S3 that the row of an
// operation does not take, with the reason. A request with one is refused.
var untaken = map[string]map[string]string{
	"PutObject": {
		"x-amz-write-offset-bytes": "the end of an object is authenticated",
		"x-amz-grant-full-control": aclNote,
		"x-amz-grant-read":         aclNote,
		"x-amz-grant-read-acp":     aclNote,
		"x-amz-grant-write-acp":    aclNote,
	},
	"CopyObject": {
		"x-amz-grant-full-control": aclNote,
		"x-amz-grant-read":         aclNote,
		"x-amz-grant-read-acp":     aclNote,
		"x-amz-grant-write-acp":    aclNote,
	},
	"CreateMultipartUpload": {
		"x-amz-grant-full-control": aclNote,
		"x-amz-grant-read":         aclNote,
		"x-amz-grant-read-acp":     aclNote,
		"x-amz-grant-write-acp":    aclNote,
	},
	"CreateBucket": {
		"x-amz-grant-full-control": aclNote,
		"x-amz-grant-read":         aclNote,
		"x-amz-grant-read-acp":     aclNote,
		"x-amz-grant-write":        aclNote,
		"x-amz-grant-write-acp":    aclNote,
	},
}

// sdkBinding is what the AWS SDK sends for an operation.
type sdkBinding struct {
	headers, query []string // headers in lower case; a - at the end makes a prefix
	subresources   []string // query parameters that choose the operation
}

// Every header and query parameter that the AWS SDK has for an operation is
// taken by the operation's row, or is in untaken. New ones show up here with
// an update of the SDK.
func TestEveryNameOfTheSDK(t *testing.T) {
	names := 0
	for op, sent := range sdkBindings(t) {
		t.Run(op, func(t *testing.T) {
			i := slices.IndexFunc(routes, func(r route) bool { return r.op == op })
			if i < 0 {
				t.Fatal("it has no row")
			}
			row := &routes[i]

			for _, name := range sent.subresources {
				if !known.subresources.has(name) && !signatureNames.has(name) {
					t.Errorf("GetObject ignores the parameter %s, which chooses this operation", name)
				}
			}

			for _, name := range slices.Concat(sent.headers, sent.query) {
				names++
				if sigv4.IsAmz(name) && !knownHeader(name) {
					t.Errorf("reads ignore the header %s, because it is neither in a row nor in refusedHeaders", name)
				}
				if row.policy != refuse && row.takes(name, slices.Contains(sent.query, name)) == (untaken[op][name] != "") {
					t.Errorf("%s: taken by the row and the reason %q why not", name, untaken[op][name])
				}
			}

			for name := range untaken[op] {
				if !slices.Contains(sent.headers, name) && !slices.Contains(sent.query, name) {
					t.Errorf("untaken has %s, which the SDK does not have", name)
				}
			}
		})
	}

	if names < 500 {
		t.Errorf("only %d names found in the SDK", names)
	}
}

// takes reports whether the operation takes a query parameter or a header.
func (row *route) takes(name string, inQuery bool) bool {
	switch {
	case inQuery:
		return row.allowsQuery(name)
	case sigv4.IsAmz(name):
		return row.allowsHeader(name)
	default: // see requestHeader, stored.Reader and newChecksums
		return slices.Contains(forwardedHeaders, http.CanonicalHeaderKey(name)) ||
			slices.Contains(conditionHeaders, http.CanonicalHeaderKey(name)) ||
			slices.Contains([]string{"range", "content-md5", "content-length"}, name)
	}
}

// sdkBindings reads the serializers of the AWS SDK.
func sdkBindings(t *testing.T) map[string]*sdkBinding {
	t.Helper()
	sdk, err := build.Import("github.com/aws/aws-sdk-go-v2/service/s3", ".", build.FindOnly)
	if err != nil {
		t.Fatal(err)
	}
	source, err := os.ReadFile(filepath.Join(sdk.Dir, "serializers.go"))
	if err != nil {
		t.Fatal(err)
	}

	var (
		function = regexp.MustCompile(`^func (?:\(m \*awsRestxml_serializeOp(\w+)\) HandleSerialize|` +
			`awsRestxml_serializeOpHttpBindings(\w+)Input)\(`)
		header = regexp.MustCompile(`(?:locationName := |encoder\.Headers\()"([^"]+)"`)
		query  = regexp.MustCompile(`encoder\.(?:Set|Add)Query\("([^"]+)"\)`)
		uri    = regexp.MustCompile(`httpbinding\.SplitURI\("[^"?]*\?([^"]*)"\)`)
	)

	out := map[string]*sdkBinding{}
	current := &sdkBinding{}
	for line := range strings.Lines(string(source)) {
		if strings.HasPrefix(line, "func ") {
			current = &sdkBinding{} // of another function
			if m := function.FindStringSubmatch(line); m != nil {
				op := m[1] + m[2]
				if out[op] == nil {
					out[op] = current
				}
				current = out[op]
			}
		}

		if m := header.FindStringSubmatch(line); m != nil {
			current.headers = append(current.headers, strings.ToLower(m[1]))
		}
		if m := query.FindStringSubmatch(line); m != nil {
			current.query = append(current.query, m[1])
		}
		if m := uri.FindStringSubmatch(line); m != nil {
			for parameter := range strings.SplitSeq(m[1], "&") {
				name, _, _ := strings.Cut(parameter, "=")
				current.subresources = append(current.subresources, name)
			}
		}
	}

	return out
}
