package sigv4

import (
	"fmt"
	"strconv"
	"time"
)

// Error is a failure in S3's words. It contains no secrets and can be sent
// to the client as it is. Codes are those of
// https://docs.aws.amazon.com/AmazonS3/latest/API/ErrorResponses.html.
type Error struct {
	Code     string
	Message  string
	elements [][2]string
	cause    error
}

func (e *Error) Error() string {
	if e.cause != nil {
		return e.Code + ": " + e.Message + ": " + e.cause.Error()
	}
	return e.Code + ": " + e.Message
}

func (e *Error) Unwrap() error { return e.cause }

// Details returns additional elements of S3's error document, as pairs of
// name and text.
func (e *Error) Details() [][2]string { return e.elements }

// fail returns an Error. details alternate between names and texts.
func fail(code, message string, details ...string) *Error {
	e := &Error{Code: code, Message: message}
	for i := 0; i+1 < len(details); i += 2 {
		e.elements = append(e.elements, [2]string{details[i], details[i+1]})
	}
	return e
}

func badAuthorization(message, authorization string) *Error {
	return fail("InvalidArgument", message, "ArgumentName", "Authorization", "ArgumentValue", authorization)
}

// errSignature includes what the client should have signed, as text and as
// bytes, like S3.
func errSignature(accessKey, toSign, claimed string, more ...string) *Error {
	return fail("SignatureDoesNotMatch", "The request signature we calculated does not match the signature you "+
		"provided. Check your key and signing method.",
		append([]string{
			"AWSAccessKeyId", accessKey, "StringToSign", toSign, "SignatureProvided", claimed,
			"StringToSignBytes", hexBytes(toSign),
		}, more...)...)
}

// hexBytes formats text as S3 does: two hexadecimal digits for each byte,
// separated by spaces.
func hexBytes(text string) string { return fmt.Sprintf("% x", text) }

func errAsymmetric() *Error {
	return fail("NotImplemented", "Signature Version 4A is not implemented by this proxy.")
}

func errOldSignature() *Error {
	return fail("InvalidRequest",
		"The authorization mechanism you have provided is not supported. Please use AWS4-HMAC-SHA256.")
}

func milliseconds(d time.Duration) string { return strconv.FormatInt(d.Milliseconds(), 10) }

func seconds(d time.Duration) string { return strconv.FormatInt(int64(d/time.Second), 10) }
