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

	d.PolicyErr = a.read(ctx, func(ctx context.Context) error {
		out, err := a.client.GetKeyPolicy(ctx, &awskms.GetKeyPolicyInput{
			KeyId: &a.keyARN, PolicyName: aws.String("default"), // each key has one policy
		})
		if err == nil {
			d.Policy = aws.ToString(out.Policy)
		}
		return err
	})

	d.RotationErr = a.read(ctx, func(ctx context.Context) error {
		out, err := a.client.GetKeyRotationStatus(ctx, &awskms.GetKeyRotationStatusInput{KeyId: &a.keyARN})
		if err == nil {
			d.Rotation, d.RotationDays = out.KeyRotationEnabled, int(aws.ToInt32(out.RotationPeriodInDays))
		}
		return err
	})

	d.Grants, d.GrantsErr = a.grants(ctx)
	return d
}

// read makes a call of Describe.
func (a *AWS) read(ctx context.Context, call func(context.Context) error) error {
	attempt, cancel, err := a.begin(ctx, "describe")
	if err != nil {
		return err
	}
	defer cancel()

	if err := call(attempt); err != nil {
		return a.fail(ctx, "describe", err)
	}
	return nil
}

// caller returns the ARN of the proxy's identity. The call needs no permission
// (https://docs.aws.amazon.com/STS/latest/APIReference/API_GetCallerIdentity.html).
func (a *AWS) caller(ctx context.Context) (arn string, err error) {
	err = a.read(ctx, func(ctx context.Context) error {
		out, err := a.sts.GetCallerIdentity(ctx, &sts.GetCallerIdentityInput{})
		if err == nil {
			arn = aws.ToString(out.Arn)
		}
		return err
	})
	return arn, err
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
	err = a.read(ctx, func(ctx context.Context) error {
		pages := awskms.NewListGrantsPaginator(a.client, &awskms.ListGrantsInput{KeyId: &a.keyARN})
		for pages.HasMorePages() && len(list) < maxAWSGrants {
			out, err := pages.NextPage(ctx)
			if err != nil {
				return err
			}
			for _, g := range out.Grants {
				list = append(list, newAWSGrant(g))
			}
		}
		return nil
	})
	return list, err
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
