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

// Reuse allows bucket keys: one data key that the KMS has wrapped serves
// many objects of a bucket, and the DEK of each object is derived from it.
// These objects together need one KMS call when they are written and one
// per TTL when they are read. A bucket key is cached and leased like a DEK,
// and revocation applies to it in the same way.
type Reuse struct {
	MaxAge     time.Duration // how long a bucket key is used for new objects
	MaxObjects int64         // for how many new objects
	// MaxBytes is for how many bytes of plaintext. Objects being written
	// when the limit is reached still use the old bucket key.
	MaxBytes int64
}

// maxBucketKeys limits the number of bucket keys in use, of about 300 bytes
// each. They are wrapped; only the cache holds unwrapped keys.
const maxBucketKeys = 4096

type bucketKeyName struct{ key, id, bucket string }

// bucketKey is the current bucket key for new objects.
type bucketKey struct {
	mu      sync.Mutex
	blob    []byte // nil if none exists
	made    time.Time
	objects int64
	bytes   int64
	flight  *bucketKeyFlight // the call that creates a new one; nil if none exists
}

// bucketKeyFlight is a call that creates a bucket key, and that other
// objects wait for.
//
// golang.org/x/sync/singleflight would separate the call from its callers.
// Here the call belongs to one client, is audited for that client, and ends
// when that client leaves. Then another waiting client makes a new call.
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
		k.bucketKeys.Get(name) // mark as recently used
		return old
	}
	return fresh
}

// createFromBucketKey derives a new DEK from a bucket key. It creates a
// bucket key if no existing one can be used.
func (k *Keyring) createFromBucketKey(ctx context.Context, l *Lease, limits Reuse) (*DataKey, error) {
	salt, err := crypt.NewSalt(rand.Reader)
	if err != nil {
		return nil, err
	}

	l.wrapped.Salt = salt
	shared := k.bucketKeyFor(bucketKeyName{l.key.Name, l.service.id, l.obj.Bucket})
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
			// A disabled key version makes its bucket keys useless. A new
			// one may work.
			shared.discard(l.wrapped.Blob)
			continue
		}

		use := Opened // for the cache, the bucket key was opened
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

// makeBucketKey gets a bucket key from the KMS and puts it into the cache.
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

// useForOne returns the wrapped bucket key for one more object. While a
// bucket key is being created, other objects wait for it.
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
		// A cancellation concerns only the client that left.
		if errors.As(flight.err, &failure) && failure.Kind != kms.Canceled {
			return nil, flight.err
		}
	}
}

// makeNew creates a new bucket key. Its age counts from before the KMS was
// asked.
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

// discard makes the next object create a new bucket key.
func (s *bucketKey) discard(blob []byte) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if bytes.Equal(s.blob, blob) {
		s.blob = nil
	}
}

// Shared reports whether the DEK is derived from a bucket key.
func (l *Lease) Shared() bool { return l.wrapped.Salt != nil }

// Wrote counts n bytes of plaintext written under the lease toward
// Reuse.MaxBytes.
func (l *Lease) Wrote(n int64) {
	if l.wrapped.Salt == nil {
		return
	}
	if s, ok := l.keyring.bucketKeys.Peek(bucketKeyName{l.key.Name, l.service.id, l.obj.Bucket}); ok {
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
