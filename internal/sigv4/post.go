package sigv4

import (
	"bytes"
	"crypto/subtle"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"io"
	"strconv"
	"strings"
	"time"
)

// Post is a form upload whose policy has been authenticated. The string to
// sign is the policy in base64, exactly as in the form.
//
// https://docs.aws.amazon.com/AmazonS3/latest/API/sigv4-authentication-HTTPPOST.html
type Post struct {
	AccessKey string

	conditions []condition
	ranges     []lengthRange
}

// postFields are the fields that sign a form.
var postFields = []string{"policy", "x-amz-algorithm", "x-amz-credential", "x-amz-date", "x-amz-signature"}

// VerifyPost authenticates a form. The names in fields are in lower case.
// The policy is parsed only after its signature has been verified. The
// caller must still call Check and CheckLength. Every error is an *Error.
func (v *Verifier) VerifyPost(fields map[string]string) (*Post, error) {
	c, err := postClaim(fields)
	if err != nil {
		return nil, err
	}

	now := v.Now()
	skew := v.MaxSkew
	if skew == 0 {
		skew = defaultSkew
	}
	if c.time.Sub(now) > skew {
		return nil, fail("AccessDenied", "Request is not yet valid")
	}

	if now.Sub(c.time) > maxPresignedAge { // a signing key is valid for seven days
		return nil, fail("AccessDenied", "Invalid according to Policy: Policy expired.")
	}

	policy := fields["policy"]
	secret, known := v.Secret(c.accessKey)
	known = known && secret != "" // anyone could sign with an empty secret
	want := v.SigningKeys.get(secret, c.scope).sign(nil, []byte(policy))
	genuine := subtle.ConstantTimeCompare(want, []byte(c.signature)) == 1

	if !known {
		return nil, fail("InvalidAccessKeyId", "The AWS Access Key Id you provided does not exist in our records.",
			"AWSAccessKeyId", c.accessKey)
	}
	if !genuine {
		return nil, errSignature(c.accessKey, policy, c.signature)
	}

	if err := v.checkToken(c); err != nil {
		return nil, err
	}

	p := &Post{AccessKey: c.accessKey}
	expiration, err := p.parse(policy)
	if err != nil {
		return nil, err
	}
	if !now.Before(expiration) {
		return nil, fail("AccessDenied", "Invalid according to Policy: Policy expired.")
	}

	return p, nil
}

func postClaim(fields map[string]string) (*claim, error) {
	signed := false
	for _, name := range postFields {
		signed = signed || fields[name] != ""
	}

	switch {
	case fields["awsaccesskeyid"] != "" || fields["signature"] != "":
		return nil, errOldSignature()
	case !signed:
		return nil, fail("AccessDenied", "Access Denied")
	}

	for _, name := range postFields {
		if _, ok := fields[name]; !ok {
			return nil, fail("InvalidArgument", "Bucket POST must contain a field named '"+name+
				"'.  If it is specified, please check the order of the fields.",
				"ArgumentName", name, "ArgumentValue", "")
		}
	}

	switch used := fields["x-amz-algorithm"]; {
	case strings.HasPrefix(used, "AWS4-ECDSA"):
		return nil, errAsymmetric()
	case used != algorithm:
		return nil, fail("InvalidArgument", "Only AWS4-HMAC-SHA256 is supported", "ArgumentName", "X-Amz-Algorithm",
			"ArgumentValue", used)
	}

	c := &claim{signature: fields["x-amz-signature"]}
	if err := c.setCredential(fields["x-amz-credential"]); err != nil {
		return nil, fail("InvalidArgument",
			strings.TrimPrefix(err.Error(), "AuthorizationHeaderMalformed: The authorization header is malformed; "),
			"ArgumentName", "x-amz-credential", "ArgumentValue", fields["x-amz-credential"])
	}

	var err error
	if c.time, err = parseTime(fields["x-amz-date"]); err != nil {
		return nil, fail("InvalidArgument", "X-Amz-Date must be formated via ISO8601 Long format", // sic
			"ArgumentName", "X-Amz-Date", "ArgumentValue", fields["x-amz-date"])
	}
	if c.scope.date != c.time.Format(dateFormat) {
		return nil, fail("InvalidArgument", "Invalid credential date \""+c.scope.date+
			"\". This date is not the same as X-Amz-Date: \""+c.time.Format(dateFormat)+"\".",
			"ArgumentName", "x-amz-credential", "ArgumentValue", fields["x-amz-credential"])
	}

	c.token = fields["x-amz-security-token"] // Check requires the policy to name this field

	return c, nil
}

// Auth returns the form as an authenticated request, whose payload is the
// file of length bytes.
func (p *Post) Auth(length int64) *Auth { return &Auth{AccessKey: p.AccessKey, length: length} }

// condition is a policy condition on one field.
type condition struct {
	field  string // in lower case
	value  string
	prefix bool // value is only a prefix
	text   string
}

// lengthRange is the allowed length of the file, in bytes.
type lengthRange struct{ least, most int64 }

// Check compares the form with the policy. Every condition must hold, and
// every field must have a condition. In fields, variables must already be
// replaced, and "bucket" must be the bucket of the request.
func (p *Post) Check(fields map[string]string) error {
	covered := make(map[string]bool)
	for _, c := range p.conditions {
		covered[c.field] = true
	}

	if !covered["bucket"] {
		return fail("AccessDenied", "Invalid according to Policy: Extra input fields: bucket")
	}

	for name := range fields {
		switch name {
		case "policy", "x-amz-signature", "file":
			continue
		}

		if !covered[name] && !strings.HasPrefix(name, "x-ignore-") {
			return fail("AccessDenied", "Invalid according to Policy: Extra input fields: "+name)
		}
	}

	for _, c := range p.conditions {
		if value, ok := fields[c.field]; !ok || !c.holds(value) {
			return fail("AccessDenied", "Invalid according to Policy: Policy Condition failed: "+c.text)
		}
	}

	return nil
}

// holds reports whether a value meets the condition. A Content-Type can be
// a list separated by commas; then each entry must have the prefix.
func (c condition) holds(value string) bool {
	if !c.prefix {
		return value == c.value
	}

	values := []string{value}
	if c.field == "content-type" {
		values = strings.Split(value, ",")
	}

	for i, one := range values {
		if i > 0 {
			one = strings.TrimSpace(one)
		}
		if !strings.HasPrefix(one, c.value) {
			return false
		}
	}

	return true
}

// CheckLength compares the length of the file, in bytes, with the policy. A
// caller that does not know it yet passes the limits within which it is.
func (p *Post) CheckLength(least, most int64) error {
	for _, r := range p.ranges {
		switch {
		case least > r.most:
			return fail("EntityTooLarge", "Your proposed upload exceeds the maximum allowed object size.",
				"ProposedSize", strconv.FormatInt(least, 10), "MaxSizeAllowed", strconv.FormatInt(r.most, 10))
		case most < r.least:
			return fail("EntityTooSmall", "Your proposed upload is smaller than the minimum allowed size",
				"ProposedSize", strconv.FormatInt(most, 10), "MinSizeAllowed", strconv.FormatInt(r.least, 10))
		}
	}

	return nil
}

// parse parses the policy:
// https://docs.aws.amazon.com/AmazonS3/latest/API/sigv4-HTTPPOSTConstructPolicy.html.
func (p *Post) parse(policy string) (expiration time.Time, err error) {
	if policy == "" {
		return expiration, badPolicy("Expecting '{' but found End-of-Input")
	}

	text, err := base64.StdEncoding.DecodeString(policy)
	if err != nil {
		return expiration, badPolicy("invalid Base64 encoding.")
	}

	var doc map[string]json.RawMessage
	if err := parseStrictObject(text, &doc); err != nil || doc == nil {
		return expiration, badPolicy("Invalid JSON.")
	}

	for name := range doc {
		if name != "expiration" && name != "conditions" {
			return expiration, badPolicy(fmt.Sprintf("Unexpected: %q", name))
		}
	}

	if expiration, err = parseExpiration(doc["expiration"]); err != nil {
		return expiration, err
	}

	var list []json.RawMessage
	switch conditions, ok := doc["conditions"]; {
	case !ok:
		return expiration, badPolicy("Policy missing conditions.")
	case json.Unmarshal(conditions, &list) != nil || list == nil:
		return expiration, badPolicy("Invalid 'conditions' value: must be a List.")
	}

	for _, one := range list {
		if err := p.parseCondition(one); err != nil {
			return expiration, err
		}
	}

	return expiration, nil
}

func parseExpiration(text json.RawMessage) (time.Time, error) {
	if text == nil {
		return time.Time{}, badPolicy("Policy missing expiration.")
	}

	var said string
	if err := json.Unmarshal(text, &said); err != nil {
		return time.Time{}, badPolicy("Invalid JSON.")
	}

	at, err := time.Parse(time.RFC3339, said)
	if err != nil {
		return at, badPolicy("Invalid 'expiration' value: '" + said + "'")
	}

	return at, nil
}

// parseCondition parses one of {"field": "value"}, ["eq", "$field",
// "value"], ["starts-with", "$field", "value"] and ["content-length-range",
// least, most].
func (p *Post) parseCondition(text json.RawMessage) error {
	switch text[0] {
	case '{':
		var simple map[string]json.RawMessage
		if err := parseStrictObject(text, &simple); err != nil || len(simple) != 1 {
			return badPolicy("Invalid Simple-Condition: Simple-Conditions must have exactly one property specified.")
		}

		for name, raw := range simple {
			var value string
			if !isString(raw) || json.Unmarshal(raw, &value) != nil {
				return badPolicy("Invalid Simple-Condition: value must be a string.")
			}

			p.conditions = append(p.conditions, condition{
				field: strings.ToLower(name), value: value, text: fmt.Sprintf(`["eq", "$%s", "%s"]`, name, value),
			})
		}

		return nil
	case '[':
		var list []json.RawMessage
		if err := json.Unmarshal(text, &list); err != nil {
			return badPolicy("Invalid JSON.")
		}
		return p.parseList(text, list)
	default:
		return badPolicy("Invalid condition test: must be a List or Object.")
	}
}

func (p *Post) parseList(text json.RawMessage, list []json.RawMessage) error {
	if len(list) == 0 {
		return badPolicy("Invalid Condition: missing operation identifier.")
	}

	var op string
	if !isString(list[0]) || json.Unmarshal(list[0], &op) != nil {
		return badPolicy("Invalid JSON.")
	}

	op = strings.ToLower(op)
	if op != "eq" && op != "starts-with" && op != "content-length-range" {
		return badPolicy("Invalid Condition: unknown operation '" + op + "'.")
	}
	if len(list) != 3 {
		return badPolicy("Invalid " + op + ": wrong number of arguments.")
	}

	if op == "content-length-range" {
		var r lengthRange
		if json.Unmarshal(list[1], &r.least) != nil || json.Unmarshal(list[2], &r.most) != nil ||
			string(list[1]) == "null" || string(list[2]) == "null" {
			return badPolicy("Invalid JSON.")
		}

		p.ranges = append(p.ranges, r)
		return nil
	}

	var field, value string
	if !isString(list[1]) || !isString(list[2]) || json.Unmarshal(list[1], &field) != nil ||
		json.Unmarshal(list[2], &value) != nil {
		return badPolicy("Invalid JSON.")
	}

	c := condition{
		field: strings.ToLower(strings.TrimPrefix(field, "$")), value: value, prefix: op == "starts-with",
		text: string(text),
	}
	if !strings.HasPrefix(field, "$") || c.field == "" {
		return fail("AccessDenied", "Invalid according to Policy: Policy Condition failed: "+c.text)
	}

	p.conditions = append(p.conditions, c)
	return nil
}

// isString reports whether text is a JSON string. encoding/json would also
// accept null for a string.
func isString(text json.RawMessage) bool { return len(text) > 0 && text[0] == '"' }

// parseStrictObject parses a JSON object, and fails if a name occurs twice:
// JSON parsers disagree on which of the two values counts.
func parseStrictObject(text []byte, into *map[string]json.RawMessage) error {
	if err := json.Unmarshal(text, into); err != nil {
		return err
	}

	d := json.NewDecoder(bytes.NewReader(text))
	if _, err := d.Token(); err != nil { // the opening brace
		return err
	}

	names := make(map[string]bool)
	for d.More() {
		name, err := d.Token()
		if err != nil {
			return err
		}

		text, ok := name.(string)
		if !ok || names[text] {
			return io.ErrUnexpectedEOF
		}

		names[text] = true
		var value json.RawMessage
		if err := d.Decode(&value); err != nil {
			return err
		}
	}

	return nil
}

func badPolicy(why string) *Error {
	return fail("InvalidPolicyDocument", "Invalid Policy: "+why)
}
