package keyring

import (
	"context"
	"errors"
	"fmt"
	"sync/atomic"

	"github.com/cmekproxy/cmekproxy/internal/kms"
)

// ErrAudit says that a use of a key could not be written down, and so was not
// allowed.
var ErrAudit = errors.New("keyring: the use of the key cannot be audited")

// Auditor writes down each use of a key.
type Auditor interface {
	// Audit is called with each use before the DEK is handed out, and with
	// each attempt that failed. If it returns an error, the DEK is not handed
	// out. ctx has the values of the request that the use is for; it may have
	// ended.
	Audit(ctx context.Context, e Event) error
}

// Event is the use of a key.
type Event struct {
	Action     Action
	KeyName    string
	KeyID      string
	KeyVersion string // as kms.VersionOf
	Object     Object
	Source     Source // "" if nobody was asked
	// KMSRequestID is the KMS's name for the request, where Source is FromKMS
	// and the KMS has one.
	KMSRequestID string
	// Err is why it was not allowed, or for Cut and ProbeRevoked why no
	// longer. Nil for what was.
	Err error
	// Purged is how many DEKs were forgotten, for ProbeRevoked.
	Purged int
}

// Action is what was done with a key.
type Action string

// The actions.
const (
	ActionCreate       Action = "create"        // a DEK was made, or wrapped for another object
	ActionOpen         Action = "open"          // the DEK of a stored object was given to a stream
	ActionRenew        Action = "renew"         // its lease ran out, and the stream may go on
	ActionCut          Action = "cut"           // its lease ran out, and the stream was ended; once for each lease at most
	ActionProbeRevoked Action = "probe-revoked" // a probe has found the key revoked, and all its DEKs were forgotten
)

// Source is where a DEK, or the refusal of one, came from.
type Source string

// The sources.
const (
	FromCache Source = "cache"    // or from a refusal that is remembered
	FromKMS   Source = "kms"      // for this use
	Joined    Source = "joined"   // from the KMS, which somebody else was asking already
	Customer  Source = "customer" // from the key that the client brought
)

// useTrace is what is known of where the answer to a use came from; nil if
// nobody was asked. It is safe for concurrent use: a call goes on when its
// caller has left.
type useTrace struct {
	kms.Trace
	kms    atomic.Bool // it was
	cached atomic.Bool // there was no need
}

// customerTrace is where an answer came from that took no KMS.
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

// audit writes down a use. It returns the error of the use, or ErrAudit for
// one that was allowed and could not be written down.
func (k *Keyring) audit(ctx context.Context, l *Lease, action Action, a *useTrace, err error) error {
	if k.cfg.Auditor == nil {
		return err
	}

	failure := k.cfg.Auditor.Audit(ctx, Event{
		Action: action, KeyName: l.key.Name, KeyID: l.service.id,
		KeyVersion: kms.VersionOf(l.service.id, l.wrapped.Blob),
		Object:     l.obj, Source: a.source(), KMSRequestID: a.requestID(), Err: err,
	})

	switch {
	case failure == nil:
		return err
	case err == nil:
		return fmt.Errorf("%w: %w", ErrAudit, failure)
	default: // it is refused in any case, and the reason for that matters more
		return fmt.Errorf("%w; nor can it be audited: %s", err, failure.Error())
	}
}

// auditRevoked writes down what a probe has found, of a part of the key where
// it is not the whole. What it did about it only took away, so that it is done
// already.
func (k *Keyring) auditRevoked(ctx context.Context, key *keyState, v probeResult, p *part, purged int) {
	if k.cfg.Auditor == nil {
		return
	}

	e := Event{
		Action: ActionProbeRevoked, KeyName: key.Name, KeyID: key.kms.Load().id,
		Source: v.trace.source(), KMSRequestID: v.trace.requestID(), Err: v.err, Purged: purged,
	}

	if p != nil {
		e.Object.Bucket, e.KeyVersion = p.bucket, kms.VersionOf(e.KeyID, v.sample.wrapped)
	}
	_ = k.cfg.Auditor.Audit(ctx, e)
}

// auditCut writes down the end of a lease that was not renewed, once, whoever
// finds out: the stream, or who watches it. The stream gets nothing more in
// any case, so that nothing follows from an error.
func (l *Lease) auditCut(ctx context.Context, a *useTrace, err error) {
	if !l.ended.Swap(true) {
		_ = l.keyring.audit(ctx, l, ActionCut, a, err)
	}
}
