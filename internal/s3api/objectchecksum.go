package s3api

import (
	"bytes"
	"fmt"
	"net/http"
	"strconv"
	"strings"

	"github.com/cmekproxy/cmekproxy/internal/checksum"
	"github.com/cmekproxy/cmekproxy/internal/crypt"
)

// objectChecksum is the checksum of a multipart object. The zero value is none.
type objectChecksum struct {
	algorithm *checksum.Algorithm
	kind      crypt.ChecksumType
	digest    []byte // nil in an upload that is only created
	parts     int
}

// headers says which checksum an upload was created with.
func (o objectChecksum) headers(h http.Header) {
	if o.algorithm != nil {
		h.Set(checksumPrefix+"Algorithm", o.algorithm.Name)
		h.Set(checksumPrefix+"Type", checksumTypes[o.kind])
	}
}

// digests is what is kept with the object.
func (o objectChecksum) digests() map[crypt.ChecksumID][]byte {
	if o.digest == nil {
		return nil
	}
	return map[crypt.ChecksumID][]byte{o.algorithm.ID: o.digest}
}

func (o objectChecksum) text() string { return checksumText(o.digest, o.kind, o.parts) }

// xml is what S3 says of it in the answer to CompleteMultipartUpload.
func (o objectChecksum) xml() []byte {
	if o.digest == nil {
		return nil
	}
	name := o.algorithm.Name
	return fmt.Appendf(nil, "<Checksum%s>%s</Checksum%s><ChecksumType>%s</ChecksumType>", name, o.text(), name, checksumTypes[o.kind])
}

// uploadChecksum reads what CreateMultipartUpload says of checksums. Nothing keeps it: the parts and the list that
// completes the upload say it again.
func uploadChecksum(h http.Header) (objectChecksum, error) {
	name, kind := h.Get(checksumPrefix+"Algorithm"), h.Get(checksumPrefix+"Type")
	if name == "" {
		if kind != "" {
			return objectChecksum{}, badRequest("InvalidRequest", "The x-amz-checksum-type header can only be used with the x-amz-checksum-algorithm header.")
		}
		return objectChecksum{}, nil
	}
	a := checksum.Named(name)
	if a == nil {
		return objectChecksum{}, badRequest("InvalidRequest", "Checksum algorithm provided is unsupported. Please try again with any of the valid types: ["+supported()+"]")
	}
	return objectChecksumOf(a, kind)
}

// checkPart refuses a part whose checksum is not of the kind that its upload was created with. A part of an object with
// one checksum for the whole may have none.
func (o objectChecksum) checkPart(part *checksums) error {
	if o.algorithm == nil || part.algorithm == o.algorithm || part.algorithm == nil && o.kind == crypt.FullObject {
		return nil
	}
	actual := "null"
	if part.algorithm != nil {
		actual = strings.ToLower(part.algorithm.Name)
	}
	return badRequest("InvalidRequest", "Checksum Type mismatch occurred, expected checksum Type: "+strings.ToLower(o.algorithm.Name)+", actual checksum Type: "+actual)
}

// checkType refuses another type than that which the upload was created with.
func (o objectChecksum) checkType(h http.Header) error {
	said := strings.ToUpper(h.Get(checksumPrefix + "Type"))
	switch {
	case o.algorithm == nil || said == "" || said == checksumTypes[o.kind]:
		return nil
	case said != composite && said != fullObject:
		return badRequest("InvalidRequest", "Value for x-amz-checksum-type header is invalid.")
	}
	return badRequest("InvalidRequest", "The upload was created using the "+checksumTypes[o.kind]+" checksum mode. The complete request must use the same checksum mode.")
}

// objectChecksumOf checks that the algorithm can be of the type; "" stands for its default.
func objectChecksumOf(a *checksum.Algorithm, kind string) (objectChecksum, error) {
	o := objectChecksum{algorithm: a}
	kind = strings.ToUpper(kind)
	switch {
	case kind != "" && kind != composite && kind != fullObject:
		return o, badRequest("InvalidRequest", "Value for x-amz-checksum-type header is invalid.")
	case kind == composite && a.ID != crypt.CRC64NVME, kind == "" && a.ID != crypt.CRC64NVME:
		o.kind = crypt.Composite
	case kind == fullObject && a.IsCRC(), kind == "":
		o.kind = crypt.FullObject
	default:
		return o, badRequest("InvalidRequest", fmt.Sprintf("The %s checksum type cannot be used with the %s checksum algorithm.", kind, strings.ToLower(a.Name)))
	}
	return o, nil
}

// checksum computes the object's checksum from those of the parts, which were each verified when the part came, and
// compares it with what the client says of the whole. differs reports whether a part is known to have another one.
func (list *completion) checksum(h http.Header, layout crypt.Layout, differs func(etag string, a *checksum.Algorithm, digest []byte) bool) (objectChecksum, error) {
	said, a, err := saidOfObject(h)
	if err != nil {
		return objectChecksum{}, err
	}
	digests, of, err := list.digests()
	if err != nil {
		return objectChecksum{}, err
	}
	switch {
	case of == nil && a == nil:
		return objectChecksum{}, nil
	case of == nil:
		return objectChecksum{}, badRequest("InvalidRequest", "The complete request must include the checksum for each part: without them the proxy cannot verify the "+strings.ToLower(a.Name)+" of the object.")
	case a != nil && a != of:
		return objectChecksum{}, badRequest("InvalidRequest", "The checksums of the parts and of the object are of different algorithms.")
	}
	for i, digest := range digests {
		if p := &list.Parts[i]; differs(p.ETag, of, digest) {
			return objectChecksum{}, p.invalid()
		}
	}
	kind := h.Get(checksumPrefix + "Type")
	if a != nil {
		if _, err := decodeChecksum(a, strings.TrimSuffix(said, "-"+strconv.Itoa(len(digests)))); err != nil {
			return objectChecksum{}, err
		}
	}
	if kind == "" && said != "" && of.IsCRC() && !strings.Contains(said, "-") {
		kind = fullObject
	}
	o, err := objectChecksumOf(of, kind)
	if err != nil {
		return o, err
	}
	o.parts = len(digests)
	if o.kind == crypt.Composite {
		sum := of.New()
		sum.Write(bytes.Join(digests, nil))
		o.digest = sum.Sum(nil)
	} else {
		o.digest = combine(of, digests, layout)
	}
	if said != "" && said != o.text() && said+"-"+strconv.Itoa(o.parts) != o.text() {
		return o, badRequest("BadDigest", "The "+of.Name+" you specified did not match the calculated checksum.")
	}
	return o, nil
}

// saidOfObject is the x-amz-checksum-* header of CompleteMultipartUpload.
func saidOfObject(h http.Header) (said string, a *checksum.Algorithm, err error) {
	for _, one := range checksum.All {
		value := h.Get(one.Header())
		if value == "" {
			continue
		}
		if a != nil {
			return "", nil, badRequest("InvalidRequest", "Expecting a single x-amz-checksum- header")
		}
		said, a = value, one
	}
	return said, a, nil
}

// digests are the checksums of the parts, all of one algorithm; nil if there are none.
func (list *completion) digests() ([][]byte, *checksum.Algorithm, error) {
	var out [][]byte
	var of *checksum.Algorithm
	for i := range list.Parts {
		p := &list.Parts[i]
		for j, text := range p.checksums() {
			if text == "" {
				continue
			}
			digest, err := decodeChecksum(checksum.All[j], text)
			if err != nil || len(out) > i {
				return nil, nil, badRequest("InvalidArgument", "The checksum of part "+strconv.Itoa(p.PartNumber)+" is not valid, or there are several of it.")
			}
			if of != nil && of != checksum.All[j] {
				return nil, nil, badRequest("BadDigest", "The checksum of part "+strconv.Itoa(p.PartNumber)+" is of another algorithm than that of the parts before it.")
			}
			out, of = append(out, digest), checksum.All[j]
		}
		if of != nil && len(out) != i+1 {
			return nil, nil, badRequest("InvalidRequest", fmt.Sprintf("The upload was created using a %s checksum. The complete request must include the checksum for each part. It was missing for part %d in the request.", strings.ToLower(of.Name), p.PartNumber))
		}
	}
	return out, of, nil
}

// checksums are the values by algorithm, as checksum.All has them.
func (p *completionPart) checksums() []string {
	return []string{p.CRC32, p.CRC32C, p.CRC64NVME, p.SHA1, p.SHA256, p.SHA512, p.MD5, p.XXHash64, p.XXHash3, p.XXHash128}
}

// combine computes the CRC of the whole from those of the parts.
func combine(a *checksum.Algorithm, digests [][]byte, layout crypt.Layout) []byte {
	sum := digests[0]
	for i, digest := range digests[1:] {
		at, _ := layout.At(i + 1)
		sum = a.Append(sum, digest, at.Size)
	}
	return sum
}
