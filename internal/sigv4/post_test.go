package sigv4_test

import (
	"crypto/hmac"
	"crypto/sha256"
	"encoding/base64"
	"encoding/hex"
	"errors"
	"fmt"
	"maps"
	"strings"
	"testing"
	"time"

	"github.com/cmekproxy/cmekproxy/internal/sigv4"
)

// The example of
// https://docs.aws.amazon.com/AmazonS3/latest/API/sigv4-post-example.html.
const (
	postAccess    = "AKIAIOSFODNN7EXAMPLE"
	postSecret    = "wJalrXUtnFEMI/K7MDENG/bPxRfiCYEXAMPLEKEY"
	postSignature = "8afdbf4008c03f22c2cd3cdb72e4afbb1f6a588f3255ac628749a66d7f09699e"
	postPolicy    = "{ \"expiration\": \"2015-12-30T12:00:00.000Z\",\r\n" +
		"  \"conditions\": [\r\n" +
		"    {\"bucket\": \"sigv4examplebucket\"},\r\n" +
		"    [\"starts-with\", \"$key\", \"user/user1/\"],\r\n" +
		"    {\"acl\": \"public-read\"},\r\n" +
		"    {\"success_action_redirect\": " +
		"\"http://sigv4examplebucket.s3.amazonaws.com/successful_upload.html\"},\r\n" +
		"    [\"starts-with\", \"$Content-Type\", \"image/\"],\r\n" +
		"    {\"x-amz-meta-uuid\": \"14365123651274\"},\r\n" +
		"    {\"x-amz-server-side-encryption\": \"AES256\"},\r\n" +
		"    [\"starts-with\", \"$x-amz-meta-tag\", \"\"],\r\n" +
		"\r\n" +
		"    {\"x-amz-credential\": \"AKIAIOSFODNN7EXAMPLE/20151229/us-east-1/s3/aws4_request\"},\r\n" +
		"    {\"x-amz-algorithm\": \"AWS4-HMAC-SHA256\"},\r\n" +
		"    {\"x-amz-date\": \"20151229T000000Z\" }\r\n" +
		"  ]\r\n}"
)

func postExample() map[string]string {
	return map[string]string{
		"key": "user/user1/photo.jpg", "acl": "public-read",
		"success_action_redirect": "http://sigv4examplebucket.s3.amazonaws.com/successful_upload.html",
		"content-type":            "image/jpeg", "x-amz-meta-uuid": "14365123651274",
		"x-amz-server-side-encryption": "AES256",
		"x-amz-meta-tag":               "",
		"x-amz-credential":             "AKIAIOSFODNN7EXAMPLE/20151229/us-east-1/s3/aws4_request",
		"x-amz-algorithm":              "AWS4-HMAC-SHA256", "x-amz-date": "20151229T000000Z",
		"policy": base64.StdEncoding.EncodeToString([]byte(postPolicy)), "x-amz-signature": postSignature,
	}
}

func postVerifier(now time.Time) *sigv4.Verifier {
	return &sigv4.Verifier{
		Now: func() time.Time { return now },
		Secret: func(accessKey string) (string, bool) {
			if accessKey != postAccess {
				return "", false
			}
			return postSecret, true
		},
	}
}

var postTime = time.Date(2015, 12, 29, 0, 0, 1, 0, time.UTC)

func TestPostGolden(t *testing.T) {
	fields := postExample()
	post, err := postVerifier(postTime).VerifyPost(fields)
	if err != nil || post.AccessKey != postAccess {
		t.Fatalf("%+v, %v", post, err)
	}

	fields["bucket"] = "sigv4examplebucket"
	if err := post.Check(fields); err != nil {
		t.Error(err)
	}
	if err := post.CheckLength(1<<40, 1<<40); err != nil {
		t.Error(err)
	}

	if n := post.Auth(77).DecodedLength(); n != 77 {
		t.Errorf("%d bytes", n)
	}
}

// signPost signs a policy with the example's key.
func signPost(fields map[string]string, policy string) {
	signPostField(fields, base64.StdEncoding.EncodeToString([]byte(policy)))
}

// signPostField is signPost with the policy already encoded.
func signPostField(fields map[string]string, policy string) {
	mac := func(key []byte, text string) []byte {
		h := hmac.New(sha256.New, key)
		h.Write([]byte(text))
		return h.Sum(nil)
	}
	key := mac(mac(mac(mac([]byte("AWS4"+postSecret), "20151229"), "us-east-1"), "s3"), "aws4_request")
	fields["policy"] = policy
	fields["x-amz-signature"] = hex.EncodeToString(mac(key, fields["policy"]))
}

func TestPostIsRefused(t *testing.T) {
	set := func(name, value string) func(map[string]string) {
		return func(f map[string]string) { f[name] = value }
	}

	without := func(name string) func(map[string]string) { return func(f map[string]string) { delete(f, name) } }
	policy := func(text string) func(map[string]string) { return func(f map[string]string) { signPost(f, text) } }
	of := func(conditions string) func(map[string]string) {
		return policy(`{"expiration": "2015-12-30T12:00:00Z", "conditions": ` + conditions + `}`)
	}

	for name, row := range map[string]struct {
		change  func(map[string]string)
		code    string
		message string
	}{
		"another signature": {set("x-amz-signature", strings.Repeat("0", 64)), "SignatureDoesNotMatch", ""},
		"another policy": {
			set("policy", base64.StdEncoding.EncodeToString([]byte(postPolicy+" "))), "SignatureDoesNotMatch", "",
		},
		"another date of the key": {
			set("x-amz-credential", postAccess+"/20151228/us-east-1/s3/aws4_request"), "InvalidArgument",
			"credential date",
		},
		"another region": {
			set("x-amz-credential", postAccess+"/20151229/eu-west-1/s3/aws4_request"), "SignatureDoesNotMatch", "",
		},
		"another service": {
			set("x-amz-credential", postAccess+"/20151229/us-east-1/ec2/aws4_request"), "InvalidArgument",
			"incorrect service",
		},
		"an unknown access key": {
			set("x-amz-credential", "AKIDNOBODY/20151229/us-east-1/s3/aws4_request"), "InvalidAccessKeyId", "",
		},
		"no credential": {
			without("x-amz-credential"), "InvalidArgument", "a field named 'x-amz-credential'",
		},
		"no policy":    {without("policy"), "InvalidArgument", "a field named 'policy'"},
		"no signature": {without("x-amz-signature"), "InvalidArgument", "a field named 'x-amz-signature'"},
		"no date":      {without("x-amz-date"), "InvalidArgument", "a field named 'x-amz-date'"},
		"no algorithm": {without("x-amz-algorithm"), "InvalidArgument", "a field named 'x-amz-algorithm'"},
		"nobody's":     {func(f map[string]string) { clear(f) }, "AccessDenied", "Access Denied"},
		"of version 2": {
			func(f map[string]string) { clear(f); f["awsaccesskeyid"], f["signature"] = "a", "b" },
			"InvalidRequest", "",
		},
		"another algorithm": {
			set("x-amz-algorithm", "AWS4-HMAC-SHA1"), "InvalidArgument", "Only AWS4-HMAC-SHA256 is supported",
		},
		"an asymmetric signature": {set("x-amz-algorithm", "AWS4-ECDSA-P256-SHA256"), "NotImplemented", ""},
		"a date of another form": {
			set("x-amz-date", "2015-12-29"), "InvalidArgument", "X-Amz-Date must be formated via ISO8601 Long format",
		},
		"a session token": {set("x-amz-security-token", "t"), "InvalidToken", ""},
		"an empty policy": {policy(""), "InvalidPolicyDocument", "End-of-Input"},
		"no base64": {
			func(f map[string]string) { signPostField(f, "{}") }, "InvalidPolicyDocument", "invalid Base64 encoding",
		},
		"no JSON":       {policy("x"), "InvalidPolicyDocument", "Invalid JSON"},
		"null":          {policy("null"), "InvalidPolicyDocument", "Invalid JSON"},
		"no object":     {policy("[]"), "InvalidPolicyDocument", "Invalid JSON"},
		"two documents": {policy(postPolicy + "{}"), "InvalidPolicyDocument", "Invalid JSON"},
		"no expiration": {policy(`{"conditions": []}`), "InvalidPolicyDocument", "missing expiration"},
		"no conditions": {
			policy(`{"expiration": "2015-12-30T12:00:00Z"}`), "InvalidPolicyDocument", "missing conditions",
		},
		"an expiration of no form": {
			policy(`{"expiration": "tomorrow", "conditions": []}`), "InvalidPolicyDocument",
			"Invalid 'expiration' value: 'tomorrow'",
		},
		"an expiration of a number": {
			policy(`{"expiration": 5, "conditions": []}`), "InvalidPolicyDocument", "Invalid JSON",
		},
		"something else": {
			policy(`{"expiration": "2015-12-30T12:00:00Z", "conditions": [], "x": 1}`), "InvalidPolicyDocument",
			`Unexpected: "x"`,
		},
		"conditions twice": {
			policy(`{"expiration": "2015-12-30T12:00:00Z", "conditions": [{"key":"a"}], "conditions": []}`),
			"InvalidPolicyDocument", "Invalid JSON",
		},
		"conditions of no list":    {of(`{}`), "InvalidPolicyDocument", "must be a List"},
		"a condition of no list":   {of(`[true]`), "InvalidPolicyDocument", "must be a List or Object"},
		"two fields in one":        {of(`[{"a": "b", "c": "d"}]`), "InvalidPolicyDocument", "exactly one property"},
		"one field twice in one":   {of(`[{"a": "b", "a": "d"}]`), "InvalidPolicyDocument", "exactly one property"},
		"a number":                 {of(`[{"a": 1}]`), "InvalidPolicyDocument", "must be a string"},
		"null for a value":         {of(`[{"a": null}]`), "InvalidPolicyDocument", "must be a string"},
		"no operation":             {of(`[[]]`), "InvalidPolicyDocument", "missing operation"},
		"an operation of a number": {of(`[[5, "$key", "x"]]`), "InvalidPolicyDocument", "Invalid JSON"},
		"a value of a number":      {of(`[["eq", "$key", 5]]`), "InvalidPolicyDocument", "Invalid JSON"},
		"an unknown operation": {
			of(`[["ends-with", "$key", "x"]]`), "InvalidPolicyDocument", "unknown operation 'ends-with'",
		},
		"an argument too many": {
			of(`[["eq", "$key", "x", "y"]]`), "InvalidPolicyDocument", "wrong number of arguments",
		},
		"a range of words": {
			of(`[["content-length-range", "1", "2"]]`), "InvalidPolicyDocument", "Invalid JSON",
		},
		"a range of nothing": {
			of(`[["content-length-range", null, 2]]`), "InvalidPolicyDocument", "Invalid JSON",
		},
		"a field without $": {of(`[["eq", "key", "x"]]`), "AccessDenied", "Policy Condition failed"},
		"an expired policy": {
			policy(`{"expiration": "2015-12-29T00:00:01Z", "conditions": []}`), "AccessDenied", "Policy expired",
		},
	} {
		t.Run(name, func(t *testing.T) {
			fields := postExample()
			row.change(fields)
			_, err := postVerifier(postTime).VerifyPost(fields)
			if failure := (*sigv4.Error)(nil); !errors.As(err, &failure) || failure.Code != row.code ||
				!strings.Contains(failure.Message, row.message) {
				t.Error(err)
			}
		})
	}

	for name, now := range map[string]time.Time{
		"too early": postTime.Add(-time.Hour),
		"too late":  postTime.Add(36 * time.Hour), "a week too late": postTime.Add(8 * 24 * time.Hour),
	} {
		t.Run(name, func(t *testing.T) {
			if _, err := postVerifier(now).VerifyPost(postExample()); err == nil {
				t.Error("it is taken")
			}
		})
	}
}

func TestPostConditions(t *testing.T) {
	for name, row := range map[string]struct {
		conditions string
		fields     map[string]string
		want       string // "" if it is accepted
	}{
		"exact": {`[{"Key": "a"}]`, map[string]string{"key": "a"}, ""},
		"exact, and more": {
			`[{"key": "a"}]`, map[string]string{"key": "ab"}, `Policy Condition failed: ["eq", "$key", "a"]`,
		},
		"eq": {`[["EQ", "$KEY", "a"]]`, map[string]string{"key": "a"}, ""},
		"eq, another case": {
			`[["eq","$key","a"]]`, map[string]string{"key": "A"}, `Policy Condition failed: ["eq","$key","a"]`,
		},
		"starts-with": {`[["starts-with", "$key", "dir/"]]`, map[string]string{"key": "dir/x"}, ""},
		"does not": {
			`[["starts-with","$key","dir/"]]`,
			map[string]string{"key": "di"},
			`Policy Condition failed: ["starts-with","$key","dir/"]`,
		},
		"anything":            {`[["starts-with", "$key", ""]]`, map[string]string{"key": ""}, ""},
		"anything, not there": {`[["starts-with", "$x-amz-meta-a", ""]]`, nil, `Policy Condition failed`},
		"not there":           {`[{"x-amz-meta-a": ""}]`, nil, `Policy Condition failed`},
		"one more": {
			`[{"key": "a"}]`, map[string]string{"key": "a", "x-amz-meta-b": "c"}, "Extra input fields: x-amz-meta-b",
		},
		"a field to be ignored": {`[{"key": "a"}]`, map[string]string{"key": "a", "x-ignore-me": "c"}, ""},
		"of two one holds": {
			`[{"key": "a"}, ["starts-with", "$key", "b"]]`, map[string]string{"key": "a"}, "Policy Condition failed",
		},
		"content types": {
			`[["starts-with", "$Content-Type", "image/"]]`,
			map[string]string{"content-type": "image/jpg, image/png"},
			"",
		},
		"content types, one not": {
			`[["starts-with", "$Content-Type", "image/"]]`,
			map[string]string{"content-type": "image/jpg,text/html"},
			"Policy Condition failed",
		},
	} {
		t.Run(name, func(t *testing.T) {
			fields := postExample()
			signPost(fields, `{"expiration": "2015-12-30T12:00:00Z", "conditions": [{"bucket": "b"}, `+
				strings.TrimPrefix(row.conditions, "[")+`}`)

			post, err := postVerifier(postTime).VerifyPost(fields)
			if err != nil {
				t.Error(err)
				return
			}

			form := map[string]string{"bucket": "b", "policy": "p", "x-amz-signature": "s"}
			maps.Copy(form, row.fields)
			err = post.Check(form)
			if (err == nil) != (row.want == "") || err != nil && !strings.Contains(err.Error(), row.want) {
				t.Error(err)
			}

			form["bucket"] = "other"
			if err := post.Check(form); err == nil {
				t.Error("another bucket is taken")
			}
		})
	}

	fields := postExample()
	signPost(fields, `{"expiration": "2015-12-30T12:00:00Z", "conditions": [["content-length-range", 2, 5], `+
		`["content-length-range", 0, 4]]}`)
	post, err := postVerifier(postTime).VerifyPost(fields)
	if err != nil {
		t.Fatal(err)
	}

	for n, want := range map[int64]string{1: "EntityTooSmall", 2: "", 4: "", 5: "EntityTooLarge", 6: "EntityTooLarge"} {
		t.Run(fmt.Sprintf("%d bytes", n), func(t *testing.T) {
			if err := post.CheckLength(n, n); (err == nil) != (want == "") ||
				err != nil && !strings.HasPrefix(err.Error(), want) {
				t.Errorf("%d bytes: %v", n, err)
			}
		})
	}

	if err := post.Check(map[string]string{}); err == nil {
		t.Error("a policy that names no bucket is taken")
	}
}

// A form with a field that the policy does not name is refused, and an
// altered policy is never parsed.
func FuzzPostPolicy(f *testing.F) {
	f.Add(postPolicy, "key", "user/user1/x", 3)
	f.Add(`{"expiration": "2015-12-30T12:00:00Z", "conditions": [{"bucket": "b"}, ["starts-with", "$key", ""],`+
		` ["content-length-range", 0, 10]]}`, "key", "a", 40)

	f.Add(`{"expiration": "2015-12-30T12:00:00Z", "conditions": [["eq", "$bucket", "b"], {"$key": "\u0061"}]}`,
		"$key", "a", 0)
	f.Fuzz(func(t *testing.T, policy, name, value string, at int) {
		fields := postExample()
		signPost(fields, policy)
		post, err := postVerifier(postTime).VerifyPost(fields)
		if failure := (*sigv4.Error)(nil); err != nil && !errors.As(err, &failure) {
			t.Fatalf("%T: %v", err, err)
		}

		if err == nil {
			form := map[string]string{"bucket": "b", strings.ToLower(name): value}
			if post.Check(form) == nil && !strings.Contains(strings.ToLower(policy), "bucket") &&
				!strings.Contains(policy, `\u`) {
				t.Errorf("a policy without a bucket is met: %q", policy)
			}

			form["x-amz-meta-nobody-has-named-this"] = value
			if post.Check(form) == nil && !strings.Contains(policy, `\u`) &&
				!strings.Contains(strings.ToLower(policy), "x-amz-meta-nobody-has-named-this") {
				t.Errorf("a field that it does not name: %q", policy)
			}

			_ = post.CheckLength(int64(at), int64(at))
		}

		if text := []byte(fields["policy"]); len(text) > 0 {
			text[uint(at)%uint(len(text))] ^= 1
			fields["policy"] = string(text)
			if _, err := postVerifier(postTime).VerifyPost(fields); err == nil {
				t.Error("an altered policy is taken")
			}
		}
	})
}
