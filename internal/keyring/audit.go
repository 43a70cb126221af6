package keyring

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"sync/atomic"

	"github.com/cmekproxy/cmekproxy/internal/kms"
	"github.com/cmekproxy/cmekproxy/internal/tracing"
)

// ErrAudit is returned if a use of a key could not be audited. The use was
// refused for that reason.
var ErrAudit = errors.New("keyring: the use of the key cannot be audited")

// Auditor records each use of a key.
type Auditor interface {
	// Audit is called for each use before the DEK is handed out, and for
	// each failed attempt. If it returns an error, the DEK is not handed
	// out. ctx has the values of the request; it may already be canceled.
	Audit(ctx context.Context, e Event) error
}

// Event is a use of a key.
type Event struct {
	Action     Action
	KeyName    string
	KeyID      string
	KeyVersion string // see kms.VersionOf
	Object     Object
	Tenant     string // that has the object; "" for none
	Source     Source // "" if neither cache nor KMS was asked
	// KMSRequestID is the KMS's id of the request, if Source is FromKMS and
	// the KMS returns one.
	KMSRequestID string
	// Err is why the use was refused; for ActionCut and ActionProbeRevoked,
	// why it was ended. It is nil for an allowed use.
	Err error
	// Purged is the number of DEKs that were purged, for
	// ActionProbeRevoked.
	Purged int
}

// Action is what was done with a key.
type Action string

// The actions.
const (
	ActionCreate Action = "create" // a DEK was created, or wrapped for another object
	ActionOpen   Action = "open"   // a stream opened the DEK of a stored object
	ActionRenew  Action = "renew"  // a lease ran out and was renewed
	// ActionCut means that a lease ran out and its stream was cut. It occurs
	// at most once for each lease.
	ActionCut          Action = "cut"
	ActionProbeRevoked Action = "probe-revoked" // a probe found the key revoked, and its DEKs were purged
)

// Source is where a DEK, or its refusal, came from.
type Source string

// The sources.
const (
	FromCache Source = "cache"    // or from a remembered refusal
	FromKMS   Source = "kms"      // for this use
	Joined    Source = "joined"   // from a KMS call already in progress for another use
	Customer  Source = "customer" // from the key that the client supplied
)

// useTrace records where the DEK for a use came from. It is safe for
// concurrent use, because a KMS call continues after its caller has left.
// It is nil if neither cache nor KMS was asked.
type useTrace struct {
	kms.Trace
	kms    atomic.Bool // the KMS was asked
	cached atomic.Bool // no KMS call was needed
}

// customerTrace is the trace of all uses of customers' keys.
var customerTrace = &useTrace{}

func (a *useTrace) source() Source {
	switch {
	case a == nil:
		return ""
	case a == customerTrace:
		return Customer
	case a.kms.Load():
		return FromKMS
	case a.cached.Load():
		return FromCache
	default:
		return Joined
	}
}

func (a *useTrace) requestID() string {
	if a == nil {
		return ""
	}
	return a.RequestID()
}

// SetAuditor changes Config.Auditor for uses from now on.
func (k *Keyring) SetAuditor(a Auditor) { k.audits.Store(&a) }

// auditor returns the Auditor; nil for none.
func (k *Keyring) auditor() Auditor { return *k.audits.Load() }

// audit records a use. It returns the error of the use, or ErrAudit if an
// allowed use could not be recorded.
func (k *Keyring) audit(ctx context.Context, l *Lease, action Action, a *useTrace, err error) error {
	tracing.DataKeyUsed(ctx, string(action), l.key.Name, string(a.source()))
	auditor := k.auditor()
	if auditor == nil {
		return err
	}

	failure := auditor.Audit(ctx, Event{
		Action: action, KeyName: l.key.Name, KeyID: l.service.id,
		KeyVersion: kms.VersionOf(l.service.id, l.wrapped.Blob), Tenant: k.tenantWith(l.obj, l.key.Name),
		Object: l.obj, Source: a.source(), KMSRequestID: a.requestID(), Err: err,
	})

	switch {
	case failure == nil:
		return err
	case err == nil:
		return fmt.Errorf("%w: %w", ErrAudit, failure)
	default: // already refused, and that error matters more
		return fmt.Errorf("%w; and the refusal cannot be audited: %s", err, failure.Error())
	}
}

// auditUnopened records that a key of a tenant was needed and could not be
// opened. Other errors it only returns.
func (k *Keyring) auditUnopened(ctx context.Context, obj Object, action Action, err error) error {
	auditor := k.auditor()
	var unopened *unopenedError
	if auditor == nil || !errors.As(err, &unopened) {
		return err
	}

	failure := auditor.Audit(ctx, Event{
		Action: action, KeyName: unopened.name, Tenant: k.tenantWith(obj, unopened.name), Object: obj,
		Source: unopened.source, Err: err,
	})
	if failure != nil {
		return fmt.Errorf("%w; and the refusal cannot be audited: %s", err, failure.Error())
	}
	return err
}

// tenantWith returns the name of the FileTenant that has the object, or that a
// template names.
func (k *Keyring) tenantWith(obj Object, keyName string) string {
	if t := k.files.Load().tenantWith(obj); t != nil {
		return t.Name
	}
	template, tenant, ok := strings.Cut(keyName, nameSeparator)
	if ok && k.fileKeys != nil && template == FileKeys {
		return tenantName(keyName)
	}
	byName := k.set().byName
	if family := byName[template]; ok && family != nil && family.isTemplate() && byName[keyName] == nil {
		return tenant
	}
	return ""
}

// auditRevoked records that a probe found a key, or the part p of it,
// revoked. The DEKs have been purged already; an audit failure cannot
// change that and is ignored.
func (k *Keyring) auditRevoked(ctx context.Context, key *keyState, v probeResult, p *part, purged int) {
	auditor := k.auditor()
	if auditor == nil {
		return
	}

	e := Event{
		Action: ActionProbeRevoked, KeyName: key.Name, KeyID: key.kms.Load().id,
		Source: v.trace.source(), KMSRequestID: v.trace.requestID(), Err: v.err, Purged: purged,
	}
	if key.tenant != nil {
		e.Tenant = k.tenantWith(Object{}, key.Name)
	}

	if p != nil {
		e.Object.Bucket, e.KeyVersion = p.bucket, kms.VersionOf(e.KeyID, v.sample.wrapped)
	}
	_ = auditor.Audit(ctx, e)
}

// auditCut records, once for each lease, that the lease was not renewed.
// The stream or its watcher calls it. The stream has ended in any case, so
// an audit failure is ignored.
func (l *Lease) auditCut(ctx context.Context, a *useTrace, err error) {
	if !l.ended.Swap(true) {
		_ = l.keyring.audit(ctx, l, ActionCut, a, err)
	}
}
