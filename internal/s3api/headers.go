package s3api

import (
	"net/http"
	"strings"

	"github.com/cmekproxy/cmekproxy/internal/crypt"
	"github.com/cmekproxy/cmekproxy/internal/stored"
)

const (
	metaPrefix   = stored.MetaPrefix
	maxMetadata  = 2048 // S3's limit for names and values of user metadata, in bytes
	sseHeader    = "X-Amz-Server-Side-Encryption"
	sseKeyHeader = "X-Amz-Server-Side-Encryption-Aws-Kms-Key-Id"
)

// forwardedHeaders are the request headers that reach the store, next to the x-amz- ones that the route names. Ranges and
// conditions are translated on the way; see conditionHeaders.
var forwardedHeaders = []string{
	"Cache-Control", "Content-Disposition", "Content-Encoding", "Content-Language", "Content-Type", "Expires",
	"If-Modified-Since", "If-Unmodified-Since", "Origin",
	"X-Amz-Expected-Bucket-Owner", "X-Amz-Request-Payer",
}

// conditionHeaders hold entity tags, which differ between client and store.
var conditionHeaders = []string{"If-Match", "If-None-Match", "If-Range"}

// requestHeader returns what of the client's header is meant for the store.
func (c *call) requestHeader() http.Header {
	h := make(http.Header)
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
		lower := strings.ToLower(name)
		if has(c.route.headers, lower) && !has(sseHeaders, lower) && lower != "x-amz-checksum-mode" {
			h[name] = values
		}
	}
	stored.WithoutFraming(h)
	return h
}

// checkMetadata refuses user metadata that takes the envelope's names, or that leaves it no room.
func checkMetadata(h http.Header, envelope map[string]string) error {
	var total int
	for name, value := range envelope {
		total += len(name) + len(value)
	}
	for name, values := range h {
		if own, ok := strings.CutPrefix(name, metaPrefix); ok {
			if strings.HasPrefix(strings.ToLower(own), crypt.Prefix) {
				return badRequest("InvalidArgument", "Metadata names that start with "+crypt.Prefix+" are reserved for the proxy.")
			}
			total += len(own) + len(strings.Join(values, ","))
		}
	}
	if total > maxMetadata {
		return badRequest("MetadataTooLarge", "Your metadata headers, with the proxy's own encryption envelope, exceed the maximum allowed metadata size.")
	}
	return nil
}

// checkEncryption looks at what the client asks of the store's server-side encryption. AES256 and aws:kms are both met:
// everything is encrypted under a KMS key. It returns the key that the client wants, "" for the rules' own.
func checkEncryption(h http.Header) (keyID string, err error) {
	keyID = h.Get(sseKeyHeader)
	switch want := h.Get(sseHeader); {
	case want == "aws:kms":
	case keyID != "":
		return "", badRequest("InvalidArgument", "Server Side Encryption with AWS KMS managed key requires HTTP header x-amz-server-side-encryption : aws:kms")
	case want == "" || want == "AES256":
	default:
		return "", badRequest("InvalidEncryptionAlgorithmError", "The encryption request you specified is not valid. Supported value: aws:kms.")
	}
	return keyID, nil
}

// hiddenHeaders of the store are not the client's business: they describe the connection, the ciphertext or the store's
// own encryption.
var hiddenHeaders = []string{
	"Connection", "Keep-Alive", "Transfer-Encoding", "Trailer", "Upgrade", "Date", "Server", "Content-Length",
	"X-Amz-Id-2", "X-Amz-Bucket-Key-Enabled", "X-Amz-Object-Size", "X-Amz-Mp-Parts-Count",
}

// copyHeader copies the store's answer to the client's, without what must not or need not be seen.
func (c *call) copyHeader(from http.Header) {
	to := c.w.Header()
	for name, values := range from {
		switch {
		case strings.HasPrefix(name, metaPrefix+"Cmek-"), strings.HasPrefix(name, checksumPrefix), strings.HasPrefix(name, sseHeader):
		case strings.HasPrefix(name, metaPrefix):
			to[strings.ToLower(name)] = values // as S3 sends it: clients take the name as it comes
		default:
			to[name] = values
		}
	}
	for _, name := range hiddenHeaders {
		to.Del(name)
	}
	to.Set("X-Amz-Request-Id", c.id)
	if etag := from.Get("Etag"); etag != "" {
		to.Del("Etag")
		to["ETag"] = []string{showETag(etag)} // as S3 spells it, for clients that do not know better
	}
	stored.WithoutFraming(to)
}

// sayEncrypted tells the client what protects the object, in S3's words.
func (c *call) sayEncrypted(keyID string) {
	c.keyID = keyID
	c.w.Header().Set(sseHeader, "aws:kms")
	c.w.Header().Set(sseKeyHeader, keyID)
}
