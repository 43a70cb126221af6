package kms

import (
	"cmp"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"sync/atomic"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	awskms "github.com/aws/aws-sdk-go-v2/service/kms"
	"github.com/aws/aws-sdk-go-v2/service/kms/schemas"
	"github.com/aws/smithy-go"
	smithyhttp "github.com/aws/smithy-go/transport/http"
)

// The operations of AWS KMS that are called, as the SDK describes them.
var (
	awsDecrypt = smithy.NewOperationSchema(
		schemas.Decrypt, schemas.DecryptRequest, schemas.DecryptResponse)
	awsDescribe = smithy.NewOperationSchema(
		schemas.DescribeKey, schemas.DescribeKeyRequest, schemas.DescribeKeyResponse)
	awsEncrypt = smithy.NewOperationSchema(
		schemas.Encrypt, schemas.EncryptRequest, schemas.EncryptResponse)
	awsGenerate = smithy.NewOperationSchema(
		schemas.GenerateDataKey, schemas.GenerateDataKeyRequest, schemas.GenerateDataKeyResponse)
	awsGetPolicy = smithy.NewOperationSchema(
		schemas.GetKeyPolicy, schemas.GetKeyPolicyRequest, schemas.GetKeyPolicyResponse)
	awsGrants = smithy.NewOperationSchema(
		schemas.ListGrants, schemas.ListGrantsRequest, schemas.ListGrantsResponse)
	awsRotation = smithy.NewOperationSchema(
		schemas.GetKeyRotationStatus, schemas.GetKeyRotationStatusRequest, schemas.GetKeyRotationStatusResponse)
)

// awsAPI calls AWS KMS with the parts of the SDK: its settings, rules for
// endpoints, signer, and the code for requests, responses and errors. It does
// without the SDK's client, which builds 30 steps of middleware for each call
// and takes twice the CPU time (docs/adr/0026-kms-calls.md).
type awsAPI struct {
	options  awskms.Options
	endpoint url.URL
	skew     atomic.Int64 // how far AWS's clock is ahead, in nanoseconds
}

// newAWSAPI takes the options of the SDK's client.
func newAWSAPI(ctx context.Context, options awskms.Options) (*awsAPI, error) {
	if !smithyhttp.ValidHostLabel(options.Region) {
		return nil, fmt.Errorf("%q is not the name of a region", options.Region)
	}

	found, err := options.EndpointResolverV2.ResolveEndpoint(ctx, awskms.EndpointParameters{
		Region:       &options.Region,
		UseDualStack: aws.Bool(options.EndpointOptions.UseDualStackEndpoint == aws.DualStackEndpointStateEnabled),
		UseFIPS:      aws.Bool(options.EndpointOptions.UseFIPSEndpoint == aws.FIPSEndpointStateEnabled),
		Endpoint:     options.BaseEndpoint,
	})
	if err != nil {
		return nil, fmt.Errorf("finding the endpoint of AWS KMS: %w", err)
	}
	if err := smithyhttp.ValidateEndpointHost(found.URI.Host); err != nil {
		return nil, fmt.Errorf("the endpoint of AWS KMS: %w", err)
	}

	a := &awsAPI{options: options}
	a.endpoint = url.URL{Scheme: found.URI.Scheme, Host: found.URI.Host, Path: smithyhttp.JoinPath(found.URI.Path, "/")}
	return a, nil
}

// call makes one attempt at a call. Its errors are those of the SDK.
func (a *awsAPI) call(
	ctx context.Context, creds aws.Credentials, operation *smithy.OperationSchema,
	in smithy.Serializable, out smithy.Deserializable,
) error {
	req, err := a.newRequest(ctx, creds, operation, in)
	if err != nil {
		return err
	}

	resp, err := a.options.HTTPClient.Do(req)
	if err != nil {
		return &smithyhttp.RequestSendError{Err: err}
	}
	defer resp.Body.Close()

	a.learnSkew(resp.Header)
	traceRequest(ctx, awsRequestID(resp.Header))
	if err := checkAWSAnswer(awskms.ServiceID, resp); err != nil {
		return err
	}

	return a.options.Protocol.DeserializeResponse(
		ctx, operation, awskms.TypeRegistry, &smithyhttp.Response{Response: resp}, out)
}

// newRequest returns a signed request.
func (a *awsAPI) newRequest(
	ctx context.Context, creds aws.Credentials, operation *smithy.OperationSchema, in smithy.Serializable,
) (*http.Request, error) {
	unsent := smithyhttp.NewStackRequest().(*smithyhttp.Request) //nolint:forcetypeassert // its documented type
	if err := a.options.Protocol.SerializeRequest(ctx, operation, in, unsent); err != nil {
		return nil, err
	}

	body := unsent.GetStream()
	hash := sha256.New()
	if _, err := io.Copy(hash, body); err != nil {
		return nil, err
	}
	if err := unsent.RewindStream(); err != nil {
		return nil, err
	}

	req := unsent.WithContext(ctx)
	req.URL = new(a.endpoint)
	req.Body = io.NopCloser(body)
	req.Header["User-Agent"] = []string{"cmekproxy"}

	now := time.Now().Add(time.Duration(a.skew.Load()))
	err := a.options.HTTPSignerV4.SignHTTP(
		ctx, creds, req, hex.EncodeToString(hash.Sum(nil)), "kms", a.options.Region, now)
	return req, err
}

// learnSkew compares AWS's clock with ours, because AWS refuses signatures
// whose time is off by more than 5 minutes. Answers from a cache do not count.
func (a *awsAPI) learnSkew(header http.Header) {
	date, err := http.ParseTime(header.Get("Date"))
	if err != nil || header.Get("Age") != "" || a.options.DisableClockSkewCorrection {
		return
	}
	a.skew.Store(int64(time.Until(date)))
}

// awsRequestID returns the id of a response, which is the requestID in
// CloudTrail.
func awsRequestID(header http.Header) string {
	return cmp.Or(header.Get("X-Amzn-Requestid"), header.Get("X-Amz-Requestid"))
}
