package s3api

import (
	"encoding/hex"
	"strings"

	"github.com/cmekproxy/cmekproxy/internal/crypt"
)

// The store's ETag is the MD5 of ciphertext. A client that takes it for the
// MD5 of the content would report corruption. By S3's convention, an ETag
// with a hyphen is not an MD5. So clients see a stored ETag E without a
// hyphen as E-0, in all responses, and E-0 in a request means E. No store
// uses a part count of 0.
const etagMark = "-0"

// showETag converts the store's ETag, with or without quotes, to the one
// that clients see.
func showETag(stored string) string {
	text, quoted := strings.CutSuffix(stored, `"`)
	if stored == "" || strings.Contains(stored, "-") {
		return stored
	}
	if quoted {
		return text + etagMark + `"`
	}
	return stored + etagMark
}

// The ETag of a part also carries its tag, in hexadecimal after a hyphen. The
// client sends it back when it completes the upload, so that the record has
// the tags of parts that other replicas have sealed.
func showPartETag(stored string, tag crypt.Tag) string {
	return `"` + unquote(stored) + "-" + hex.EncodeToString(tag[:]) + `"`
}

// partETag returns the store's ETag of a part from the one that a client
// sends, and the tag if that has one.
func partETag(shown string) (etag string, tag *crypt.Tag) {
	etag = unquote(shown)
	if at := strings.LastIndexByte(etag, '-'); at >= 0 {
		if b, err := hex.DecodeString(etag[at+1:]); err == nil && len(b) == len(crypt.Tag{}) {
			return etag[:at], (*crypt.Tag)(b)
		}
	}
	return unquote(storedETags(shown)), nil
}

// storedETags converts the ETags of a condition header, a list or "*", to
// the store's.
func storedETags(condition string) string {
	tags := strings.Split(condition, ",")
	for i, tag := range tags {
		tag = strings.TrimSpace(tag)
		if text, ok := strings.CutSuffix(tag, etagMark+`"`); ok {
			tag = text + `"`
		} else {
			tag = strings.TrimSuffix(tag, etagMark)
		}
		tags[i] = tag
	}
	return strings.Join(tags, ", ")
}
