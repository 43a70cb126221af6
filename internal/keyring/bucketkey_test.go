package keyring_test

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/cmekproxy/cmekproxy/internal/crypt"
	"github.com/cmekproxy/cmekproxy/internal/keyring"
	"github.com/cmekproxy/cmekproxy/internal/kms"
	"github.com/cmekproxy/cmekproxy/internal/kms/kmstest"
)

// sharing enables bucket keys for all buckets.
func sharing(limits keyring.Reuse, seen *seen) func(*keyring.Config) {
	return func(c *keyring.Config) {
		c.Rules = []keyring.Rule{{Key: "k", Reuse: &limits}}
		c.Observer = seen
	}
}

func object(n int) keyring.Object {
	return keyring.Object{Bucket: "bucket", Key: fmt.Sprint("object ", n)}
}

func createAs(t *testing.T, k *keyring.Keyring, obj keyring.Object, size int64) *keyring.DataKey {
	t.Helper()
	sealed, err := k.Create(t.Context(), obj, "", keyring.Choice{})
	must(t, err)
	sealed.Wrote(size)
	return sealed
}

func TestReuseLimits(t *testing.T) {
	for name, row := range map[string]struct {
		limits keyring.Reuse
		step   time.Duration // between objects
		size   int64
		want   int // bucket keys for 12 objects
	}{
		"no limit is reached": {keyring.Reuse{MaxAge: time.Hour, MaxObjects: 100, MaxBytes: 1000}, time.Second, 1, 1},
		"objects":             {keyring.Reuse{MaxAge: time.Hour, MaxObjects: 5, MaxBytes: 1000}, 0, 1, 3},
		"one object":          {keyring.Reuse{MaxAge: time.Hour, MaxObjects: 1, MaxBytes: 1000}, 0, 1, 12},
		"age": {
			keyring.Reuse{MaxAge: 4 * time.Second, MaxObjects: 100, MaxBytes: 1000}, time.Second, 1, 3,
		},
		"bytes": {keyring.Reuse{MaxAge: time.Hour, MaxObjects: 100, MaxBytes: 100}, 0, 50, 6},
	} {
		t.Run(name, func(t *testing.T) {
			kmstest.Bubble(t, func(t *testing.T) {
				seen := &seen{}
				w, _ := newLocal(t)
				k := newRing(t, w, 10*time.Minute, sharing(row.limits, seen))
				deks := make(map[string]bool)

				for i := range 12 {
					sealed := createAs(t, k, object(i), row.size)
					deks[string(sealed.DEK())] = true
					sealed.Release()
					time.Sleep(row.step)
				}

				if got := seen.count(keyring.OpGenerate); got != row.want {
					t.Errorf("%d bucket keys, want %d", got, row.want)
				}
				if len(deks) != 12 || seen.count(keyring.OpUnwrap) > 0 {
					t.Errorf("%d data keys, %d unwraps", len(deks), seen.count(keyring.OpUnwrap))
				}
			})
		})
	}
}

// Bucket keys are not shared between buckets or KMS keys, or with objects
// that have their own encryption context.
func TestReuseIsWithinABucket(t *testing.T) {
	seen := &seen{}
	w, _ := newLocal(t)
	k := newRing(t, w, time.Minute, sharing(keyring.Reuse{MaxAge: time.Hour, MaxObjects: 100, MaxBytes: 100}, seen))
	createAs(t, k, object(1), 1).Release()
	createAs(t, k, keyring.Object{Bucket: "another", Key: "object 1"}, 1).Release()
	own, err := k.Create(t.Context(), object(2), "", keyring.Choice{Context: map[string]string{"tenant": "acme"}})
	must(t, err)
	own.Release()

	if got := seen.count(keyring.OpGenerate); got != 3 || own.Shared() {
		t.Errorf("%d calls, want 3; with a context: shared %t", got, own.Shared())
	}
}

// After the cache is lost, one unwrap serves all objects. Each object gets
// the DEK that it was stored with, which differs from all others.
func TestReuseOpens(t *testing.T) {
	seen := &seen{}
	w, _ := newLocal(t)
	k := newRing(t, w, time.Minute, sharing(keyring.Reuse{MaxAge: time.Hour, MaxObjects: 100, MaxBytes: 100}, seen))
	wrapped, deks := make(map[int][]byte), make(map[int]string)

	for i := range 5 {
		sealed := createAs(t, k, object(i), 1)
		wrapped[i], deks[i] = sealed.Wrapped, string(sealed.DEK())
		sealed.Release()
	}

	k.PurgeAll()
	for i := range 5 {
		lease, err := k.Open(t.Context(), object(i), w.KeyID(), wrapped[i])
		must(t, err)

		if string(lease.DEK()) != deks[i] {
			t.Errorf("object %d has another data key", i)
		}
		must(t, lease.Check(t.Context()))
		lease.Release()
	}

	if got := seen.count(keyring.OpUnwrap); got != 1 {
		t.Errorf("%d unwraps", got)
	}

	moved, err := k.Open(t.Context(), object(1), w.KeyID(), wrapped[2])
	must(t, err)

	if string(moved.DEK()) == deks[2] {
		t.Error("another object got the data key")
	}

	moved.Release()
	if _, err := k.Open(t.Context(), keyring.Object{Bucket: "another", Key: "object 1"}, w.KeyID(),
		wrapped[1]); err == nil {
		t.Error("the KMS unwraps a bucket key for another bucket")
	}

	// A renewal derives the DEK again and compares it.
	lease, err := k.Open(t.Context(), object(3), w.KeyID(), wrapped[3])
	must(t, err)
	k.PurgeAll()
	must(t, lease.Check(t.Context()))

	lease.Release()
}

// Revocation applies to bucket keys as to data keys. If the key is revoked,
// new objects are refused after the TTL or a purge. If it is restored, the
// bucket key can be used again.
func TestReuseEndsWithTheKey(t *testing.T) {
	kmstest.Bubble(t, func(t *testing.T) {
		w, _ := newLocal(t)
		s := &switched{Wrapper: w}
		k := newRing(t, s, time.Minute, sharing(keyring.Reuse{
			MaxAge: 10 * time.Hour, MaxObjects: 1000,
			MaxBytes: 1000,
		}, &seen{}))

		createAs(t, k, object(1), 1).Release()
		s.fail.Store(&kms.Error{Kind: kms.Disabled, KeyID: w.KeyID()})
		createAs(t, k, object(2), 1).Release() // the window
		time.Sleep(time.Minute)

		if _, err := k.Create(t.Context(), object(3), "", keyring.Choice{}); !kms.IsRevoked(err) {
			t.Errorf("after the TTL: %v", err)
		}

		s.fail.Store(nil)
		time.Sleep(2 * time.Second) // the refusal is remembered briefly
		createAs(t, k, object(4), 1).Release()
		k.PurgeAll()
		s.fail.Store(&kms.Error{Kind: kms.Disabled, KeyID: w.KeyID()})

		if _, err := k.Create(t.Context(), object(5), "", keyring.Choice{}); !kms.IsRevoked(err) {
			t.Errorf("after a purge: %v", err)
		}

		// An unreachable KMS does not discard the bucket key, which is used
		// again later.
		s.fail.Store(&kms.Error{Kind: kms.Unreachable, KeyID: w.KeyID()})

		if _, err := k.Create(t.Context(), object(6), "", keyring.Choice{}); !kms.IsUnreachable(err) {
			t.Errorf("out of reach: %v", err)
		}
	})
}

// switched is a key that can be revoked.
type switched struct {
	kms.Wrapper
	fail  atomic.Pointer[kms.Error]
	wraps atomic.Int64
	delay time.Duration
}

func (s *switched) Wrap(ctx context.Context, dek []byte, ec kms.EncryptionContext) ([]byte, error) {
	s.wraps.Add(1)
	select {
	case <-time.After(s.delay):
	case <-ctx.Done():
		return nil, &kms.Error{Kind: kms.Canceled, KeyID: s.KeyID(), Err: ctx.Err()}
	}
	if err := s.fail.Load(); err != nil {
		return nil, err
	}
	return s.Wrapper.Wrap(ctx, dek, ec)
}

func (s *switched) Unwrap(ctx context.Context, wrapped []byte, ec kms.EncryptionContext) ([]byte, error) {
	if err := s.fail.Load(); err != nil {
		return nil, err
	}
	return s.Wrapper.Unwrap(ctx, wrapped, ec)
}

// If a version of the KMS key is disabled, the bucket key that it wrapped
// is discarded, and the next object gets a new one.
func TestReuseAfterARotation(t *testing.T) {
	w, path := newLocal(t)
	k := newRing(t, w, time.Minute, sharing(keyring.Reuse{MaxAge: time.Hour, MaxObjects: 1000, MaxBytes: 1000},
		&seen{}))

	createAs(t, k, object(1), 1).Release()
	must(t, kms.ChangeLocalKeyFile(path, func(f *kms.LocalKeyFile) error {
		if _, err := f.Rotate(time.Now()); err != nil {
			return err
		}
		return f.SetState(1, kms.LocalKeyDisabled)
	}))

	k.PurgeAll()
	sealed := createAs(t, k, object(2), 1)
	defer sealed.Release()

	k.PurgeAll()
	lease, err := k.Open(t.Context(), object(2), w.KeyID(), sealed.Wrapped)
	must(t, err)
	lease.Release()
}

// While a bucket key is being created, other objects wait for it and share
// its failure, but not the cancellation of its client.
func TestReuseIsMadeOnce(t *testing.T) {
	kmstest.Bubble(t, func(t *testing.T) {
		w, _ := newLocal(t)
		s := &switched{Wrapper: w, delay: time.Second}
		k := newRing(t, s, time.Hour, sharing(keyring.Reuse{MaxAge: time.Hour, MaxObjects: 1000, MaxBytes: 1000},
			&seen{}))

		var all sync.WaitGroup
		crowd := func(ctx context.Context, want func(error) bool) {
			for i := range 20 {
				all.Go(func() {
					sealed, err := k.Create(ctx, object(i), "", keyring.Choice{})
					if !want(err) {
						t.Errorf("object %d: %v", i, err)
					}
					if err == nil {
						sealed.Release()
					}
				})
			}
		}

		s.fail.Store(&kms.Error{Kind: kms.Unreachable, KeyID: w.KeyID()})
		crowd(t.Context(), kms.IsUnreachable)
		all.Wait()

		if n := s.wraps.Swap(0); n != 1 {
			t.Errorf("%d calls for one failure", n)
		}

		s.fail.Store(nil)
		leaving, leave := context.WithCancel(t.Context())
		all.Go(func() {
			if _, err := k.Create(leaving, object(99), "", keyring.Choice{}); err == nil {
				t.Error("the one who left has a data key")
			}
		})

		synctest.Wait()
		crowd(t.Context(), func(err error) bool { return err == nil })
		synctest.Wait()
		leave()
		all.Wait()

		if n := s.wraps.Load(); n != 2 {
			t.Errorf("%d calls, want that of the one who left and one for all others", n)
		}
	})
}

func TestCustomerLease(t *testing.T) {
	w, _ := newLocal(t)
	records := &trail{}
	k := newRing(t, w, time.Minute, func(c *keyring.Config) {
		c.Rules = []keyring.Rule{
			{Buckets: []string{"closed"}, Key: "k", RefuseCustomerKeys: true}, {Buckets: []string{"bucket"}, Key: "k"},
		}
		c.Auditor = records
	})

	key := make([]byte, 32)
	rand.Read(key)
	sealed, err := k.Create(asRequest(t), obj, "", keyring.Choice{CustomerKey: key})
	must(t, err)
	dek := string(sealed.DEK())
	sealed.Watch(asRequest(t), func(error) { t.Error("cut") }, func() bool { return true })
	must(t, sealed.Check(asRequest(t)))
	k.PurgeAll()
	must(t, sealed.Check(asRequest(t))) // there is no KMS key
	held := sealed.DEK()
	sealed.Release()
	sealed.Release()

	if string(held) != string(make([]byte, 32)) || !errors.Is(sealed.Check(asRequest(t)), keyring.ErrReleased) {
		t.Error("the data key outlives its lease")
	}

	lease, err := k.OpenForCustomer(asRequest(t), obj, sealed.Wrapped, key)
	must(t, err)

	if string(lease.DEK()) != dek || sealed.KeyID != crypt.CustomerKeyID {
		t.Errorf("another data key, under %s", sealed.KeyID)
	}

	lease.Release()
	key[0] ^= 1

	if _, err := k.OpenForCustomer(asRequest(t), obj, sealed.Wrapped, key); !errors.Is(err, crypt.ErrCustomerKey) {
		t.Errorf("another customer key: %v", err)
	}

	for bucket, want := range map[string]error{"closed": keyring.ErrNotAllowed, "elsewhere": keyring.ErrNoRule} {
		t.Run(bucket, func(t *testing.T) {
			if _, err := k.Create(asRequest(t), keyring.Object{Bucket: bucket, Key: "k"}, "",
				keyring.Choice{CustomerKey: key}); !errors.Is(err, want) {
				t.Errorf("in %s: %v", bucket, err)
			}
		})
	}

	if _, err := k.Open(asRequest(t), obj, crypt.CustomerKeyID, sealed.Wrapped); !errors.Is(err,
		keyring.ErrUnknownKey) {
		t.Errorf("opened without a key: %v", err)
	}

	for i, e := range records.events {
		if e.KeyID != crypt.CustomerKeyID || e.Source != keyring.Customer || e.Object != obj {
			t.Errorf("audited as %d: %+v", i, e)
		}
	}

	if got := strings.Join(records.take(), ", "); !strings.HasPrefix(got, "create customer") ||
		len(strings.Split(got, ", ")) != 3 {
		t.Errorf("audited: %s", got)
	}
}
