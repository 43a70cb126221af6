// Package capability says what the store behind the proxy can do. S3 stores
// differ: some refuse checksum trailers, some ignore conditions, some change
// keys. The proxy does not assume what a store does. It finds out with a few
// small requests, which package storecheck sends, and remembers the answers
// for some time.
//
//	capability.go  what a store can do, and the answers
//	finder.go      remembers answers, and finds them out when they are needed
package capability

import (
	"context"
	"fmt"
)

// Capability is something that one store does and another does not.
type Capability int

// The capabilities. The proxy itself depends on those up to LiteralDots; the
// others matter to commands that change stored objects, and to clients.
const (
	// Trailer: the store takes an upload in aws-chunked framing, with a
	// checksum after the body.
	Trailer Capability = iota
	// PartChecksums: ListParts has the checksums of parts, if the upload was
	// created with an algorithm. Without them, the proxy could not complete
	// such an upload of another replica.
	PartChecksums
	// CutBodies: the store discards a body without a trailer that ends
	// before its Content-Length.
	CutBodies
	// PartCount: ETags of multipart objects end in "-" and the number of
	// parts.
	PartCount
	// MarkerMetadata: the store keeps the metadata of an empty object whose
	// key ends in "/".
	MarkerMetadata
	// LiteralSlashes, LiteralLeadingSlash, LiteralBackslash and LiteralDots:
	// the store does not use a//b, /a, a\b or a/../b for another key. It may
	// refuse such a key.
	LiteralSlashes
	LiteralLeadingSlash
	LiteralBackslash
	LiteralDots

	// CompleteETag: the answer to CompleteMultipartUpload has the ETag.
	CompleteETag
	// PutIfMatch to DeleteIfMatch: the store honors the condition. It accepts
	// the request if the condition is met, and else refuses it with 412.
	PutIfMatch
	// PutIfMatchBare is PutIfMatch with an ETag without its quotes, which is
	// what Ceph 16 compares with.
	PutIfMatchBare
	PutIfNoneMatch
	CopyIfMatch
	CopySourceIfMatch
	CompleteIfMatch
	CompleteIfNoneMatch
	DeleteIfMatch
	// MD5ETags: the ETag of a single-PUT object, and of a part, is the MD5
	// of its bytes.
	MD5ETags

	count
)

// texts describe the capabilities to users.
var texts = [count]struct{ name, yes, no string }{
	Trailer:             {"trailer", "accepted", "refused; uploads are sent without"},
	PartChecksums:       {"part_checksums", "listed", "not listed; uploads are created without"},
	CutBodies:           {"cut_bodies", "discarded", "KEPT"},
	PartCount:           {"part_count", "in the ETag", "not in the ETag; sizes in listings cost requests"},
	MarkerMetadata:      {"marker_metadata", "kept", "dropped; directory markers have no envelope"},
	LiteralSlashes:      {"literal_slashes", "kept, or refused", "FOLDED into one"},
	LiteralLeadingSlash: {"literal_leading_slash", "kept, or refused", "DROPPED"},
	LiteralBackslash:    {"literal_backslash", "kept, or refused", "CHANGED to a slash"},
	LiteralDots:         {"literal_dots", "kept, or refused", "RESOLVED as in paths"},
	CompleteETag:        {"complete_etag", "returned", "missing"},
	PutIfMatch:          {"put_if_match", "honored", "NOT honored"},
	PutIfMatchBare:      {"put_if_match_bare", "honored", "NOT honored"},
	PutIfNoneMatch:      {"put_if_none_match", "honored", "NOT honored"},
	CopyIfMatch:         {"copy_if_match", "honored", "NOT honored"},
	CopySourceIfMatch:   {"copy_source_if_match", "honored", "NOT honored; the proxy checks each copy"},
	CompleteIfMatch:     {"complete_if_match", "honored", "NOT honored"},
	CompleteIfNoneMatch: {"complete_if_none_match", "honored", "NOT honored"},
	DeleteIfMatch:       {"delete_if_match", "honored", "NOT honored"},
	MD5ETags:            {"md5_etags", "MD5", "not MD5"},
}

// All yields all capabilities.
func All(yield func(Capability) bool) {
	for c := range count {
		if !yield(c) {
			return
		}
	}
}

// String returns the name in logs and metrics.
func (c Capability) String() string {
	if c < 0 || c >= count {
		return fmt.Sprintf("Capability(%d)", int(c))
	}
	return texts[c].name
}

// Text describes an answer to a user.
func (c Capability) Text(a Answer) string {
	switch a {
	case Yes:
		return texts[c].yes
	case No:
		return texts[c].no
	default:
		return "unknown"
	}
}

// Answer says whether a store has a capability.
type Answer int8

// The answers.
const (
	Unknown Answer = iota
	Yes
	No
)

// AnswerOf returns Yes or No.
func AnswerOf(yes bool) Answer { //nolint:revive // it converts a bool
	if yes {
		return Yes
	}
	return No
}

func (a Answer) String() string {
	return [...]string{"unknown", "yes", "no"}[a]
}

// Set has an answer for each capability. The zero Set knows nothing.
type Set [count]Answer

// Over returns the answers of s, and those of base where s has none.
func (s Set) Over(base Set) Set {
	for c, answer := range s {
		if answer == Unknown {
			s[c] = base[c]
		}
	}
	return s
}

// Always returns a function like Finder.Find that always returns s.
func Always(s Set) func(ctx context.Context, bucket string, needed ...Capability) Set {
	return func(context.Context, string, ...Capability) Set { return s }
}

// Knows reports whether s has answers for all these capabilities.
func (s Set) Knows(list ...Capability) bool {
	for _, c := range list {
		if s[c] == Unknown {
			return false
		}
	}
	return true
}

// literal are the capabilities that are about keys.
var literal = []Capability{LiteralSlashes, LiteralLeadingSlash, LiteralBackslash, LiteralDots}

// Literal reports whether the store uses all keys unchanged.
func (s Set) Literal() Answer {
	answer := Yes
	for _, c := range literal {
		switch s[c] {
		case No:
			return No
		case Unknown:
			answer = Unknown
		case Yes:
		}
	}
	return answer
}
