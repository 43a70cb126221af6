package keyring_test

import (
	"context"
	"fmt"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"cloud.google.com/go/kms/apiv1/kmspb"

	"github.com/cmekproxy/cmekproxy/internal/keyring"
	"github.com/cmekproxy/cmekproxy/internal/kms"
	"github.com/cmekproxy/cmekproxy/internal/kms/kmstest"
)

// createIn creates a DEK for an object without a watcher.
func createIn(t testing.TB, k *keyring.Keyring, bucket, key string, want keyring.Choice) *keyring.DataKey {
	t.Helper()
	s, err := k.Create(t.Context(), keyring.Object{Bucket: bucket, Key: key}, "", want)
	must(t, err)
	t.Cleanup(s.Release)
	return s
}

// untilCut waits until a lease is no longer in force, and returns the
// reason.
func untilCut(t testing.TB, l *keyring.Lease, atMost time.Duration) error {
	t.Helper()
	for start := time.Now(); ; time.Sleep(5 * time.Millisecond) {
		if err := l.Check(t.Context()); err != nil {
			return err
		}
		if time.Since(start) > atMost {
			t.Fatalf("still in force after %v", atMost)
		}
	}
}

// TestEachVersionIsProbed revokes an older version of the key, with each
// kind of KMS that supports this. The TTL is an hour, so only a probe can
// notice it.
func TestEachVersionIsProbed(t *testing.T) {
	for name, open := range map[string]func(t *testing.T) (w kms.Wrapper, rotate, takeFirst func()){
		"local": func(t *testing.T) (kms.Wrapper, func(), func()) {
			w, path := newLocal(t)
			change := func(f func(*kms.LocalKeyFile) error) func() {
				return func() { must(t, kms.ChangeLocalKeyFile(path, f)) }
			}
			return w, change(func(f *kms.LocalKeyFile) error { _, err := f.Rotate(time.Now()); return err }),
				change(func(f *kms.LocalKeyFile) error { return f.SetState(1, kms.LocalKeyDisabled) })
		},
		"vault": func(t *testing.T) (kms.Wrapper, func(), func()) {
			server := kmstest.StartVault(t)
			w := server.NewKey(t, nil)
			return w, func() { server.RotateKey("key-1") }, func() { server.SetMinDecryptionVersion("key-1", 2) }
		},
		"gcp": func(t *testing.T) (kms.Wrapper, func(), func()) {
			server := kmstest.StartGCP(t)
			w := server.NewKey(t, nil)
			return w, func() { server.RotateKey(w.KeyID()) },
				func() { server.SetState(w.KeyID(), 1, kmspb.CryptoKeyVersion_DISABLED) }
		},
		"azure": func(t *testing.T) (kms.Wrapper, func(), func()) {
			server := kmstest.StartAzure(t)
			w := server.NewKey(t, "RSA-2048", nil)
			return w, func() { server.RotateKey(t, "key-1") }, func() { server.SetEnabled("key-1", 1, false) }
		},
	} {
		t.Run(name, func(t *testing.T) {
			w, rotate, takeFirst := open(t)
			k := newRing(t, w, time.Hour, func(c *keyring.Config) { c.RevocationProbe = 200 * time.Millisecond })
			defer run(t, k)()

			first := createIn(t, k, "bucket", "first", keyring.Choice{})
			rotate()
			second := createUnderAnother(t, k, w, first)

			if s := k.Status()[0]; s.Parts != 2 || s.Unprobed || s.Window > time.Minute {
				t.Errorf("with two versions in use: %+v", s)
			}

			takeFirst()
			if err := untilCut(t, first.Lease, 20*time.Second); !kms.IsRevoked(err) {
				t.Errorf("an object of the first version: %v", err)
			}

			must(t, second.Check(t.Context()))
			if s := k.Status()[0]; s.State != keyring.Usable || s.PartsRevoked != 1 {
				t.Errorf("with one of two versions: %+v", s)
			}
		})
	}
}

// createUnderAnother creates DEKs until one is wrapped by another version:
// some providers notice a rotation only after a while.
func createUnderAnother(t *testing.T, k *keyring.Keyring, w kms.Wrapper, before *keyring.DataKey) *keyring.DataKey {
	t.Helper()
	lineage := func(wrapped []byte) string {
		text, ok := kms.Lineage(w.KeyID(), wrapped)
		if !ok {
			t.Fatal("the blob does not say its version")
		}
		return text
	}

	for i := range 200 {
		s, err := k.Create(t.Context(), keyring.Object{Bucket: "bucket", Key: fmt.Sprint("second-", i)}, "",
			keyring.Choice{})
		must(t, err)

		if lineage(s.Wrapped) != lineage(before.Wrapped) {
			t.Cleanup(s.Release)
			return s
		}

		s.Release()
		time.Sleep(50 * time.Millisecond)
	}

	t.Fatal("the new version is never used")
	return nil
}

// policyOn allows the account to use a key, except for one bucket, prefix
// or entry of the encryption context.
func policyOn(operator, name, value string) string {
	const allow = `{"Sid":"allow","Effect":"Allow","Principal":{"AWS":"arn:aws:iam::111122223333:root"},` +
		`"Action":"kms:*","Resource":"*"}`
	return fmt.Sprintf(`{"Version":"2012-10-17","Statement":[%s,
		{"Sid":"deny","Effect":"Deny","Principal":{"AWS":"*"},"Action":"kms:Decrypt","Resource":"*",
		 "Condition":{%q:{"kms:EncryptionContext:%s":%q}}}]}`, allow, operator, name, value)
}

// TestPolicyOnTheContextIsProbed denies a part of the key. The TTL is an
// hour, so only a probe can notice it.
func TestPolicyOnTheContextIsProbed(t *testing.T) {
	for _, c := range []struct{ name, operator, context, value string }{
		{"a bucket", "StringEquals", "bucket", "taken"},
		{"a rule's prefix", "StringLike", "key", "tenants/taken/*"},
		{"what the client added", "StringEquals", "tenant", "taken"},
	} {
		t.Run(c.name, func(t *testing.T) {
			server := kmstest.StartTest(t)
			w := server.NewKey(t, nil)
			events := &seen{}
			k := newRing(t, w, time.Hour, func(cfg *keyring.Config) {
				cfg.RevocationProbe, cfg.Observer = 200*time.Millisecond, events
				cfg.Rules = []keyring.Rule{
					{Prefixes: []string{"tenants/kept/", "tenants/taken/"}, Key: "k"},
					{Key: "k"},
				}
			})
			defer run(t, k)()

			var kept, taken []*keyring.DataKey
			for _, o := range []struct {
				bucket, key, tenant string
				is                  string // the row that it belongs to
			}{
				{"kept", "a", "", ""},
				{"taken", "a", "", "a bucket"},
				{"shared", "tenants/kept/a", "", ""},
				{"shared", "tenants/taken/a", "", "a rule's prefix"},
				{"shared", "b", "kept", ""},
				{"shared", "c", "taken", "what the client added"},
			} {
				want := keyring.Choice{}
				if o.tenant != "" {
					want.Context = map[string]string{"tenant": o.tenant}
				}

				sealed := createIn(t, k, o.bucket, o.key, want)
				if o.is == c.name {
					taken = append(taken, sealed)
				} else {
					kept = append(kept, sealed)
				}
			}

			if s := k.Status()[0]; s.Parts != 6 || s.Unprobed || s.Window > time.Minute {
				t.Errorf("before: %+v", s)
			}

			must(t, server.PutKeyPolicy(w.KeyID(), policyOn(c.operator, c.context, c.value)))
			if err := untilCut(t, taken[0].Lease, 20*time.Second); !isKind(err, kms.Denied) {
				t.Errorf("what is denied: %v", err)
			}

			time.Sleep(500 * time.Millisecond) // further probes
			for _, sealed := range kept {
				must(t, sealed.Check(t.Context()))
			}

			if n := events.count(keyring.OpRenew); n != 1 {
				t.Errorf("%d renewals, want only that of what is denied", n)
			}
			if s := k.Status()[0]; s.State != keyring.Usable || s.PartsRevoked != 1 {
				t.Errorf("after: %+v", s)
			}
		})
	}
}

// TestPolicyThatDeniesEverything checks that such a policy revokes the
// whole key.
func TestPolicyThatDeniesEverything(t *testing.T) {
	server := kmstest.StartTest(t)
	w := server.NewKey(t, nil)
	k := newRing(t, w, time.Hour, func(cfg *keyring.Config) { cfg.RevocationProbe = 200 * time.Millisecond })
	defer run(t, k)()

	a, b := createIn(t, k, "a", "a", keyring.Choice{}), createIn(t, k, "b", "b", keyring.Choice{})

	must(t, server.PutKeyPolicy(w.KeyID(), policyOn("StringLike", "bucket", "*")))
	for _, sealed := range []*keyring.DataKey{a, b} {
		if err := untilCut(t, sealed.Lease, 20*time.Second); !isKind(err, kms.Denied) {
			t.Errorf("%v, want denied", err)
		}
	}

	for start := time.Now(); k.Status()[0].State != keyring.Revoked; time.Sleep(20 * time.Millisecond) {
		if time.Since(start) > 20*time.Second {
			t.Fatalf("the key is never called revoked: %+v", k.Status()[0])
		}
	}
}

// TestMorePartsThanAreProbed checks that the reported window is then the
// TTL.
func TestMorePartsThanAreProbed(t *testing.T) {
	w, _ := newLocal(t)
	k := newRing(t, w, time.Hour, func(c *keyring.Config) { c.RevocationProbe = 10 * time.Second })
	var all []*keyring.DataKey

	for i := range 33 {
		if s := k.Status()[0]; s.Parts != i || s.Unprobed || s.Window != k.Window(time.Hour) {
			t.Fatalf("with %d: %+v", i, s)
		}

		sealed, err := k.Create(t.Context(), keyring.Object{Bucket: fmt.Sprint("bucket-", i), Key: "k"}, "",
			keyring.Choice{})
		must(t, err)
		all = append(all, sealed)
	}

	if s := k.Status()[0]; s.Parts != 32 || !s.Unprobed || s.Window != time.Hour {
		t.Errorf("with 33: %+v", s)
	}

	for _, sealed := range all {
		sealed.Release()
	}

	k.PurgeAll()
	if s := k.Status()[0]; s.Parts != 0 || s.Unprobed || s.Window != k.Window(time.Hour) {
		t.Errorf("when none is in use: %+v", s)
	}
}

// TestPartsThatAreNotInUseMakeRoom checks that a new part takes the slot of
// an idle one, and is probed separately.
func TestPartsThatAreNotInUseMakeRoom(t *testing.T) {
	w, _ := newLocal(t)
	kmstest.Bubble(t, func(t *testing.T) {
		s := &choosy{Wrapper: w}
		k := newRing(t, s, time.Hour, func(c *keyring.Config) { c.RevocationProbe = 10 * time.Second })
		defer run(t, k)()

		for i := range 100 {
			createInBubble(t, k, fmt.Sprint("bucket-", i)).Release()
			k.PurgeAll()
			time.Sleep(time.Second)
		}

		late := createInBubble(t, k, "late")
		defer late.Release()

		kept := createInBubble(t, k, "kept")
		defer kept.Release()

		s.denied.Store("late")
		time.Sleep(15 * time.Second)

		if err := late.Check(t.Context()); !isKind(err, kms.Denied) {
			t.Errorf("the late one: %v", err)
		}
		must(t, kept.Check(t.Context()))
	})
}

func createInBubble(t *testing.T, k *keyring.Keyring, bucket string) *keyring.DataKey {
	t.Helper()
	sealed, err := k.Create(asRequest(t), keyring.Object{Bucket: bucket, Key: "k"}, "", keyring.Choice{})
	must(t, err)
	return sealed
}

// TestProbesOfSharedKeysAreByBucket: the context of a bucket key contains
// no object key.
func TestProbesOfSharedKeysAreByBucket(t *testing.T) {
	w, _ := newLocal(t)
	k := newRing(t, w, time.Hour, func(c *keyring.Config) {
		c.Rules = []keyring.Rule{
			{
				Prefixes: []string{"a/", "b/", ""}, Key: "k",
				Reuse: &keyring.Reuse{MaxAge: time.Hour, MaxObjects: 100, MaxBytes: 1 << 30},
			},
		}
	})

	for _, key := range []string{"a/1", "b/1", "c"} {
		t.Run(key, func(t *testing.T) {
			createIn(t, k, "one", key, keyring.Choice{})
			createIn(t, k, "two", key, keyring.Choice{})
		})
	}

	if s := k.Status()[0]; s.Parts != 2 {
		t.Errorf("%d parts, want one for each bucket", s.Parts)
	}
}

// away is a key that can be made to refuse.
type away struct {
	kms.Wrapper
	no    atomic.Bool
	calls atomic.Int64
}

func (a *away) Unwrap(ctx context.Context, wrapped []byte, ec kms.EncryptionContext) ([]byte, error) {
	a.calls.Add(1)
	if a.no.Load() {
		return nil, &kms.Error{Kind: kms.Disabled}
	}
	return a.Wrapper.Unwrap(ctx, wrapped, ec)
}

func (a *away) Wrap(ctx context.Context, dek []byte, ec kms.EncryptionContext) ([]byte, error) {
	if a.no.Load() {
		return nil, &kms.Error{Kind: kms.Disabled}
	}
	return a.Wrapper.Wrap(ctx, dek, ec)
}

// TestTheFirstRequestAfterTheReturn checks that the first request after a
// key was restored succeeds, with probes and without. While the key is
// revoked, not every request asks the KMS.
func TestTheFirstRequestAfterTheReturn(t *testing.T) {
	for _, interval := range []time.Duration{0, 10 * time.Second} {
		t.Run(fmt.Sprint("probe ", interval), func(t *testing.T) {
			w, _ := newLocal(t)
			kmstest.Bubble(t, func(t *testing.T) {
				a := &away{Wrapper: w}
				k := newRing(t, a, time.Minute, func(c *keyring.Config) { c.RevocationProbe = interval })
				defer run(t, k)()

				sealed := create(t, k)
				wrapped, keyID := sealed.Wrapped, sealed.KeyID
				defer sealed.Release() // in use, so that it is probed

				open := func() error {
					l, err := k.Open(t.Context(), obj, keyID, wrapped)
					if err == nil {
						l.Release()
					}
					return err
				}

				a.no.Store(true)
				k.PurgeAll()
				a.calls.Store(0)

				for range 1000 { // ten seconds in total
					if err := open(); !isKind(err, kms.Disabled) {
						t.Fatalf("while the key is away: %v", err)
					}
					time.Sleep(10 * time.Millisecond)
				}

				if n := a.calls.Load(); n == 0 || n > 25 {
					t.Errorf("%d calls in ten seconds for a key that is away", n)
				}

				time.Sleep(3 * time.Second)
				a.no.Store(false)

				if err := open(); err != nil {
					t.Errorf("the first request after the return: %v", err)
				}
				if err := k.Status()[0].State; err != keyring.Usable {
					t.Errorf("after the return the key is %s", err)
				}
			})
		})
	}
}

// TestServiceIsBackWithinASecond checks this for constant requests.
func TestServiceIsBackWithinASecond(t *testing.T) {
	for _, interval := range []time.Duration{0, 10 * time.Second} {
		w, _ := newLocal(t)
		kmstest.Bubble(t, func(t *testing.T) {
			a := &away{Wrapper: w}
			k := newRing(t, a, time.Minute, func(c *keyring.Config) { c.RevocationProbe = interval })
			defer run(t, k)()

			sealed := create(t, k)
			wrapped, keyID := sealed.Wrapped, sealed.KeyID
			defer sealed.Release() // in use, so that it is probed

			a.no.Store(true)
			k.PurgeAll()

			until := func(at time.Time) {
				for time.Now().Before(at) {
					if l, err := k.Open(t.Context(), obj, keyID, wrapped); err == nil {
						l.Release()
					}
					time.Sleep(10 * time.Millisecond)
				}
			}

			until(time.Now().Add(7345 * time.Millisecond))

			a.no.Store(false)
			back := time.Now()

			for {
				l, err := k.Open(t.Context(), obj, keyID, wrapped)
				if err == nil {
					l.Release()
					break
				}
				time.Sleep(time.Millisecond)
			}

			if took := time.Since(back); took > time.Second {
				t.Errorf("probe %v: back after %v", interval, took)
			}
		})
	}
}

// TestProbesAreSpread checks that the keys of a proxy are not all probed at
// the same time.
func TestProbesAreSpread(t *testing.T) {
	const keys = 40
	wrappers := make([]*kms.Local, keys)
	for i := range wrappers {
		wrappers[i], _ = newLocal(t)
	}

	kmstest.Bubble(t, func(t *testing.T) {
		var moments [keys]atomic.Int64
		start := time.Now()
		k := newRing(t, wrappers[0], time.Hour, func(c *keyring.Config) {
			c.RevocationProbe, c.Keys, c.Rules = 10*time.Second, nil, nil
			for i, w := range wrappers {
				name := fmt.Sprint("key-", i)
				c.Keys = append(c.Keys, keyring.Key{Name: name, Wrapper: &timed{w, start, &moments[i]}})
				c.Rules = append(c.Rules, keyring.Rule{Buckets: []string{"bucket-" + fmt.Sprint(i)}, Key: name})
			}
		})
		defer run(t, k)()

		for i := range wrappers {
			defer createInBubble(t, k, fmt.Sprint("bucket-", i)).Release()
		}

		time.Sleep(11 * time.Second)
		synctest.Wait()
		differ := map[int64]bool{}

		for i := range moments {
			if moments[i].Load() == 0 {
				t.Errorf("key %d was not probed within its interval", i)
			}
			differ[moments[i].Load()/int64(time.Second)] = true
		}

		if len(differ) < 5 {
			t.Errorf("%d keys were probed within %d different seconds of 10", keys, len(differ))
		}
	})
}

// timed records when it was first asked.
type timed struct {
	kms.Wrapper
	start time.Time
	first *atomic.Int64
}

func (w *timed) Unwrap(ctx context.Context, wrapped []byte, ec kms.EncryptionContext) ([]byte, error) {
	w.first.CompareAndSwap(0, int64(time.Since(w.start)))
	return w.Wrapper.Unwrap(ctx, wrapped, ec)
}

// TestPartialRevocationIsAudited checks the audit event for a part of a
// key.
func TestPartialRevocationIsAudited(t *testing.T) {
	path := filepath.Join(t.TempDir(), "key")
	must(t, kms.CreateLocalKeyFile(path))
	w, err := kms.NewLocal(path)
	must(t, err)
	trail, events := &trail{}, &seen{}
	kmstest.Bubble(t, func(t *testing.T) {
		s := &choosy{Wrapper: w}
		k := newRing(t, s, time.Hour, func(c *keyring.Config) {
			c.RevocationProbe, c.Auditor, c.Observer = 10*time.Second, trail, events
		})
		defer run(t, k)()
		defer createInBubble(t, k, "kept").Release()
		defer createInBubble(t, k, "taken").Release()

		s.denied.Store("taken")
		time.Sleep(15 * time.Second)
	})

	if len(events.parts) != 1 || !strings.Contains(events.parts[0], `bucket "taken"`) {
		t.Errorf("observed: %q", events.parts)
	}

	var found keyring.Event
	for _, e := range trail.events {
		if e.Action == keyring.ActionProbeRevoked {
			found = e
		}
	}

	if found.Object.Bucket != "taken" || found.KeyVersion != "1" || found.Purged != 1 {
		t.Errorf("audited: %+v", found)
	}
}
