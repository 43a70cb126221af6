package kms

import (
	"context"
	"maps"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	awskms "github.com/aws/aws-sdk-go-v2/service/kms"
	"github.com/aws/aws-sdk-go-v2/service/kms/types"
	"github.com/aws/aws-sdk-go-v2/service/sts"
)

// AWSDescription describes a key of AWS KMS.
type AWSDescription struct {
	Caller    string // the ARN that AWS knows the proxy by
	CallerErr error  // of GetCallerIdentity

	KeyErr      error // of DescribeKey; if it is not nil, the next fields are not set
	Text        string
	State       string
	Origin      string // where the key material is from
	Usage       string
	Spec        string
	Manager     string // CUSTOMER or AWS
	Created     time.Time
	Deletion    time.Time // zero unless the key is pending deletion
	Replication string    // PRIMARY or REPLICA; "" for a key of one Region
	Regions     []string  // of a multi-Region key and its replicas

	Policy    string
	PolicyErr error // of GetKeyPolicy

	Grants    []AWSGrant
	GrantsErr error // of ListGrants

	Rotation     bool
	RotationDays int
	RotationErr  error // of GetKeyRotationStatus
}

// AWSGrant is a grant on a key.
type AWSGrant struct {
	ID, Name, Grantee, Retiring string
	Operations                  []string
	// Context is the encryption context that the grant requires; nil for
	// none.
	Context map[string]string
}

// maxAWSGrants is how many grants are read.
const maxAWSGrants = 1000

// Describe reads what AWS says about the key.
func (a *AWS) Describe(ctx context.Context) (d AWSDescription) {
	d.Caller, d.CallerErr = a.caller(ctx)

	key, err := a.metadata(ctx, "describe", a.keyARN)
	if d.KeyErr = err; err == nil {
		d.setKey(key)
	}

	var policy awskms.GetKeyPolicyOutput
	d.PolicyErr = a.call(ctx, "describe", awsGetPolicy, &awskms.GetKeyPolicyInput{
		KeyId: &a.keyARN, PolicyName: aws.String("default"), // each key has one policy
	}, &policy)
	d.Policy = aws.ToString(policy.Policy)

	var rotation awskms.GetKeyRotationStatusOutput
	d.RotationErr = a.call(ctx, "describe", awsRotation, &awskms.GetKeyRotationStatusInput{KeyId: &a.keyARN}, &rotation)
	d.Rotation, d.RotationDays = rotation.KeyRotationEnabled, int(aws.ToInt32(rotation.RotationPeriodInDays))

	d.Grants, d.GrantsErr = a.grants(ctx)
	return d
}

// caller returns the ARN of the proxy's identity. The call needs no permission
// (https://docs.aws.amazon.com/STS/latest/APIReference/API_GetCallerIdentity.html).
func (a *AWS) caller(ctx context.Context) (string, error) {
	if _, err := a.creds.Retrieve(ctx); err != nil {
		return "", a.fail(ctx, "describe", err)
	}
	attempt, cancel := context.WithTimeout(ctx, a.timeout)
	defer cancel()

	out, err := a.sts.GetCallerIdentity(attempt, &sts.GetCallerIdentityInput{})
	if err != nil {
		return "", a.fail(ctx, "describe", err)
	}
	return aws.ToString(out.Arn), nil
}

func (d *AWSDescription) setKey(key *types.KeyMetadata) {
	d.Text, d.State, d.Origin = aws.ToString(key.Description), string(key.KeyState), string(key.Origin)
	d.Usage, d.Spec, d.Manager = string(key.KeyUsage), string(key.KeySpec), string(key.KeyManager)
	d.Created, d.Deletion = aws.ToTime(key.CreationDate), aws.ToTime(key.DeletionDate)

	all := key.MultiRegionConfiguration
	if all == nil {
		return
	}
	d.Replication = string(all.MultiRegionKeyType)
	if all.PrimaryKey != nil {
		d.Regions = append(d.Regions, aws.ToString(all.PrimaryKey.Region))
	}
	for _, replica := range all.ReplicaKeys {
		d.Regions = append(d.Regions, aws.ToString(replica.Region))
	}
}

func (a *AWS) grants(ctx context.Context) (list []AWSGrant, err error) {
	in := &awskms.ListGrantsInput{KeyId: &a.keyARN}
	for len(list) < maxAWSGrants {
		var out awskms.ListGrantsOutput
		if err := a.call(ctx, "describe", awsGrants, in, &out); err != nil {
			return list, err
		}
		for _, g := range out.Grants {
			list = append(list, newAWSGrant(g))
		}

		if in.Marker = out.NextMarker; aws.ToString(in.Marker) == "" {
			break
		}
	}
	return list, nil
}

func newAWSGrant(g types.GrantListEntry) AWSGrant {
	grant := AWSGrant{
		ID: aws.ToString(g.GrantId), Name: aws.ToString(g.Name),
		Grantee: aws.ToString(g.GranteePrincipal), Retiring: aws.ToString(g.RetiringPrincipal),
	}
	if grant.Grantee == "" {
		grant.Grantee = aws.ToString(g.GranteeServicePrincipal)
	}
	for _, o := range g.Operations {
		grant.Operations = append(grant.Operations, string(o))
	}

	if g.Constraints != nil {
		grant.Context = maps.Clone(g.Constraints.EncryptionContextSubset)
		if grant.Context == nil {
			grant.Context = maps.Clone(g.Constraints.EncryptionContextEquals)
		}
	}
	return grant
}
