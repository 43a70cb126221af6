package keyring

import (
	"bytes"
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"sync"
	"time"

	lru "github.com/hashicorp/golang-lru/v2"

	"github.com/cmekproxy/cmekproxy/internal/crypt"
	"github.com/cmekproxy/cmekproxy/internal/kms"
)

// Reuse lets one data key that the KMS has wrapped, a bucket key, serve many
// objects of a bucket: the DEK of each is derived from it. Objects that share
// one cost the KMS one call to be written and one in a TTL to be read. What
// ends the use of a DEK ends that of a bucket key just the same: it is in the
// same cache, under the same leases.
type Reuse struct {
	MaxAge     time.Duration // how long new objects are put under a bucket key
	MaxObjects int64         // how many
	MaxBytes   int64         // of how many bytes of plaintext in all; what is under way when it is reached still belongs to it
}

// maxBucketKeys bounds how many bucket keys are in use, of some 300 bytes
// each. It holds no key: what is unwrapped is the cache's.
const maxBucketKeys = 4096

type bucketKeyName struct{ key, bucket string }

// bucketKey is the bucket key that new objects are put under.
type bucketKey struct {
	mu      sync.Mutex
	blob    []byte // nil while there is none
	made    time.Time
	objects int64
	bytes   int64
	flight  *bucketKeyFlight // who makes a new one; nil if nobody does
}

// bucketKeyFlight is the making of a bucket key, and all who wait for it.
//
// It is not golang.org/x/sync/singleflight, which runs a call apart from its
// callers. Here the call is that of one client, is audited as its own, and ends
// when that client leaves; the others then make another.
type bucketKeyFlight struct {
	done chan struct{}
	err  error
}

func newBucketKeys() *lru.Cache[bucketKeyName, *bucketKey] {
	c, err := lru.New[bucketKeyName, *bucketKey](maxBucketKeys)
	if err != nil {
		panic(err) // only for sizes below 1
	}
	return c
}

func (k *Keyring) bucketKeyFor(name bucketKeyName) *bucketKey {
	fresh := &bucketKey{}
	if old, ok, _ := k.bucketKeys.PeekOrAdd(name, fresh); ok {
		k.bucketKeys.Get(name) // it is in use
		return old
	}
	return fresh
}

// createFromBucketKey makes a new DEK from a bucket key, and a new bucket key
// where there is none to be used.
func (k *Keyring) createFromBucketKey(ctx context.Context, l *Lease, limits Reuse) (*DataKey, error) {
	salt, err := crypt.NewSalt(rand.Reader)
	if err != nil {
		return nil, err
	}

	l.wrapped.Salt = salt
	shared := k.bucketKeyFor(bucketKeyName{l.key.Name, l.obj.Bucket})
	for {
		made := &useTrace{}
		l.wrapped.Blob, err = shared.useForOne(ctx, k.now, limits,
			func(ctx context.Context) ([]byte, error) { return k.makeBucketKey(ctx, l, made) })
		if err != nil {
			return nil, fmt.Errorf("making a bucket key: %w", k.audit(ctx, l, ActionCreate, made, err))
		}

		l.id = cacheID(l)
		k.joinPart(l)
		entry, a, err := k.fetch(ctx, l, OpUnwrap)
		if err != nil && !made.kms.Load() && !transient(err) && ctx.Err() == nil {
			l.leavePart()
			shared.discard(l.wrapped.Blob) // a version of the KMS key that is gone takes its bucket keys along; the next one may do
			continue
		}

		use := Opened // to the cache, it is the bucket key
		if made.kms.Load() {
			a, use = made, Created
		}
		if err := k.audit(ctx, l, ActionCreate, a, err); err != nil {
			clear(entry.DEK)
			l.leavePart()
			return nil, fmt.Errorf("making a data key: %w", err)
		}

		return k.dataKeyOf(l, entry, use)
	}
}

// makeBucketKey asks the KMS for a bucket key, and has the cache know it.
func (k *Keyring) makeBucketKey(ctx context.Context, l *Lease, a *useTrace) ([]byte, error) {
	mark := k.cfg.Cache.Mark()
	fresh := Lease{key: l.key, service: l.service, obj: l.obj, wrapped: crypt.WrappedKey{Salt: l.wrapped.Salt}}
	var bucketKey []byte
	err := k.call(ctx, l.key, l.key.rest, OpGenerate, a, func(ctx context.Context) (err error) {
		bucketKey, fresh.wrapped.Blob, err = kms.Generate(ctx, l.service.wrapper,
			encryptionContext(l.obj, fresh.wrapped))
		return err
	})
	if err != nil {
		return nil, err
	}
	defer clear(bucketKey)

	k.joinPart(&fresh)
	defer fresh.leavePart()

	entry := k.cfg.Cache.Put(cacheID(&fresh), fresh.part.group, mark, bucketKey)
	clear(entry.DEK)
	fresh.recordSample(encryptionContext(l.obj, fresh.wrapped))
	return fresh.wrapped.Blob, nil
}

// useForOne returns the wrapped bucket key for one more object. Those that
// come while a new one is made wait for it.
func (s *bucketKey) useForOne(
	ctx context.Context, now func() time.Time, limits Reuse, produce func(context.Context) ([]byte, error),
) ([]byte, error) {
	for {
		s.mu.Lock()
		if s.blob != nil && now().Sub(s.made) < limits.MaxAge && s.objects < limits.MaxObjects &&
			s.bytes < limits.MaxBytes {
			s.objects++
			blob := s.blob
			s.mu.Unlock()
			return blob, nil
		}

		flight := s.flight
		mine := flight == nil
		if mine {
			flight = &bucketKeyFlight{done: make(chan struct{})}
			s.flight = flight
		}

		s.mu.Unlock()
		if mine {
			s.makeNew(ctx, flight, now(), produce)
			if flight.err != nil {
				return nil, flight.err
			}
			continue
		}

		select {
		case <-flight.done:
		case <-ctx.Done():
			return nil, context.Cause(ctx)
		}

		var failure *kms.Error
		if errors.As(flight.err, &failure) && failure.Kind != kms.Canceled { // that of the one who went away is not ours
			return nil, flight.err
		}
	}
}

// makeNew makes a new bucket key. Its age counts from before the KMS was asked.
func (s *bucketKey) makeNew(
	ctx context.Context, flight *bucketKeyFlight, start time.Time, produce func(context.Context) ([]byte, error),
) {
	var blob []byte
	flight.err = errors.New("panic")
	defer func() {
		s.mu.Lock()
		defer s.mu.Unlock()

		s.flight = nil
		if flight.err == nil {
			s.blob, s.made, s.objects, s.bytes = blob, start, 0, 0
		}

		close(flight.done)
	}()

	blob, flight.err = produce(ctx)
}

// discard has the next object get a new bucket key.
func (s *bucketKey) discard(blob []byte) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if bytes.Equal(s.blob, blob) {
		s.blob = nil
	}
}

// Shared reports whether the DEK comes from a bucket key.
func (l *Lease) Shared() bool { return l.wrapped.Salt != nil }

// Wrote counts n bytes of plaintext that are written under the lease, for
// Reuse.MaxBytes.
func (l *Lease) Wrote(n int64) {
	if l.wrapped.Salt == nil {
		return
	}
	if s, ok := l.keyring.bucketKeys.Peek(bucketKeyName{l.key.Name, l.obj.Bucket}); ok {
		s.addBytes(l.wrapped.Blob, n)
	}
}

func (s *bucketKey) addBytes(blob []byte, n int64) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if bytes.Equal(s.blob, blob) {
		s.bytes += n
	}
}
