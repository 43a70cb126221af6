package s3api

import (
	"net/http"
	"slices"
	"strings"

	"github.com/gorilla/mux"

	"github.com/cmekproxy/cmekproxy/internal/access"
	"github.com/cmekproxy/cmekproxy/internal/crypt"
)

// policy says what an operation does to the bytes that pass.
type policy string

const (
	seal    policy = "seal"    // the body is encrypted on its way to the store
	open    policy = "open"    // the body is decrypted on its way to the client
	rewrite policy = "rewrite" // sizes and ETags in the answer are turned into the plaintext's
	forward policy = "forward" // nothing of an object's content is in it
	refuse  policy = "refuse"  // 501 NotImplemented
)

// What a path names.
const (
	service = "/"
	bucket  = "/{bucket}"
	object  = "/{bucket}/{key:.+}"
)

// route is one S3 operation. What no route matches, and any query parameter or x-amz- header that its route does not
// name, is refused with NotImplemented: it could change the meaning of the request.
type route struct {
	op      string
	method  string
	path    string
	match   string // query parameters, some as name=value, or "header:" and a name, that make it this operation, space-separated
	policy  policy
	action  access.Action
	body    int64  // longest request body in bytes
	query   string // further query parameters, space-separated
	headers string // x-amz- headers besides commonHeaders, space-separated; a name ending in - is a prefix
	serve   func(*Server, *call) error
}

const (
	maxObject = 5_367_398_664 // the largest plaintext whose body stays within S3's 5 GiB for a single PUT
	maxXML    = 2 << 20       // S3's limit for DeleteObjects
	maxList   = 4 << 20       // 10,000 parts, each with its ETag and its checksum
	maxConfig = 64 << 10      // a bucket's configuration
)

const (
	sseHeaders  = "x-amz-server-side-encryption x-amz-server-side-encryption-aws-kms-key-id"
	putHeaders  = sseHeaders + " x-amz-meta- x-amz-storage-class x-amz-tagging x-amz-website-redirect-location x-amz-acl"
	overrides   = "response-cache-control response-content-disposition response-content-encoding response-content-language response-content-type response-expires"
	listQuery   = "prefix delimiter max-keys encoding-type"
	listHeaders = "x-amz-optional-object-attributes"
	copyHeaders = "x-amz-copy-source x-amz-copy-source-range x-amz-copy-source-if-match x-amz-copy-source-if-none-match x-amz-copy-source-if-modified-since x-amz-copy-source-if-unmodified-since x-amz-source-expected-bucket-owner"
	lockHeaders = "x-amz-mfa x-amz-bypass-governance-retention"
)

// routes is the whole surface. The first row that matches wins, so rows with a match come before the bare ones.
var routes = []route{
	{"ListBuckets", "GET", service, "", rewrite, access.List, 0, "max-buckets continuation-token prefix bucket-region", "", (*Server).listBuckets},

	{"GetBucketLocation", "GET", bucket, "location", forward, access.List, 0, "", "", (*Server).forward},
	{"GetBucketEncryption", "GET", bucket, "encryption", rewrite, access.List, 0, "", "", (*Server).getBucketEncryption},
	{"PutBucketEncryption", "PUT", bucket, "encryption", refuse, access.Admin, maxConfig, "", "", nil}, // the proxy's rules decide
	{"DeleteBucketEncryption", "DELETE", bucket, "encryption", refuse, access.Admin, 0, "", "", nil},
	{"ListObjectsV2", "GET", bucket, "list-type=2", rewrite, access.List, 0, listQuery + " continuation-token start-after fetch-owner", listHeaders, (*Server).listObjects},
	{"ListMultipartUploads", "GET", bucket, "uploads", forward, access.List, 0, "prefix delimiter max-uploads encoding-type key-marker upload-id-marker", "", (*Server).forward},
	{"ListObjectVersions", "GET", bucket, "versions", refuse, access.List, 0, "", "", nil},
	{"DeleteObjects", "POST", bucket, "delete", rewrite, access.Delete, maxXML, "", lockHeaders, (*Server).deleteObjects},
	{"ListObjects", "GET", bucket, "", rewrite, access.List, 0, listQuery + " marker", listHeaders, (*Server).listObjects},
	{"HeadBucket", "HEAD", bucket, "", forward, access.List, 0, "", "", (*Server).forward},
	{"CreateBucket", "PUT", bucket, "", forward, access.Admin, maxConfig, "", "x-amz-acl x-amz-object-ownership x-amz-bucket-object-lock-enabled", (*Server).forward},
	{"DeleteBucket", "DELETE", bucket, "", forward, access.Admin, 0, "", "", (*Server).forward},
	{"PostObject", "POST", bucket, "", seal, access.Write, maxObject, "", putHeaders, (*Server).postObject},

	{"CreateMultipartUpload", "POST", object, "uploads", forward, access.Write, 0, "", putHeaders, (*Server).createMultipartUpload},
	{"CompleteMultipartUpload", "POST", object, "uploadId", rewrite, access.Write, maxList, "", "x-amz-mp-object-size", (*Server).completeMultipartUpload},
	{"UploadPartCopy", "PUT", object, "uploadId header:x-amz-copy-source", seal, access.Write, 0, "partNumber", copyHeaders, (*Server).uploadPartCopy},
	{"UploadPart", "PUT", object, "uploadId", seal, access.Write, crypt.MaxPartSize, "partNumber", "", (*Server).uploadPart},
	{"AbortMultipartUpload", "DELETE", object, "uploadId", forward, access.Write, 0, "", "x-amz-if-match-initiated-time", (*Server).abortMultipartUpload},
	{"ListParts", "GET", object, "uploadId", rewrite, access.Write, 0, "max-parts part-number-marker", "", (*Server).listParts},
	{"GetObjectAttributes", "GET", object, "attributes", rewrite, access.Read, 0, "versionId", "x-amz-object-attributes x-amz-max-parts x-amz-part-number-marker", (*Server).getObjectAttributes},
	{"SelectObjectContent", "POST", object, "select", refuse, access.Read, 0, "", "", nil},
	{"CopyObject", "PUT", object, "header:x-amz-copy-source", refuse, access.Write, 0, "", "", nil},
	{"PutObject", "PUT", object, "", seal, access.Write, maxObject, "", putHeaders, (*Server).putObject},
	{"GetObject", "GET", object, "", open, access.Read, 0, "versionId partNumber " + overrides, "x-amz-checksum-mode", (*Server).getObject},
	{"HeadObject", "HEAD", object, "", open, access.Read, 0, "versionId partNumber " + overrides, "x-amz-checksum-mode", (*Server).headObject},
	{"DeleteObject", "DELETE", object, "", forward, access.Delete, 0, "versionId", lockHeaders, (*Server).forward},
}

// commonHeaders may come with any operation. The signature, the payload's form and its checksums are dealt with here and
// never forwarded; see forwardedHeaders for what is.
const commonHeaders = "x-amz-date x-amz-content-sha256 x-amz-user-agent x-amz-decoded-content-length x-amz-trailer " +
	"x-amz-sdk-checksum-algorithm x-amz-checksum-algorithm x-amz-checksum-type x-amz-checksum-crc32 x-amz-checksum-crc32c x-amz-checksum-crc64nvme x-amz-checksum-sha1 " +
	"x-amz-checksum-sha256 x-amz-expected-bucket-owner x-amz-request-payer"

// signatureQuery are the parameters of a presigned URL. x-id is the SDKs' name of the operation.
const signatureQuery = "X-Amz-Algorithm X-Amz-Credential X-Amz-Date X-Amz-Expires X-Amz-SignedHeaders X-Amz-Signature " +
	"X-Amz-Content-Sha256 X-Amz-Security-Token x-id"

// newMatcher builds the router. Paths are matched as they were encoded and never cleaned: "a//b", ".." and %2F are all
// part of a key.
func newMatcher() *mux.Router {
	m := mux.NewRouter().SkipClean(true).UseEncodedPath()
	for i := range routes {
		row := &routes[i]
		r := m.Methods(row.method).Path(row.path).Name(row.op)
		for match := range strings.FieldsSeq(row.match) {
			if name, isHeader := strings.CutPrefix(match, "header:"); isHeader {
				r.Headers(name, "")
				continue
			}
			name, value, _ := strings.Cut(match, "=")
			r.Queries(name, value)
		}
	}
	return m
}

// find returns the operation that r is, or nil.
func find(m *mux.Router, r *http.Request) *route {
	var match mux.RouteMatch
	if !m.Match(r, &match) || match.Route == nil {
		return nil
	}
	i := slices.IndexFunc(routes, func(row route) bool { return row.op == match.Route.GetName() })
	if i < 0 {
		return nil
	}
	return &routes[i]
}

// allowsQuery reports whether the operation knows the query parameter. S3 ignores parameters that start with x-, which
// people put into presigned URLs for their access logs; so do we.
func (row *route) allowsQuery(name string) bool {
	own := func(match string) bool { before, _, _ := strings.Cut(match, "="); return before == name }
	return slices.ContainsFunc(strings.Fields(row.match), own) || has(row.query, name) || has(signatureQuery, name) ||
		strings.HasPrefix(name, "x-") && !strings.HasPrefix(name, "x-amz-")
}

// allowsHeader reports whether the operation knows the header, which is an x-amz- one in lower case.
func (row *route) allowsHeader(name string) bool {
	return has(commonHeaders, name) || has(row.headers, name)
}

// payloadHeader returns the header that says what the payload is. In some operations x-amz-checksum- headers speak of the
// object and not of the payload.
func (row *route) payloadHeader(h http.Header) http.Header {
	if row.op != "CreateMultipartUpload" && row.op != "CompleteMultipartUpload" {
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

// has reports whether a space-separated list names name, or a prefix of it that ends in "-".
func has(list, name string) bool {
	for entry := range strings.SplitSeq(list, " ") {
		if entry == name || entry != "" && strings.HasSuffix(entry, "-") && strings.HasPrefix(name, entry) {
			return true
		}
	}
	return false
}
