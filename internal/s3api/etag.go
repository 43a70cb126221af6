package s3api

import "strings"

// The store's ETag is the MD5 of ciphertext, and a client that takes it for
// the MD5 of the content would find the content corrupt. S3's own convention
// is that an ETag with a hyphen is no MD5, so a stored ETag E without one is
// shown as E-0, everywhere alike, and E-0 in a request means E. No store
// prints a part count of 0.
const etagMark = "-0"

// showETag turns the store's ETag, with or without its quotes, into the one
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

// storedETags turns the entity tags of a condition header, a list or "*", back
// into the store's.
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
