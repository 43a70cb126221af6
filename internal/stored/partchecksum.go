package stored

import "net/http"

// PartChecksum is the name, in XML, of the checksum that package origin sends
// with each part. It is of ciphertext: nothing for clients. The store lists it
// with the part, and Amazon S3 does not complete an upload whose list of parts
// is without it ("One or more of the specified parts could not be found").
const PartChecksum = "ChecksumCRC32"

// PartChecksumOf reads it from the store's answer to a part. "" where the
// store does not say.
func PartChecksumOf(h http.Header) string { return h.Get("X-Amz-Checksum-Crc32") }
