package kms

import "regexp"

var multiRegionForm = regexp.MustCompile(`^(arn:[a-z0-9-]+:kms:)[a-z0-9-]+(:[0-9]{12}:key/mrk-[0-9a-f]{32})$`)

// CanonicalID returns what the ids of one key have in common. It differs from
// the id only for the ARN of a multi-Region key of AWS: the primary and its
// replicas have the same key id and the same material, and each unwraps what
// another has wrapped
// (https://docs.aws.amazon.com/kms/latest/developerguide/mrk-how-it-works.html).
// The ARNs differ in the region, for which the canonical id has "*". Partition
// and account stay: the same key id in another account is another key. A
// canonical id is for comparison, and names no key to a KMS.
func CanonicalID(id string) string {
	return multiRegionForm.ReplaceAllString(id, "${1}*${2}")
}

// SameKey reports whether two ids name one key.
func SameKey(a, b string) bool { return CanonicalID(a) == CanonicalID(b) }
