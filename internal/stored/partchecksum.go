package stored

import "net/http"

// PartChecksum is the XML name of the checksum that package origin sends
// with each part. It is for ciphertext, so clients do not see it. The store
// lists it with the part. Amazon S3 requires it in the list of parts that
// completes the upload; otherwise it returns "One or more of the specified
// parts could not be found".
const PartChecksum = "ChecksumCRC32"

// PartChecksumOf returns that checksum from the store's answer to a part; ""
// if there is none.
func PartChecksumOf(h http.Header) string { return h.Get("X-Amz-Checksum-Crc32") }
