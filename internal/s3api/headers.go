package s3api

import (
	"encoding/base64"
	"encoding/json"
	"fmt"
	"net/http"
	"slices"
	"strconv"
	"strings"

	"github.com/cmekproxy/cmekproxy/internal/crypt"
	"github.com/cmekproxy/cmekproxy/internal/keyring"
	"github.com/cmekproxy/cmekproxy/internal/sigv4"
	"github.com/cmekproxy/cmekproxy/internal/stored"
)

const (
	metaPrefix   = stored.MetaPrefix
	maxMetadata  = 2048 // S3's limit for names and values of user metadata, in bytes
	sseHeader    = "X-Amz-Server-Side-Encryption"
	sseKeyHeader = "X-Amz-Server-Side-Encryption-Aws-Kms-Key-Id"

	sseContextHeader   = "X-Amz-Server-Side-Encryption-Context"
	sseBucketKeyHeader = "X-Amz-Server-Side-Encryption-Bucket-Key-Enabled"
)

// forwardedHeaders are the request headers that are sent to the store,
// besides the x-amz- headers of the route. Ranges and conditions are
// translated; see conditionHeaders.
var forwardedHeaders = append(slices.Clone(metadataHeaders),
	"If-Modified-Since", "If-Unmodified-Since", "Origin",
	"X-Amz-Expected-Bucket-Owner", "X-Amz-Request-Payer",
)

// metadataHeaders are the system metadata of an object that clients set. A
// copy's metadata directive applies to them and to user metadata.
var metadataHeaders = []string{
	"Cache-Control",
	"Content-Disposition",
	"Content-Encoding",
	"Content-Language",
	"Content-Type",
	"Expires",
}

// ownHeaders are x-amz- headers that the proxy handles itself.
var ownHeaders = setOf(
	sseHeaders + " " + customerHeaders + " " + copyHeaders + " " + renameHeaders + " " + sizeCondition +
		" x-amz-checksum-mode x-amz-metadata-directive x-amz-tagging-directive",
)

// conditionHeaders have ETags, which differ between client and store.
var conditionHeaders = []string{"If-Match", "If-None-Match", "If-Range"}

// requestHeader returns the headers of the client that are sent to the
// store.
func (c *call) requestHeader() http.Header {
	h := make(http.Header, 8)
	for _, name := range forwardedHeaders {
		if values := c.Header.Values(name); len(values) > 0 {
			h[name] = values
		}
	}

	for _, name := range conditionHeaders {
		for _, value := range c.Header.Values(name) {
			h.Add(name, storedETags(value))
		}
	}

	for name, values := range c.Header {
		if !sigv4.IsAmz(name) { // rows name x-amz- headers only
			continue
		}
		lower := c.route.lowerName(name)
		if c.route.headerNames.has(lower) && !ownHeaders.has(lower) {
			h[name] = values
		}
	}

	stored.WithoutFraming(h)
	return h
}

// maxHeader is S3's limit for all headers of a request, in bytes.
const maxHeader = 8 << 10

// checkHeaderSize refuses headers that S3 would refuse for their size. The
// HTTP server refuses headers that are several times larger.
func checkHeaderSize(h http.Header) error {
	total := 0
	for name, values := range h {
		for _, value := range values {
			total += len(name) + len(": ") + len(value) + len("\r\n")
		}
	}
	if total > maxHeader {
		return &Error{
			Code:    "RequestHeaderSectionTooLarge",
			Message: "Your request header section exceeds the maximum allowed size.",
			Details: [][2]string{{"MaxSizeAllowed", strconv.Itoa(maxHeader)}},
		}
	}
	return nil
}

// checkMetadata refuses user metadata that uses the envelope's names, or
// that does not fit next to the envelope.
func checkMetadata(h http.Header, envelope map[string]string) error {
	var own int
	for name, value := range envelope {
		own += len(name) + len(value)
	}

	total := own
	for name, values := range h {
		if user, ok := strings.CutPrefix(name, metaPrefix); ok {
			if strings.HasPrefix(strings.ToLower(user), crypt.Prefix) {
				return badRequest(
					"InvalidArgument",
					"Metadata names that start with "+crypt.Prefix+" are reserved for the proxy.",
				)
			}
			total += len(user) + len(strings.Join(values, ","))
		}
	}

	if total > maxMetadata {
		return &Error{
			Code: "MetadataTooLarge", Message: "Your metadata headers exceed the maximum allowed metadata size",
			Details: [][2]string{
				{"Size", strconv.Itoa(total)},
				{"MaxSizeAllowed", strconv.Itoa(maxMetadata)},
				{"EncryptionEnvelopeSize", strconv.Itoa(own)},
			},
		}
	}

	return nil
}

// takeMetadata takes the metadata out of header, to be sealed.
func takeMetadata(header http.Header) (map[string]string, error) {
	entries, err := stored.TakeMetadata(header)
	if err != nil {
		return nil, &Error{
			Code: "InvalidArgument", Message: "A metadata entry has a name that the proxy cannot encrypt.", cause: err,
		}
	}
	return entries, nil
}

// checkFit refuses metadata that does not fit next to the envelope. entries
// is what was sealed in it; nil if own was not.
func checkFit(own http.Header, entries, envelope map[string]string) error {
	if entries != nil {
		return checkSealedMetadata(entries, envelope)
	}
	return checkMetadata(own, envelope)
}

// checkSealedMetadata refuses metadata that does not fit into what the rest of
// the envelope leaves of S3's limit once it is encrypted.
func checkSealedMetadata(entries, envelope map[string]string) error {
	const name = crypt.Prefix + "meta"
	var total, others int
	for entry, value := range envelope {
		total += len(entry) + len(value)
		if entry != name {
			others += len(entry) + len(value)
		}
	}
	if total <= maxMetadata {
		return nil
	}

	return &Error{
		Code: "MetadataTooLarge",
		Message: "Your metadata headers exceed the maximum allowed metadata size. " +
			"The proxy encrypts them, so less fits; names, values and 4 bytes for each count.",
		Details: [][2]string{
			{"Size", strconv.Itoa(crypt.MetadataSize(entries))},
			{"MaxSizeAllowed", strconv.Itoa(max(0, crypt.LargestMetadata(maxMetadata-others-len(name))))},
			{"EncryptionEnvelopeSize", strconv.Itoa(others)},
		},
	}
}

// encryption reads the client's headers for server-side encryption. AES256
// and aws:kms get the same result: a KMS key, unless the client brings its
// own key.
func (c *call) encryption() (keyring.Choice, error) {
	h, choice := c.Header, keyring.Choice{CustomerKey: c.customerKey, KeyID: c.Header.Get(sseKeyHeader)}
	const onlyKMS = "Server Side Encryption with AWS KMS managed key requires HTTP header " +
		"x-amz-server-side-encryption : aws:kms"

	switch want := h.Get(sseHeader); {
	case c.customerKey != nil && (want != "" || choice.KeyID != "" || h.Get(sseContextHeader) != ""):
		return choice, badRequest(
			"InvalidArgument",
			"Server Side Encryption with Customer provided key is incompatible with the encryption method specified",
		)
	case want == "aws:kms":
	case choice.KeyID != "" || h.Get(sseContextHeader) != "":
		return choice, badRequest("InvalidArgument", onlyKMS)
	case want == "" || want == "AES256":
	default:
		return choice, badRequest(
			"InvalidEncryptionAlgorithmError",
			"The encryption request you specified is not valid. Supported value: aws:kms.",
		)
	}

	// The rule's dek_reuse decides about S3 Bucket Keys; the response has
	// the result.
	if asked := h.Get(sseBucketKeyHeader); asked != "" && asked != "true" && asked != "false" {
		return choice, badRequest(
			"InvalidArgument",
			"The value of the header x-amz-server-side-encryption-bucket-key-enabled must be true or false.",
		)
	}

	var err error
	choice.Context, err = encryptionContext(h.Get(sseContextHeader))
	return choice, err
}

// maxContext is the longest JSON of an encryption context, in bytes. It is
// stored with the wrapped data key.
const maxContext = 400

// encryptionContext reads x-amz-server-side-encryption-context: the base64
// of a JSON object with string values.
func encryptionContext(text string) (map[string]string, error) {
	if text == "" {
		return nil, nil
	}

	var context map[string]string
	doc, err := base64.StdEncoding.DecodeString(text)
	if err == nil {
		err = json.Unmarshal(doc, &context)
	}
	if err == nil {
		err = crypt.CheckNewContext(context)
	}

	if err == nil && len(doc) > maxContext {
		return nil, badRequest(
			"InvalidArgument",
			fmt.Sprintf(
				"The encryption context is longer than %d bytes, the most that the proxy can store.",
				maxContext,
			),
		)
	}

	if err != nil || context == nil {
		return nil, &Error{
			Code: "InvalidArgument",
			Message: "The header 'x-amz-server-side-encryption-context' must be the base64 of a JSON object " +
				"with string values. The names bucket and key are reserved, in upper and lower case.",
			cause: err,
		}
	}

	return context, nil
}

// shownHeaders are the headers of the store's answers that clients get,
// besides user metadata: what S3 may say about an object or a bucket. Other
// headers, such as cookies of a load balancer, are dropped. The proxy itself
// sets the headers for encryption, checksums, sizes and part counts.
var shownHeaders = map[string]bool{
	"Accept-Ranges":       true,
	"Cache-Control":       true,
	"Content-Disposition": true,
	"Content-Encoding":    true,
	"Content-Language":    true,
	"Content-Type":        true,
	"Expires":             true,
	"Last-Modified":       true,

	"X-Amz-Abort-Date":                             true,
	"X-Amz-Abort-Rule-Id":                          true,
	"X-Amz-Access-Point-Alias":                     true,
	"X-Amz-Archive-Status":                         true,
	"X-Amz-Bucket-Arn":                             true,
	"X-Amz-Bucket-Location-Name":                   true,
	"X-Amz-Bucket-Location-Type":                   true,
	"X-Amz-Bucket-Region":                          true,
	"X-Amz-Copy-Source-Version-Id":                 true,
	"X-Amz-Delete-Marker":                          true,
	"X-Amz-Expiration":                             true,
	"X-Amz-Missing-Meta":                           true,
	"X-Amz-Object-Lock-Event-Hold":                 true,
	"X-Amz-Object-Lock-Event-Hold-Duration-Days":   true,
	"X-Amz-Object-Lock-Event-Hold-Duration-Years":  true,
	"X-Amz-Object-Lock-Legal-Hold":                 true,
	"X-Amz-Object-Lock-Mode":                       true,
	"X-Amz-Object-Lock-Retain-Until-Date":          true,
	"X-Amz-Replication-Status":                     true,
	"X-Amz-Request-Charged":                        true,
	"X-Amz-Restore":                                true,
	"X-Amz-Restore-Output-Path":                    true,
	"X-Amz-Storage-Class":                          true,
	"X-Amz-Tagging-Count":                          true,
	"X-Amz-Transition-Default-Minimum-Object-Size": true,
	"X-Amz-Version-Id":                             true,
	"X-Amz-Website-Redirect-Location":              true,
}

// copyHeader copies the store's headers that clients may get.
func (c *call) copyHeader(from http.Header) {
	to := c.w.Header()
	for name, values := range from {
		switch {
		case shownHeaders[name]:
			to[name] = values
		case strings.HasPrefix(name, metaPrefix) && !strings.HasPrefix(name, envelopePrefix):
			to[strings.ToLower(name)] = values // lower case, as S3 sends it: clients show the name as it arrives
		}
	}

	if place := from.Get("Location"); strings.HasPrefix(place, "/") &&
		!strings.HasPrefix(place, "//") { // of CreateBucket
		to.Set("Location", place)
	}
	to.Set("X-Amz-Request-Id", c.id)

	if etag := from.Get("Etag"); etag != "" {
		to.Del("Etag")
		to["ETag"] = []string{showETag(etag)} // S3's spelling, for clients that do not ignore case
	}
	stored.WithoutFraming(to)
}

// envelopePrefix is the prefix of the envelope's metadata headers.
var envelopePrefix = http.CanonicalHeaderKey(metaPrefix + crypt.Prefix)

// sseKMS is the value of sseHeader. It is shared by all responses.
var sseKMS = []string{"aws:kms"}

// setEncryptionHeaders sets S3's headers for the encryption of the object.
func (c *call) setEncryptionHeaders(keyID string) {
	if keyID == crypt.CustomerKeyID {
		c.setCustomerKeyHeaders()
		return
	}
	c.keyID = keyID
	h := c.w.Header()
	h[sseHeader] = sseKMS
	h.Set(sseKeyHeader, keyID)
}

// clearEncryptionHeaders removes the encryption headers from an error
// response.
func (c *call) clearEncryptionHeaders() {
	h := c.w.Header()
	for name := range h {
		if strings.HasPrefix(name, sseHeader) {
			h.Del(name)
		}
	}
}

// setSealedHeaders sets the encryption headers for a new object.
func (c *call) setSealedHeaders(sealed *keyring.DataKey) {
	c.setEncryptionHeaders(sealed.KeyID)
	if sealed.Shared() {
		c.setBucketKeyHeader()
	}
	if context := c.Header.Get(sseContextHeader); context != "" {
		c.w.Header().Set(sseContextHeader, context)
	}
}

// setBucketKeyHeader says that the object's data key is derived from one
// that many objects share.
func (c *call) setBucketKeyHeader() { c.w.Header().Set(sseBucketKeyHeader, "true") }
