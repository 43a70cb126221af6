package sigv4_test

import (
	"fmt"
	"net/http"
	"strings"
	"testing"
	"time"
)

// replaceHeader returns a function that replaces text in a header.
func replaceHeader(name, from, to string) func(*http.Request) {
	return func(r *http.Request) { r.Header.Set(name, strings.Replace(r.Header.Get(name), from, to, 1)) }
}

func inAuthorization(from, to string) func(*http.Request) {
	return replaceHeader("Authorization", from, to)
}

func setHeader(name, value string) func(*http.Request) {
	return func(r *http.Request) { r.Header.Set(name, value) }
}

func addHeader(name, value string) func(*http.Request) {
	return func(r *http.Request) { r.Header.Add(name, value) }
}

func delHeader(name string) func(*http.Request) {
	return func(r *http.Request) { r.Header.Del(name) }
}

func withQuery(query string) func(*http.Request) {
	return func(r *http.Request) { r.URL.RawQuery = query }
}

// Genuine requests that were altered after signing.
var alteredRequests = []struct {
	name   string
	change func(*http.Request)
	code   string
}{
	{"anonymous", delHeader("Authorization"), "AccessDenied"},
	{"method", func(r *http.Request) { r.Method = http.MethodDelete }, "SignatureDoesNotMatch"},
	{"key", func(r *http.Request) { r.URL.Path, r.URL.RawPath = "/other", "" }, "SignatureDoesNotMatch"},
	{
		"key encoded twice", func(r *http.Request) { r.URL.Path, r.URL.RawPath = "/%6bey", "/%256bey" },
		"SignatureDoesNotMatch",
	},
	{"key not clean", func(r *http.Request) { r.URL.Path, r.URL.RawPath = "/./key", "" }, "SignatureDoesNotMatch"},
	{"query", withQuery("acl"), "SignatureDoesNotMatch"},
	{"query not encoded", withQuery("a=%zz"), "InvalidURI"},
	{"query name not encoded", withQuery("%=a"), "InvalidURI"},
	{"host", func(r *http.Request) { r.Host = "other" }, "SignatureDoesNotMatch"},
	{"signed header", setHeader("X-Amz-Acl", "public-read"), "SignatureDoesNotMatch"},
	{"signed header dropped", delHeader("X-Amz-Acl"), "SignatureDoesNotMatch"},
	{"signed header repeated", addHeader("X-Amz-Acl", "private"), "SignatureDoesNotMatch"},
	{"unsigned x-amz- header", setHeader("X-Amz-Copy-Source", "/a/b"), "AccessDenied"},
	{"unsigned x-amz- header, empty", setHeader("X-Amz-Website-Redirect-Location", ""), "AccessDenied"},
	{"payload hash", setHeader("X-Amz-Content-Sha256", unsignedPayload), "SignatureDoesNotMatch"},
	{"payload hash of no form", setHeader("X-Amz-Content-Sha256", "invalid"), "InvalidArgument"},
	{
		"payload hash of SigV4A", setHeader("X-Amz-Content-Sha256", "STREAMING-AWS4-ECDSA-P256-SHA256-PAYLOAD"),
		"NotImplemented",
	},
	{"payload hash missing", delHeader("X-Amz-Content-Sha256"), "InvalidRequest"},
	{"payload hash twice", addHeader("X-Amz-Content-Sha256", emptyHash), "InvalidRequest"},
	{"date missing", delHeader("X-Amz-Date"), "AccessDenied"},
	{"date twice", addHeader("X-Amz-Date", exampleDate), "AccessDenied"},
	{"date malformed", setHeader("X-Amz-Date", "2013-05-24T00:00:00Z"), "AccessDenied"},
	{"date with a fraction", setHeader("X-Amz-Date", "20130524T000000.5Z"), "AccessDenied"},
	{"date empty", setHeader("X-Amz-Date", ""), "AccessDenied"},
	{"date moved", setHeader("X-Amz-Date", "20130524T000001Z"), "SignatureDoesNotMatch"},
	{"date malformed in Date", func(r *http.Request) {
		r.Header.Del("X-Amz-Date")
		r.Header.Set("Date",
			"yesterday")
	}, "AccessDenied"},
	{"both mechanisms", withQuery("X-Amz-Signature=" + emptyHash), "InvalidArgument"},
	{"both mechanisms, algorithm", withQuery("X-Amz-Algorithm=AWS4-HMAC-SHA256"), "InvalidArgument"},
	{"two Authorization headers", addHeader("Authorization", "AWS4-HMAC-SHA256 Credential=a"), "InvalidArgument"},
	{"session token, not signed", setHeader("X-Amz-Security-Token", "token"), "AccessDenied"},
	{"session token, empty and not signed", setHeader("X-Amz-Security-Token", ""), "AccessDenied"},
	{"SigV2", setHeader("Authorization", "AWS "+accessKey+":frJIUN8DYpKDtOLCwo//yllqDzg="), "InvalidRequest"},
	{"basic", setHeader("Authorization", "Basic YTpi"), "InvalidArgument"},
	{"empty Authorization", setHeader("Authorization", ""), "InvalidArgument"},
	{"mechanism alone", setHeader("Authorization", "AWS4-HMAC-SHA256"), "InvalidArgument"},
	{"another hash", inAuthorization("AWS4-HMAC-SHA256", "AWS4-HMAC-SHA512"), "InvalidArgument"},
	{"SigV4A", inAuthorization("AWS4-HMAC-SHA256", "AWS4-ECDSA-P256-SHA256"), "NotImplemented"},
	{"SigV2 query", func(r *http.Request) {
		r.Header.Del("Authorization")
		r.URL.RawQuery = "AWSAccessKeyId=" + accessKey +
			"&Expires=1141889120&Signature=vjbyPxybdZaNmGa%2ByT272YEAiv4%3D"
	}, "InvalidRequest"},
	{"unknown access key", inAuthorization(accessKey, "AKIAI44QH8DHBEXAMPLE"), "InvalidAccessKeyId"},
	{"scope date", inAuthorization("20130524", "20130525"), "AuthorizationHeaderMalformed"},
	{"scope date malformed", inAuthorization("20130524", "2013524"), "AuthorizationHeaderMalformed"},
	{"scope region", inAuthorization("us-east-1", "us-east-2"), "SignatureDoesNotMatch"},
	{"scope region empty", inAuthorization("us-east-1", ""), "AuthorizationHeaderMalformed"},
	{"scope service", inAuthorization("/s3/", "/sts/"), "AuthorizationHeaderMalformed"},
	{"scope terminator", inAuthorization("aws4_request", "aws4"), "AuthorizationHeaderMalformed"},
	{"scope too short", inAuthorization("us-east-1/s3/", "s3/"), "AuthorizationHeaderMalformed"},
	{"access key empty", inAuthorization(accessKey, ""), "AuthorizationHeaderMalformed"},
	{"signature altered", inAuthorization("Signature=", "Signature=0"), "SignatureDoesNotMatch"},
	{"signature in upper case", func(r *http.Request) {
		head, signature, _ := strings.Cut(r.Header.Get("Authorization"), "Signature=")
		r.Header.Set("Authorization", head+"Signature="+strings.ToUpper(signature))
	}, "SignatureDoesNotMatch"},
	{"no signature", inAuthorization(", Signature=", ", Sig="), "AuthorizationHeaderMalformed"},
	{"no credential", inAuthorization("Credential=", "Credentials="), "AuthorizationHeaderMalformed"},
	{"a fourth component", inAuthorization("Credential=", "Extra=1, Credential="), "AuthorizationHeaderMalformed"},
	{
		"a component twice", inAuthorization("Credential=", "Credential=a/20130524/b/s3/aws4_request, Credential="),
		"AuthorizationHeaderMalformed",
	},
	{
		"a component without value", inAuthorization("Credential=", "Credential, Credential="),
		"AuthorizationHeaderMalformed",
	},
	{"host not signed", inAuthorization("host;", ""), "AuthorizationHeaderMalformed"},
	{"signed headers in upper case", inAuthorization("host;", "Host;"), "AuthorizationHeaderMalformed"},
	{"signed header twice", inAuthorization("host;", "host;host;"), "AuthorizationHeaderMalformed"},
	{"empty signed header", inAuthorization("host;", "host;;"), "AuthorizationHeaderMalformed"},
	{"signed header added", inAuthorization("host;", "host;if-match;"), "SignatureDoesNotMatch"},
	{"signed headers in another order", inAuthorization("host;x-amz-acl", "x-amz-acl;host"), "SignatureDoesNotMatch"},
}

func exampleSigned(t *testing.T) *http.Request {
	t.Helper()
	r := newRequest(t, http.MethodGet, bucketURL, "/key", "", "")
	r.Header.Set("X-Amz-Acl", "private")
	sign(t, r, emptyHash, exampleTime)
	return r
}

func TestAlteredRequests(t *testing.T) {
	for _, row := range alteredRequests {
		t.Run(row.name, func(t *testing.T) {
			r := exampleSigned(t)
			row.change(r)
			_, err := verifierAt(exampleTime).Verify(received(t, r))
			if e := wantCode(t, err, row.code); !strings.HasPrefix(e.Error(), row.code+": ") {
				t.Errorf("the error reads %q", e)
			}
		})
	}
}

// net/http itself refuses such a path, but Verify does not rely on that.
func TestPathNotEncoded(t *testing.T) {
	for _, build := range []func(*testing.T) *http.Request{exampleSigned, examplePresigned} {
		r := received(t, build(t))
		r.RequestURI = strings.Replace(r.RequestURI, "/key", "/%zz", 1)
		_, err := verifierAt(exampleTime).Verify(r)
		wantCode(t, err, "InvalidURI")
	}
}

func TestSecrets(t *testing.T) {
	for name, row := range map[string]struct{ key, secret, code string }{
		"wrong secret":                  {accessKey, "other", "SignatureDoesNotMatch"},
		"empty secret for an unknown":   {"AKIAI44QH8DHBEXAMPLE", "", "InvalidAccessKeyId"},
		"empty secret for a known":      {accessKey, "", "SignatureDoesNotMatch"},
		"known key with no secret":      {"keyWithoutSecret", "", "InvalidAccessKeyId"},
		"key with a slash is one key":   {accessKey + "/a", secretKey, "InvalidAccessKeyId"},
		"key in another case is no key": {strings.ToLower(accessKey), secretKey, "InvalidAccessKeyId"},
	} {
		t.Run(name, func(t *testing.T) {
			r := newRequest(t, http.MethodGet, bucketURL, "/key", "", "")
			r.Header.Set("X-Amz-Content-Sha256", emptyHash)
			signWith(t, r, row.key, row.secret, emptyHash, exampleTime)
			_, err := verifierAt(exampleTime).Verify(received(t, r))
			wantCode(t, err, row.code)
		})
	}
}

// Header names that net/http never produces must not escape the check for
// unsigned headers.
func TestHeaderKeysNotCanonical(t *testing.T) {
	r := received(t, exampleSigned(t))
	r.Header["x-amz-acl"] = []string{"public-read"}
	_, err := verifierAt(exampleTime).Verify(r)
	wantCode(t, err, "AccessDenied")
}

func TestSkew(t *testing.T) {
	for _, row := range []struct {
		skew, ago time.Duration
		code      string
	}{
		{0, 15 * time.Minute, ""},
		{0, -15 * time.Minute, ""},
		{0, 15*time.Minute + time.Second, "RequestTimeTooSkewed"},
		{0, -15*time.Minute - time.Second, "RequestTimeTooSkewed"},
		{0, 200 * 365 * 24 * time.Hour, "RequestTimeTooSkewed"},
		{time.Minute, time.Minute, ""},
		{time.Minute, 61 * time.Second, "RequestTimeTooSkewed"},
	} {
		t.Run(fmt.Sprintf("%s ago, skew %s", row.ago, row.skew), func(t *testing.T) {
			v := verifierAt(exampleTime.Add(row.ago))
			v.MaxSkew = row.skew
			_, err := v.Verify(received(t, exampleSigned(t)))

			if row.code != "" {
				wantCode(t, err, row.code)
			} else if err != nil {
				t.Errorf("after %s: %v", row.ago, err)
			}
		})
	}
}

// Genuine signatures over payloads with a wrong description.
func TestPayloadDescriptions(t *testing.T) {
	for name, row := range map[string]struct {
		hash, decoded, trailer, code string
	}{
		"malformed hash":         {hash: "abc", code: "InvalidArgument"},
		"hash in upper case":     {hash: strings.ToUpper(emptyHash), code: "InvalidArgument"},
		"hash too long":          {hash: emptyHash + "0", code: "InvalidArgument"},
		"hash too short":         {hash: emptyHash[1:], code: "InvalidArgument"},
		"hash not hex":           {hash: emptyHash[:63] + "g", code: "InvalidArgument"},
		"unknown streaming mode": {hash: "STREAMING-UNSIGNED-PAYLOAD", decoded: "1", code: "InvalidArgument"},
		"SigV4A chunks": {
			hash: "STREAMING-AWS4-ECDSA-P256-SHA256-PAYLOAD", decoded: "1", code: "NotImplemented",
		},
		"no length, signed":   {hash: signedChunks, code: "MissingContentLength"},
		"no length, trailer":  {hash: signedTrailer, trailer: "a", code: "MissingContentLength"},
		"no length, unsigned": {hash: unsignedTrailer, trailer: "a", code: "MissingContentLength"},
		"negative length":     {hash: signedChunks, decoded: "-1", code: "MissingContentLength"},
		"length with a sign":  {hash: signedChunks, decoded: "+1", code: "MissingContentLength"},
		"length too large": {
			hash: signedChunks, decoded: "9223372036854775808", code: "MissingContentLength",
		},
		"length with a fraction":     {hash: signedChunks, decoded: "1.0", code: "MissingContentLength"},
		"length in hex":              {hash: signedChunks, decoded: "0x1", code: "MissingContentLength"},
		"length of a hashed payload": {hash: emptyHash, decoded: "1", code: "InvalidRequest"},
		"length that is no number":   {hash: unsignedPayload, decoded: "x", code: "InvalidRequest"},
		"trailer without the mode":   {hash: signedChunks, decoded: "0", trailer: "a", code: "InvalidRequest"},
		"trailer announced twice": {
			hash: signedTrailer, decoded: "0", trailer: "a,A", code: "MalformedTrailerError",
		},
		"trailer without a name": {hash: signedTrailer, decoded: "0", trailer: "a,", code: "MalformedTrailerError"},
		"too many trailers": {
			hash: signedTrailer, decoded: "0", trailer: "a,b,c,d,e,f,g,h,i", code: "MalformedTrailerError",
		},
	} {
		t.Run(name, func(t *testing.T) {
			r := newRequest(t, http.MethodPut, bucketURL, "/key", "", "")
			if row.decoded != "" {
				r.Header.Set("X-Amz-Decoded-Content-Length", row.decoded)
			}
			if row.trailer != "" {
				r.Header.Set("X-Amz-Trailer", row.trailer)
			}

			sign(t, r, row.hash, exampleTime)
			_, err := verifierAt(exampleTime).Verify(received(t, r))
			wantCode(t, err, row.code)
		})
	}
}

// Some clients send the decoded length of a plain payload. It changes nothing
// if it is that of the body.
func TestDecodedLengthOfAPlainPayload(t *testing.T) {
	for decoded, code := range map[string]string{"4": "", "3": "InvalidRequest", "5": "InvalidRequest"} {
		t.Run(decoded, func(t *testing.T) {
			r := newRequest(t, http.MethodPut, bucketURL, "/key", "", "data")
			r.Header.Set("X-Amz-Decoded-Content-Length", decoded)
			sign(t, r, unsignedPayload, exampleTime)
			auth, err := verifierAt(exampleTime).Verify(received(t, r))
			if code != "" {
				wantCode(t, err, code)
			} else if err != nil || auth.DecodedLength() != 4 || auth.Framed() {
				t.Errorf("%v, %+v", err, auth)
			}
		})
	}
}

func TestDecodedLengthTwice(t *testing.T) {
	r := newRequest(t, http.MethodPut, bucketURL, "/key", "", "")
	r.Header["X-Amz-Decoded-Content-Length"] = []string{"1", "1"}
	sign(t, r, signedChunks, exampleTime)
	_, err := verifierAt(exampleTime).Verify(received(t, r))
	wantCode(t, err, "MissingContentLength")
}

func replaceQuery(from, to string) func(*http.Request) {
	return func(r *http.Request) { r.URL.RawQuery = strings.Replace(r.URL.RawQuery, from, to, 1) }
}

// Presigned URLs that were altered, or used in another way than signed.
var alteredURLs = []struct {
	name   string
	change func(*http.Request)
	code   string
}{
	{"method", func(r *http.Request) { r.Method = http.MethodPut }, "SignatureDoesNotMatch"},
	{"key", func(r *http.Request) { r.URL.Path, r.URL.RawPath = "/other", "" }, "SignatureDoesNotMatch"},
	{"host", func(r *http.Request) { r.Host = "other" }, "SignatureDoesNotMatch"},
	{"query added", func(r *http.Request) { r.URL.RawQuery += "&acl" }, "SignatureDoesNotMatch"},
	{
		"x-amz- query added", func(r *http.Request) { r.URL.RawQuery += "&X-Amz-Acl=public-read" },
		"SignatureDoesNotMatch",
	},
	{
		"x-amz- query in lower case added", func(r *http.Request) { r.URL.RawQuery += "&x-amz-acl=public-read" },
		"SignatureDoesNotMatch",
	},
	{
		"second signature in lower case", func(r *http.Request) { r.URL.RawQuery += "&x-amz-signature=a" },
		"SignatureDoesNotMatch",
	},
	{
		"signature in lower case", replaceQuery("X-Amz-Signature", "x-amz-signature"),
		"AuthorizationQueryParametersError",
	},
	{"everything in lower case", func(r *http.Request) {
		r.URL.RawQuery = strings.ReplaceAll(r.URL.RawQuery,
			"X-Amz-", "x-amz-")
	}, "AccessDenied"},
	{"signed header", setHeader("X-Amz-Acl", "public-read"), "SignatureDoesNotMatch"},
	{"signed header dropped", delHeader("X-Amz-Acl"), "SignatureDoesNotMatch"},
	{"unsigned header", setHeader("X-Amz-Tagging", "a=b"), "AccessDenied"},
	{"unsigned payload hash", setHeader("X-Amz-Content-Sha256", emptyHash), "AccessDenied"},
	{"payload hash twice", func(r *http.Request) {
		r.Header["X-Amz-Content-Sha256"] = []string{
			unsignedPayload,
			emptyHash,
		}
	}, "InvalidRequest"},
	{
		"session token twice", func(r *http.Request) { r.Header["X-Amz-Security-Token"] = []string{"a", "b"} },
		"InvalidToken",
	},
	{"payload hashes differ", func(r *http.Request) {
		r.URL.RawQuery += "&X-Amz-Content-Sha256=" + unsignedPayload
		r.Header.Set("X-Amz-Content-Sha256", emptyHash)
	}, "XAmzContentSHA256Mismatch"},
	{"lifetime extended", replaceQuery("X-Amz-Expires=60", "X-Amz-Expires=61"), "SignatureDoesNotMatch"},
	{
		"lifetime of 8 days", replaceQuery("X-Amz-Expires=60", "X-Amz-Expires=691200"),
		"AuthorizationQueryParametersError",
	},
	{"lifetime 0", replaceQuery("X-Amz-Expires=60", "X-Amz-Expires=0"), "AuthorizationQueryParametersError"},
	{"lifetime negative", replaceQuery("X-Amz-Expires=60", "X-Amz-Expires=-60"), "AuthorizationQueryParametersError"},
	{"lifetime NaN", replaceQuery("X-Amz-Expires=60", "X-Amz-Expires=NaN"), "AuthorizationQueryParametersError"},
	{
		"lifetime overflows", replaceQuery("X-Amz-Expires=60", "X-Amz-Expires=9223372036854775808"),
		"AuthorizationQueryParametersError",
	},
	{"lifetime empty", replaceQuery("X-Amz-Expires=60", "X-Amz-Expires="), "AuthorizationQueryParametersError"},
	{"lifetime missing", replaceQuery("X-Amz-Expires=60&", ""), "AuthorizationQueryParametersError"},
	{
		"lifetime twice", replaceQuery("X-Amz-Expires=60", "X-Amz-Expires=60&X-Amz-Expires=60"),
		"AuthorizationQueryParametersError",
	},
	{
		"signature twice", func(r *http.Request) { r.URL.RawQuery += "&X-Amz-Signature=a" },
		"AuthorizationQueryParametersError",
	},
	{"signature missing", replaceQuery("X-Amz-Signature=", "Signature="), "AuthorizationQueryParametersError"},
	{"algorithm", replaceQuery("AWS4-HMAC-SHA256", "AWS4-HMAC-SHA1"), "AuthorizationQueryParametersError"},
	{"algorithm missing", replaceQuery("X-Amz-Algorithm=", "Algorithm="), "AuthorizationQueryParametersError"},
	{"SigV4A", replaceQuery("AWS4-HMAC-SHA256", "AWS4-ECDSA-P256-SHA256"), "AuthorizationQueryParametersError"},
	{"credential", replaceQuery("%2Fs3%2F", "%2Fsts%2F"), "AuthorizationQueryParametersError"},
	{"date malformed", replaceQuery("X-Amz-Date=2013", "X-Amz-Date=X"), "AuthorizationQueryParametersError"},
	{"date with a fraction", replaceQuery("T000000Z", "T000000.0Z"), "AuthorizationQueryParametersError"},
	{"scope date", replaceQuery("20130524", "20130525"), "AuthorizationQueryParametersError"},
	{"host not signed", replaceQuery("SignedHeaders=host%3B", "SignedHeaders="), "AuthorizationQueryParametersError"},
	{
		"session token, not signed", func(r *http.Request) { r.URL.RawQuery += "&X-Amz-Security-Token=a" },
		"SignatureDoesNotMatch",
	},
	{"session token in a header, not signed", setHeader("X-Amz-Security-Token", "a"), "AccessDenied"},
	{"unknown access key", replaceQuery(accessKey, "AKIAI44QH8DHBEXAMPLE"), "InvalidAccessKeyId"},
	{"both mechanisms", setHeader("Authorization", "AWS4-HMAC-SHA256 Credential=a"), "InvalidArgument"},
}

func examplePresigned(t *testing.T) *http.Request {
	t.Helper()
	r := newRequest(t, http.MethodGet, bucketURL, "/key", "response-content-type=a", "")
	r.Header.Set("X-Amz-Acl", "private")
	return presign(t, r, unsignedPayload, exampleTime, "60")
}

func TestAlteredURLs(t *testing.T) {
	for _, row := range alteredURLs {
		t.Run(row.name, func(t *testing.T) {
			r := examplePresigned(t)
			row.change(r)
			_, err := verifierAt(exampleTime).Verify(received(t, r))
			wantCode(t, err, row.code)
		})
	}
}

func TestPresignedLifetime(t *testing.T) {
	for _, row := range []struct {
		lifetime string
		ago      time.Duration
		code     string
	}{
		{"60", 0, ""},
		{"60", time.Minute, ""},
		{"60", time.Minute + 1, "AccessDenied"},
		{"60", -15 * time.Minute, ""},
		{"60", -15*time.Minute - time.Second, "AccessDenied"},
		{"604800", 7 * 24 * time.Hour, ""},
		{"604800", 7*24*time.Hour + time.Second, "AccessDenied"},
		{"604801", 0, "AuthorizationQueryParametersError"},
	} {
		t.Run(fmt.Sprintf("%s s, after %s", row.lifetime, row.ago), func(t *testing.T) {
			r := newRequest(t, http.MethodGet, bucketURL, "/key", "", "")
			in := received(t, presign(t, r, unsignedPayload, exampleTime, row.lifetime))
			auth, err := verifierAt(exampleTime.Add(row.ago)).Verify(in)
			switch {
			case row.code != "":
				wantCode(t, err, row.code)
			case err != nil:
				t.Errorf("%s s, used after %s: %v", row.lifetime, row.ago, err)
			case !auth.Presigned:
				t.Error("not marked as presigned")
			}
		})
	}
}

// A URL can be bound to a payload by a parameter or by a signed header.
func TestPresignedPayload(t *testing.T) {
	hash := hexSum("payload")
	for name, prepare := range map[string]func(*http.Request){
		"parameter": withQuery("X-Amz-Content-Sha256=" + hash),
		"header":    setHeader("X-Amz-Content-Sha256", hash),
	} {
		t.Run(name, func(t *testing.T) {
			r := newRequest(t, http.MethodPut, bucketURL, "/key", "", "payload")
			prepare(r)
			auth, err := verifierAt(exampleTime).Verify(received(t, presign(t, r, hash, exampleTime, "60")))
			if err != nil {
				t.Fatal(err)
			}

			if _, _, err := decode(auth, "payload"); err != nil {
				t.Error(err)
			}
			_, _, err = decode(auth, "Payload")
			wantCode(t, err, "XAmzContentSHA256Mismatch")
		})
	}
}

func TestErrorDetails(t *testing.T) {
	r := received(t, exampleSigned(t))
	r.Method = http.MethodPut
	_, err := verifierAt(exampleTime).Verify(r)
	details := make(map[string]string)

	for _, detail := range wantCode(t, err, "SignatureDoesNotMatch").Details() {
		details[detail[0]] = detail[1]
	}

	if details["AWSAccessKeyId"] != accessKey ||
		!strings.HasPrefix(details["StringToSign"], "AWS4-HMAC-SHA256\n"+exampleDate+"\n"+scope+"\n") ||
		!strings.HasPrefix(details["CanonicalRequest"], "PUT\n/key\n\nhost:") {
		t.Errorf("details %v", details)
	}
}
