package s3api

const (
	ofStore     = "speaks of the store's identities: the proxy is one of them, its clients are none"
	byStore     = "done by the store, which sees ciphertext: sizes and ETags in it are the store's"
	annotations = "an annotation is content, and would be stored in clear"
	tables      = "the tables are made by the store and read past the proxy: they would tell ciphertext's sizes and ETags"
	directory   = "directory buckets sign requests with keys of their own, and are not supported"
	aclNote     = "`private` only, in any form: whoever else is let in comes past the proxy, and would read ciphertext"
	byRules     = "the proxy's rules decide what protects an object"
)

// notes says for each operation that is refused why, and of others what is to
// be known. A client that is refused is told, and docs/s3-compatibility.md has
// all of them.
var notes = map[string]string{
	"ListDirectoryBuckets":   directory,
	"WriteGetObjectResponse": "an Object Lambda function would be given ciphertext",
	"CreateSession":          directory,
	"RenameObject":           "an object's envelope is bound to its key, so that ciphertext that is renamed cannot be read; copy it",
	"SelectObjectContent":    "the store would query ciphertext",
	"GetObjectTorrent":       "the torrent would be of ciphertext, and leads past the proxy",
	"UpdateObjectEncryption": byRules + "; `cmekproxy rewrap` moves objects to another key",

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

	"ListBuckets":                        "shows a client the buckets in which it may do anything",
	"OptionsBucket":                      "CORS preflight: what the store says, and nothing else of its answer",
	"OptionsObject":                      "CORS preflight: what the store says, and nothing else of its answer",
	"GetBucketAbac":                      ofStore,
	"PutBucketAbac":                      ofStore,
	"GetBucketAcl":                       ofStore,
	"GetObjectAcl":                       ofStore,
	"PutBucketAcl":                       aclNote,
	"PutObjectAcl":                       aclNote,
	"GetBucketPolicy":                    ofStore,
	"PutBucketPolicy":                    ofStore + "; a policy can shut the proxy out, and can let others put objects past it, which it will not read",
	"GetBucketPolicyStatus":              ofStore,
	"GetBucketEncryption":                "the key of the proxy's rules",
	"PutBucketEncryption":                "chooses one of the proxy's KMS keys, where the configuration has `bucket_defaults_file`; what is less than a KMS key is refused, and the store's own encryption is not touched",
	"DeleteBucketEncryption":             "the proxy's rules decide again",
	"CopyObject":                         "what was put whole is copied within the store, with a new envelope; the rest is read and encrypted anew. The client must be allowed to read the source",
	"UploadPartCopy":                     "read and encrypted anew. The client must be allowed to read the source",
	"PutBucketLifecycleConfiguration":    "a filter by size goes by the stored size, which is larger",
	"PutBucketLogging":                   "the logs are written by the store in clear, and need `plaintext_objects: allow` to be read through the proxy",
	"PutBucketInventoryConfiguration":    byStore + "; reports are in clear, and need `plaintext_objects: allow` to be read through the proxy",
	"PutBucketNotificationConfiguration": "events come from the store, past the proxy: sizes and ETags in them are the store's",
	"PutBucketAnalyticsConfiguration":    byStore,
	"PutBucketMetricsConfiguration":      byStore,
	"PutBucketAccelerateConfiguration":   "the accelerated endpoint is the store's; the proxy does not use it",
	"PutBucketReplication": "the store copies ciphertext with its envelope, which is bound to bucket and key: a replica can be read through a proxy only under " +
		"the same bucket name, so at another store, or once it has been copied back",
	"PutBucketWebsite":      "the store's website endpoint is past the proxy, and serves ciphertext",
	"PutObjectRetention":    "`x-amz-bypass-governance-retention` needs admin",
	"DeleteObject":          "`x-amz-bypass-governance-retention` needs admin",
	"DeleteObjects":         "each key is judged by itself; `x-amz-bypass-governance-retention` needs admin in the whole bucket",
	"PutObjectLegalHold":    "it can take a hold away, so it needs admin",
	"RestoreObject":         "without queries on what is restored",
	"ListObjects":           "sizes and ETags are the plaintext's",
	"ListObjectsV2":         "sizes and ETags are the plaintext's",
	"ListObjectVersions":    "sizes and ETags are the plaintext's",
	"PutObject":             "without appending (`x-amz-write-offset-bytes`): an object has one end, which is authenticated",
	"GetObjectAttributes":   "answered from a HEAD: the store's attributes are ciphertext's",
	"CreateMultipartUpload": "a KMS key that is asked for must be that of the proxy's rules",
}
