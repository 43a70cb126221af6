package keyring

import (
	"context"
	"crypto/subtle"
	"fmt"
	"sync/atomic"

	"github.com/cmekproxy/cmekproxy/internal/dekcache"
)

// Lease is the right to use one DEK for a bounded time. It belongs to one stream: Check may be called while another
// goroutine reads DEK, but Release ends both.
type Lease struct {
	ring     *Keyring
	key      *key
	obj      Object
	wrapped  []byte
	dek      []byte
	term     atomic.Pointer[dekcache.Term]
	released atomic.Bool
}

// lease takes over the DEK of entry.
func (k *Keyring) lease(key *key, obj Object, wrapped []byte, entry dekcache.Entry) *Lease {
	l := &Lease{ring: k, key: key, obj: obj, wrapped: wrapped, dek: entry.DEK}
	l.term.Store(&entry.Term)
	key.leases.Add(1)
	return l
}

// DEK returns the 32 bytes of the DEK, which belong to the lease: they are zeros after Release.
func (l *Lease) DEK() []byte { return l.dek }

// Check returns nil while the lease is in force. It is cheap then, and meant to be called once for every piece of a
// stream, before the piece goes out. When the TTL has run out or the key was purged, it asks the KMS again, once for
// all leases of the DEK; ctx ends the waiting. An error means that the DEK must not be used any more: the KMS said no,
// could not be reached, or answered with another DEK (ErrChanged).
func (l *Lease) Check(ctx context.Context) error {
	if l.released.Load() {
		return ErrReleased
	}
	if l.term.Load().InForce() {
		return nil
	}
	return l.renew(ctx)
}

func (l *Lease) renew(ctx context.Context) error {
	entry, err := l.ring.fetch(ctx, l.key, l.obj, l.wrapped)
	if err != nil {
		return fmt.Errorf("renewing a data key: %w", err)
	}
	defer clear(entry.DEK)
	if subtle.ConstantTimeCompare(entry.DEK, l.dek) != 1 {
		return ErrChanged
	}
	l.term.Store(&entry.Term)
	return nil
}

// Release wipes the DEK. A second Release does nothing.
func (l *Lease) Release() {
	if l.released.Swap(true) {
		return
	}
	l.key.leases.Add(-1)
	clear(l.dek)
}
