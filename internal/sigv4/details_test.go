package sigv4_test

import (
	"encoding/hex"
	"errors"
	"fmt"
	"net/http"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/cmekproxy/cmekproxy/internal/sigv4"
)

// TestErrorWords compares messages and elements that clients and people
// look for with those of S3.
func TestErrorWords(t *testing.T) {
	later := exampleTime.Add(time.Hour)
	hash := hexSum("payload")
	for _, row := range []struct {
		name    string
		now     time.Time
		request func(*testing.T) *http.Request
		code    string
		message string
		details [][2]string
	}{
		{
			"skew", later, exampleSigned, "RequestTimeTooSkewed",
			"The difference between the request time and the current time is too large.",
			[][2]string{
				{"RequestTime", exampleDate},
				{"ServerTime", "2013-05-24T01:00:00Z"},
				{"MaxAllowedSkewMilliseconds", "900000"},
			},
		},
		{
			"expired", later, examplePresigned, "AccessDenied", "Request has expired.",
			[][2]string{
				{"X-Amz-Expires", "60"}, {"Expires", "2013-05-24T00:01:00Z"}, {"ServerTime", "2013-05-24T01:00:00Z"},
			},
		},
		{
			"not yet valid", exampleTime.Add(-time.Hour), examplePresigned, "AccessDenied", "Request is not yet valid",
			[][2]string{
				{"X-Amz-Date", "1369353600000"},
				{"Expires", "2013-05-24T00:01:00Z"},
				{"ServerTime", "2013-05-23T23:00:00Z"},
			},
		},
		{
			"anonymous", exampleTime, changed(exampleSigned,
				delHeader("Authorization")), "AccessDenied", "Access Denied", nil,
		},
		{
			"unsigned headers", exampleTime, changed(changed(exampleSigned, setHeader("X-Amz-Tagging", "a")),
				setHeader("X-Amz-Meta-A", "b")),
			"AccessDenied", "There were headers present in the request which were not signed",
			[][2]string{{"HeadersNotSigned", "x-amz-meta-a, x-amz-tagging"}},
		},
		{
			"unknown access key", exampleTime, changed(exampleSigned,
				inAuthorization(accessKey, "AKIAI44QH8DHBEXAMPLE")),
			"InvalidAccessKeyId", "The AWS Access Key Id you provided does not exist in our records.",
			[][2]string{{"AWSAccessKeyId", "AKIAI44QH8DHBEXAMPLE"}},
		},
		{
			"both mechanisms", exampleTime, changed(examplePresigned,
				setHeader("Authorization", "AWS4-HMAC-SHA256 a")), "InvalidArgument",
			"Only one auth mechanism allowed; only the X-Amz-Algorithm query parameter, Signature query " +
				"string parameter or the Authorization header should be specified",
			[][2]string{{"ArgumentName", "Authorization"}, {"ArgumentValue", "AWS4-HMAC-SHA256 a"}},
		},
		{
			"another scheme", exampleTime, changed(exampleSigned,
				setHeader("Authorization", "Bearer a")), "InvalidArgument", "Unsupported Authorization Type",
			[][2]string{{"ArgumentName", "Authorization"}, {"ArgumentValue", "Bearer"}},
		},
		{
			"no scheme", exampleTime, changed(exampleSigned, setHeader("Authorization", "invalid")), "InvalidArgument",
			"Authorization header is invalid -- one and only one ' ' (space) required.",
			[][2]string{{"ArgumentName", "Authorization"}, {"ArgumentValue", "invalid"}},
		},
		{
			"two components", exampleTime, changed(exampleSigned,
				setHeader("Authorization", "AWS4-HMAC-SHA256 Credential=a, Signature=b")),
			"AuthorizationHeaderMalformed", "The authorization header is malformed; the authorization header " +
				"requires three components: Credential, SignedHeaders, and Signature.", nil,
		},
		{
			"a component without a value", exampleTime, changed(exampleSigned,
				inAuthorization("SignedHeaders=", "SignedHeaders-")), "AuthorizationHeaderMalformed",
			`The authorization header is malformed; the authorization component "SignedHeaders-host;x-amz-acl;` +
				`x-amz-content-sha256;x-amz-date" is malformed.`, nil,
		},
		{
			"a component of another name", exampleTime, changed(exampleSigned,
				inAuthorization("SignedHeaders=", "Headers=")),
			"AuthorizationHeaderMalformed", "The authorization header is malformed; missing SignedHeaders.", nil,
		},
		{
			"a credential of six elements", exampleTime, changed(exampleSigned,
				inAuthorization("/aws4_request", "/extra/things")), "AuthorizationHeaderMalformed",
			`The authorization header is malformed; the Credential is mal-formed; expecting ` +
				`"<YOUR-AKID>/YYYYMMDD/REGION/SERVICE/aws4_request".`, nil,
		},
		{
			"a credential of five elements", exampleTime, changed(exampleSigned,
				inAuthorization("/aws4_request", "/things")), "AuthorizationHeaderMalformed",
			`The authorization header is malformed; incorrect terminal "things". This endpoint uses ` +
				`"aws4_request".`, nil,
		},
		{
			"no date", exampleTime, changed(exampleSigned,
				delHeader("X-Amz-Date")), "AccessDenied",
			"AWS authentication requires a valid Date or x-amz-date header.", nil,
		},
		{
			"an algorithm of no name", exampleTime, changed(examplePresigned,
				replaceQuery("AWS4-HMAC-SHA256", "AWS4-SHA256")), "AuthorizationQueryParametersError",
			`X-Amz-Algorithm only supports "AWS4-HMAC-SHA256 and AWS4-ECDSA-P256-SHA256"`, nil,
		},
		{
			"SigV4A, presigned", exampleTime, changed(examplePresigned,
				replaceQuery("AWS4-HMAC-SHA256", "AWS4-ECDSA-P256-SHA256")), "AuthorizationQueryParametersError",
			`X-Amz-Algorithm only supports "AWS4-HMAC-SHA256"`, nil,
		},
		{
			"no hash", exampleTime, changed(exampleSigned, delHeader("X-Amz-Content-Sha256")),
			"InvalidRequest", "Missing required header for this request: x-amz-content-sha256", nil,
		},
		{
			"empty region", exampleTime, changed(exampleSigned, inAuthorization("us-east-1", "")),
			"AuthorizationHeaderMalformed",
			"The authorization header is malformed; a non-empty region must be provided in the credential.", nil,
		},
		{
			"empty region, presigned", exampleTime, changed(examplePresigned,
				replaceQuery("us-east-1", "")), "AuthorizationQueryParametersError",
			"Error parsing the X-Amz-Credential parameter; a non-empty region must be provided in the credential.", nil,
		},
		{
			"malformed hash", exampleTime, func(t *testing.T) *http.Request {
				r := newRequest(t, http.MethodPut, bucketURL, "/key", "", "payload")
				sign(t, r, strings.ToUpper(hash), exampleTime)
				return r
			}, "InvalidArgument", "x-amz-content-sha256 must be UNSIGNED-PAYLOAD, " +
				"STREAMING-UNSIGNED-PAYLOAD-TRAILER, STREAMING-AWS4-HMAC-SHA256-PAYLOAD, " +
				"STREAMING-AWS4-HMAC-SHA256-PAYLOAD-TRAILER, STREAMING-AWS4-ECDSA-P256-SHA256-PAYLOAD, " +
				"STREAMING-AWS4-ECDSA-P256-SHA256-PAYLOAD-TRAILER or a valid sha256 value.",
			[][2]string{{"ArgumentName", "x-amz-content-sha256"}, {"ArgumentValue", strings.ToUpper(hash)}},
		},
	} {
		t.Run(row.name, func(t *testing.T) {
			_, err := verifierAt(row.now).Verify(received(t, row.request(t)))
			e := wantCode(t, err, row.code)
			if e.Message != row.message || !slices.Equal(e.Details(), row.details) {
				t.Errorf("got %q %v, want %q %v", e.Message, e.Details(), row.message, row.details)
			}
		})
	}
}

// changed returns a request that is altered after signing.
func changed(build func(*testing.T) *http.Request, change func(*http.Request)) func(*testing.T) *http.Request {
	return func(t *testing.T) *http.Request {
		t.Helper()
		r := build(t)
		change(r)
		return r
	}
}

// Errors in a body have the same details as in S3.
func TestBodyErrorWords(t *testing.T) {
	hash := hexSum("payload")
	_, _, err := decode(plain(t, hash, "payload"), "Payload")
	want := [][2]string{{"ClientComputedContentSHA256", hash}, {"S3ComputedContentSHA256", hexSum("Payload")}}
	if got := wantCode(t, err, "XAmzContentSHA256Mismatch").Details(); !slices.Equal(got, want) {
		t.Errorf("got %v, want %v", got, want)
	}

	const unexpected, number = "The request body terminated unexpectedly",
		"You did not provide the number of bytes specified by the Content-Length HTTP header"
	for _, row := range []struct{ declared, encoded, message string }{
		{"4", "4\r\nda", unexpected},
		{"5", "4\r\ndata\r\n0\r\n\r\n", number},
		{"3", "4\r\ndata\r\n0\r\n\r\n", number},
		{"3", "4\r\ndat\r\n0\r\n\r\n", unexpected}, // the chunk size itself is wrong
		{"3", "4\r\ndat", unexpected},
		{"3", "ffe\r\n" + strings.Repeat("a", 4094) + "\r\n0\r\n\r\n", number},
		{"3", "ffe\r\ndata\r\n0\r\n\r\n", unexpected},
		{"3", "fff\r\ndata\r\n0\r\n\r\n", number}, // too long to check
	} {
		t.Run(fmt.Sprintf("%s bytes declared, %.12q", row.declared, row.encoded), func(t *testing.T) {
			auth, _ := upload{mode: unsignedTrailer, declared: row.declared}.verify(t)
			_, _, err := decode(auth, row.encoded)
			if e := wantCode(t, err, "IncompleteBody"); e.Message != row.message {
				t.Errorf("got %q, want %q", e.Message, row.message)
			}
		})
	}

	auth, encoded := small()["signed"].encode(t)
	_, _, err = decode(auth, strings.Replace(encoded, "abc", "xyz", 1))
	if e := wantCode(t, err, "SignatureDoesNotMatch"); len(e.Details()) != 4 ||
		!strings.HasPrefix(e.Details()[1][1], "AWS4-HMAC-SHA256-PAYLOAD\n") {
		t.Errorf("details %v", e.Details())
	}
}

// The response to a wrong signature contains everything that should have
// been signed, as text and as bytes.
func TestSignatureErrorWords(t *testing.T) {
	const wrong = "incorrect_signature"
	r := exampleSigned(t)
	head, _, _ := strings.Cut(r.Header.Get("Authorization"), "Signature=")
	r.Header.Set("Authorization", head+"Signature="+wrong)
	_, err := verifierAt(exampleTime).Verify(received(t, r))
	header := wantCode(t, err, "SignatureDoesNotMatch").Details()
	fields := postExample()
	fields["x-amz-signature"] = wrong
	_, err = postVerifier(postTime).VerifyPost(fields)
	form := wantCode(t, err, "SignatureDoesNotMatch").Details()
	for _, row := range []struct {
		details [][2]string
		names   string
		key     string
		start   string
	}{
		{header, "AWSAccessKeyId StringToSign SignatureProvided StringToSignBytes CanonicalRequest " +
			"CanonicalRequestBytes", accessKey, "AWS4-HMAC-SHA256\n" + exampleDate},
		{form, "AWSAccessKeyId StringToSign SignatureProvided StringToSignBytes", postAccess, fields["policy"]},
	} {
		got := make(map[string]string)
		var names []string

		for _, d := range row.details {
			names = append(names, d[0])
			got[d[0]] = d[1]
		}

		if strings.Join(names, " ") != row.names || got["AWSAccessKeyId"] != row.key ||
			got["SignatureProvided"] != wrong || !strings.HasPrefix(got["StringToSign"], row.start) {
			t.Errorf("got %v", row.details)
		}

		for name, text := range got {
			if bytes, ok := got[name+"Bytes"]; ok {
				back, err := hex.DecodeString(strings.ReplaceAll(bytes, " ", ""))
				if err != nil || string(back) != text || len(bytes) != 3*len(text)-1 {
					t.Errorf("%s is %q, and %q in bytes", name, text, bytes)
				}
			}
		}
	}
}

// A plain payload with headers of aws-chunked framing must not be stored
// with its framing.
func TestFramingOfPlainPayload(t *testing.T) {
	for _, row := range []struct{ hash, encoding, code string }{
		{unsignedPayload, "aws-chunked", "InvalidArgument"},
		{unsignedPayload, "gzip, AWS-Chunked", "InvalidArgument"},
		{unsignedPayload, "gzip", ""},
		{unsignedPayload, "x-aws-chunked", ""},
		{hexSum("payload"), "aws-chunked", ""}, // for S3, an encoding like any other
	} {
		t.Run(row.encoding, func(t *testing.T) {
			r := newRequest(t, http.MethodPut, bucketURL, "/key", "", "payload")
			r.Header.Set("Content-Encoding", row.encoding)
			sign(t, r, row.hash, exampleTime)
			_, err := verifierAt(exampleTime).Verify(received(t, r))

			if row.code != "" {
				wantCode(t, err, row.code)
			} else if err != nil {
				t.Errorf("%v", err)
			}
		})
	}
}

// A genuine request can be replayed within the skew, but not later.
func TestReplay(t *testing.T) {
	r := received(t, exampleSigned(t))
	for _, row := range []struct {
		after time.Duration
		code  string
	}{
		{0, ""},
		{0, ""},
		{14 * time.Minute, ""},
		{16 * time.Minute, "RequestTimeTooSkewed"},
		{24 * time.Hour, "RequestTimeTooSkewed"},
	} {
		t.Run(fmt.Sprint("after ", row.after), func(t *testing.T) {
			_, err := verifierAt(exampleTime.Add(row.after)).Verify(r)
			var e *sigv4.Error
			if errors.As(err, &e) != (row.code != "") || e != nil && e.Code != row.code {
				t.Errorf("after %s: %v, want %q", row.after, err, row.code)
			}
		})
	}
}
