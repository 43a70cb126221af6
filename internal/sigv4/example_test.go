package sigv4_test

import (
	"errors"
	"fmt"
	"io"
	"log"
	"net/http/httptest"
	"strings"
	"time"

	"github.com/cmekproxy/cmekproxy/internal/sigv4"
)

// The request and its signature are from the AWS documentation:
// https://docs.aws.amazon.com/AmazonS3/latest/API/sig-v4-header-based-auth.html.
func ExampleVerifier_Verify() {
	verifier := &sigv4.Verifier{
		Now: func() time.Time { return time.Date(2013, 5, 24, 0, 0, 0, 0, time.UTC) },
		Secret: func(accessKey string) (secret string, ok bool) {
			return "wJalrXUtnFEMI/K7MDENG/bPxRfiCYEXAMPLEKEY", accessKey == "AKIAIOSFODNN7EXAMPLE"
		},
	}

	r := httptest.NewRequest("PUT", "/test%24file.text", strings.NewReader("Welcome to Amazon S3."))
	r.Host = "examplebucket.s3.amazonaws.com"
	r.Header.Set("Date", "Fri, 24 May 2013 00:00:00 GMT")
	r.Header.Set("X-Amz-Date", "20130524T000000Z")
	r.Header.Set("X-Amz-Storage-Class", "REDUCED_REDUNDANCY")
	r.Header.Set("X-Amz-Content-Sha256", "44ce7dd67c959e0d3524ffac1771dfbba87d2b6b4b4e99e42034a8b803f8b072")

	r.Header.Set("Authorization", "AWS4-HMAC-SHA256 "+
		"Credential=AKIAIOSFODNN7EXAMPLE/20130524/us-east-1/s3/aws4_request,"+
		"SignedHeaders=date;host;x-amz-content-sha256;x-amz-date;x-amz-storage-class,"+
		"Signature=98ad721746da40c64f1a55b78f14c238d841ea1380cd77a1b5971af0ece108bd")

	auth, err := verifier.Verify(r)
	if err != nil {
		log.Fatal(err)
	}

	payload, err := io.ReadAll(auth.Body(r.Body)) // fails if it differs from what was signed
	if err != nil {
		log.Fatal(err)
	}

	fmt.Println(auth.AccessKey, "sends:", string(payload))

	// A signed request cannot be changed.
	r.Header.Set("X-Amz-Storage-Class", "STANDARD")
	_, err = verifier.Verify(r)
	if refused, ok := errors.AsType[*sigv4.Error](err); ok {
		fmt.Println("changed:", refused.Code)
	}
	// Output:
	// AKIAIOSFODNN7EXAMPLE sends: Welcome to Amazon S3.
	// changed: SignatureDoesNotMatch
}
