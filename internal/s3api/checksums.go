package s3api

import (
	"bytes"
	"crypto/md5" //nolint:gosec // Content-MD5 is S3's
	"encoding/base64"
	"encoding/hex"
	"hash"
	"io"
	"net/http"
	"slices"
	"strconv"
	"strings"

	"github.com/cmekproxy/cmekproxy/internal/checksum"
	"github.com/cmekproxy/cmekproxy/internal/crypt"
)

const (
	checksumPrefix = checksum.Prefix
	fullObject     = "FULL_OBJECT" // checksum type of the whole object
	composite      = "COMPOSITE"   // checksum type of the part checksums
)

// checksums are the checksums that a client sends for its payload, besides
// the signature: Content-MD5, and one x-amz-checksum-*, as a header or
// announced for the trailer. Only these are computed.
type checksums struct {
	md5       []byte // nil if not said
	algorithm *checksum.Algorithm
	digest    []byte // nil until it arrives in the trailer
	asked     bool   // the client names an algorithm, with or without a checksum
	implied   bool   // the checksum is the default one, of which the client knows nothing
}

// defaultAlgorithm is the checksum that Amazon S3 computes if the client sends
// none: always one of the full object, also of a multipart object.
// https://docs.aws.amazon.com/AmazonS3/latest/userguide/checking-object-integrity-upload.html
var defaultAlgorithm = checksum.All[crypt.CRC64NVME-1]

// digests are the checksums that are stored with an object.
type digests = map[crypt.ChecksumID][]byte

// newChecksums parses the headers. It returns S3's errors for invalid ones.
func newChecksums(h http.Header) (*checksums, error) {
	c := &checksums{}
	if values := h.Values("Content-Md5"); len(values) > 0 {
		sum, err := base64.StdEncoding.DecodeString(values[0])
		if err != nil || len(sum) != md5.Size || len(values) > 1 {
			return nil, &Error{
				Code:    "InvalidDigest",
				Message: "The Content-Md5 you specified is not valid.",
				Details: [][2]string{{"Content-MD5", values[0]}},
			}
		}

		c.md5 = sum
	}

	for name, values := range h {
		switch name {
		case checksumPrefix + "Mode", checksumPrefix + "Algorithm", checksumPrefix + "Type":
			continue
		}
		if !strings.HasPrefix(name, checksumPrefix) {
			continue
		}

		a := checksum.OfHeader(name)
		if a == nil {
			return nil, badRequest(
				"InvalidRequest",
				"The algorithm type you specified in x-amz-checksum- header is invalid.",
			)
		}

		if len(values) > 1 || c.algorithm != nil {
			return nil, severalChecksums()
		}
		c.algorithm = a
	}

	given := c.algorithm
	if err := c.announced(h); err != nil {
		return nil, err
	}

	if given != nil {
		var err error
		if c.digest, err = decodeChecksum(given, h.Get(given.Header())); err != nil {
			return nil, err
		}
	}

	for _, name := range []string{"X-Amz-Sdk-Checksum-Algorithm", checksumPrefix + "Algorithm"} {
		want := h.Get(name)
		c.asked = c.asked || want != ""
		if want != "" && c.algorithm != nil && !strings.EqualFold(want, c.algorithm.Name) {
			return nil, badRequest("InvalidRequest", "Value for "+strings.ToLower(name)+" header is invalid.")
		}
	}

	if kind := h.Get(checksumPrefix + "Type"); kind != "" && kind != fullObject {
		return nil, badRequest("InvalidRequest", "Value for x-amz-checksum-type header is invalid.")
	}
	return c, nil
}

// announced looks for a checksum that x-amz-trailer announces.
func (c *checksums) announced(h http.Header) error {
	for _, line := range h.Values("X-Amz-Trailer") {
		for name := range strings.SplitSeq(line, ",") {
			a := checksum.OfHeader(strings.TrimSpace(name))
			if a == nil {
				return badRequest("InvalidRequest", "The value specified in the x-amz-trailer header is not supported")
			}
			if c.algorithm != nil {
				return severalChecksums()
			}
			c.algorithm = a
		}
	}
	return nil
}

func severalChecksums() *Error {
	return badRequest(
		"InvalidRequest",
		"Expecting a single x-amz-checksum- header. Multiple checksum Types are not allowed.",
	)
}

// algorithmNamed returns the algorithm with this name; nil for "".
func algorithmNamed(name string) (*checksum.Algorithm, error) {
	a := checksum.Named(name)
	if a != nil || name == "" {
		return a, nil
	}

	var names []string
	for _, a := range checksum.All {
		names = append(names, a.Name)
	}
	slices.Sort(names)

	return nil, badRequest(
		"InvalidRequest",
		"Checksum algorithm provided is unsupported. Please try again with any of the valid types: "+
			"["+strings.Join(names, ", ")+"]",
	)
}

func decodeChecksum(a *checksum.Algorithm, text string) ([]byte, error) {
	digest, ok := a.Decode(text)
	if !ok {
		return nil, badRequest("InvalidRequest", "Value for "+strings.ToLower(a.Header())+" header is invalid.")
	}
	return digest, nil
}

// trailing reports whether the checksum is in the trailer and not yet known.
func (c *checksums) trailing() bool { return c.algorithm != nil && c.digest == nil }

// lacking reports whether the client sends no checksum and asks for none, so
// that the default applies.
func (c *checksums) lacking() bool { return c.algorithm == nil && !c.asked }

// takeDefault computes the default checksum of a whole payload.
func (c *checksums) takeDefault(text []byte) {
	sum := defaultAlgorithm.New()
	sum.Write(text)
	c.algorithm, c.digest, c.implied = defaultAlgorithm, sum.Sum(nil), true
}

func (c *checksums) dropDefault() { c.algorithm, c.digest, c.implied = nil, nil, false }

// known returns the checksums to store with the object. Before the body is
// read, they are not verified yet.
func (c *checksums) known() digests {
	if c.digest == nil {
		return nil
	}
	return digests{c.algorithm.ID: c.digest}
}

// headers sets the checksum headers of a response for a single-PUT object.
func (c *checksums) headers(h http.Header) {
	if c.digest != nil {
		setChecksum(h, c.algorithm, c.digest)
	}
}

// partHeader sets the checksum header of a response for a part. A client may
// repeat it in the completion, where a list that has the checksums of some
// parts is refused. Other replicas do not compute default ones, so they are
// not shown.
func (c *checksums) partHeader(h http.Header) {
	if c.digest != nil && !c.implied {
		h.Set(c.algorithm.Header(), checksum.Encode(c.digest))
	}
}

func setChecksum(h http.Header, a *checksum.Algorithm, digest []byte) {
	h.Set(a.Header(), checksum.Encode(digest))
	h.Set(checksumPrefix+"Type", fullObject)
}

// checksumTypes maps the types to the values of x-amz-checksum-type.
var checksumTypes = map[crypt.ChecksumType]string{crypt.FullObject: fullObject, crypt.Composite: composite}

// checksumText formats a checksum as S3 does: a composite checksum ends in
// the number of parts.
func checksumText(digest []byte, kind crypt.ChecksumType, parts int) string {
	text := checksum.Encode(digest)
	if kind == crypt.Composite {
		text += "-" + strconv.Itoa(parts)
	}
	return text
}

// reader returns a reader of src that verifies the checksums at the end. It
// fails instead of returning io.EOF if one does not match. trailer is called
// after src has ended.
func (c *checksums) reader(src io.Reader, trailer func() http.Header) io.Reader {
	if c.md5 == nil && c.algorithm == nil {
		return src
	}

	v := &verifier{src: src, said: c, trailer: trailer}
	if c.md5 != nil {
		v.md5 = md5.New() //nolint:gosec // Content-MD5 is S3's
	}
	if c.algorithm != nil {
		v.sum = c.algorithm.New()
	}
	return v
}

// computing returns a reader of src, a part, that computes the checksum of
// its upload if the client has not sent one. The checksum is known when src
// has ended.
func (c *checksums) computing(upload objectSum, src io.Reader) io.Reader {
	if upload.algorithm == nil || c.algorithm != nil || upload.implied && c.asked {
		return src
	}
	c.algorithm, c.implied = upload.algorithm, upload.implied
	return &verifier{src: src, said: c, sum: c.algorithm.New(), computes: true}
}

type verifier struct {
	src      io.Reader
	said     *checksums
	trailer  func() http.Header
	md5, sum hash.Hash // nil if not needed
	computes bool      // only compute sum, there is nothing to compare it with
	end      error     // set once src has ended
}

func (v *verifier) Read(p []byte) (int, error) {
	if v.end != nil {
		return 0, v.end
	}
	n, err := v.src.Read(p)
	if v.md5 != nil {
		v.md5.Write(p[:n])
	}

	if v.sum != nil {
		v.sum.Write(p[:n])
	}

	if err != nil {
		v.end = err
		if err == io.EOF { // unwrapped: an error that wraps io.EOF is a failure
			if mismatch := v.verify(); mismatch != nil {
				v.end = mismatch
			}
		}
	}

	return n, v.end
}

func (v *verifier) verify() error {
	if v.md5 != nil {
		if sum := v.md5.Sum(nil); !bytes.Equal(sum, v.said.md5) {
			return &Error{
				Code: "BadDigest", Message: "The Content-MD5 you specified did not match what we received.",
				Details: [][2]string{
					{"ExpectedDigest", hex.EncodeToString(v.said.md5)},
					{"CalculatedDigest", checksum.Encode(sum)},
				},
			}
		}
	}

	if v.sum == nil {
		return nil
	}
	if v.computes {
		v.said.digest = v.sum.Sum(nil)
		return nil
	}

	a := v.said.algorithm
	want := v.said.digest
	if want == nil {
		values := v.trailer().Values(a.Header())
		if len(values) != 1 {
			return badRequest(
				"MalformedTrailerError",
				"The request contained trailing data that was not well-formed "+
					"or did not conform to our published schema.",
			)
		}

		var ok bool
		if want, ok = a.Decode(values[0]); !ok {
			return badRequest("InvalidRequest", "Value for "+strings.ToLower(a.Header())+" trailing header is invalid.")
		}
		v.said.digest = want
	}

	if !bytes.Equal(v.sum.Sum(nil), want) {
		return badRequest("BadDigest", "The "+a.Name+" you specified did not match the calculated checksum.")
	}
	return nil
}
