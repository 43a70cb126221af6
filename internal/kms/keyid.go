package kms

import (
	"regexp"
	"strings"
)

var multiRegionForm = regexp.MustCompile(`^(arn:[a-z0-9-]+:kms:)[a-z0-9-]+(:[0-9]{12}:key/mrk-[0-9a-f]{32})$`)

// CanonicalID returns the part that all ids of a key have in common. It
// differs from the id only for the ARN of an AWS multi-Region key: the
// primary key and its replicas have the same key id and material, and
// unwrap each other's blobs
// (https://docs.aws.amazon.com/kms/latest/developerguide/mrk-how-it-works.html).
// Their ARNs differ in the region, which is "*" in the canonical id.
// Partition and account remain, because the same key id in another account
// is another key. Use canonical ids only for comparison; a KMS does not
// accept them.
func CanonicalID(id string) string {
	if !strings.Contains(id, ":key/mrk-") { // nearly always, and the expression is slow
		return id
	}
	return multiRegionForm.ReplaceAllString(id, "${1}*${2}")
}

// SameKey reports whether two ids refer to the same key.
func SameKey(a, b string) bool { return a == b || CanonicalID(a) == CanonicalID(b) }
