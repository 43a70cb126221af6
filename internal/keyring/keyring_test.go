package keyring_test

import (
	"bytes"
	"context"
	"errors"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"go.uber.org/goleak"

	"github.com/cmekproxy/cmekproxy/internal/dekcache"
	"github.com/cmekproxy/cmekproxy/internal/keyring"
	"github.com/cmekproxy/cmekproxy/internal/kms"
	"github.com/cmekproxy/cmekproxy/internal/kms/kmstest"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

var obj = keyring.Object{Bucket: "bucket", Key: "a/b.txt"}

// slow is a real key whose KMS counts its calls, takes a second for each,
// and can be made to fail.
type slow struct {
	kms.Wrapper
	unwraps atomic.Int64
	fail    atomic.Pointer[kms.Error]
	swap    atomic.Bool // return another DEK
}

func (s *slow) Unwrap(ctx context.Context, wrapped []byte, ec kms.EncryptionContext) ([]byte, error) {
	s.unwraps.Add(1)
	time.Sleep(time.Second)
	if err := s.fail.Load(); err != nil {
		return nil, err
	}
	if s.swap.Load() {
		return kmstest.NewDEK(), nil
	}
	return s.Wrapper.Unwrap(ctx, wrapped, ec)
}

func (s *slow) wantUnwraps(t *testing.T, want int64) {
	t.Helper()
	if got := s.unwraps.Load(); got != want {
		t.Errorf("%d unwraps, want %d", got, want)
	}
}

func newLocal(t testing.TB) (w *kms.Local, path string) {
	t.Helper()
	path = filepath.Join(t.TempDir(), "key")
	must(t, kms.CreateLocalKeyFile(path))
	w, err := kms.NewLocal(path)
	must(t, err)
	return w, path
}

func newCache(t testing.TB, ttl time.Duration) *dekcache.Cache {
	t.Helper()
	c := dekcache.New(dekcache.Config{TTL: ttl, Remember: func(err error) time.Duration {
		if kms.IsRevoked(err) && !keyring.IsRemembered(err) {
			return time.Second
		}
		return 0
	}})
	t.Cleanup(c.Close)
	return c
}

// newRing returns a keyring with one key named "k" for all objects. change,
// if not nil, edits the configuration.
func newRing(t testing.TB, w kms.Wrapper, ttl time.Duration, change func(*keyring.Config)) *keyring.Keyring {
	t.Helper()
	cfg := keyring.Config{
		Keys: []keyring.Key{{Name: "k", Wrapper: w}}, Rules: []keyring.Rule{{Key: "k", AskedKeys: []string{"*"}}},
		Cache: newCache(t, ttl),
	}

	if change != nil {
		change(&cfg)
	}

	k, err := keyring.New(cfg)
	must(t, err)
	return k
}

// seen is an observer that records its calls.
type seen struct {
	mu      sync.Mutex
	calls   []string // "key op result"
	revoked []int
	parts   []string // of revocations
	used    map[keyring.Use]int
}

func (s *seen) KMSCall(_ context.Context, key, op string, _ time.Duration, err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	result := "ok"
	if e, failed := errors.AsType[*kms.Error](err); failed {
		result = e.Kind.String()
	}
	s.calls = append(s.calls, key+" "+op+" "+result)
}

func (s *seen) Revoked(r keyring.Revocation) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.revoked = append(s.revoked, r.Purged)
	s.parts = append(s.parts, r.Part)
}

func (s *seen) Used(_ string, _ [32]byte, use keyring.Use) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.used == nil {
		s.used = make(map[keyring.Use]int)
	}
	s.used[use]++
}

func (s *seen) count(op string) (n int) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, call := range s.calls {
		if strings.Contains(call, " "+op+" ") {
			n++
		}
	}
	return n
}

func (s *seen) uses(kind keyring.Use) int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.used[kind]
}

// run runs the probes until the test ends or the returned function is
// called.
func run(t testing.TB, k *keyring.Keyring) (stop func()) {
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan struct{})
	go func() { defer close(done); k.Run(ctx) }()
	return func() { cancel(); <-done }
}

func create(t testing.TB, k *keyring.Keyring) *keyring.DataKey {
	t.Helper()
	s, err := k.Create(t.Context(), obj, "app", keyring.Choice{})
	must(t, err)
	return s
}

func must(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func TestCreateAndOpen(t *testing.T) {
	w, _ := newLocal(t)
	counted := &slow{Wrapper: w}
	events := &seen{}
	k := newRing(t, counted, time.Minute, func(c *keyring.Config) { c.Observer = events })
	sealed := create(t, k)
	defer sealed.Release()

	if sealed.KeyID != w.KeyID() || len(sealed.DEK()) != 32 {
		t.Errorf("key id %q, %d bytes", sealed.KeyID, len(sealed.DEK()))
	}

	lease, err := k.Open(t.Context(), obj, sealed.KeyID, sealed.Wrapped)
	must(t, err)

	if !bytes.Equal(lease.DEK(), sealed.DEK()) {
		t.Error("another DEK")
	}

	counted.wantUnwraps(t, 0) // a GET right after a PUT needs no KMS call
	lease.Release()
	lease.Release()

	if !bytes.Equal(lease.DEK(), make([]byte, 32)) {
		t.Error("Release does not wipe")
	}
	if err := lease.Check(t.Context()); !errors.Is(err, keyring.ErrReleased) {
		t.Errorf("a released lease: %v", err)
	}

	must(t, sealed.Check(t.Context())) // each lease has its own DEK
	if bytes.Equal(sealed.DEK(), make([]byte, 32)) {
		t.Error("releasing one lease wiped another")
	}

	other := create(t, k)
	defer other.Release()

	if bytes.Equal(other.DEK(), sealed.DEK()) {
		t.Error("two objects, one DEK")
	}

	k.PurgeAll()
	again, err := k.Open(t.Context(), obj, sealed.KeyID, sealed.Wrapped)
	must(t, err)
	defer again.Release()

	counted.wantUnwraps(t, 1)
	if want := []string{"k generate ok", "k generate ok", "k unwrap ok"}; !slices.Equal(events.calls, want) {
		t.Errorf("reported calls %v, want %v", events.calls, want)
	}
	if events.uses(keyring.Created) != 2 || events.uses(keyring.Opened) != 2 || events.uses(keyring.Released) != 1 {
		t.Errorf("reported uses %v", events.used)
	}
}

// The cached DEK of an object must not open another object, and the KMS
// must be asked with the name of the requested object.
func TestOpenIsBoundToTheObject(t *testing.T) {
	w, _ := newLocal(t)
	k := newRing(t, w, time.Minute, nil)
	sealed := create(t, k)
	defer sealed.Release()

	for name, o := range map[string]keyring.Object{
		"other bucket":   {Bucket: "bucket2", Key: obj.Key},
		"other key":      {Bucket: obj.Bucket, Key: "a/b.txt2"},
		"moved boundary": {Bucket: "bucketa", Key: "/b.txt"},
		"swapped":        {Bucket: obj.Key, Key: obj.Bucket},
	} {
		t.Run(name, func(t *testing.T) {
			if _, err := k.Open(t.Context(), o, sealed.KeyID, sealed.Wrapped); !isKind(err, kms.InvalidCiphertext) {
				t.Errorf("%v, want invalid ciphertext", err)
			}
		})
	}

	altered := bytes.Clone(sealed.Wrapped)
	altered[20] ^= 1

	if _, err := k.Open(t.Context(), obj, sealed.KeyID, altered); !isKind(err, kms.InvalidCiphertext) {
		t.Errorf("altered blob: %v", err)
	}
	if _, err := k.Open(t.Context(), obj, "local:0000000000000000", sealed.Wrapped); !errors.Is(err,
		keyring.ErrUnknownKey) {
		t.Errorf("unknown key: %v", err)
	}
}

func TestWrongKey(t *testing.T) {
	a, _ := newLocal(t)
	b, _ := newLocal(t)
	k := newRing(t, a, time.Minute, func(c *keyring.Config) {
		c.Keys = append(c.Keys, keyring.Key{Name: "b", Wrapper: b})
	})
	sealed := create(t, k)
	defer sealed.Release()
	if _, err := k.Open(t.Context(), obj, b.KeyID(), sealed.Wrapped); !isKind(err, kms.InvalidCiphertext) {
		t.Errorf("%v, want invalid ciphertext", err)
	}
}

// zeroKMS is a KMS that always uses a key of zeros, so every round trip
// succeeds.
type zeroKMS struct{ kms.Wrapper }

func (zeroKMS) Generate(context.Context, kms.EncryptionContext) (dek, wrapped []byte, err error) {
	return make([]byte, 32), []byte("blob"), nil
}

func (zeroKMS) Unwrap(context.Context, []byte, kms.EncryptionContext) ([]byte, error) {
	return make([]byte, 32), nil
}

func TestZeroKeys(t *testing.T) {
	w, _ := newLocal(t)
	k := newRing(t, zeroKMS{w}, time.Minute, nil)
	if _, err := k.Create(t.Context(), obj, "", keyring.Choice{}); err == nil {
		t.Error("created with a DEK of zeros")
	}
	if _, err := k.Open(t.Context(), obj, w.KeyID(), []byte("blob")); err == nil {
		t.Error("opened with a DEK of zeros")
	}
}

func TestLeaseEndsTTLAfterTheRequest(t *testing.T) {
	w, _ := newLocal(t)
	kmstest.Bubble(t, func(t *testing.T) {
		s := &slow{Wrapper: w}
		k := newRing(t, s, time.Minute, nil)
		sealed := create(t, k)
		sealed.Release()
		k.PurgeAll()
		start := time.Now()
		lease, err := k.Open(t.Context(), obj, sealed.KeyID, sealed.Wrapped)
		must(t, err)
		defer lease.Release()

		s.fail.Store(&kms.Error{Kind: kms.Unreachable})
		for time.Since(start) < time.Minute-time.Millisecond { // in constant use while the KMS is unreachable
			must(t, lease.Check(t.Context()))
			other, err := k.Open(t.Context(), obj, sealed.KeyID, sealed.Wrapped)
			must(t, err)
			other.Release()
			time.Sleep(time.Millisecond)
		}

		s.wantUnwraps(t, 1)
		time.Sleep(time.Until(start.Add(time.Minute)))

		if err := lease.Check(t.Context()); !kms.IsUnreachable(err) {
			t.Errorf("at the TTL: %v, want unreachable", err)
		}

		s.fail.Store(nil)
		if err := lease.Check(t.Context()); err != nil {
			t.Errorf("the KMS is back: %v", err)
		}

		s.wantUnwraps(t, 3)
		s.fail.Store(&kms.Error{Kind: kms.Disabled})
		time.Sleep(time.Minute)

		if err := lease.Check(t.Context()); !kms.IsRevoked(err) {
			t.Errorf("revoked: %v", err)
		}
	})
}

func TestOneFlightForAllStreams(t *testing.T) {
	w, _ := newLocal(t)
	kmstest.Bubble(t, func(t *testing.T) {
		s := &slow{Wrapper: w}
		k := newRing(t, s, time.Minute, nil)
		sealed := create(t, k)
		sealed.Release()
		k.PurgeAll()
		leases := make([]*keyring.Lease, 100)
		each := func(run func(i int)) {
			var wg sync.WaitGroup
			for i := range leases {
				wg.Go(func() { run(i) })
			}
			wg.Wait()
		}

		each(func(i int) {
			l, err := k.Open(t.Context(), obj, sealed.KeyID, sealed.Wrapped)
			if err != nil {
				t.Error(err)
				return
			}
			leases[i] = l
		})

		s.wantUnwraps(t, 1)
		time.Sleep(time.Minute)

		each(func(i int) {
			if err := leases[i].Check(t.Context()); err != nil {
				t.Error(err)
			}
			leases[i].Release()
		})

		s.wantUnwraps(t, 2)
	})
}

func TestPurge(t *testing.T) {
	w, _ := newLocal(t)
	kmstest.Bubble(t, func(t *testing.T) {
		s := &slow{Wrapper: w}
		k := newRing(t, s, time.Hour, nil)
		sealed := create(t, k)
		defer sealed.Release()

		n, err := k.Purge("k")
		if n != 1 || err != nil {
			t.Errorf("%d purged, %v", n, err)
		}

		must(t, sealed.Check(t.Context())) // the key is usable: the KMS renews the lease
		must(t, sealed.Check(t.Context()))
		s.wantUnwraps(t, 1)
		k.PurgeAll()
		s.fail.Store(&kms.Error{Kind: kms.Denied})

		if err := sealed.Check(t.Context()); !kms.IsRevoked(err) {
			t.Errorf("%v, want revoked", err)
		}
		if _, err := k.Purge("other"); !errors.Is(err, keyring.ErrUnknownKey) {
			t.Error(err)
		}
	})
}

func TestRenewalMustGiveTheSameDEK(t *testing.T) {
	w, _ := newLocal(t)
	kmstest.Bubble(t, func(t *testing.T) {
		s := &slow{Wrapper: w}
		k := newRing(t, s, time.Minute, nil)
		sealed := create(t, k)
		defer sealed.Release()

		s.swap.Store(true)
		time.Sleep(time.Minute)

		for range 2 {
			if err := sealed.Check(t.Context()); !errors.Is(err, keyring.ErrChanged) {
				t.Errorf("%v, want ErrChanged", err)
			}
		}
	})
}

func TestProbe(t *testing.T) {
	w, _ := newLocal(t)
	kmstest.Bubble(t, func(t *testing.T) {
		s, events := &slow{Wrapper: w}, &seen{}
		k := newRing(t, s, 2*time.Minute, func(c *keyring.Config) {
			c.RevocationProbe, c.Observer = 10*time.Second, events
		})

		window := k.Window(2 * time.Minute)
		if want := 12 * time.Second; window != want {
			t.Errorf("window %v, want %v", window, want)
		}
		defer run(t, k)()

		time.Sleep(time.Minute)
		s.wantUnwraps(t, 0) // nothing is in use, so the KMS is not asked
		sealed := create(t, k)
		defer sealed.Release()

		for _, kind := range []kms.Kind{kms.Unreachable, kms.Throttled, kms.Internal, kms.InvalidCiphertext} {
			s.fail.Store(&kms.Error{Kind: kind})
			time.Sleep(12 * time.Second)
			if err := sealed.Check(t.Context()); err != nil {
				t.Errorf("a probe answered by %v ended a lease: %v", kind, err)
			}
		}

		if n := events.count("probe"); n < 4 || n > 5 {
			t.Errorf("%d probes in 48 s", n)
		}

		s.fail.Store(&kms.Error{Kind: kms.Disabled})
		at := time.Now()

		for sealed.Check(t.Context()) == nil {
			time.Sleep(100 * time.Millisecond)
		}

		if d := time.Since(at); d > window {
			t.Errorf("unreadable after %v, beyond the window of %v", d, window)
		}

		time.Sleep(time.Minute)
		synctest.Wait()

		if len(events.revoked) != 1 || events.revoked[0] != 1 {
			t.Errorf("reported as revoked: %v, want once with one DEK", events.revoked)
		}

		s.fail.Store(nil)
		time.Sleep(window)
		must(t, sealed.Check(t.Context())) // usable again after one probe
		sealed.Release()
		k.PurgeAll()
		time.Sleep(20 * time.Second)
		before := events.count("probe")
		time.Sleep(time.Minute)

		if events.count("probe") != before {
			t.Error("probes go on though nothing is in use")
		}
	})
}

// A probe must not extend the use of a DEK, even if it succeeds.
func TestProbeExtendsNothing(t *testing.T) {
	w, _ := newLocal(t)
	kmstest.Bubble(t, func(t *testing.T) {
		s := &slow{Wrapper: w}
		cache := newCache(t, time.Minute)
		k := newRing(t, s, 0, func(c *keyring.Config) { c.RevocationProbe, c.Cache = 10*time.Second, cache })
		defer run(t, k)()

		sealed := create(t, k)
		defer sealed.Release()

		time.Sleep(time.Minute + time.Nanosecond)
		if n := cache.Stats().Entries; n != 0 {
			t.Errorf("%d DEKs after the TTL", n)
		}
	})
}

// The same over the network with real time: the key is disabled during a
// stream.
func TestRevocationOnTheNetwork(t *testing.T) {
	server := kmstest.StartTest(t)
	w := server.NewKey(t, nil)
	k := newRing(t, w, time.Minute, func(c *keyring.Config) {
		c.RevocationProbe, c.Timeout = 50*time.Millisecond, 500*time.Millisecond
	})
	defer run(t, k)()

	sealed := create(t, k)
	defer sealed.Release()

	lease, err := k.Open(t.Context(), obj, sealed.KeyID, sealed.Wrapped)
	must(t, err)
	defer lease.Release()

	time.Sleep(200 * time.Millisecond)
	must(t, lease.Check(t.Context()))
	must(t, server.DisableKey(w.KeyID()))
	at := time.Now()
	for err = nil; err == nil; err = lease.Check(t.Context()) {
		if time.Since(at) > k.Window(time.Minute)+time.Second {
			t.Fatal("the stream runs on")
		}
		time.Sleep(time.Millisecond)
	}

	t.Logf("unreadable %v after DisableKey, window %v", time.Since(at), k.Window(time.Minute))
	if !isKind(err, kms.Disabled) {
		t.Errorf("%v, want disabled", err)
	}
	if _, err := k.Open(t.Context(), obj, sealed.KeyID, sealed.Wrapped); !isKind(err, kms.Disabled) {
		t.Errorf("a new GET: %v", err)
	}

	if _, err := k.Create(t.Context(), obj, "", keyring.Choice{}); !isKind(err, kms.Disabled) {
		t.Errorf("a new PUT: %v", err)
	}
}

func TestOutageOnTheNetwork(t *testing.T) {
	server := kmstest.StartTest(t)
	w := server.NewKey(t, func(c *kms.AWSConfig) { c.Timeout = 100 * time.Millisecond })
	ttl := 700 * time.Millisecond
	k := newRing(t, w, ttl, func(c *keyring.Config) {
		c.RevocationProbe, c.Timeout = 20*time.Millisecond, 200*time.Millisecond
	})
	defer run(t, k)()

	start := time.Now()
	sealed := create(t, k)
	defer sealed.Release()

	server.SetFaults(kmstest.Faults{Hang: true})
	var err error
	for err == nil {
		if err = sealed.Check(t.Context()); err == nil {
			time.Sleep(time.Millisecond)
		}
	}

	if d := time.Since(start); d < ttl || d > ttl+500*time.Millisecond || !kms.IsUnreachable(err) {
		t.Errorf("cut after %v by %v; want unreachable, not before the TTL of %v, and not much later", d, err, ttl)
	}
}

func TestLocalKeyMovedAway(t *testing.T) {
	w, path := newLocal(t)
	k := newRing(t, w, time.Minute, nil)
	sealed := create(t, k)
	defer sealed.Release()
	must(t, os.Rename(path, path+".away"))
	must(t, sealed.Check(t.Context()))
	k.PurgeAll()
	if err := sealed.Check(t.Context()); !kms.IsRevoked(err) {
		t.Errorf("%v, want revoked", err)
	}
}

func TestRewrap(t *testing.T) {
	a, _ := newLocal(t)
	b, _ := newLocal(t)
	k := newRing(t, a, time.Minute, func(c *keyring.Config) {
		c.Keys = append(c.Keys, keyring.Key{Name: "b", Wrapper: b})
	})

	source := create(t, k)
	defer source.Release()

	dst := keyring.Object{Bucket: "other", Key: "copy"}
	copied, err := k.Rewrap(t.Context(), source.Lease, dst, "app", keyring.Choice{KeyID: "b"})
	must(t, err)
	defer copied.Release()

	if copied.KeyID != b.KeyID() || !bytes.Equal(copied.DEK(), source.DEK()) {
		t.Error("another key, or another DEK")
	}

	k.PurgeAll()
	lease, err := k.Open(t.Context(), dst, copied.KeyID, copied.Wrapped)
	must(t, err)
	defer lease.Release()

	if !bytes.Equal(lease.DEK(), source.DEK()) {
		t.Error("the copy has another DEK")
	}
	if _, err := k.Open(t.Context(), obj, copied.KeyID, copied.Wrapped); !isKind(err, kms.InvalidCiphertext) {
		t.Errorf("the copy's blob opened under the source's name: %v", err)
	}

	source.Release()
	if _, err := k.Rewrap(t.Context(), source.Lease, dst, "app", keyring.Choice{}); !errors.Is(err,
		keyring.ErrReleased) {
		t.Errorf("a released lease was rewrapped: %v", err)
	}
}

func isKind(err error, kind kms.Kind) bool {
	e, ok := errors.AsType[*kms.Error](err)
	return ok && e.Kind == kind
}

func BenchmarkOpenHit(b *testing.B) {
	w, _ := newLocal(b)
	k := newRing(b, w, time.Minute, nil)
	sealed := create(b, k)
	b.ReportAllocs()

	for b.Loop() {
		l, err := k.Open(b.Context(), obj, sealed.KeyID, sealed.Wrapped)
		if err != nil {
			b.Fatal(err)
		}
		l.Release()
	}
}

func BenchmarkLeaseCheck(b *testing.B) {
	w, _ := newLocal(b)
	k := newRing(b, w, time.Minute, nil)
	sealed, ctx := create(b, k), b.Context()
	b.ReportAllocs()

	b.RunParallel(func(pb *testing.PB) {
		for pb.Next() {
			if err := sealed.Check(ctx); err != nil {
				b.Fatal(err)
			}
		}
	})
}
