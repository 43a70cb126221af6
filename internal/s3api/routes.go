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
	refuse  policy = "refuse"  // 501 NotImplemented; notes says why
)

// What a path names.
const (
	service = "/"
	bucket  = "/{bucket}"
	object  = "/{bucket}/{key:.+}"

	objectLambda = "/WriteGetObjectResponse" // the answer of an Object Lambda function
)

// anyone may do it, without a signature.
const anyone access.Action = ""

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
	answer  answer // of the store, if it has done it
	serve   func(*Server, *call) error
}

const (
	maxObject = 5_367_398_664 // the largest plaintext whose body stays within S3's 5 GiB for a single PUT
	maxXML    = 2 << 20       // S3's limit for DeleteObjects
	maxList   = 4 << 20       // 10,000 parts, each with its ETag and its checksum
	maxConfig = 64 << 10      // a bucket's configuration; S3's limit for CORS
	maxPolicy = 20 << 10      // S3's limit for bucket policies
	maxTags   = 128 << 10     // 50 tags of 128 and 256 characters
	maxSite   = 128 << 10     // S3's limit for website configurations
	maxRules  = 2 << 20       // S3's limit for replication; lifecycle has as many rules
)

const (
	sseHeaders            = "x-amz-server-side-encryption x-amz-server-side-encryption-aws-kms-key-id x-amz-server-side-encryption-context x-amz-server-side-encryption-bucket-key-enabled"
	putHeaders            = sseHeaders + " " + customerHeaders + " x-amz-meta- x-amz-storage-class x-amz-tagging x-amz-website-redirect-location x-amz-acl" + holdHeaders
	holdHeaders           = " x-amz-object-lock-mode x-amz-object-lock-retain-until-date x-amz-object-lock-legal-hold"
	readHeaders           = customerHeaders + " x-amz-checksum-mode"
	overrides             = "response-cache-control response-content-disposition response-content-encoding response-content-language response-content-type response-expires"
	listQuery             = "prefix delimiter max-keys encoding-type"
	listHeaders           = "x-amz-optional-object-attributes"
	copyHeaders           = sourceCustomerHeaders + " x-amz-copy-source x-amz-copy-source-range x-amz-copy-source-if-match x-amz-copy-source-if-none-match x-amz-copy-source-if-modified-since x-amz-copy-source-if-unmodified-since x-amz-source-expected-bucket-owner"
	customerHeaders       = "x-amz-server-side-encryption-customer-algorithm x-amz-server-side-encryption-customer-key x-amz-server-side-encryption-customer-key-md5"
	sourceCustomerHeaders = "x-amz-copy-source-server-side-encryption-customer-algorithm x-amz-copy-source-server-side-encryption-customer-key x-amz-copy-source-server-side-encryption-customer-key-md5"
	lockHeaders           = "x-amz-mfa x-amz-bypass-governance-retention"
)

// routes is the whole surface. The first row that matches wins, so rows with a match come before the bare ones.
var routes = []route{
	{"ListDirectoryBuckets", "GET", service, "x-id=ListDirectoryBuckets", refuse, access.List, 0, "", "", unsent, nil},
	{"ListBuckets", "GET", service, "", rewrite, access.List, 0, "max-buckets continuation-token prefix bucket-region", "", "ListAllMyBucketsResult", (*Server).listBuckets},
	{"WriteGetObjectResponse", "POST", objectLambda, "", refuse, access.Write, 0, "", "", unsent, nil},

	{"OptionsBucket", "OPTIONS", bucket, "", forward, anyone, 0, "", "", allowed, (*Server).preflight},
	{"CreateSession", "GET", bucket, "session", refuse, access.List, 0, "", "", unsent, nil},
	{"GetBucketAbac", "GET", bucket, "abac", forward, access.Admin, 0, "", "", document, (*Server).forward},
	{"PutBucketAbac", "PUT", bucket, "abac", forward, access.StoreAdmin, maxConfig, "", "", nothing, (*Server).forward},
	{"GetBucketAccelerateConfiguration", "GET", bucket, "accelerate", forward, access.Admin, 0, "", "", document, (*Server).forward},
	{"PutBucketAccelerateConfiguration", "PUT", bucket, "accelerate", forward, access.Admin, maxConfig, "", "", nothing, (*Server).forward},
	{"GetBucketAcl", "GET", bucket, "acl", forward, access.Admin, 0, "", "", document, (*Server).forward},
	{"PutBucketAcl", "PUT", bucket, "acl", forward, access.Admin, maxConfig, "", "x-amz-acl " + grantPrefix, nothing, (*Server).putACL},
	{"GetBucketAnalyticsConfiguration", "GET", bucket, "analytics id", forward, access.Admin, 0, "", "", document, (*Server).forward},
	{"ListBucketAnalyticsConfigurations", "GET", bucket, "analytics", forward, access.Admin, 0, "continuation-token", "", document, (*Server).forward},
	{"PutBucketAnalyticsConfiguration", "PUT", bucket, "analytics", forward, access.Admin, maxConfig, "id", "", nothing, (*Server).putTargeted},
	{"DeleteBucketAnalyticsConfiguration", "DELETE", bucket, "analytics", forward, access.Admin, 0, "id", "", nothing, (*Server).forward},
	{"GetBucketCors", "GET", bucket, "cors", forward, access.Admin, 0, "", "", document, (*Server).forward},
	{"PutBucketCors", "PUT", bucket, "cors", forward, access.Admin, maxConfig, "", "", nothing, (*Server).forward},
	{"DeleteBucketCors", "DELETE", bucket, "cors", forward, access.Admin, 0, "", "", nothing, (*Server).forward},
	{"GetBucketEncryption", "GET", bucket, "encryption", rewrite, access.List, 0, "", "", unsent, (*Server).getBucketEncryption},
	{"PutBucketEncryption", "PUT", bucket, "encryption", rewrite, access.Admin, maxConfig, "", "", unsent, (*Server).putBucketEncryption},
	{"DeleteBucketEncryption", "DELETE", bucket, "encryption", rewrite, access.Admin, 0, "", "", unsent, (*Server).deleteBucketEncryption},
	{"GetBucketIntelligentTieringConfiguration", "GET", bucket, "intelligent-tiering id", forward, access.Admin, 0, "", "", document, (*Server).forward},
	{"ListBucketIntelligentTieringConfigurations", "GET", bucket, "intelligent-tiering", forward, access.Admin, 0, "continuation-token", "", document, (*Server).forward},
	{"PutBucketIntelligentTieringConfiguration", "PUT", bucket, "intelligent-tiering", forward, access.Admin, maxConfig, "id", "", nothing, (*Server).forward},
	{"DeleteBucketIntelligentTieringConfiguration", "DELETE", bucket, "intelligent-tiering", forward, access.Admin, 0, "id", "", nothing, (*Server).forward},
	{"GetBucketInventoryConfiguration", "GET", bucket, "inventory id", forward, access.Admin, 0, "", "", document, (*Server).forward},
	{"ListBucketInventoryConfigurations", "GET", bucket, "inventory", forward, access.Admin, 0, "continuation-token", "", document, (*Server).forward},
	{"PutBucketInventoryConfiguration", "PUT", bucket, "inventory", forward, access.Admin, maxConfig, "id", "", nothing, (*Server).putTargeted},
	{"DeleteBucketInventoryConfiguration", "DELETE", bucket, "inventory", forward, access.Admin, 0, "id", "", nothing, (*Server).forward},
	{"GetBucketLifecycleConfiguration", "GET", bucket, "lifecycle", forward, access.Admin, 0, "", "", document, (*Server).forward},
	{"PutBucketLifecycleConfiguration", "PUT", bucket, "lifecycle", forward, access.Admin, maxRules, "", "x-amz-transition-default-minimum-object-size", nothing, (*Server).forward},
	{"DeleteBucketLifecycle", "DELETE", bucket, "lifecycle", forward, access.Admin, 0, "", "", nothing, (*Server).forward},
	{"GetBucketLocation", "GET", bucket, "location", forward, access.List, 0, "", "", document, (*Server).forward},
	{"GetBucketLogging", "GET", bucket, "logging", forward, access.Admin, 0, "", "", document, (*Server).forward},
	{"PutBucketLogging", "PUT", bucket, "logging", forward, access.Admin, maxConfig, "", "", nothing, (*Server).putTargeted},
	{"CreateBucketMetadataConfiguration", "POST", bucket, "metadataConfiguration", refuse, access.Admin, 0, "", "", unsent, nil},
	{"GetBucketMetadataConfiguration", "GET", bucket, "metadataConfiguration", refuse, access.Admin, 0, "", "", unsent, nil},
	{"DeleteBucketMetadataConfiguration", "DELETE", bucket, "metadataConfiguration", refuse, access.Admin, 0, "", "", unsent, nil},
	{"CreateBucketMetadataTableConfiguration", "POST", bucket, "metadataTable", refuse, access.Admin, 0, "", "", unsent, nil},
	{"GetBucketMetadataTableConfiguration", "GET", bucket, "metadataTable", refuse, access.Admin, 0, "", "", unsent, nil},
	{"DeleteBucketMetadataTableConfiguration", "DELETE", bucket, "metadataTable", refuse, access.Admin, 0, "", "", unsent, nil},
	{"UpdateBucketMetadataAnnotationTableConfiguration", "PUT", bucket, "metadataAnnotationTable", refuse, access.Admin, 0, "", "", unsent, nil},
	{"UpdateBucketMetadataInventoryTableConfiguration", "PUT", bucket, "metadataInventoryTable", refuse, access.Admin, 0, "", "", unsent, nil},
	{"UpdateBucketMetadataJournalTableConfiguration", "PUT", bucket, "metadataJournalTable", refuse, access.Admin, 0, "", "", unsent, nil},
	{"GetBucketMetricsConfiguration", "GET", bucket, "metrics id", forward, access.Admin, 0, "", "", document, (*Server).forward},
	{"ListBucketMetricsConfigurations", "GET", bucket, "metrics", forward, access.Admin, 0, "continuation-token", "", document, (*Server).forward},
	{"PutBucketMetricsConfiguration", "PUT", bucket, "metrics", forward, access.Admin, maxConfig, "id", "", nothing, (*Server).forward},
	{"DeleteBucketMetricsConfiguration", "DELETE", bucket, "metrics", forward, access.Admin, 0, "id", "", nothing, (*Server).forward},
	{"GetBucketNotificationConfiguration", "GET", bucket, "notification", forward, access.Admin, 0, "", "", document, (*Server).forward},
	{"PutBucketNotificationConfiguration", "PUT", bucket, "notification", forward, access.Admin, maxRules, "", "x-amz-skip-destination-validation", nothing, (*Server).putTargeted},
	{"GetObjectLockConfiguration", "GET", bucket, "object-lock", forward, access.List, 0, "", "", document, (*Server).forward},
	{"PutObjectLockConfiguration", "PUT", bucket, "object-lock", forward, access.Admin, maxConfig, "", "x-amz-bucket-object-lock-token", nothing, (*Server).putRetention},
	{"GetBucketOwnershipControls", "GET", bucket, "ownershipControls", forward, access.Admin, 0, "", "", document, (*Server).forward},
	{"PutBucketOwnershipControls", "PUT", bucket, "ownershipControls", forward, access.Admin, maxConfig, "", "", nothing, (*Server).forward},
	{"DeleteBucketOwnershipControls", "DELETE", bucket, "ownershipControls", forward, access.Admin, 0, "", "", nothing, (*Server).forward},
	{"GetBucketPolicy", "GET", bucket, "policy", forward, access.Admin, 0, "", "", policies, (*Server).forward},
	{"PutBucketPolicy", "PUT", bucket, "policy", forward, access.StoreAdmin, maxPolicy, "", "x-amz-confirm-remove-self-bucket-access", nothing, (*Server).forward},
	{"DeleteBucketPolicy", "DELETE", bucket, "policy", forward, access.StoreAdmin, 0, "", "", nothing, (*Server).forward},
	{"GetBucketPolicyStatus", "GET", bucket, "policyStatus", forward, access.Admin, 0, "", "", document, (*Server).forward},
	{"GetPublicAccessBlock", "GET", bucket, "publicAccessBlock", forward, access.Admin, 0, "", "", document, (*Server).forward},
	{"PutPublicAccessBlock", "PUT", bucket, "publicAccessBlock", forward, access.Admin, maxConfig, "", "", nothing, (*Server).putPublicAccessBlock},
	{"DeletePublicAccessBlock", "DELETE", bucket, "publicAccessBlock", forward, access.StoreAdmin, 0, "", "", nothing, (*Server).forward},
	{"GetBucketReplication", "GET", bucket, "replication", forward, access.Admin, 0, "", "", document, (*Server).forward},
	{"PutBucketReplication", "PUT", bucket, "replication", forward, access.Admin, maxRules, "", "x-amz-bucket-object-lock-token", nothing, (*Server).putTargeted},
	{"DeleteBucketReplication", "DELETE", bucket, "replication", forward, access.Admin, 0, "", "", nothing, (*Server).forward},
	{"GetBucketRequestPayment", "GET", bucket, "requestPayment", forward, access.Admin, 0, "", "", document, (*Server).forward},
	{"PutBucketRequestPayment", "PUT", bucket, "requestPayment", forward, access.Admin, maxConfig, "", "", nothing, (*Server).forward},
	{"GetBucketTagging", "GET", bucket, "tagging", forward, access.Admin, 0, "", "", document, (*Server).forward},
	{"PutBucketTagging", "PUT", bucket, "tagging", forward, access.Admin, maxTags, "", "", nothing, (*Server).forward},
	{"DeleteBucketTagging", "DELETE", bucket, "tagging", forward, access.Admin, 0, "", "", nothing, (*Server).forward},
	{"GetBucketVersioning", "GET", bucket, "versioning", forward, access.List, 0, "", "", document, (*Server).forward},
	{"PutBucketVersioning", "PUT", bucket, "versioning", forward, access.Admin, maxConfig, "", "x-amz-mfa", nothing, (*Server).forward},
	{"GetBucketWebsite", "GET", bucket, "website", forward, access.Admin, 0, "", "", document, (*Server).forward},
	{"PutBucketWebsite", "PUT", bucket, "website", forward, access.StoreAdmin, maxSite, "", "", nothing, (*Server).forward},
	{"DeleteBucketWebsite", "DELETE", bucket, "website", forward, access.Admin, 0, "", "", nothing, (*Server).forward},

	{"ListObjectsV2", "GET", bucket, "list-type=2", rewrite, access.List, 0, listQuery + " continuation-token start-after fetch-owner", listHeaders, "ListBucketResult", (*Server).listObjects},
	{"ListMultipartUploads", "GET", bucket, "uploads", rewrite, access.List, 0, "prefix delimiter max-uploads encoding-type key-marker upload-id-marker", "", "ListMultipartUploadsResult", (*Server).listMultipartUploads},
	{"ListObjectVersions", "GET", bucket, "versions", rewrite, access.List, 0, listQuery + " key-marker version-id-marker", listHeaders, "ListVersionsResult", (*Server).listObjectVersions},
	{"DeleteObjects", "POST", bucket, "delete", rewrite, access.Delete, maxXML, "", lockHeaders, "DeleteResult", (*Server).deleteObjects},
	{"ListObjects", "GET", bucket, "", rewrite, access.List, 0, listQuery + " marker", listHeaders, "ListBucketResult", (*Server).listObjects},
	{"HeadBucket", "HEAD", bucket, "", forward, access.List, 0, "", "", nothing, (*Server).forward},
	{"CreateBucket", "PUT", bucket, "", forward, access.Admin, maxConfig, "", "x-amz-acl x-amz-object-ownership x-amz-bucket-object-lock-enabled", nothing, (*Server).forward},
	{"DeleteBucket", "DELETE", bucket, "", forward, access.Admin, 0, "", "", nothing, (*Server).forward},
	{"PostObject", "POST", bucket, "", seal, access.Write, maxObject, "", putHeaders, unsent, (*Server).postObject},

	{"CreateMultipartUpload", "POST", object, "uploads", forward, access.Write, 0, "", putHeaders + " x-amz-metadata-directive", "InitiateMultipartUploadResult", (*Server).createMultipartUpload}, // of s3fs, and ignored by S3
	{"CompleteMultipartUpload", "POST", object, "uploadId", rewrite, access.Write, maxList, "", customerHeaders + " x-amz-mp-object-size", "CompleteMultipartUploadResult", (*Server).completeMultipartUpload},
	{"UploadPartCopy", "PUT", object, "uploadId header:x-amz-copy-source", seal, access.Write, 0, "partNumber", copyHeaders + " " + customerHeaders, unsent, (*Server).uploadPartCopy},
	{"UploadPart", "PUT", object, "uploadId", seal, access.Write, crypt.MaxPartSize, "partNumber", customerHeaders, written, (*Server).uploadPart},
	{"AbortMultipartUpload", "DELETE", object, "uploadId", forward, access.Write, 0, "", "x-amz-if-match-initiated-time", nothing, (*Server).abortMultipartUpload},
	{"ListParts", "GET", object, "uploadId", rewrite, access.Write, 0, "max-parts part-number-marker", customerHeaders, "ListPartsResult", (*Server).listParts},
	{"GetObjectAttributes", "GET", object, "attributes", rewrite, access.Read, 0, "versionId", customerHeaders + " x-amz-object-attributes x-amz-max-parts x-amz-part-number-marker", unsent, (*Server).getObjectAttributes},
	{"OptionsObject", "OPTIONS", object, "", forward, anyone, 0, "", "", allowed, (*Server).preflight},
	{"GetObjectAcl", "GET", object, "acl", forward, access.Read, 0, "versionId", "", document, (*Server).forward},
	{"PutObjectAcl", "PUT", object, "acl", forward, access.Write, maxConfig, "versionId", "x-amz-acl " + grantPrefix, nothing, (*Server).putACL},
	{"GetObjectAnnotation", "GET", object, "annotation annotationName", refuse, access.Read, 0, "", "", unsent, nil},
	{"ListObjectAnnotations", "GET", object, "annotation", refuse, access.Read, 0, "", "", unsent, nil},
	{"PutObjectAnnotation", "PUT", object, "annotation", refuse, access.Write, 0, "", "", unsent, nil},
	{"DeleteObjectAnnotation", "DELETE", object, "annotation", refuse, access.Write, 0, "", "", unsent, nil},
	{"UpdateObjectEncryption", "PUT", object, "encryption", refuse, access.Write, 0, "", "", unsent, nil},
	{"GetObjectLegalHold", "GET", object, "legal-hold", forward, access.Read, 0, "versionId", "", document, (*Server).forward},
	{"PutObjectLegalHold", "PUT", object, "legal-hold", forward, access.Admin, maxConfig, "versionId", "", nothing, (*Server).forward},
	{"GetObjectRetention", "GET", object, "retention", forward, access.Read, 0, "versionId", "", document, (*Server).forward},
	{"PutObjectRetention", "PUT", object, "retention", forward, access.Write, maxConfig, "versionId", "x-amz-bypass-governance-retention", nothing, (*Server).putRetention},
	{"GetObjectTagging", "GET", object, "tagging", forward, access.Read, 0, "versionId", "", document, (*Server).forward},
	{"PutObjectTagging", "PUT", object, "tagging", forward, access.Write, maxTags, "versionId", "", nothing, (*Server).forward},
	{"DeleteObjectTagging", "DELETE", object, "tagging", forward, access.Write, 0, "versionId", "", nothing, (*Server).forward},
	{"GetObjectTorrent", "GET", object, "torrent", refuse, access.Read, 0, "", "", unsent, nil},
	{"RenameObject", "PUT", object, "renameObject", refuse, access.Write, 0, "", "", unsent, nil},
	{"RestoreObject", "POST", object, "restore", forward, access.Write, maxConfig, "versionId", "", nothing, (*Server).restoreObject},
	{"SelectObjectContent", "POST", object, "select", refuse, access.Read, 0, "", "", unsent, nil},
	{"CopyObject", "PUT", object, "header:x-amz-copy-source", seal, access.Write, 0, "", putHeaders + " " + copyHeaders + " x-amz-metadata-directive x-amz-tagging-directive", "CopyObjectResult", (*Server).copyObject},
	{"PutObject", "PUT", object, "", seal, access.Write, maxObject, "", putHeaders, written, (*Server).putObject},
	{"GetObject", "GET", object, "", open, access.Read, 0, "versionId partNumber " + overrides, readHeaders, content, (*Server).getObject},
	{"HeadObject", "HEAD", object, "", open, access.Read, 0, "versionId partNumber " + overrides, readHeaders, content, (*Server).headObject},
	{"DeleteObject", "DELETE", object, "", forward, access.Delete, 0, "versionId", lockHeaders + " x-amz-if-match-last-modified-time " + sizeCondition, nothing, (*Server).deleteObject},
}

// commonHeaders may come with any operation. The signature, the payload's form and its checksums are dealt with here and
// never forwarded; see forwardedHeaders for what is.
const commonHeaders = "x-amz-date x-amz-content-sha256 x-amz-security-token x-amz-user-agent x-amz-decoded-content-length x-amz-trailer " +
	"x-amz-sdk-checksum-algorithm x-amz-checksum-algorithm x-amz-checksum-type x-amz-checksum-crc32 x-amz-checksum-crc32c x-amz-checksum-crc64nvme x-amz-checksum-sha1 " +
	"x-amz-checksum-sha256 x-amz-checksum-sha512 x-amz-checksum-md5 x-amz-checksum-xxhash64 x-amz-checksum-xxhash3 x-amz-checksum-xxhash128 x-amz-expected-bucket-owner x-amz-request-payer"

// signatureQuery are the parameters of a presigned URL. x-id is the SDKs' name of the operation.
const signatureQuery = "X-Amz-Algorithm X-Amz-Credential X-Amz-Date X-Amz-Expires X-Amz-SignedHeaders X-Amz-Signature " +
	"X-Amz-Content-Sha256 X-Amz-Security-Token x-id"

// matcher finds the row of a request: a router for each kind of thing that a path names, so that a request for an object
// is not held against the many rows of buckets.
type matcher map[string]*mux.Router

// newMatcher builds the routers. Paths are matched as they were encoded and never cleaned: "a//b", ".." and %2F are all
// part of a key.
func newMatcher() matcher {
	m := make(matcher)
	for _, named := range []string{service, bucket, object} {
		m[named] = mux.NewRouter().SkipClean(true).UseEncodedPath()
	}
	for i := range routes {
		row := &routes[i]
		router := m[row.path]
		if router == nil {
			router = m[bucket]
		}
		router.MatcherFunc(row.matches).Path(row.path).Name(row.op)
	}
	return m
}

// matches reports whether method, query and header make a request this operation. It is asked before the path is held
// against a regular expression, as most rows are told apart by it.
func (row *route) matches(r *http.Request, _ *mux.RouteMatch) bool {
	if r.Method != row.method {
		return false
	}
	for match := range strings.FieldsSeq(row.match) {
		if name, isHeader := strings.CutPrefix(match, "header:"); isHeader {
			if len(r.Header.Values(name)) == 0 {
				return false
			}
			continue
		}
		if !hasParameter(r.URL.RawQuery, match) {
			return false
		}
	}
	return true
}

// hasParameter looks for a parameter, given by its name alone or as name=value, in an encoded query.
func hasParameter(query, match string) bool {
	for parameter := range strings.SplitSeq(query, "&") {
		name, _, _ := strings.Cut(parameter, "=")
		if parameter == match || name == match {
			return true
		}
	}
	return false
}

// find returns the operation that the call is, or nil.
func (m matcher) find(c *call) *route {
	named := object
	switch {
	case c.bucket == "":
		named = service
	case c.key == "":
		named = bucket
	}
	var match mux.RouteMatch
	if !m[named].Match(c.pathStyle(), &match) || match.Route == nil {
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
