package kms

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"strings"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/aws/arn"
	awshttp "github.com/aws/aws-sdk-go-v2/aws/transport/http"
	"github.com/aws/aws-sdk-go-v2/config"
	"github.com/aws/aws-sdk-go-v2/credentials/stscreds"
	awskms "github.com/aws/aws-sdk-go-v2/service/kms"
	"github.com/aws/aws-sdk-go-v2/service/kms/types"
	"github.com/aws/aws-sdk-go-v2/service/sts"
	"github.com/aws/smithy-go"
	"github.com/aws/smithy-go/middleware"

	"github.com/cmekproxy/cmekproxy/internal/awscreds"
)

// DefaultAWSTimeout is the default of AWSConfig.
const DefaultAWSTimeout = 5 * time.Second

// awsDialTimeout leaves time for a second attempt within DefaultAWSTimeout
// when an address does not answer.
const awsDialTimeout = 2 * time.Second

// AWSConfig configures the provider "aws-kms".
type AWSConfig struct {
	// KeyID is a key ARN, a key id, an alias ARN, or "alias/name".
	// Required. Use the key ARN in production: it alone needs neither the
	// DescribeKey permission nor a reachable KMS at startup.
	KeyID string
	// Region is the region of the key, such as eu-central-1. Empty means
	// the region in KeyID, otherwise the one in the environment.
	Region string
	// Endpoint is the URL of a VPC endpoint, or of another server that
	// speaks the AWS KMS API. Empty means AWS.
	Endpoint string
	// RoleARN is a role to assume for all calls. Empty means none.
	RoleARN string
	// ExternalID is sent with RoleARN, if the role's trust policy requires
	// it. Empty means none.
	ExternalID string
	// FIPS selects the FIPS endpoint of the region. It cannot be combined
	// with Endpoint.
	FIPS bool
	// Credentials sign all calls, including AssumeRole. Nil means the SDK's
	// default chain, whose files are reloaded when they change.
	Credentials aws.CredentialsProvider
	// HTTPClient sends the calls. Nil means a client with keep-alive, and
	// proxy settings from the environment. The SDK fails with a plain
	// *http.Client if AWS_CA_BUNDLE is set; use an awshttp.BuildableClient.
	HTTPClient aws.HTTPClient
	// CAFile is a PEM file with the certificate authorities for the KMS,
	// and for STS if RoleARN is set. It is reloaded when it changes. Empty
	// means the file in AWS_CA_BUNDLE, otherwise those of the system.
	CAFile string
	// Report is called when a file has been reloaded. It may be nil.
	Report Report
	// Timeout limits one Wrap, Unwrap or Generate, which makes one attempt;
	// see Retry for more. Getting credentials does not count; a call waits
	// for them until its context ends. 0 means DefaultAWSTimeout.
	Timeout time.Duration
}

// AWS is the provider "aws-kms": a symmetric key of AWS KMS.
//
// Its KeyID is always the key's ARN. NewAWS resolves an alias once. An
// alias can be moved to another key, but a blob can be unwrapped only by
// the key that wrapped it; if an envelope contained only the alias, its
// object could become unreadable. After an alias has moved (see Target), a
// restarted proxy encrypts under the new key, and the old key must be
// configured by its ARN to read older objects.
//
// None of this concerns AWS's automatic key rotation, which keeps the ARN,
// or multi-Region keys, whose replicas unwrap each other's blobs; see
// CanonicalID.
type AWS struct {
	api     *awsAPI
	sts     *sts.Client
	creds   aws.CredentialsProvider
	keyARN  string
	named   string // as configured, for example an alias
	timeout time.Duration
}

// NewAWS returns the key that cfg describes. It calls the KMS only if KeyID
// is not a key ARN.
func NewAWS(ctx context.Context, cfg AWSConfig) (*AWS, error) {
	keys, err := NewAWSKeys(ctx, cfg)
	if err != nil {
		return nil, err
	}
	return keys.Open(ctx, cfg.KeyID)
}

// AWSKeys opens keys that share a region, credentials and connections.
type AWSKeys struct {
	api     *awsAPI
	sts     *sts.Client
	creds   aws.CredentialsProvider
	region  string
	timeout time.Duration
}

// NewAWSKeys returns the AWSKeys that cfg describes. Of cfg.KeyID, it uses the
// region only. It does not call the KMS.
func NewAWSKeys(ctx context.Context, cfg AWSConfig) (*AWSKeys, error) {
	region, _, err := parseAWSKeyID(cfg.KeyID, cfg.Region)
	if err != nil {
		return nil, &Error{Kind: Invalid, Op: "open", KeyID: cfg.KeyID, Err: err}
	}

	sdk, err := loadAWS(ctx, cfg, region)
	if err != nil {
		return nil, &Error{Kind: Invalid, Op: "open", KeyID: cfg.KeyID, Err: err}
	}

	sdk.HTTPClient = reconnectingAWS(sdk.HTTPClient)
	client := awskms.NewFromConfig(sdk, func(o *awskms.Options) {
		if cfg.Endpoint != "" {
			o.BaseEndpoint = &cfg.Endpoint
		}
	})
	api, err := newAWSAPI(ctx, client.Options())
	if err != nil {
		return nil, &Error{Kind: Invalid, Op: "open", KeyID: cfg.KeyID, Err: err}
	}

	return &AWSKeys{
		api, sts.NewFromConfig(sdk), sdk.Credentials, region, cmp.Or(max(cfg.Timeout, 0), DefaultAWSTimeout),
	}, nil
}

// Open returns the key with an id in any form of AWSConfig.KeyID. It calls the
// KMS only if id is not a key ARN.
func (k *AWSKeys) Open(ctx context.Context, id string) (*AWS, error) {
	_, isKeyARN, err := parseAWSKeyID(id, k.region)
	if err != nil {
		return nil, &Error{Kind: Invalid, Op: "open", KeyID: id, Err: err}
	}

	a := &AWS{api: k.api, sts: k.sts, creds: k.creds, keyARN: id, named: id, timeout: k.timeout}
	if isKeyARN {
		return a, nil
	}

	key, err := a.metadata(ctx, "open", a.named)
	if err != nil {
		return nil, err
	}

	a.keyARN = aws.ToString(key.Arn)
	return a, nil
}

// KeyID returns the key's ARN.
func (a *AWS) KeyID() string { return a.keyARN }

// Wrap implements Wrapper by
// https://docs.aws.amazon.com/kms/latest/APIReference/API_Encrypt.html.
func (a *AWS) Wrap(ctx context.Context, dek []byte, ec EncryptionContext) ([]byte, error) {
	if err := checkWrap(ctx, a.keyARN, dek, ec); err != nil {
		return nil, err
	}

	in := &awskms.EncryptInput{KeyId: &a.keyARN, Plaintext: dek, EncryptionContext: ec}
	var out awskms.EncryptOutput
	if err := a.call(ctx, "wrap", awsEncrypt, in, &out); err != nil {
		return nil, err
	}
	if err := a.checkKey("wrap", out.KeyId); err != nil {
		return nil, err
	}

	return out.CiphertextBlob, nil
}

// Unwrap implements Wrapper by
// https://docs.aws.amazon.com/kms/latest/APIReference/API_Decrypt.html. The
// request names the key, so AWS refuses blobs of other keys even if it
// could decrypt them.
func (a *AWS) Unwrap(ctx context.Context, wrapped []byte, ec EncryptionContext) ([]byte, error) {
	if err := checkCall(ctx, "unwrap", a.keyARN, ec); err != nil {
		return nil, err
	}

	// AWS's limits on CiphertextBlob. A blob outside them never came from
	// this KMS.
	if len(wrapped) < 1 || len(wrapped) > 6144 {
		err := fmt.Errorf("a blob of %d bytes", len(wrapped))
		return nil, &Error{Kind: InvalidCiphertext, Op: "unwrap", KeyID: a.keyARN, Err: err}
	}

	in := &awskms.DecryptInput{KeyId: &a.keyARN, CiphertextBlob: wrapped, EncryptionContext: ec}
	var out awskms.DecryptOutput
	if err := a.call(ctx, "unwrap", awsDecrypt, in, &out); err != nil {
		return nil, err
	}
	if err := a.checkKey("unwrap", out.KeyId); err != nil {
		clear(out.Plaintext)
		return nil, err
	}

	return out.Plaintext, nil
}

// Generate implements Generator by
// https://docs.aws.amazon.com/kms/latest/APIReference/API_GenerateDataKey.html.
func (a *AWS) Generate(ctx context.Context, ec EncryptionContext) (dek, wrapped []byte, err error) {
	if err := checkCall(ctx, "generate", a.keyARN, ec); err != nil {
		return nil, nil, err
	}

	in := &awskms.GenerateDataKeyInput{
		KeyId: &a.keyARN, KeySpec: types.DataKeySpecAes256, EncryptionContext: ec,
	}
	var out awskms.GenerateDataKeyOutput
	if err := a.call(ctx, "generate", awsGenerate, in, &out); err != nil {
		return nil, nil, err
	}
	if err := a.checkKey("generate", out.KeyId); err != nil {
		clear(out.Plaintext)
		return nil, nil, err
	}

	return out.Plaintext, out.CiphertextBlob, nil
}

// call waits for credentials until ctx ends, and makes one attempt at a call
// within the time limit.
func (a *AWS) call(
	ctx context.Context, op string, operation *smithy.OperationSchema,
	in smithy.Serializable, out smithy.Deserializable,
) error {
	creds, err := a.creds.Retrieve(ctx)
	if err != nil {
		return a.fail(ctx, op, err)
	}

	attempt, cancel := context.WithTimeout(ctx, a.timeout)
	defer cancel()

	if err := a.api.call(attempt, creds, operation, in, out); err != nil {
		return a.fail(ctx, op, err)
	}
	return nil
}

// checkKey checks that a response is about the requested key.
func (a *AWS) checkKey(op string, answered *string) error {
	if aws.ToString(answered) == a.keyARN {
		return nil
	}
	if aws.ToString(answered) == "" {
		return &Error{Kind: Unreachable, Op: op, KeyID: a.keyARN, Err: errUnreadable}
	}

	err := fmt.Errorf("the KMS answered about another key, %q", aws.ToString(answered))
	return &Error{Kind: Internal, Op: op, KeyID: a.keyARN, Err: err}
}

// Target returns the ARN of the key that AWSConfig.KeyID now refers to. An
// alias may have moved since NewAWS; this does not affect the Wrapper.
func (a *AWS) Target(ctx context.Context) (string, error) {
	key, err := a.metadata(ctx, "describe", a.named)
	if err != nil {
		return "", err
	}
	return aws.ToString(key.Arn), nil
}

// Enabled returns nil if the key is enabled according to DescribeKey. It
// needs no other permission.
func (a *AWS) Enabled(ctx context.Context) error {
	key, err := a.metadata(ctx, "describe", a.keyARN)
	if err != nil || key.KeyState == types.KeyStateEnabled {
		return err
	}
	return &Error{Kind: awsStateKind(key.KeyState), Op: "describe", KeyID: a.keyARN, Reason: string(key.KeyState)}
}

func (a *AWS) metadata(ctx context.Context, op, key string) (*types.KeyMetadata, error) {
	var out awskms.DescribeKeyOutput
	if err := a.call(ctx, op, awsDescribe, &awskms.DescribeKeyInput{KeyId: &key}, &out); err != nil {
		return nil, err
	}
	if out.KeyMetadata == nil || aws.ToString(out.KeyMetadata.Arn) == "" {
		return nil, &Error{Kind: Unreachable, Op: op, KeyID: a.keyARN, Err: errUnreadable}
	}

	return out.KeyMetadata, nil
}

// parseAWSKeyID returns the key's region, or "" if it is unknown, and
// whether id is the ARN of a key.
func parseAWSKeyID(id, region string) (_ string, isKeyARN bool, _ error) {
	if id == "" {
		return "", false, errors.New("no key id")
	}

	for _, c := range []byte(id) {
		if c <= ' ' || c > '~' {
			return "", false, errors.New("the key id is not printable ASCII")
		}
	}

	if !strings.HasPrefix(id, "arn:") {
		return region, false, nil
	}

	a, err := arn.Parse(id)
	if err != nil {
		return "", false, err
	}

	isKeyARN = strings.HasPrefix(a.Resource, "key/")
	if a.Service != "kms" || !isKeyARN && !strings.HasPrefix(a.Resource, "alias/") {
		return "", false, errors.New("not the ARN of a KMS key or alias")
	}
	if region != "" && region != a.Region {
		return "", false, fmt.Errorf("the key is in %s, the configured region is %s", a.Region, region)
	}

	return a.Region, isKeyARN, nil
}

// loadAWS returns the SDK's configuration. Its credentials are reloaded
// when their source changes.
func loadAWS(ctx context.Context, cfg AWSConfig, region string) (aws.Config, error) {
	client, own, err := awsClients(cfg)
	if err != nil {
		return aws.Config{}, err
	}

	load := func(ctx context.Context) (aws.Config, error) {
		return config.LoadDefaultConfig(ctx, awsOptions(cfg, region, client)...)
	}

	sdk, err := load(ctx)
	if err != nil {
		return aws.Config{}, fmt.Errorf("loading the AWS configuration: %w", err)
	}
	if sdk.Region == "" {
		return aws.Config{}, errors.New("no region: use the key's ARN or set a region")
	}

	sdk.Credentials, err = awscreds.New(ctx, awscreds.Config{
		Load: func(ctx context.Context) (aws.CredentialsProvider, error) {
			chain, err := load(ctx)
			if err != nil {
				return nil, err
			}
			if cfg.RoleARN == "" {
				return chain.Credentials, nil
			}

			if own != nil {
				chain.HTTPClient = own
			}
			return assumeAWSRole(chain, cfg), nil
		},
		Report: func(err error) {
			if cfg.Report != nil {
				cfg.Report("the AWS credentials and configuration", err)
			}
		},
	})
	if err != nil {
		return aws.Config{}, fmt.Errorf("loading the AWS credentials: %w", err)
	}

	if own != nil {
		sdk.HTTPClient = own
	}
	return sdk, nil
}

func awsOptions(cfg AWSConfig, region string, client aws.HTTPClient) []func(*config.LoadOptions) error {
	opts := []func(*config.LoadOptions) error{
		config.WithHTTPClient(client),
		config.WithAPIOptions([]func(*middleware.Stack) error{addAWSEvidence}),
		config.WithRetryMode(aws.RetryModeStandard),
		config.WithRetryMaxAttempts(1),
	}

	if region != "" {
		opts = append(opts, config.WithRegion(region))
	}
	if cfg.FIPS {
		opts = append(opts, config.WithUseFIPSEndpoint(aws.FIPSEndpointStateEnabled))
	}

	if cfg.Credentials != nil {
		opts = append(opts, config.WithCredentialsProvider(cfg.Credentials))
	}
	return opts
}

func assumeAWSRole(chain aws.Config, cfg AWSConfig) aws.CredentialsProvider {
	role := stscreds.NewAssumeRoleProvider(sts.NewFromConfig(chain), cfg.RoleARN, func(o *stscreds.AssumeRoleOptions) {
		o.RoleSessionName = "cmekproxy"
		if cfg.ExternalID != "" {
			o.ExternalID = &cfg.ExternalID
		}
	})
	return aws.NewCredentialsCache(role)
}

// awsClients returns the client for the SDK's own calls. If there is a file
// of authorities, it also returns another client for the KMS and for
// AssumeRole, because the SDK reads AWS_CA_BUNDLE only once.
func awsClients(cfg AWSConfig) (client, own aws.HTTPClient, _ error) {
	if cfg.HTTPClient != nil {
		if cfg.CAFile != "" {
			return nil, nil, errors.New("both an HTTP client and a CA file are set")
		}
		return cfg.HTTPClient, nil, nil
	}

	buildable := newAWSClient()
	file := cfg.CAFile
	if file == "" {
		var err error
		if file, err = awscreds.CABundle(); err != nil || file == "" {
			return buildable, nil, err
		}
	}

	transport, err := withAuthorities(buildable.GetTransport(), file, cfg.Report)
	if err != nil {
		return nil, nil, err
	}

	return buildable, &http.Client{
		Transport:     transport,
		CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
	}, nil
}

// newAWSClient keeps more idle connections than the SDK's default of 10 for
// each host: each PUT makes one call, and PUTs come in bursts.
func newAWSClient() *awshttp.BuildableClient {
	return awshttp.NewBuildableClient().
		WithDialerOptions(func(d *net.Dialer) { d.Timeout = awsDialTimeout }).
		WithTransportOptions(func(t *http.Transport) { t.MaxIdleConnsPerHost, t.HTTP2 = 64, http2Pings() })
}
