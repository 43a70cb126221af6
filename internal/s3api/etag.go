package s3api

import "strings"

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
