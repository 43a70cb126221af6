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

// How long a stream pauses before it asks a KMS again that it could not reach.
const (
	firstPause = 100 * time.Millisecond
	longPause  = 2 * time.Second
)

// Lease is the right to use one DEK for a bounded time. It belongs to one
// stream: Check may be called while another goroutine reads DEK, but Release
// ends both.
type Lease struct {
	keyring   *Keyring
	key       *keyState
	part      *part // nil under a customer's key
	service   *service
	id        dekcache.ID
	obj       Object
	wrapped   crypt.WrappedKey
	unwrapped []byte
	term      atomic.Pointer[dekcache.Term] // nil under a customer's key, which is there for as long as the request
	stopped   atomic.Pointer[time.Time]     // since when it is not in force; nil while it is

	renewal sync.Mutex  // held while a renewal is written down
	ended   atomic.Bool // it was written down that it was not renewed

	mu       sync.Mutex // held while the stream is cut, so that none is cut after its Release
	released atomic.Bool
	unwatch  context.CancelFunc
}

// startLease takes over what the KMS gave, and makes the DEK of it.
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

// dekOf takes over what the KMS gave, which is the DEK or the bucket key that
// the DEK is derived from.
func (l *Lease) dekOf(unwrapped []byte) ([]byte, error) {
	if l.wrapped.Salt == nil {
		return unwrapped, nil
	}
	defer clear(unwrapped)
	return crypt.DeriveDEK(unwrapped, l.wrapped.Salt, l.obj)
}

// wrapper is the KMS key, as it was opened last: its secret can be another one
// than when the lease began.
func (l *Lease) wrapper() kms.Wrapper {
	if now := l.key.kms.Load(); now.id == l.service.id {
		return now.wrapper
	}
	return l.service.wrapper
}

// Unbound reports whether nothing proves that somebody made the data key who
// may use the KMS key; see kms.Unbound.
func (l *Lease) Unbound() bool {
	return l.service != nil && kms.Unbound(l.wrapper(), l.wrapped.Blob)
}

// DEK returns the 32 bytes of the DEK, which belong to the lease: they are
// zeros after Release.
func (l *Lease) DEK() []byte { return l.unwrapped }

// Check returns nil while the lease is in force. It is cheap then, and meant
// to be called once for every piece of a stream, before the piece goes out.
// When the lease has run out or the key was purged, it asks the KMS again,
// once for all leases of the DEK, and waits for one that cannot be reached,
// for Config.OutageWait at most; ctx ends the waiting too. An error means that
// the DEK must not be used any more: the KMS said no, was out of reach for too
// long, or answered with another DEK (ErrChanged). A renewal that cannot be
// audited (ErrAudit) is waited for like a KMS that is out of reach: no byte
// passes meanwhile, and a log that cannot be written for a moment is no reason
// to end all transfers.
func (l *Lease) Check(ctx context.Context) error {
	a, err := l.renewIfOver(ctx)
	if err != nil && a != nil && ctx.Err() == nil { // else the stream has ended by itself
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

// askAgain makes one attempt at a renewal. Attempts that fail are not written
// down: there are many while a KMS is out of reach, and none is a use.
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

	if l.term.Load().InForce() { // the stream and who watches it have asked at the same time
		return a, nil
	}
	if err := l.keyring.audit(ctx, l, ActionRenew, a, nil); err != nil {
		return a, err
	}

	if !entry.InForce() { // it took so long to write
		return a, dekcache.ErrTooLate
	}

	l.term.Store(&entry.Term)
	l.keyring.cfg.Observer.Used(l.key.Name, l.id, Renewed)
	return a, nil
}

// Watch looks after a stream that may be stuck, in a client that does not take
// what was sent or sends nothing more: when the lease cannot be renewed, it
// calls cut, once, and never after Release. cut must end the stream at once
// and drop what is on its way; it must not call the lease.
//
// What a stream has handed out may still be on its way when the lease runs
// out. drained reports whether all of it has arrived; if it has not at the end
// of the TTL, and the KMS has not renewed the lease by then, the stream is cut
// too.
//
// ctx gives the values of the request that the stream is for. Its end means
// nothing here.
func (l *Lease) Watch(ctx context.Context, cut func(error), drained func() bool) {
	if l.term.Load() == nil {
		return
	}
	ctx, cancel := context.WithCancel(context.WithoutCancel(ctx))
	l.unwatch = cancel
	go l.watchTerm(ctx, cut, drained)
}

func (l *Lease) watchTerm(ctx context.Context, cut func(error), drained func() bool) {
	for {
		term := l.term.Load()
		if term.Wait(ctx) != nil {
			return
		}

		stop := l.atLimit(ctx, term, cut, drained)
		a, err := l.renewIfOver(ctx)
		stop()

		if err != nil {
			l.cutAndAudit(ctx, cut, a, err)
			return
		}
	}
}

// errUndrained is why a stream was cut that could have waited.
var errUndrained = errors.New("the TTL has ended before the client took what was sent, and the lease was not renewed")

// atLimit cuts the stream at the end of the TTL if it has something on its
// way. Where there is no time between the end of a term and its limit, there
// was none to drain.
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

// cutAndAudit ends the stream, and writes it down only then: a log that hangs
// must not keep it going.
func (l *Lease) cutAndAudit(ctx context.Context, cut func(error), a *useTrace, err error) {
	if l.endStream(cut, err) {
		l.auditCut(ctx, a, err)
	}
}

// endStream reports whether there was a stream to end.
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

// Release wipes the DEK. A second Release does nothing.
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

	now := l.keyring.now()
	last := now

	if stopped := l.stopped.Load(); stopped != nil {
		last = *stopped
	}

	l.key.recordLastUse(l.part, last)
	l.key.leases.Add(-1)
	l.leavePart()
	l.keyring.cfg.Observer.Used(l.key.Name, l.id, Released)
}
