package keyring_test

import (
	"context"
	"errors"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/cmekproxy/cmekproxy/internal/dekcache"
	"github.com/cmekproxy/cmekproxy/internal/keyring"
	"github.com/cmekproxy/cmekproxy/internal/kms"
	"github.com/cmekproxy/cmekproxy/internal/kms/kmstest"
)

func TestAStreamWaitsForAnUnreachableKMS(t *testing.T) {
	w, _ := newLocal(t)
	kmstest.Bubble(t, func(t *testing.T) {
		s, events := &slow{Wrapper: w}, &seen{}
		k := newRing(t, s, time.Minute, func(c *keyring.Config) { c.OutageWait, c.Observer = 30*time.Second, events })
		sealed := create(t, k)
		defer sealed.Release()

		for _, kind := range []kms.Kind{kms.Unreachable, kms.Throttled} {
			s.fail.Store(&kms.Error{Kind: kind})
			time.Sleep(time.Minute)

			go func() {
				time.Sleep(20 * time.Second)
				s.fail.Store(nil)
			}()

			at := time.Now()
			must(t, sealed.Check(t.Context()))

			if d := time.Since(at); d < 20*time.Second || d > 25*time.Second {
				t.Errorf("%v: went on after %v, the KMS was back after 20s", kind, d)
			}
		}

		if n := events.uses(keyring.Renewed); n != 2 {
			t.Errorf("%d renewals, want 2", n)
		}

		s.fail.Store(&kms.Error{Kind: kms.Unreachable})
		time.Sleep(time.Minute)
		at := time.Now()

		if err := sealed.Check(t.Context()); !kms.IsUnreachable(err) {
			t.Errorf("%v, want unreachable", err)
		}
		if d := time.Since(at); d > 31*time.Second || d < 25*time.Second {
			t.Errorf("gave up after %v, want about 30s", d)
		}

		ctx, cancel := context.WithTimeout(t.Context(), 3*time.Second)
		defer cancel()

		if err := sealed.Check(ctx); !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("%v, want the end of the caller's context", err)
		}

		for _, kind := range []kms.Kind{kms.Denied, kms.Internal, kms.InvalidCiphertext} { // a refusal is not retried
			s.fail.Store(&kms.Error{Kind: kind})
			time.Sleep(2 * time.Second)
			at = time.Now()
			if err := sealed.Check(t.Context()); !isKind(err, kind) || time.Since(at) > 2*time.Second {
				t.Errorf("%v after %v, want %v at once", err, time.Since(at), kind)
			}
		}
	})
}

// stream is a stuck stream: it never checks its lease.
type stream struct {
	cut     atomic.Pointer[error]
	at      time.Time
	drained atomic.Bool
}

func (s *stream) watch(l *keyring.Lease) {
	l.Watch(context.Background(), func(err error) {
		s.at = time.Now()
		if s.cut.Swap(&err) != nil {
			panic("cut twice")
		}
	}, s.drained.Load)
}

func (s *stream) wasCut() error {
	if err := s.cut.Load(); err != nil {
		return *err
	}
	return nil
}

func TestAStuckStreamIsCut(t *testing.T) {
	w, _ := newLocal(t)
	kmstest.Bubble(t, func(t *testing.T) {
		s, events := &slow{Wrapper: w}, &seen{}
		k := newRing(t, s, time.Minute, func(c *keyring.Config) {
			c.RevocationProbe, c.OutageWait, c.Observer = 10*time.Second, time.Hour, events
		})
		defer run(t, k)()

		sealed := create(t, k)
		defer sealed.Release()

		stuck := &stream{}
		stuck.watch(sealed.Lease)
		time.Sleep(3*time.Minute + 5*time.Second)

		if err := stuck.wasCut(); err != nil || events.uses(keyring.Renewed) != 3 {
			t.Fatalf("a good key: %v, %d renewals", err, events.uses(keyring.Renewed))
		}

		s.fail.Store(&kms.Error{Kind: kms.Disabled})
		at := time.Now()
		time.Sleep(k.Window(time.Minute))

		if err := stuck.wasCut(); !isKind(err, kms.Disabled) {
			t.Fatalf("%v after the window", err)
		}

		status := k.Status()[0]
		if d := stuck.at.Sub(at); status.State != keyring.Revoked || status.LastUse > d || status.LastUse < 0 {
			t.Errorf("cut after %v, status %+v", d, status)
		}
		if events.uses(keyring.Cut) != 1 {
			t.Errorf("%d reported as cut", events.uses(keyring.Cut))
		}
	})
}

// A policy can deny the key for some objects only. Each DEK is asked about,
// and only the streams of those objects are cut.
func TestDeniedForSomeObjects(t *testing.T) {
	w, _ := newLocal(t)
	kmstest.Bubble(t, func(t *testing.T) {
		s := &choosy{Wrapper: w}
		k := newRing(t, s, time.Hour, func(c *keyring.Config) { c.RevocationProbe = 10 * time.Second })
		defer run(t, k)()

		open := func(bucket string) (*keyring.DataKey, *stream) {
			sealed, err := k.Create(t.Context(), keyring.Object{Bucket: bucket, Key: "k"}, "", keyring.Choice{})
			must(t, err)
			st := &stream{}
			st.watch(sealed.Lease)
			return sealed, st
		}

		good, goodStream := open("good")
		defer good.Release()

		bad, badStream := open("bad") // the probe asks about this one
		defer bad.Release()

		s.denied.Store("bad")
		time.Sleep(15 * time.Second)

		if err := badStream.wasCut(); !isKind(err, kms.Denied) {
			t.Errorf("the denied one: %v", err)
		}
		if err := goodStream.wasCut(); err != nil {
			t.Errorf("the other one: %v", err)
		}

		must(t, good.Check(t.Context()))
	})
}

type choosy struct {
	kms.Wrapper
	denied atomic.Value
}

func (c *choosy) Unwrap(ctx context.Context, wrapped []byte, ec kms.EncryptionContext) ([]byte, error) {
	if c.denied.Load() == ec["bucket"] {
		return nil, &kms.Error{Kind: kms.Denied}
	}
	return c.Wrapper.Unwrap(ctx, wrapped, ec)
}

// At the end of the TTL, data in transit is cut off too if the KMS does not
// answer.
func TestUndrainedStreamsAreCutAtTheTTL(t *testing.T) {
	w, _ := newLocal(t)
	kmstest.Bubble(t, func(t *testing.T) {
		s := &slow{Wrapper: w}
		cache := dekcache.New(dekcache.Config{
			TTL:    time.Minute,
			Jitter: func(ttl time.Duration) time.Duration { return ttl / 10 },
		})
		defer cache.Close()

		k := newRing(t, s, 0, func(c *keyring.Config) { c.Cache, c.OutageWait = cache, time.Minute })
		start := time.Now()
		var leases []*keyring.DataKey
		open := func(drained bool) *stream {
			sealed := create(t, k)
			leases = append(leases, sealed)
			st := &stream{}
			st.drained.Store(drained)
			st.watch(sealed.Lease)
			return st
		}

		full, empty := open(false), open(true)
		time.Sleep(59 * time.Second) // past one successful renewal

		if full.wasCut() != nil || empty.wasCut() != nil {
			t.Fatalf("a good key: %v, %v", full.wasCut(), empty.wasCut())
		}

		s.fail.Store(&kms.Error{Kind: kms.Unreachable}) // until the end of the second TTL, at 54 s + 60 s
		time.Sleep(time.Until(start.Add(2*time.Minute - 1*time.Second)))

		if err := full.wasCut(); !kms.IsUnreachable(err) {
			t.Errorf("%v, want unreachable", err)
		} else if d := full.at.Sub(start); d != 114*time.Second {
			t.Errorf("cut after %v, want 1m54s", d)
		}
		if err := empty.wasCut(); err != nil {
			t.Errorf("the one that can wait: %v", err)
		}

		s.fail.Store(nil)
		time.Sleep(5 * time.Second)
		must(t, leases[1].Check(t.Context()))

		for _, l := range leases {
			l.Release()
		}
	})
}

func TestNobodyIsCutAfterRelease(t *testing.T) {
	w, _ := newLocal(t)
	k := newRing(t, w, time.Minute, nil)
	var wg sync.WaitGroup

	for range 200 {
		sealed := create(t, k)
		var released atomic.Bool
		sealed.Watch(t.Context(), func(error) {
			if released.Load() {
				t.Error("cut after Release")
			}
		}, func() bool { return true })

		wg.Go(func() { k.PurgeAll() })
		sealed.Release()
		released.Store(true)
	}

	wg.Wait()
}

// TestALeaseIsRenewedByTheKeyAsItIsOpenNow checks that renewals use the key
// as it was last opened, because its credentials may have been replaced.
func TestALeaseIsRenewedByTheKeyAsItIsOpenNow(t *testing.T) {
	w, _ := newLocal(t)
	first, second := &away{Wrapper: w}, &away{Wrapper: w}
	k := newRing(t, first, time.Hour, nil)
	sealed := create(t, k)
	defer sealed.Release()

	must(t, k.Provide("k", second, nil))
	first.no.Store(true)
	k.PurgeAll()
	must(t, sealed.Check(t.Context()))

	if n := second.calls.Load(); n != 1 {
		t.Errorf("%d calls through the key as it was opened last", n)
	}
}
