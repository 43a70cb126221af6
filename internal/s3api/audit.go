package s3api

import (
	"context"
	"errors"

	"github.com/cmekproxy/cmekproxy/internal/audit"
	"github.com/cmekproxy/cmekproxy/internal/crypt"
	"github.com/cmekproxy/cmekproxy/internal/keyring"
	"github.com/cmekproxy/cmekproxy/internal/kms"
)

// Trail writes an audit record for each use of a key, with the S3 request
// that needed it. It is a keyring.Auditor.
type Trail func(audit.Record) error

// Audit implements keyring.Auditor.
func (write Trail) Audit(ctx context.Context, e keyring.Event) error {
	r := audit.Record{
		Event: string(e.Action), Result: Outcome(e.Err),
		KMSKeyName: e.KeyName, KMSKey: e.KeyID, KMSKeyVersion: e.KeyVersion, Source: string(e.Source),
		KMSRequestID: e.KMSRequestID, Tenant: e.Tenant,
		Bucket: e.Object.Bucket, Key: e.Object.Key,
	}
	if e.Action == keyring.ActionProbeRevoked {
		r.Purged = &e.Purged
	}
	if c, ok := ctx.Value(callKey{}).(*call); ok {
		r.Client, r.Session, r.Remote, r.RequestID, r.Operation = c.clientName(), c.session(), c.remote, c.id, c.op
		r.TraceID = c.trace.TraceID()
	}
	return write(r)
}

// session returns the access key of the request if it belongs to temporary
// credentials, "" if it is the client's own.
func (c *call) session() string {
	if c.client == nil || c.auth.AccessKey == c.client.AccessKey {
		return ""
	}
	return c.auth.AccessKey
}

// Outcome returns the result of using a key, as one of a fixed set of texts:
// audit.OK, the kind of a KMS error, or another reason for the failure.
func Outcome(err error) string {
	var failure *kms.Error
	switch {
	case err == nil:
		return audit.OK
	case errors.As(err, &failure):
		return failure.Kind.String()
	case errors.Is(err, keyring.ErrAudit):
		return "not audited"
	case errors.Is(err, crypt.ErrCustomerKey):
		return "another customer key"
	case errors.Is(err, keyring.ErrChanged):
		return "another data key"
	case errors.Is(err, context.Canceled), errors.Is(err, errClient), errors.Is(err, errIdle):
		return kms.Canceled.String()
	default:
		return kms.Internal.String()
	}
}
