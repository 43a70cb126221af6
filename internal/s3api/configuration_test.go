package s3api_test

import (
	"strings"
	"testing"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/service/s3"
	"github.com/aws/aws-sdk-go-v2/service/s3/types"
)

// Bucket configurations are stored by the store, and read, changed and
// deleted through the proxy.
func TestBucketConfiguration(t *testing.T) {
	p := newProxy(t)
	ctx, c, b := t.Context(), p.client, &p.bucket
	policy := `{"Version":"2012-10-17","Statement":[{"Effect":"Allow","Principal":"*","Action":"s3:GetObject","Resource":"arn:aws:s3:::` + p.bucket + `/*"}]}`
	for _, step := range []struct {
		name string
		do   func() error
		code string // "" for success
	}{
		{
			"no tags", func() error { _, err := c.GetBucketTagging(ctx, &s3.GetBucketTaggingInput{Bucket: b}); return err },
			"NoSuchTagSet",
		},
		{"put tags", func() error {
			_, err := c.PutBucketTagging(ctx, &s3.PutBucketTaggingInput{
				Bucket: b, Tagging: &types.Tagging{TagSet: []types.Tag{{Key: aws.String("team"), Value: aws.String("a")}}},
			})
			return err
		}, ""},
		{"tags", func() error {
			out, err := c.GetBucketTagging(ctx, &s3.GetBucketTaggingInput{Bucket: b})
			if err == nil && (len(out.TagSet) != 1 || *out.TagSet[0].Value != "a") {
				t.Errorf("tags: %+v", out.TagSet)
			}
			return err
		}, ""},
		{"delete tags", func() error {
			_, err := c.DeleteBucketTagging(ctx, &s3.DeleteBucketTaggingInput{Bucket: b})
			return err
		}, ""},
		{
			"tags again", func() error { _, err := c.GetBucketTagging(ctx, &s3.GetBucketTaggingInput{Bucket: b}); return err },
			"NoSuchTagSet",
		},

		{
			"no policy", func() error { _, err := c.GetBucketPolicy(ctx, &s3.GetBucketPolicyInput{Bucket: b}); return err },
			"NoSuchBucketPolicy",
		},
		{"put policy", func() error {
			_, err := c.PutBucketPolicy(ctx, &s3.PutBucketPolicyInput{Bucket: b, Policy: &policy})
			return err
		}, ""},
		{"policy", func() error {
			out, err := c.GetBucketPolicy(ctx, &s3.GetBucketPolicyInput{Bucket: b})
			if err == nil && !strings.Contains(*out.Policy, p.bucket) {
				t.Errorf("policy: %s", *out.Policy)
			}
			return err
		}, ""},
		{"policy status", func() error {
			out, err := c.GetBucketPolicyStatus(ctx, &s3.GetBucketPolicyStatusInput{Bucket: b})
			if err == nil && !aws.ToBool(out.PolicyStatus.IsPublic) {
				t.Error("a policy for all is not public")
			}
			return err
		}, ""},
		{"malformed policy", func() error {
			_, err := c.PutBucketPolicy(ctx, &s3.PutBucketPolicyInput{Bucket: b, Policy: aws.String("{}")})
			return err
		}, "MalformedPolicy"},
		{
			"delete policy",
			func() error { _, err := c.DeleteBucketPolicy(ctx, &s3.DeleteBucketPolicyInput{Bucket: b}); return err }, "",
		},

		{"put ownership", func() error {
			_, err := c.PutBucketOwnershipControls(ctx, &s3.PutBucketOwnershipControlsInput{Bucket: b, OwnershipControls: &types.OwnershipControls{
				Rules: []types.OwnershipControlsRule{{ObjectOwnership: types.ObjectOwnershipBucketOwnerPreferred}},
			}})
			return err
		}, ""},
		{"ownership", func() error {
			_, err := c.GetBucketOwnershipControls(ctx, &s3.GetBucketOwnershipControlsInput{Bucket: b})
			return err
		}, ""},
		{"an ACL as it came", func() error {
			out, err := c.GetBucketAcl(ctx, &s3.GetBucketAclInput{Bucket: b})
			if err != nil {
				return err
			}
			_, err = c.PutBucketAcl(ctx, &s3.PutBucketAclInput{
				Bucket: b, AccessControlPolicy: &types.AccessControlPolicy{Owner: out.Owner, Grants: out.Grants},
			})
			return err
		}, ""},
		{"a public ACL", func() error {
			_, err := c.PutBucketAcl(ctx, &s3.PutBucketAclInput{Bucket: b, ACL: types.BucketCannedACLPublicRead})
			return err
		}, "NotImplemented"},
		{"delete ownership", func() error {
			_, err := c.DeleteBucketOwnershipControls(ctx, &s3.DeleteBucketOwnershipControlsInput{Bucket: b})
			return err
		}, ""},

		{"what the store has not", func() error {
			_, err := c.GetBucketLifecycleConfiguration(ctx, &s3.GetBucketLifecycleConfigurationInput{Bucket: b})
			return err
		}, "NotImplemented"},
		{"no bucket", func() error {
			_, err := c.GetBucketVersioning(ctx, &s3.GetBucketVersioningInput{Bucket: aws.String("no-such-bucket")})
			return err
		}, "NoSuchBucket"},
	} {
		t.Run(step.name, func(t *testing.T) {
			got := ""
			if err := step.do(); err != nil {
				got = code(err)
			}
			if got != step.code {
				t.Errorf("%q, want %q", got, step.code)
			}
		})
	}

	if a := p.send(request{method: "GET", path: "/" + p.bucket + "?cors"}); a.StatusCode != 404 ||
		a.Code != "NoSuchCORSConfiguration" {
		t.Errorf("no CORS: %d %s", a.StatusCode, a.Code)
	}
}

// Tags that come with an object are passed to the store, and the store's
// answers have their number.
func TestObjectTags(t *testing.T) {
	p := newProxy(t)
	p.put("k", []byte("x"), func(in *s3.PutObjectInput) { in.Tagging = aws.String("a=1&b=2%20x") })
	out, err := p.client.GetObjectTagging(
		t.Context(),
		&s3.GetObjectTaggingInput{Bucket: &p.bucket, Key: aws.String("k")},
	)
	if err != nil || len(out.TagSet) != 2 {
		t.Fatalf("%+v, %v", out, err)
	}

	head, err := p.client.HeadObject(t.Context(), &s3.HeadObjectInput{Bucket: &p.bucket, Key: aws.String("k")})
	if err != nil || aws.ToInt32(head.TagCount) != 2 {
		t.Errorf("tag count %v, %v", head.TagCount, err)
	}
	if _, err := p.client.PutObjectTagging(t.Context(), &s3.PutObjectTaggingInput{
		Bucket: &p.bucket, Key: aws.String("none"), Tagging: &types.Tagging{TagSet: []types.Tag{}},
	}); code(err) != "NoSuchKey" {
		t.Errorf("tags of no object: %v", err)
	}

	if got := p.mustGet("k"); string(got) != "x" {
		t.Errorf("%q", got)
	}
}
