package sigv4_test

import (
	"maps"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/cmekproxy/cmekproxy/internal/sigv4"
)

const (
	sessionKey    = "ASIAIOSFODNN7EXAMPLE"
	sessionSecret = "secret-of-the-session"
	sessionToken  = "FQoGZXIvYXdzEXAMPLE//token+with=signs"
)

// sessionVerifier knows the credentials of the examples, and temporary ones
// that are valid for an hour after now.
func sessionVerifier(now time.Time) *sigv4.Verifier {
	v := verifierAt(now)
	own := v.Secret
	v.Secret = func(key string) (string, bool) {
		if key == sessionKey {
			return sessionSecret, true
		}
		return own(key)
	}

	v.Session = func(key string) (string, time.Time, bool) {
		return sessionToken, exampleTime.Add(time.Hour), key == sessionKey
	}

	return v
}

func TestSessionToken(t *testing.T) {
	type credentials struct{ key, secret string }
	temporary, own := credentials{sessionKey, sessionSecret}, credentials{accessKey, secretKey}
	for _, row := range []struct {
		name   string
		by     credentials
		tokens []string
		at     time.Duration // after the signature's time
		code   string        // "" for success
	}{
		{"good", temporary, []string{sessionToken}, 0, ""},
		{"a moment before it expires", temporary, []string{sessionToken}, time.Hour - time.Second, ""},
		{"when it expires", temporary, []string{sessionToken}, time.Hour, "ExpiredToken"},
		{"expired", temporary, []string{sessionToken}, 2 * time.Hour, "ExpiredToken"},
		{"missing", temporary, nil, 0, "InvalidAccessKeyId"},
		{"empty, which is the same as missing", temporary, []string{""}, 0, "InvalidAccessKeyId"},
		{"empty with a client's own key", own, []string{""}, 0, ""},
		{"twice, one of them empty", temporary, []string{"", sessionToken}, 0, "InvalidToken"},
		{"empty twice with a client's own key", own, []string{"", ""}, 0, "InvalidToken"},
		{"another", temporary, []string{"another"}, 0, "InvalidToken"},
		{"a piece", temporary, []string{sessionToken[:20]}, 0, "InvalidToken"},
		{"longer", temporary, []string{sessionToken + "x"}, 0, "InvalidToken"},
		{"twice", temporary, []string{sessionToken, sessionToken}, 0, "InvalidToken"},
		{"with a client's own key", own, []string{sessionToken}, 0, "InvalidToken"},
		{"another secret", credentials{sessionKey, secretKey}, []string{sessionToken}, 0, "SignatureDoesNotMatch"},
		{
			"another secret, and expired",
			credentials{sessionKey, secretKey},
			[]string{sessionToken},
			2 * time.Hour,
			"SignatureDoesNotMatch",
		},
		{"none with a client's own key", own, nil, 0, ""},
	} {
		t.Run(row.name, func(t *testing.T) {
			signedAt := exampleTime.Add(row.at)
			r := newRequest(t, http.MethodGet, bucketURL, "/key", "", "")
			r.Header["X-Amz-Security-Token"] = row.tokens

			if row.tokens == nil {
				delete(r.Header, "X-Amz-Security-Token")
			}

			r.Header.Set("X-Amz-Content-Sha256", emptyHash)
			signWith(t, r, row.by.key, row.by.secret, emptyHash, signedAt)
			_, err := sessionVerifier(signedAt).Verify(received(t, r))
			switch {
			case row.code == "" && err != nil:
				t.Error(err)
			case row.code != "":
				wantCode(t, err, row.code)
			}
		})
	}
}

func TestSessionTokenOfURL(t *testing.T) {
	token := strings.NewReplacer("/", "%2F", "+", "%2B", "=", "%3D").Replace(sessionToken)
	for _, row := range []struct{ name, query, header, code string }{
		{"good", "X-Amz-Security-Token=" + token, "", ""},
		{"in a signed header", "", sessionToken, ""},
		{"both", "X-Amz-Security-Token=" + token, sessionToken, ""},
		{"two that differ", "X-Amz-Security-Token=" + token, "another", "InvalidToken"},
		{"another", "X-Amz-Security-Token=another", "", "InvalidToken"},
		{"empty, which is the same as missing", "X-Amz-Security-Token=", "", "InvalidAccessKeyId"},
		{"empty, and in a signed header", "X-Amz-Security-Token=", sessionToken, ""},
		{"missing", "", "", "InvalidAccessKeyId"},
		{
			"twice", "X-Amz-Security-Token=" + token + "&X-Amz-Security-Token=" + token, "",
			"AuthorizationQueryParametersError",
		},
		{"in lower case", "x-amz-security-token=" + token, "", "InvalidAccessKeyId"},
	} {
		t.Run(row.name, func(t *testing.T) {
			r := newRequest(t, http.MethodGet, bucketURL, "/key", row.query, "")
			if row.header != "" {
				r.Header.Set("X-Amz-Security-Token", row.header)
			}

			r = presignWith(t, r, sessionKey, sessionSecret, unsignedPayload, exampleTime, "60")
			_, err := sessionVerifier(exampleTime).Verify(received(t, r))
			switch {
			case row.code == "" && err != nil:
				t.Error(err)
			case row.code != "":
				wantCode(t, err, row.code)
			}
		})
	}
}

func TestIsAnonymous(t *testing.T) {
	for _, row := range []struct {
		name  string
		query string
		want  bool
	}{
		{"nothing", "", true},
		{"a parameter", "versionId=1", true},
		{"a signature", "X-Amz-Signature=a", false},
		{"a credential", "X-Amz-Credential=a", false},
		{"an algorithm", "X-Amz-Algorithm=a", false},
		{"SigV2", "AWSAccessKeyId=a", false},
		{"half of SigV2", "Signature=a", false},
		{"no query at all", "a=%zz", false},
	} {
		t.Run(row.name, func(t *testing.T) {
			r := newRequest(t, http.MethodGet, bucketURL, "/key", row.query, "")
			if got := sigv4.IsAnonymous(r); got != row.want {
				t.Errorf("%v", got)
			}

			r.Header.Set("Authorization", "")
			if sigv4.IsAnonymous(r) {
				t.Error("with an empty Authorization header: anonymous")
			}
		})
	}
}

func TestAnonymousPayload(t *testing.T) {
	for _, row := range []struct {
		name   string
		header http.Header
		code   string
	}{
		{"nothing said", nil, ""},
		{"hashed", http.Header{"X-Amz-Content-Sha256": {hexSum("body")}}, ""},
		{"signed chunks", http.Header{
			"X-Amz-Content-Sha256":         {signedChunks},
			"X-Amz-Decoded-Content-Length": {"4"},
		}, "InvalidRequest"},
		{"a signed trailer", http.Header{
			"X-Amz-Content-Sha256":         {signedTrailer},
			"X-Amz-Decoded-Content-Length": {"4"},
		}, "InvalidRequest"},
		{"two hashes", http.Header{"X-Amz-Content-Sha256": {hexSum("body"), hexSum("body")}}, "InvalidRequest"},
		{"a session token", http.Header{"X-Amz-Security-Token": {"token"}}, "InvalidToken"},
		{"an empty session token", http.Header{"X-Amz-Security-Token": {""}}, ""},
		{"a session token behind an empty one", http.Header{"X-Amz-Security-Token": {"", "token"}}, "InvalidToken"},
		{"no hash", http.Header{"X-Amz-Content-Sha256": {"nonsense"}}, "InvalidArgument"},
		{"no length", http.Header{"X-Amz-Content-Sha256": {unsignedTrailer}}, "MissingContentLength"},
	} {
		t.Run(row.name, func(t *testing.T) {
			r := newRequest(t, http.MethodPut, bucketURL, "/key", "", "body")
			maps.Copy(r.Header, row.header)
			auth, err := sigv4.Anonymous(r)
			switch {
			case row.code != "":
				wantCode(t, err, row.code)
			case err != nil || auth.DecodedLength() != 4 || auth.AccessKey != "":
				t.Errorf("%+v, %v", auth, err)
			}
		})
	}
}

// A form with temporary credentials needs their token, in a field that the
// policy names.
func TestSessionTokenOfForm(t *testing.T) {
	const conditions = `{"bucket":"b"},["starts-with","$x-amz-credential",""],["starts-with","$x-amz-date",` +
		`""],["starts-with","$x-amz-algorithm",""]`
	verifier := func(now time.Time) *sigv4.Verifier {
		v := postVerifier(now)
		v.Session = func(string) (string, time.Time, bool) { return sessionToken, postTime.Add(time.Hour), true }
		return v
	}

	for _, row := range []struct {
		name, token, covered string
		at                   time.Duration
		code                 string
	}{
		{"good", sessionToken, `,["eq","$x-amz-security-token","` + sessionToken + `"]`, 0, ""},
		{"not in the policy", sessionToken, "", 0, "AccessDenied"},
		{"another", "another", `,["eq","$x-amz-security-token","another"]`, 0, "InvalidToken"},
		{"missing", "-", "", 0, "InvalidAccessKeyId"},
		{"empty, which is the same as missing", "", `,["eq","$x-amz-security-token",""]`, 0, "InvalidAccessKeyId"},
		{"expired", sessionToken, `,["eq","$x-amz-security-token","` + sessionToken + `"]`, time.Hour, "ExpiredToken"},
	} {
		t.Run(row.name, func(t *testing.T) {
			fields := postExample()
			for name := range fields {
				if !strings.HasPrefix(name, "x-amz-") || strings.HasPrefix(name, "x-amz-meta-") ||
					strings.HasPrefix(name, "x-amz-server") {
					delete(fields, name)
				}
			}

			if row.token != "-" {
				fields["x-amz-security-token"] = row.token
			}

			signPost(fields, `{"expiration":"2015-12-30T12:00:00Z","conditions":[`+conditions+row.covered+`]}`)
			fields["bucket"] = "b"
			post, err := verifier(postTime.Add(row.at)).VerifyPost(fields)
			if err == nil {
				err = post.Check(fields)
			}

			switch {
			case row.code == "" && err != nil:
				t.Error(err)
			case row.code != "":
				wantCode(t, err, row.code)
			}
		})
	}
}

// SDKs sign the empty token of AWS_SESSION_TOKEN= along.
func TestEmptySessionTokenOfForm(t *testing.T) {
	for _, row := range []struct{ name, covered, code string }{
		{"in the policy", `,["eq","$x-amz-security-token",""]`, ""},
		{"not in the policy", "", "AccessDenied"},
	} {
		t.Run(row.name, func(t *testing.T) {
			fields := map[string]string{"bucket": "b", "x-amz-security-token": ""}
			for _, name := range []string{"x-amz-credential", "x-amz-date", "x-amz-algorithm"} {
				fields[name] = postExample()[name]
			}

			signPost(fields, `{"expiration":"2015-12-30T12:00:00Z","conditions":[{"bucket":"b"},`+
				`["starts-with","$x-amz-credential",""],["starts-with","$x-amz-date",""],`+
				`["starts-with","$x-amz-algorithm",""]`+row.covered+`]}`)
			post, err := postVerifier(postTime).VerifyPost(fields)
			if err == nil {
				err = post.Check(fields)
			}

			switch {
			case row.code == "" && err != nil:
				t.Error(err)
			case row.code != "":
				wantCode(t, err, row.code)
			}
		})
	}
}

// The canonical request ends with x-amz-content-sha256, so it is covered by
// the signature of a client that does not list it in SignedHeaders.
func TestPayloadHashNotInSignedHeaders(t *testing.T) {
	for _, row := range []struct{ name, signed, sent, code string }{
		{"the signed one", emptyHash, emptyHash, ""},
		{"another", emptyHash, hexSum("body"), "SignatureDoesNotMatch"},
		{"unsigned instead", emptyHash, unsignedPayload, "SignatureDoesNotMatch"},
		{"hash instead of unsigned", unsignedPayload, emptyHash, "SignatureDoesNotMatch"},
		{"none", emptyHash, "", "InvalidRequest"},
	} {
		t.Run(row.name, func(t *testing.T) {
			r := newRequest(t, http.MethodGet, bucketURL, "/key", "", "")
			signWith(t, r, accessKey, secretKey, row.signed, exampleTime)
			if strings.Contains(r.Header.Get("Authorization"), "x-amz-content-sha256") {
				t.Fatal("the test's request has the hash among SignedHeaders")
			}

			if row.sent != "" {
				r.Header.Set("X-Amz-Content-Sha256", row.sent)
			}
			_, err := verifierAt(exampleTime).Verify(received(t, r))
			switch {
			case row.code == "" && err != nil:
				t.Error(err)
			case row.code != "":
				wantCode(t, err, row.code)
			}
		})
	}
}
