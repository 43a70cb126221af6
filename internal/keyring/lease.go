package keyring

import (
	"context"
	"crypto/subtle"
	"errors"
	"fmt"
	"sync"
	"sync/atomic"
	"time"

	"github.com/cmekproxy/cmekproxy/internal/crypt"
	"github.com/cmekproxy/cmekproxy/internal/dekcache"
	"github.com/cmekproxy/cmekproxy/internal/kms"
)

// The pauses between attempts to reach a KMS that does not answer.
const (
	firstPause = 100 * time.Millisecond
	longPause  = 2 * time.Second
)

// Lease is the right to use one DEK for a limited time. It belongs to one
// stream: Check may run in one goroutine while another reads DEK, but
// neither may be used after Release.
type Lease struct {
	keyring   *Keyring
	key       *keyState
	part      *part // nil for a customer's key
	service   *service
	id        dekcache.ID
	obj       Object
	wrapped   crypt.WrappedKey
	unwrapped []byte
	term      atomic.Pointer[dekcache.Term] // nil for a customer's key, whose lease does not expire
	stopped   atomic.Pointer[time.Time]     // when the lease ran out; nil while it is in force

	renewal sync.Mutex  // held while a renewal is audited
	ended   atomic.Bool // the cut has been audited

	mu       sync.Mutex // held while the stream is cut, so that no stream is cut after Release
	released atomic.Bool
	unwatch  func() // nil if the stream is not watched, or has been cut
}

// startLease sets the DEK and the term of a lease from a cache entry.
func (k *Keyring) startLease(l *Lease, entry dekcache.Entry) error {
	dek, err := l.dekOf(entry.DEK)
	if err != nil {
		return err
	}

	l.keyring, l.unwrapped = k, dek
	l.term.Store(&entry.Term)
	l.key.leases.Add(1)
	return nil
}

// dekOf returns the DEK for an unwrapped key, which is either the DEK
// itself or the bucket key that the DEK is derived from. It takes ownership
// of unwrapped.
func (l *Lease) dekOf(unwrapped []byte) ([]byte, error) {
	if l.wrapped.Salt == nil {
		return unwrapped, nil
	}
	defer clear(unwrapped)
	return crypt.DeriveDEK(unwrapped, l.wrapped.Salt, l.obj)
}

// wrapper returns the KMS key as it was last opened. It can have newer
// credentials than at the start of the lease.
func (l *Lease) wrapper() kms.Wrapper {
	if now := l.key.kms.Load(); now.id == l.service.id {
		return now.wrapper
	}
	return l.service.wrapper
}

// Unbound reports whether the data key might have been made by someone
// without access to the KMS key; see kms.Unbound.
func (l *Lease) Unbound() bool {
	return l.service != nil && kms.Unbound(l.wrapper(), l.wrapped.Blob)
}

// DEK returns the 32 bytes of the DEK. They belong to the lease and are
// zeroed by Release.
func (l *Lease) DEK() []byte { return l.unwrapped }

// Check returns nil while the lease is in force. It is cheap then: call it
// for every piece of a stream, before the piece is sent.
//
// If the lease has run out or the key was purged, Check asks the KMS again,
// once for all leases of the DEK. If the KMS cannot be reached, it retries
// for up to Config.OutageWait or until ctx ends. If a renewal cannot be
// audited (ErrAudit), it retries too: no byte is sent meanwhile, and a
// short failure of the audit log should not end all transfers.
//
// After an error, the DEK must not be used: the KMS refused, was
// unreachable for too long, or returned a different DEK (ErrChanged).
func (l *Lease) Check(ctx context.Context) error {
	a, err := l.renewIfOver(ctx)
	if err != nil && a != nil && ctx.Err() == nil { // otherwise the stream has already ended
		l.auditCut(ctx, a, err)
	}
	return err
}

func (l *Lease) renewIfOver(ctx context.Context) (*useTrace, error) {
	if l.released.Load() {
		return nil, ErrReleased
	}
	if term := l.term.Load(); term == nil || term.InForce() {
		return nil, nil
	}
	return l.renew(ctx)
}

func (l *Lease) renew(ctx context.Context) (*useTrace, error) {
	start, patience := l.keyring.now(), time.Duration(l.keyring.outageWait.Load())
	l.stopped.CompareAndSwap(nil, &start)

	for pause := firstPause; ; pause = min(2*pause, longPause) {
		a, err := l.askAgain(ctx)
		if err == nil {
			l.stopped.Store(nil)
			return a, nil
		}

		err = fmt.Errorf("renewing a data key: %w", err)
		if !transient(err) || l.keyring.now().Add(pause).Sub(start) > patience {
			return a, err
		}

		select {
		case <-time.After(pause):
		case <-ctx.Done():
			return a, errors.Join(context.Cause(ctx), err)
		}
	}
}

// askAgain makes one attempt at a renewal. Failed attempts are not audited:
// there are many during an outage, and none is a use of the key.
func (l *Lease) askAgain(ctx context.Context) (*useTrace, error) {
	entry, a, err := l.keyring.fetch(ctx, l, OpRenew)
	if err != nil {
		return a, err
	}

	dek, err := l.dekOf(entry.DEK)
	if err != nil {
		return a, err
	}
	defer clear(dek)

	if subtle.ConstantTimeCompare(dek, l.unwrapped) != 1 {
		return a, ErrChanged
	}

	l.renewal.Lock()
	defer l.renewal.Unlock()

	if l.term.Load().InForce() { // the stream and its watcher asked at the same time
		return a, nil
	}
	if err := l.keyring.audit(ctx, l, ActionRenew, a, nil); err != nil {
		return a, err
	}

	if !entry.InForce() { // the audit took too long
		return a, dekcache.ErrTooLate
	}

	l.term.Store(&entry.Term)
	l.keyring.cfg.Observer.Used(l.key.Name, l.id, Renewed)
	return a, nil
}

// Watch ends a stream that is stuck because its client neither reads nor
// sends. If the lease cannot be renewed, Watch calls cut, at most once and
// never after Release. cut must end the stream at once and drop data that
// was not sent yet. It must not call the lease.
//
// Data may still be in transit when the lease runs out. drained reports
// whether all of it has arrived. If it has not by the end of the TTL, and
// the lease has not been renewed, the stream is cut too.
//
// Watch uses ctx only for the values of the stream's request. It does not
// end with ctx.
func (l *Lease) Watch(ctx context.Context, cut func(error), drained func() bool) {
	if l.term.Load() == nil {
		return
	}
	w := &watcher{lease: l, ctx: ctx, cut: cut, drained: drained}
	l.mu.Lock()
	defer l.mu.Unlock()
	l.unwatch = l.term.Load().Watch(w.renew)
}

// watcher renews the lease of a stream, or cuts the stream.
type watcher struct {
	lease   *Lease
	ctx     context.Context //nolint:containedctx // for its values only
	cut     func(error)
	drained func() bool
}

// renew is called when the term of the lease has ended.
func (w *watcher) renew() {
	l := w.lease
	ctx, cancel := context.WithCancel(context.WithoutCancel(w.ctx))
	defer cancel()
	if !l.watchWith(func() func() { return cancel }) {
		return
	}

	stop := l.atLimit(ctx, l.term.Load(), w.cut, w.drained)
	a, err := l.renewIfOver(ctx)
	stop()

	if err != nil {
		l.cutAndAudit(ctx, w.cut, a, err)
		return
	}
	l.watchWith(func() func() { return l.term.Load().Watch(w.renew) })
}

// watchWith replaces what ends the watching of a stream, unless the stream
// has ended.
func (l *Lease) watchWith(begin func() (unwatch func())) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.released.Load() || l.unwatch == nil {
		return false
	}
	l.unwatch = begin()
	return true
}

// errUndrained is the reason for cutting a stream at the end of the TTL
// while its lease is being renewed.
var errUndrained = errors.New("the TTL ended before the client received all data, and the lease was not renewed")

// atLimit cuts the stream at the limit of the term, unless the lease is
// renewed or the stream has drained. A term may have no time between its
// end and its limit; then there is nothing to do.
func (l *Lease) atLimit(ctx context.Context, term *dekcache.Term, cut func(error), drained func() bool) (stop func()) {
	limit := term.Limit()
	if !limit.After(term.Expires()) {
		return func() {}
	}

	timer := time.AfterFunc(limit.Sub(l.keyring.now()), func() {
		if !l.term.Load().InForce() && !drained() {
			l.cutAndAudit(ctx, cut, nil, &kms.Error{
				Kind: kms.Unreachable, Op: OpRenew, KeyID: l.service.id, Err: errUndrained,
			})
		}
	})

	return func() { timer.Stop() }
}

// cutAndAudit cuts the stream before it audits the cut: a log that blocks
// must not keep the stream alive.
func (l *Lease) cutAndAudit(ctx context.Context, cut func(error), a *useTrace, err error) {
	if l.endStream(cut, err) {
		l.auditCut(ctx, a, err)
	}
}

// endStream reports whether the stream was still running.
func (l *Lease) endStream(cut func(error), err error) bool {
	l.mu.Lock()
	defer l.mu.Unlock()

	if l.released.Load() || l.unwatch == nil {
		return false
	}

	l.unwatch()
	l.unwatch = nil
	cut(err)
	l.key.recordLastUse(l.part, l.keyring.now())
	l.keyring.cfg.Observer.Used(l.key.Name, l.id, Cut)

	return true
}

// Release wipes the DEK and ends the lease. Further calls do nothing.
func (l *Lease) Release() {
	l.mu.Lock()
	defer l.mu.Unlock()

	if l.released.Swap(true) {
		return
	}

	clear(l.unwrapped)
	if l.term.Load() == nil {
		return
	}
	if l.unwatch != nil {
		l.unwatch()
	}

	last := l.keyring.now()
	if stopped := l.stopped.Load(); stopped != nil {
		last = *stopped
	}

	l.key.recordLastUse(l.part, last)
	l.key.leases.Add(-1)
	l.leavePart()
	l.keyring.cfg.Observer.Used(l.key.Name, l.id, Released)
}
