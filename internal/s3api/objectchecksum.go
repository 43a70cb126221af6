package s3api

import (
	"bytes"
	"fmt"
	"net/http"
	"slices"
	"strconv"
	"strings"

	"github.com/cmekproxy/cmekproxy/internal/checksum"
	"github.com/cmekproxy/cmekproxy/internal/crypt"
)

// objectSum is the checksum of an object or of a part. The zero value means
// that there is none.
type objectSum struct {
	algorithm *checksum.Algorithm
	digest    string             // "" for a new upload
	kind      crypt.ChecksumType // for objects only
	parts     int                // number of parts, for a composite checksum
	implied   bool               // the client has sent none and asks for none: this is the default
}

// impliedSum is the checksum of an upload for which the client asks for none.
// Amazon S3 computes it for the parts and for the object, and returns it for
// both, but does not list it: https://github.com/versity/versitygw/issues/1547.
var impliedSum = objectSum{algorithm: defaultAlgorithm, kind: crypt.FullObject, implied: true}

// claimedSum is the checksum of an object or of a part, as the client sends
// it.
type claimedSum struct {
	algorithm *checksum.Algorithm // nil for none
	text      string
	kind      string // for objects; "" if not sent
}

// headers sets the headers for the checksum algorithm of an upload.
func (o objectSum) headers(h http.Header) {
	if o.algorithm != nil && !o.implied {
		h.Set(checksumPrefix+"Algorithm", o.algorithm.Name)
		h.Set(checksumPrefix+"Type", checksumTypes[o.kind])
	}
}

// digests returns the checksum to store with the object.
func (o objectSum) digests() digests {
	if o.digest == "" {
		return nil
	}
	return digests{o.algorithm.ID: []byte(o.digest)}
}

func (o objectSum) text() string { return checksumText([]byte(o.digest), o.kind, o.parts) }

// xml returns the checksum elements for the response to
// CompleteMultipartUpload.
func (o objectSum) xml() []byte {
	if o.digest == "" {
		return nil
	}
	return fmt.Appendf(checksumXML(o.algorithm, o.text()), "<ChecksumType>%s</ChecksumType>", checksumTypes[o.kind])
}

// listed returns the checksum elements for a new upload in the response to
// ListParts.
func (o objectSum) listed() []byte {
	if o.algorithm == nil || o.implied {
		return nil
	}
	return fmt.Appendf(
		nil,
		"<ChecksumAlgorithm>%s</ChecksumAlgorithm><ChecksumType>%s</ChecksumType>",
		o.algorithm.Name,
		checksumTypes[o.kind],
	)
}

func checksumXML(a *checksum.Algorithm, text string) []byte {
	return fmt.Appendf(nil, "<Checksum%s>%s</Checksum%s>", a.Name, text, a.Name)
}

// uploadChecksum parses the checksum headers of CreateMultipartUpload. They
// need not be stored, because the client repeats them with the parts and
// with the completion.
func uploadChecksum(h http.Header) (objectSum, error) {
	kind := h.Get(checksumPrefix + "Type")
	a, err := algorithmNamed(h.Get(checksumPrefix + "Algorithm"))
	switch {
	case err != nil:
		return objectSum{}, err
	case a != nil:
		return newObjectSum(a, kind)
	case kind != "" && !isChecksumType(kind):
		return objectSum{}, errChecksumType()
	case kind != "":
		return objectSum{}, badRequest(
			"InvalidRequest",
			"The x-amz-checksum-type header can only be used with the x-amz-checksum-algorithm header.",
		)
	}

	return impliedSum, nil
}

func isChecksumType(kind string) bool {
	kind = strings.ToUpper(kind)
	return kind == composite || kind == fullObject
}

func errChecksumType() *Error {
	return badRequest("InvalidRequest", "Value for x-amz-checksum-type header is invalid.")
}

// checkPart refuses a part with a checksum of another algorithm than that of
// its upload. If the upload has one checksum for the full object, parts need
// no checksum.
func (o objectSum) checkPart(part *checksums) error {
	switch {
	case o.algorithm == nil, o.implied, part.algorithm == o.algorithm,
		part.algorithm == nil && o.kind == crypt.FullObject:
		return nil
	}
	actual := "null"
	if part.algorithm != nil {
		actual = part.algorithm.Name
	}
	return badRequest(
		"InvalidRequest",
		"Checksum Type mismatch occurred, expected checksum Type: "+o.algorithm.Name+", actual checksum Type: "+actual,
	)
}

// checkType refuses a checksum type other than that of the upload.
func (o objectSum) checkType(said claimedSum) error {
	switch {
	case o.algorithm == nil || o.implied || said.kind == "" || strings.ToUpper(said.kind) == checksumTypes[o.kind]:
		return nil
	case !isChecksumType(said.kind):
		return errChecksumType()
	}
	return badRequest(
		"InvalidRequest",
		"The upload was created using the "+checksumTypes[o.kind]+" checksum mode. "+
			"The complete request must use the same checksum mode.",
	)
}

// newObjectSum checks that the algorithm allows the type. An empty type
// means the algorithm's default.
func newObjectSum(a *checksum.Algorithm, kind string) (objectSum, error) {
	o := objectSum{algorithm: a}
	kind = strings.ToUpper(kind)
	switch {
	case kind != "" && !isChecksumType(kind):
		return o, errChecksumType()
	case kind == composite && a.ID != crypt.CRC64NVME, kind == "" && a.ID != crypt.CRC64NVME:
		o.kind = crypt.Composite
	case kind == fullObject && a.IsCRC(), kind == "":
		o.kind = crypt.FullObject
	default:
		return o, badRequest(
			"InvalidRequest",
			fmt.Sprintf(
				"The %s checksum type cannot be used with the %s checksum algorithm.",
				kind,
				strings.ToLower(a.Name),
			),
		)
	}

	return o, nil
}

// claimedSumOf returns the checksum of the whole object in a
// CompleteMultipartUpload request.
func claimedSumOf(h http.Header) (claimedSum, error) {
	said := claimedSum{kind: h.Get(checksumPrefix + "Type")}
	for _, a := range checksum.All {
		text := h.Get(a.Header())
		if text == "" {
			continue
		}
		if said.algorithm != nil {
			return said, severalChecksums()
		}
		said.algorithm, said.text = a, text
	}
	return said, nil
}

// checksum computes the object's checksum from those of the parts, each of
// which was verified when the part was uploaded. It compares the result with
// the checksum that the client sends for the object. created and known are
// what this replica knows about the upload, and about the part with an ETag.
func (list *completion) checksum(
	said claimedSum,
	layout crypt.Layout,
	created objectSum,
	known func(etag string) (objectSum, bool),
) (objectSum, error) {
	if created.implied && list.hasSums() {
		created = objectSum{} // the client has checksums of its own
	}
	digests, of, err := list.digests(created, known)
	if err != nil {
		return objectSum{}, err
	}

	a := said.algorithm
	switch {
	case of == nil && a == nil:
		return objectSum{}, nil
	case of == nil, created.implied && a != nil && a != of:
		return objectSum{}, badRequest(
			"InvalidRequest",
			"The complete request must include the checksum for each part: without them the proxy cannot verify the "+
				strings.ToLower(a.Name)+" of the object.",
		)
	case a != nil && a != of:
		return objectSum{}, badRequest(
			"InvalidRequest",
			"The checksums of the parts and of the object are of different algorithms.",
		)
	}

	if a != nil {
		if _, err := decodeChecksum(a, strings.TrimSuffix(said.text, "-"+strconv.Itoa(len(digests)))); err != nil {
			return objectSum{}, err
		}
	}

	kind := said.kind
	switch {
	case created.implied && a == nil:
		kind = fullObject
	case kind == "" && created.algorithm == of:
		kind = checksumTypes[created.kind]
	case kind == "" && said.text != "" && of.IsCRC() && !strings.Contains(said.text, "-"):
		kind = fullObject
	}

	o, err := newObjectSum(of, kind)
	if err != nil {
		return o, err
	}
	o.parts, o.implied = len(digests), created.implied

	if o.kind == crypt.Composite {
		sum := of.New()
		sum.Write(bytes.Join(digests, nil))
		o.digest = string(sum.Sum(nil))
	} else {
		o.digest = string(combine(of, digests, layout))
	}

	if said.text != "" && said.text != o.text() && said.text+"-"+strconv.Itoa(o.parts) != o.text() {
		return o, badRequest("BadDigest", "The "+of.Name+" you specified did not match the calculated checksum.")
	}
	return o, nil
}

// digests returns the checksums of the parts, all of one algorithm; nil if
// there are none. If the upload has one checksum for the full object, the
// list may leave them out, because S3 has computed them.
func (list *completion) digests(
	created objectSum,
	known func(etag string) (objectSum, bool),
) ([][]byte, *checksum.Algorithm, error) {
	of, listed := created.algorithm, false
	sums := make([]objectSum, len(list.Parts))
	for i := range list.Parts {
		sum, err := list.Parts[i].checksum()
		if err != nil {
			return nil, nil, err
		}

		if sum.algorithm != nil {
			listed = true
			if of == nil {
				of = sum.algorithm
			}
		}
		sums[i] = sum
	}

	if of == nil {
		return nil, nil, nil
	}

	var out [][]byte
	for i, sum := range sums {
		p := &list.Parts[i]
		have, ok := known(p.ETag)
		if sum.algorithm == nil && created.kind == crypt.FullObject && have.algorithm == created.algorithm {
			sum = have
		}

		switch {
		case sum.algorithm == nil && created.kind == crypt.FullObject && !listed:
			return nil, nil, nil // the object gets no checksum
		case sum.algorithm == nil:
			return nil, nil, badRequest(
				"InvalidRequest",
				fmt.Sprintf(
					"The upload was created using a %s checksum. The complete request must include the checksum "+
						"for each part. It was missing for part %d in the request.",
					strings.ToLower(of.Name),
					p.PartNumber,
				),
			)
		case sum.algorithm != of:
			return nil, nil, badRequest(
				"BadDigest",
				fmt.Sprintf(
					"The %s you specified for part %d did not match what we received.",
					strings.ToLower(sum.algorithm.Name),
					p.PartNumber,
				),
			)
		case ok && !have.fits(sum):
			return nil, nil, list.invalid(p)
		}

		out = append(out, []byte(sum.digest))
	}

	return out, of, nil
}

// fits reports whether a listed checksum can be one of the part with the
// checksum o. A default one does not tell about another algorithm.
func (o objectSum) fits(listed objectSum) bool {
	if o.algorithm != listed.algorithm {
		return o.implied
	}
	return o.digest == listed.digest
}

// hasSums reports whether the list has a checksum of any part.
func (list *completion) hasSums() bool {
	return slices.ContainsFunc(list.Parts, func(p completionPart) bool { return len(p.sums) > 0 })
}

// checksum returns the checksum of the part in the list; zero if there is
// none.
func (p *completionPart) checksum() (objectSum, error) {
	var sum objectSum
	var all string
	valid, n := true, 0

	for _, a := range checksum.All {
		text := p.sum(a)
		if text == "" {
			continue
		}
		digest, ok := a.Decode(text)
		valid = valid && ok
		sum, all, n = objectSum{algorithm: a, digest: string(digest)}, all+a.Name+":"+text+";", n+1
	}

	if n > 1 || !valid {
		if n == 1 {
			_, all, _ = strings.Cut(strings.TrimSuffix(all, ";"), ":")
		}
		return sum, invalidArgument("Invalid Base64 or multiple checksums present in request", "Checksum", all)
	}
	return sum, nil
}

// sum returns the part's checksum of an algorithm as the client sent it; ""
// for none.
func (p *completionPart) sum(a *checksum.Algorithm) string {
	for _, s := range p.sums {
		if s.algorithm == a {
			return s.text
		}
	}
	return ""
}

// combine computes the CRC of the object from those of the parts.
func combine(a *checksum.Algorithm, digests [][]byte, layout crypt.Layout) []byte {
	sum := digests[0]
	for i, digest := range digests[1:] {
		at, _ := layout.At(i + 1)
		sum = a.Append(sum, digest, at.Size)
	}
	return sum
}
