package s3api

import (
	"context"
	"encoding/base64"
	"net/http"
	"strings"

	"github.com/cmekproxy/cmekproxy/internal/crypt"
	"github.com/cmekproxy/cmekproxy/internal/keyring"
	"github.com/cmekproxy/cmekproxy/internal/stored"
)

// SSE-C: keys that a client sends with each request. A key is kept only
// during the request, and wiped at its end.
// https://docs.aws.amazon.com/AmazonS3/latest/userguide/ServerSideEncryptionCustomerKeys.html

// Prefixes of the three SSE-C headers: for the object of the request, and
// for the source of a copy.
const (
	customerPrefix       = "X-Amz-Server-Side-Encryption-Customer-"
	sourceCustomerPrefix = "X-Amz-Copy-Source-Server-Side-Encryption-Customer-"
)

// customerNames are the headers of both, in lower case.
var customerNames = setOf(customerHeaders, sourceCustomerHeaders)

// takeCustomerKeys reads the customer keys of the request.
func (c *call) takeCustomerKeys() (err error) {
	if c.customerKey, err = c.takeCustomerKey(customerPrefix); err != nil {
		return err
	}
	c.sourceKey, err = c.takeCustomerKey(sourceCustomerPrefix)
	return err
}

// wipeCustomerKeys overwrites the keys at the end of the call.
func (c *call) wipeCustomerKeys() {
	clear(c.customerKey)
	clear(c.sourceKey)
}

// hasPrefix reports whether any header has the prefix.
func hasPrefix(h http.Header, prefix string) bool {
	for name := range h {
		if strings.HasPrefix(name, prefix) {
			return true
		}
	}
	return false
}

// takeCustomerKey reads the three headers. It returns nil if none of them is
// sent.
func (c *call) takeCustomerKey(prefix string) ([]byte, error) {
	if !hasPrefix(c.Header, prefix) {
		return nil, nil
	}
	algorithm, text, sum := c.Header.Get(prefix+"Algorithm"), c.Header.Get(prefix+"Key"), c.Header.Get(prefix+"Key-Md5")
	const must = "Requests specifying Server Side Encryption with Customer provided keys must "
	switch {
	case algorithm == "" && text == "" && sum == "":
		return nil, nil
	case !c.secure:
		return nil, badRequest("InvalidRequest", must+"be made over a secure connection.")
	case algorithm == "":
		return nil, badRequest("InvalidArgument", must+"provide a valid encryption algorithm.")
	case text == "":
		return nil, badRequest("InvalidArgument", must+"provide an appropriate secret key.")
	case sum == "":
		return nil, badRequest("InvalidArgument", must+"provide the client calculated MD5 of the secret key.")
	case algorithm != "AES256":
		return nil, badRequest(
			"InvalidEncryptionAlgorithmError",
			"The encryption algorithm specified is not valid. Supported value: AES256.",
		)
	}

	key, err := base64.StdEncoding.DecodeString(text)
	if err != nil || crypt.CheckDEK(key) != nil {
		return nil, badRequest("InvalidArgument", "The secret key was invalid for the specified algorithm.")
	}

	if md5Of(key) != sum {
		clear(key)
		return nil, badRequest(
			"InvalidArgument",
			"The calculated MD5 hash of the key did not match the hash that was provided.",
		)
	}

	return key, nil
}

// overTLS reports whether the request came over TLS, to the proxy itself or to
// a TLS terminator on the same machine, if one is configured.
func (c *call) overTLS() bool {
	if c.TLS != nil || !c.settings.LocalTLS {
		return c.TLS != nil
	}
	return fromThisMachine(c.Request)
}

// readingKey returns the customer key for what the call reads.
func (c *call) readingKey() []byte {
	if c.route.flags&readsSource != 0 {
		return c.sourceKey
	}
	return c.customerKey
}

// openKey returns the data key of an object that the call reads.
func (s *Server) openKey(
	ctx context.Context,
	c *call,
	obj crypt.Object,
	keyID string,
	wrapped []byte,
) (lease *keyring.Lease, err error) {
	switch key := c.readingKey(); {
	case keyID != crypt.CustomerKeyID:
		lease, err = c.keys.Open(ctx, obj, keyID, wrapped)
	case key == nil:
		return nil, badRequest(
			"InvalidRequest",
			"The object was stored using a form of Server Side Encryption. "+
				"The correct parameters must be provided to retrieve the object.",
		)
	default:
		lease, err = c.keys.OpenForCustomer(ctx, obj, wrapped, key)
	}

	if err != nil {
		return nil, err
	}
	if c.reseals && lease.Unbound() { // the copy's new data key would vouch for it
		lease.Release()
		return nil, keyring.ErrUnbound
	}

	c.watch(lease)
	return lease, nil
}

// checkCustomerKey refuses a customer key for an object that is not under
// one.
func (c *call) checkCustomerKey(o *stored.Object) error {
	if c.readingKey() != nil && !o.NotModified && !o.CustomerKey {
		return badRequest("InvalidRequest", "The encryption parameters are not applicable to this object.")
	}
	return nil
}

// proveCustomerKey makes a client show that it has the customer key of an
// object, even for a request that reads no content. S3 does the same.
func (s *Server) proveCustomerKey(c *call, q stored.Request, o *stored.Object) error {
	if err := c.checkCustomerKey(o); err != nil || !o.CustomerKey {
		return err
	}
	return c.reader.Prove(c.Context(), q, o)
}

// setCustomerKeyHeaders sets the SSE-C headers of the response.
func (c *call) setCustomerKeyHeaders() {
	c.keyID = crypt.CustomerKeyID
	for _, name := range []string{"Algorithm", "Key-Md5"} {
		if value := c.Header.Get(customerPrefix + name); value != "" {
			c.w.Header().Set(customerPrefix+name, value)
		}
	}
}
