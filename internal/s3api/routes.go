package s3api

import (
	"github.com/cmekproxy/cmekproxy/internal/access"
	"github.com/cmekproxy/cmekproxy/internal/crypt"
)

// policy is what the proxy does with the content of an operation.
type policy string

const (
	seal    policy = "seal"    // the body is encrypted on its way to the store
	open    policy = "open"    // the body is decrypted on its way to the client
	rewrite policy = "rewrite" // sizes and ETags in the answer become the plaintext's
	forward policy = "forward" // the operation has no object content
	refuse  policy = "refuse"  // 501 NotImplemented; notes says why
)

// What the path of a request names.
const (
	service = "/"
	bucket  = "/{bucket}"
	object  = "/{bucket}/{key:.+}"

	objectLambda = "/WriteGetObjectResponse" // the response of an Object Lambda function
)

// anyone is the action of an operation that needs no signature and no grant.
const anyone access.Action = ""

// scope says on which keys a client needs a grant for the operation's
// action. An operation without a scope is denied to all clients.
type scope string

const (
	byKey    scope = "key"      // on the object
	byPrefix scope = "prefix"   // on all keys with the prefix that is listed
	byBucket scope = "bucket"   // on the whole bucket
	eachKey  scope = "each key" // on any key of the bucket; the handler checks each key in the body
	anyKey   scope = "any key"  // on any key of the bucket: it only shows that the bucket exists, as ListBuckets does
	bySigner scope = "signer"   // on none, but the request must be signed: the handler lists only the client's buckets
	unsigned scope = "unsigned" // on none, and the signature is not verified
)

// flags mark properties that few operations have.
type flags uint8

const (
	sumsOfObject flags = 1 << iota // x-amz-checksum- headers are for the whole object, not for the payload
	signedByForm                   // the signature is a field of a form in the body
	readsSource                    // reads the source of a copy, with the source's customer key
	checksACL                      // its handler checks the ACL, so checkNames does not

	usual flags = 0
)

// operation is one S3 operation, a row of the table. A request that matches
// no row is refused with NotImplemented. So is a query parameter or x-amz-
// header that the row does not name: it could change what the request means.
// ignoredNames has the exceptions.
type operation struct {
	op     string
	method string
	path   string
	// Space-separated conditions: a query parameter as name or name=value,
	// or header:name.
	match  string
	policy policy
	action access.Action
	scope  scope
	body   int64  // longest request body in bytes
	query  string // further query parameters that are allowed, space-separated
	// Space-separated x-amz- headers that are allowed besides commonNames. A
	// - at the end makes a prefix.
	headers string
	flags   flags
	answer  answer // what the store's answer to a successful request has
	serve   func(*Server, *call) error
}

const (
	maxObject = 5_367_398_664 // the largest plaintext whose ciphertext fits into S3's 5 GiB for a single PUT
	maxXML    = 2 << 20       // S3's limit for DeleteObjects
	maxList   = 4 << 20       // 10,000 parts, each with its ETag and its checksum
	maxConfig = 64 << 10      // a bucket's configuration; S3's limit for CORS
	maxPolicy = 20 << 10      // S3's limit for bucket policies
	maxTags   = 128 << 10     // 50 tags of 128 and 256 characters
	maxSite   = 128 << 10     // S3's limit for website configurations
	maxRules  = 2 << 20       // S3's limit for replication; lifecycle has as many rules
)

const (
	sseHeaders = "x-amz-server-side-encryption x-amz-server-side-encryption-aws-kms-key-id" +
		" x-amz-server-side-encryption-context x-amz-server-side-encryption-bucket-key-enabled"
	putHeaders = sseHeaders + " " + customerHeaders +
		" x-amz-meta- x-amz-storage-class x-amz-tagging x-amz-website-redirect-location x-amz-acl" + holdHeaders
	holdHeaders      = " x-amz-object-lock-mode x-amz-object-lock-retain-until-date x-amz-object-lock-legal-hold"
	eventHoldHeaders = " x-amz-object-lock-event-hold x-amz-object-lock-event-hold-duration-days" +
		" x-amz-object-lock-event-hold-duration-years"
	readHeaders = customerHeaders + " x-amz-checksum-mode"
	overrides   = "response-cache-control response-content-disposition response-content-encoding" +
		" response-content-language response-content-type response-expires"
	listQuery   = "prefix delimiter max-keys encoding-type"
	listHeaders = "x-amz-optional-object-attributes"
	copyHeaders = sourceCustomerHeaders +
		" x-amz-copy-source x-amz-copy-source-range x-amz-copy-source-if-match" +
		" x-amz-copy-source-if-none-match x-amz-copy-source-if-modified-since" +
		" x-amz-copy-source-if-unmodified-since x-amz-source-expected-bucket-owner"
	customerHeaders = "x-amz-server-side-encryption-customer-algorithm x-amz-server-side-encryption-customer-key" +
		" x-amz-server-side-encryption-customer-key-md5"
	sourceCustomerHeaders = "x-amz-copy-source-server-side-encryption-customer-algorithm" +
		" x-amz-copy-source-server-side-encryption-customer-key" +
		" x-amz-copy-source-server-side-encryption-customer-key-md5"
	lockHeaders = "x-amz-mfa x-amz-bypass-governance-retention"
)

// operations is the table of all operations. The first matching row wins, so
// rows with conditions come before rows without.
var operations = []operation{
	// op, method, path, match, policy, action, scope, body, query, headers, flags, answer, serve
	{"ListDirectoryBuckets", "GET", service, "x-id=ListDirectoryBuckets", refuse, access.List, bySigner, 0, "", "", usual, unsent, nil},
	{"ListBuckets", "GET", service, "", rewrite, access.List, bySigner, 0, "max-buckets continuation-token prefix bucket-region", "", usual, "ListAllMyBucketsResult", (*Server).listBuckets},
	{"WriteGetObjectResponse", "POST", objectLambda, "", refuse, access.Write, byBucket, 0, "", "", usual, unsent, nil},

	// op, method, path, match, policy, action, scope, body, query, headers, flags, answer, serve
	{"OptionsBucket", "OPTIONS", bucket, "", forward, anyone, unsigned, 0, "", "", usual, allowed, (*Server).preflight},
	{"CreateSession", "GET", bucket, "session", refuse, access.List, byBucket, 0, "", "", usual, unsent, nil},
	{"GetBucketAbac", "GET", bucket, "abac", forward, access.Admin, byBucket, 0, "", "", usual, document, (*Server).forward},
	{"PutBucketAbac", "PUT", bucket, "abac", forward, access.StoreAdmin, byBucket, maxConfig, "", "", usual, nothing, (*Server).forward},
	{"GetBucketAccelerateConfiguration", "GET", bucket, "accelerate", forward, access.Admin, byBucket, 0, "", "", usual, document, (*Server).forward},
	{"PutBucketAccelerateConfiguration", "PUT", bucket, "accelerate", forward, access.Admin, byBucket, maxConfig, "", "", usual, nothing, (*Server).forward},
	{"GetBucketAcl", "GET", bucket, "acl", forward, access.Admin, byBucket, 0, "", "", usual, document, (*Server).forward},
	{"PutBucketAcl", "PUT", bucket, "acl", forward, access.Admin, byBucket, maxConfig, "", "x-amz-acl " + grantPrefix, checksACL, nothing, (*Server).putACL},
	{"GetBucketAnalyticsConfiguration", "GET", bucket, "analytics id", forward, access.Admin, byBucket, 0, "", "", usual, document, (*Server).forward},
	{"ListBucketAnalyticsConfigurations", "GET", bucket, "analytics", forward, access.Admin, byBucket, 0, "continuation-token", "", usual, document, (*Server).forward},
	{"PutBucketAnalyticsConfiguration", "PUT", bucket, "analytics", forward, access.Admin, byBucket, maxConfig, "id", "", usual, nothing, (*Server).putTargeted},
	{"DeleteBucketAnalyticsConfiguration", "DELETE", bucket, "analytics", forward, access.Admin, byBucket, 0, "id", "", usual, nothing, (*Server).forward},
	{"GetBucketCors", "GET", bucket, "cors", forward, access.Admin, byBucket, 0, "", "", usual, document, (*Server).forward},
	{"PutBucketCors", "PUT", bucket, "cors", forward, access.Admin, byBucket, maxConfig, "", "", usual, nothing, (*Server).forward},
	{"DeleteBucketCors", "DELETE", bucket, "cors", forward, access.Admin, byBucket, 0, "", "", usual, nothing, (*Server).forward},
	{"GetBucketEncryption", "GET", bucket, "encryption", rewrite, access.List, byBucket, 0, "", "", usual, unsent, (*Server).getBucketEncryption},
	{"PutBucketEncryption", "PUT", bucket, "encryption", rewrite, access.Admin, byBucket, maxConfig, "", "", usual, unsent, (*Server).putBucketEncryption},
	{"DeleteBucketEncryption", "DELETE", bucket, "encryption", rewrite, access.Admin, byBucket, 0, "", "", usual, unsent, (*Server).deleteBucketEncryption},
	{"GetBucketIntelligentTieringConfiguration", "GET", bucket, "intelligent-tiering id", forward, access.Admin, byBucket, 0, "", "", usual, document, (*Server).forward},
	{"ListBucketIntelligentTieringConfigurations", "GET", bucket, "intelligent-tiering", forward, access.Admin, byBucket, 0, "continuation-token", "", usual, document, (*Server).forward},
	{"PutBucketIntelligentTieringConfiguration", "PUT", bucket, "intelligent-tiering", forward, access.Admin, byBucket, maxConfig, "id", "", usual, nothing, (*Server).forward},
	{"DeleteBucketIntelligentTieringConfiguration", "DELETE", bucket, "intelligent-tiering", forward, access.Admin, byBucket, 0, "id", "", usual, nothing, (*Server).forward},
	{"GetBucketInventoryConfiguration", "GET", bucket, "inventory id", forward, access.Admin, byBucket, 0, "", "", usual, document, (*Server).forward},
	{"ListBucketInventoryConfigurations", "GET", bucket, "inventory", forward, access.Admin, byBucket, 0, "continuation-token", "", usual, document, (*Server).forward},
	{"PutBucketInventoryConfiguration", "PUT", bucket, "inventory", forward, access.Admin, byBucket, maxConfig, "id", "", usual, nothing, (*Server).putTargeted},
	{"DeleteBucketInventoryConfiguration", "DELETE", bucket, "inventory", forward, access.Admin, byBucket, 0, "id", "", usual, nothing, (*Server).forward},
	{"GetBucketLifecycleConfiguration", "GET", bucket, "lifecycle", forward, access.Admin, byBucket, 0, "", "", usual, document, (*Server).forward},
	{"PutBucketLifecycleConfiguration", "PUT", bucket, "lifecycle", forward, access.Admin, byBucket, maxRules, "", "x-amz-transition-default-minimum-object-size", usual, nothing, (*Server).forward},
	{"DeleteBucketLifecycle", "DELETE", bucket, "lifecycle", forward, access.Admin, byBucket, 0, "", "", usual, nothing, (*Server).forward},
	{"GetBucketLocation", "GET", bucket, "location", forward, access.List, anyKey, 0, "", "", usual, document, (*Server).forward},
	{"GetBucketLogging", "GET", bucket, "logging", forward, access.Admin, byBucket, 0, "", "", usual, document, (*Server).forward},
	{"PutBucketLogging", "PUT", bucket, "logging", forward, access.Admin, byBucket, maxConfig, "", "", usual, nothing, (*Server).putTargeted},
	{"CreateBucketMetadataConfiguration", "POST", bucket, "metadataConfiguration", refuse, access.Admin, byBucket, 0, "", "", usual, unsent, nil},
	{"GetBucketMetadataConfiguration", "GET", bucket, "metadataConfiguration", refuse, access.Admin, byBucket, 0, "", "", usual, unsent, nil},
	{"DeleteBucketMetadataConfiguration", "DELETE", bucket, "metadataConfiguration", refuse, access.Admin, byBucket, 0, "", "", usual, unsent, nil},
	{"CreateBucketMetadataTableConfiguration", "POST", bucket, "metadataTable", refuse, access.Admin, byBucket, 0, "", "", usual, unsent, nil},
	{"GetBucketMetadataTableConfiguration", "GET", bucket, "metadataTable", refuse, access.Admin, byBucket, 0, "", "", usual, unsent, nil},
	{"DeleteBucketMetadataTableConfiguration", "DELETE", bucket, "metadataTable", refuse, access.Admin, byBucket, 0, "", "", usual, unsent, nil},
	{"UpdateBucketMetadataAnnotationTableConfiguration", "PUT", bucket, "metadataAnnotationTable", refuse, access.Admin, byBucket, 0, "", "", usual, unsent, nil},
	{"UpdateBucketMetadataInventoryTableConfiguration", "PUT", bucket, "metadataInventoryTable", refuse, access.Admin, byBucket, 0, "", "", usual, unsent, nil},
	{"UpdateBucketMetadataJournalTableConfiguration", "PUT", bucket, "metadataJournalTable", refuse, access.Admin, byBucket, 0, "", "", usual, unsent, nil},
	{"GetBucketMetricsConfiguration", "GET", bucket, "metrics id", forward, access.Admin, byBucket, 0, "", "", usual, document, (*Server).forward},
	{"ListBucketMetricsConfigurations", "GET", bucket, "metrics", forward, access.Admin, byBucket, 0, "continuation-token", "", usual, document, (*Server).forward},
	{"PutBucketMetricsConfiguration", "PUT", bucket, "metrics", forward, access.Admin, byBucket, maxConfig, "id", "", usual, nothing, (*Server).forward},
	{"DeleteBucketMetricsConfiguration", "DELETE", bucket, "metrics", forward, access.Admin, byBucket, 0, "id", "", usual, nothing, (*Server).forward},
	{"GetBucketNotificationConfiguration", "GET", bucket, "notification", forward, access.Admin, byBucket, 0, "", "", usual, document, (*Server).forward},
	{"PutBucketNotificationConfiguration", "PUT", bucket, "notification", forward, access.Admin, byBucket, maxRules, "", "x-amz-skip-destination-validation", usual, nothing, (*Server).putTargeted},
	{"GetObjectLockConfiguration", "GET", bucket, "object-lock", forward, access.List, byBucket, 0, "", "", usual, document, (*Server).forward},
	{"PutObjectLockConfiguration", "PUT", bucket, "object-lock", forward, access.Admin, byBucket, maxConfig, "", "x-amz-bucket-object-lock-token", usual, nothing, (*Server).putRetention},
	{"GetBucketOwnershipControls", "GET", bucket, "ownershipControls", forward, access.Admin, byBucket, 0, "", "", usual, document, (*Server).forward},
	{"PutBucketOwnershipControls", "PUT", bucket, "ownershipControls", forward, access.Admin, byBucket, maxConfig, "", "", usual, nothing, (*Server).forward},
	{"DeleteBucketOwnershipControls", "DELETE", bucket, "ownershipControls", forward, access.Admin, byBucket, 0, "", "", usual, nothing, (*Server).forward},
	{"GetBucketPolicy", "GET", bucket, "policy", forward, access.Admin, byBucket, 0, "", "", usual, policies, (*Server).forward},
	{"PutBucketPolicy", "PUT", bucket, "policy", forward, access.StoreAdmin, byBucket, maxPolicy, "", "x-amz-confirm-remove-self-bucket-access", usual, nothing, (*Server).forward},
	{"DeleteBucketPolicy", "DELETE", bucket, "policy", forward, access.StoreAdmin, byBucket, 0, "", "", usual, nothing, (*Server).forward},
	{"GetBucketPolicyStatus", "GET", bucket, "policyStatus", forward, access.Admin, byBucket, 0, "", "", usual, document, (*Server).forward},
	{"GetPublicAccessBlock", "GET", bucket, "publicAccessBlock", forward, access.Admin, byBucket, 0, "", "", usual, document, (*Server).forward},
	{"PutPublicAccessBlock", "PUT", bucket, "publicAccessBlock", forward, access.Admin, byBucket, maxConfig, "", "", usual, nothing, (*Server).putPublicAccessBlock},
	{"DeletePublicAccessBlock", "DELETE", bucket, "publicAccessBlock", forward, access.StoreAdmin, byBucket, 0, "", "", usual, nothing, (*Server).forward},
	{"GetBucketReplication", "GET", bucket, "replication", forward, access.Admin, byBucket, 0, "", "", usual, document, (*Server).forward},
	{"PutBucketReplication", "PUT", bucket, "replication", forward, access.Admin, byBucket, maxRules, "", "x-amz-bucket-object-lock-token", usual, nothing, (*Server).putTargeted},
	{"DeleteBucketReplication", "DELETE", bucket, "replication", forward, access.Admin, byBucket, 0, "", "", usual, nothing, (*Server).forward},
	{"GetBucketRequestPayment", "GET", bucket, "requestPayment", forward, access.Admin, byBucket, 0, "", "", usual, document, (*Server).forward},
	{"PutBucketRequestPayment", "PUT", bucket, "requestPayment", forward, access.Admin, byBucket, maxConfig, "", "", usual, nothing, (*Server).forward},
	{"GetBucketTagging", "GET", bucket, "tagging", forward, access.Admin, byBucket, 0, "", "", usual, document, (*Server).forward},
	{"PutBucketTagging", "PUT", bucket, "tagging", forward, access.Admin, byBucket, maxTags, "", "", usual, nothing, (*Server).forward},
	{"DeleteBucketTagging", "DELETE", bucket, "tagging", forward, access.Admin, byBucket, 0, "", "", usual, nothing, (*Server).forward},
	{"GetBucketVersioning", "GET", bucket, "versioning", forward, access.List, byBucket, 0, "", "", usual, document, (*Server).forward},
	{"PutBucketVersioning", "PUT", bucket, "versioning", forward, access.Admin, byBucket, maxConfig, "", "x-amz-mfa", usual, nothing, (*Server).forward},
	{"GetBucketWebsite", "GET", bucket, "website", forward, access.Admin, byBucket, 0, "", "", usual, document, (*Server).forward},
	{"PutBucketWebsite", "PUT", bucket, "website", forward, access.StoreAdmin, byBucket, maxSite, "", "", usual, nothing, (*Server).forward},
	{"DeleteBucketWebsite", "DELETE", bucket, "website", forward, access.Admin, byBucket, 0, "", "", usual, nothing, (*Server).forward},

	{"ListObjectsV2", "GET", bucket, "list-type=2", rewrite, access.List, byPrefix, 0, listQuery + " continuation-token start-after fetch-owner", listHeaders, usual, "ListBucketResult", (*Server).listObjects},
	{"ListMultipartUploads", "GET", bucket, "uploads", rewrite, access.List, byPrefix, 0, "prefix delimiter max-uploads encoding-type key-marker upload-id-marker", "", usual, "ListMultipartUploadsResult", (*Server).listMultipartUploads},
	{"ListObjectVersions", "GET", bucket, "versions", rewrite, access.List, byPrefix, 0, listQuery + " key-marker version-id-marker", listHeaders, usual, "ListVersionsResult", (*Server).listObjectVersions},
	{"DeleteObjects", "POST", bucket, "delete", rewrite, access.Delete, eachKey, maxXML, "", lockHeaders, usual, "DeleteResult", (*Server).deleteObjects},
	{"ListObjects", "GET", bucket, "", rewrite, access.List, byPrefix, 0, listQuery + " marker", listHeaders, usual, "ListBucketResult", (*Server).listObjects},
	{"HeadBucket", "HEAD", bucket, "", forward, access.List, anyKey, 0, "", "", usual, nothing, (*Server).forward},
	{"CreateBucket", "PUT", bucket, "", forward, access.Admin, byBucket, maxConfig, "", "x-amz-acl x-amz-object-ownership x-amz-bucket-object-lock-enabled x-amz-bucket-namespace", usual, nothing, (*Server).createBucket},
	{"DeleteBucket", "DELETE", bucket, "", forward, access.Admin, byBucket, 0, "", "", usual, nothing, (*Server).forward},
	{"PostObject", "POST", bucket, "", seal, access.Write, byKey, maxObject, "", putHeaders, signedByForm, unsent, (*Server).postObject},

	// op, method, path, match, policy, action, scope, body, query, headers, flags, answer, serve
	{"CreateMultipartUpload", "POST", object, "uploads", forward, access.Write, byKey, 0, "", putHeaders + eventHoldHeaders + " x-amz-metadata-directive", sumsOfObject, "InitiateMultipartUploadResult", (*Server).createMultipartUpload}, // of s3fs, and ignored by S3
	{"CompleteMultipartUpload", "POST", object, "uploadId", rewrite, access.Write, byKey, maxList, "", sseHeaders + " " + customerHeaders + " x-amz-mp-object-size", sumsOfObject, "CompleteMultipartUploadResult", (*Server).completeMultipartUpload},
	{"UploadPartCopy", "PUT", object, "uploadId header:x-amz-copy-source", seal, access.Write, byKey, 0, "partNumber", copyHeaders + " " + sseHeaders + " " + customerHeaders, readsSource, unsent, (*Server).uploadPartCopy},
	{"UploadPart", "PUT", object, "uploadId", seal, access.Write, byKey, crypt.MaxPartSize, "partNumber", sseHeaders + " " + customerHeaders, usual, written, (*Server).uploadPart},
	{"AbortMultipartUpload", "DELETE", object, "uploadId", forward, access.Write, byKey, 0, "", "x-amz-if-match-initiated-time", usual, nothing, (*Server).abortMultipartUpload},
	{"ListParts", "GET", object, "uploadId", rewrite, access.Write, byKey, 0, "max-parts part-number-marker", customerHeaders, usual, "ListPartsResult", (*Server).listParts},
	{"GetObjectAttributes", "GET", object, "attributes", rewrite, access.Read, byKey, 0, "versionId", customerHeaders + " x-amz-object-attributes x-amz-max-parts x-amz-part-number-marker", usual, unsent, (*Server).getObjectAttributes},
	{"OptionsObject", "OPTIONS", object, "", forward, anyone, unsigned, 0, "", "", usual, allowed, (*Server).preflight},
	{"GetObjectAcl", "GET", object, "acl", forward, access.Read, byKey, 0, "versionId", "", usual, document, (*Server).forward},
	{"PutObjectAcl", "PUT", object, "acl", forward, access.Write, byKey, maxConfig, "versionId", "x-amz-acl " + grantPrefix, checksACL, nothing, (*Server).putACL},
	{"GetObjectAnnotation", "GET", object, "annotation annotationName", refuse, access.Read, byKey, 0, "", "", usual, unsent, nil},
	{"ListObjectAnnotations", "GET", object, "annotation", refuse, access.Read, byKey, 0, "", "", usual, anything, nil}, // see checkAnnotations
	{"PutObjectAnnotation", "PUT", object, "annotation", refuse, access.Write, byKey, 0, "", "", usual, unsent, nil},
	{"DeleteObjectAnnotation", "DELETE", object, "annotation", refuse, access.Write, byKey, 0, "", "", usual, unsent, nil},
	{"UpdateObjectEncryption", "PUT", object, "encryption", rewrite, access.Write, byKey, maxConfig, "versionId", "", readsSource, unsent, (*Server).updateObjectEncryption},
	{"GetObjectLegalHold", "GET", object, "legal-hold", forward, access.Read, byKey, 0, "versionId", "", usual, document, (*Server).forward},
	{"PutObjectLegalHold", "PUT", object, "legal-hold", forward, access.Admin, byKey, maxConfig, "versionId", "", usual, nothing, (*Server).forward},
	{"GetObjectRetention", "GET", object, "retention", forward, access.Read, byKey, 0, "versionId", "", usual, document, (*Server).forward},
	{"PutObjectRetention", "PUT", object, "retention", forward, access.Write, byKey, maxConfig, "versionId", "x-amz-bypass-governance-retention", usual, nothing, (*Server).putRetention},
	{"GetObjectTagging", "GET", object, "tagging", forward, access.Read, byKey, 0, "versionId", "", usual, document, (*Server).forward},
	{"PutObjectTagging", "PUT", object, "tagging", forward, access.Write, byKey, maxTags, "versionId", "", usual, nothing, (*Server).forward},
	{"DeleteObjectTagging", "DELETE", object, "tagging", forward, access.Write, byKey, 0, "versionId", "", usual, nothing, (*Server).forward},
	{"GetObjectTorrent", "GET", object, "torrent", refuse, access.Read, byKey, 0, "", "", usual, unsent, nil},
	{"RenameObject", "PUT", object, "renameObject", rewrite, access.Write, byKey, 0, "", renameHeaders, readsSource, unsent, (*Server).renameObject},
	{"RestoreObject", "POST", object, "restore", forward, access.Write, byKey, maxConfig, "versionId", "", usual, nothing, (*Server).restoreObject},
	{"SelectObjectContent", "POST", object, "select", refuse, access.Read, byKey, 0, "", "", usual, unsent, nil},
	{"CopyObject", "PUT", object, "header:x-amz-copy-source", seal, access.Write, byKey, 0, "", putHeaders + eventHoldHeaders + " " + copyHeaders + " x-amz-metadata-directive x-amz-tagging-directive " + annotationDirective, readsSource, "CopyObjectResult", (*Server).copyObject},
	{"PutObject", "PUT", object, "", seal, access.Write, byKey, maxObject, "", putHeaders + eventHoldHeaders, usual, written, (*Server).putObject},
	{"GetObject", "GET", object, "", open, access.Read, byKey, 0, "versionId partNumber " + overrides, readHeaders, usual, content, (*Server).getObject},
	{"HeadObject", "HEAD", object, "", open, access.Read, byKey, 0, "versionId partNumber " + overrides, readHeaders, usual, content, (*Server).headObject},
	{"DeleteObject", "DELETE", object, "", forward, access.Delete, byKey, 0, "versionId", lockHeaders + " x-amz-if-match-last-modified-time " + sizeCondition, usual, nothing, (*Server).deleteObject},
}

// commonNames are allowed with every operation. The proxy handles the
// signature, the framing and the checksums itself and never forwards them.
// See forwardedHeaders for those that it forwards.
var commonNames = setOf(
	"x-amz-date x-amz-content-sha256 x-amz-security-token x-amz-user-agent x-amz-decoded-content-length",
	"x-amz-trailer x-amz-sdk-checksum-algorithm x-amz-checksum-algorithm x-amz-checksum-type",
	"x-amz-expected-bucket-owner x-amz-request-payer",
	digestHeaders,
)

// digestHeaders are the headers with a checksum of the payload.
const digestHeaders = "x-amz-checksum-crc32 x-amz-checksum-crc32c x-amz-checksum-crc64nvme x-amz-checksum-sha1" +
	" x-amz-checksum-sha256 x-amz-checksum-sha512 x-amz-checksum-md5 x-amz-checksum-xxhash64" +
	" x-amz-checksum-xxhash3 x-amz-checksum-xxhash128"

// overrideNames are the query parameters that set response headers.
var overrideNames = setOf(overrides)

// signatureNames are the query parameters of a presigned URL, and x-id, in
// which SDKs name the operation.
var signatureNames = setOf(
	"X-Amz-Algorithm X-Amz-Credential X-Amz-Date X-Amz-Expires X-Amz-SignedHeaders X-Amz-Signature",
	"X-Amz-Content-Sha256 X-Amz-Security-Token x-id",
)
