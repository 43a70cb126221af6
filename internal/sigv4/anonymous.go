package sigv4

import "net/http"

// IsAnonymous reports whether a request has no credentials or signature of
// any kind.
func IsAnonymous(r *http.Request) bool {
	_, rawQuery := RequestTarget(r)
	query, err := parseQuery(rawQuery)
	if err != nil || len(r.Header.Values("Authorization")) > 0 {
		return false
	}

	for _, name := range []string{
		"X-Amz-Algorithm", "X-Amz-Signature", "X-Amz-Credential", "Signature",
		"AWSAccessKeyId",
	} {
		if hasParameter(query, name) {
			return false
		}
	}

	return true
}

// Anonymous returns the Auth of an anonymous request, whose AccessKey is
// empty. Every error is an *Error.
func Anonymous(r *http.Request) (*Auth, error) {
	hash := unsignedPayload
	switch values := r.Header.Values(contentSHA256); {
	case len(values) > 1:
		return nil, fail("InvalidRequest", "There is more than one x-amz-content-sha256 header.")
	case len(values) == 1:
		hash = values[0]
	}

	token, err := tokenHeader(r)
	switch {
	case err != nil:
		return nil, err
	case token != "":
		return nil, errToken()
	case payloads[hash].signed:
		return nil, fail("InvalidRequest", "Anonymous requests don't support this x-amz-content-sha256 value. "+
			"Please use UNSIGNED-PAYLOAD or STREAMING-UNSIGNED-PAYLOAD-TRAILER.")
	}

	described, err := payloadOf(hash)
	if err != nil {
		return nil, err
	}

	a := &Auth{payload: described}
	if err := a.describePayload(r); err != nil {
		return nil, err
	}

	return a, nil
}
