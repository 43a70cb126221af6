package s3api

const (
	ofStore     = "concerns the store's identities: the proxy is one of them, its clients are not"
	byStore     = "done by the store, which sees ciphertext: sizes and ETags are those of the stored objects"
	annotations = "an annotation is content, and this release would store it in plaintext: keep the text in an object"
	tables      = "the store writes the tables, and they show the sizes and ETags of ciphertext"
	directory   = "directory buckets are not supported: their requests are signed with session keys"
	aclNote     = "`private` only, in any form: others would read ciphertext from the store, without the proxy"
)

// notes has the reason why an operation is refused, or what to know about
// one that is not. A refused client gets the reason.
// docs/s3-compatibility.md has all notes.
var notes = map[string]string{
	"ListDirectoryBuckets":   directory,
	"WriteGetObjectResponse": "an Object Lambda function would get ciphertext",
	"CreateSession":          directory,
	"RenameObject": "a single-PUT object is copied to the new name, verified, and deleted, on the condition that it is " +
		"still the same; other objects are refused. If the proxy dies in between, both are there. The client needs " +
		"grants to read and delete the source",
	"SelectObjectContent": "the store would query ciphertext",
	"GetObjectTorrent":    "the torrent would have ciphertext, and clients would load it from the store",
	"UpdateObjectEncryption": "wraps the data key of a single-PUT object by another of the proxy's KMS keys, if the rules " +
		"allow it. The object is written again, with a new time and version. The client needs a grant to read too. " +
		"Multipart objects are refused: use `cmekproxy rewrap`",

	"GetObjectAnnotation":    annotations,
	"ListObjectAnnotations":  annotations,
	"PutObjectAnnotation":    annotations,
	"DeleteObjectAnnotation": annotations,

	"CreateBucketMetadataConfiguration":                tables,
	"GetBucketMetadataConfiguration":                   tables,
	"DeleteBucketMetadataConfiguration":                tables,
	"CreateBucketMetadataTableConfiguration":           tables,
	"GetBucketMetadataTableConfiguration":              tables,
	"DeleteBucketMetadataTableConfiguration":           tables,
	"UpdateBucketMetadataAnnotationTableConfiguration": tables,
	"UpdateBucketMetadataInventoryTableConfiguration":  tables,
	"UpdateBucketMetadataJournalTableConfiguration":    tables,

	"ListBuckets":           "shows a client only the buckets for which it has a grant",
	"OptionsBucket":         "CORS preflight: only the CORS headers of the store's answer are returned",
	"OptionsObject":         "CORS preflight: only the CORS headers of the store's answer are returned",
	"GetBucketAbac":         ofStore,
	"PutBucketAbac":         ofStore,
	"GetBucketAcl":          ofStore,
	"GetObjectAcl":          ofStore,
	"PutBucketAcl":          aclNote,
	"PutObjectAcl":          aclNote,
	"GetBucketPolicy":       ofStore,
	"PutBucketPolicy":       ofStore + "; a policy can lock the proxy out, or let others store objects in plaintext",
	"GetBucketPolicyStatus": ofStore,
	"GetBucketEncryption":   "returns the key of the proxy's rules, and whether SSE-C is blocked",
	"PutBucketEncryption": "chooses one of the proxy's KMS keys, and blocks SSE-C (`BlockedEncryptionTypes`), if " +
		"`bucket_defaults_file` is configured; encryption without a KMS key is refused, and the store's own " +
		"encryption does not change. What the rules refuse cannot be allowed",
	"DeleteBucketEncryption": "the proxy's rules decide again",
	"CopyObject": "a single-PUT object is copied within the store, with a new envelope, and verified; a multipart " +
		"object, or a copy onto itself, is decrypted and encrypted again. The client needs a grant to read the source",
	"UploadPart":                      "a header that chooses the encryption is refused as in S3: CreateMultipartUpload has it",
	"UploadPartCopy":                  "the source is decrypted and encrypted again. The client needs a grant to read it",
	"PutBucketLifecycleConfiguration": "a filter by size uses the stored size, which is larger",
	"PutBucketLogging": "the store writes the logs in plaintext; reading them through the proxy needs " +
		"`plaintext_objects: allow`",
	"PutBucketInventoryConfiguration": byStore + "; reports are in plaintext; reading them " +
		"through the proxy needs `plaintext_objects: allow`",
	"PutBucketNotificationConfiguration": "events come from the store: their sizes and ETags are those of ciphertext",
	"PutBucketAnalyticsConfiguration":    byStore,
	"PutBucketMetricsConfiguration":      byStore,
	"PutBucketAccelerateConfiguration":   "the accelerated endpoint is the store's; the proxy does not use it",
	"PutBucketReplication": "the store copies ciphertext with its envelope, which is bound to bucket and key. " +
		"A replica under another bucket name can be read after " +
		"`cmekproxy rewrap --adopt`; see [backup.md](backup.md)",
	"PutBucketWebsite":   "the store's website endpoint does not use the proxy, and serves ciphertext",
	"PutObjectRetention": "`x-amz-bypass-governance-retention` and event holds need admin",
	"DeleteObject":       "`x-amz-bypass-governance-retention` needs admin; `x-amz-if-match-size` is about the plaintext",
	"DeleteObjects": "every key needs a grant; `x-amz-bypass-governance-retention` needs admin for the bucket; objects with " +
		"an ETag are deleted one by one",
	"PutObjectLegalHold":    "can remove a hold, so it needs admin",
	"RestoreObject":         "without SELECT queries",
	"ListObjects":           "sizes and ETags are the plaintext's",
	"ListObjectsV2":         "sizes and ETags are the plaintext's",
	"ListObjectVersions":    "sizes and ETags are the plaintext's",
	"PutObject":             "appending (`x-amz-write-offset-bytes`) is refused: the end of an object is authenticated",
	"GetObjectAttributes":   "answered from a HEAD, because the store's attributes describe ciphertext",
	"CreateMultipartUpload": "a requested KMS key must be one that the proxy's rules allow",
}
