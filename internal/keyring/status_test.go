package keyring_test

import (
	"context"
	"errors"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/cmekproxy/cmekproxy/internal/keyring"
	"github.com/cmekproxy/cmekproxy/internal/kms"
	"github.com/cmekproxy/cmekproxy/internal/kms/kmstest"
)

func TestStatus(t *testing.T) {
	w, _ := newLocal(t)
	kmstest.Bubble(t, func(t *testing.T) {
		s := &slow{Wrapper: w}
		k := newRing(t, s, time.Minute, func(c *keyring.Config) {
			c.RevocationProbe,
				c.Keys[0].Provider = 10*time.Second, "local"
		})
		defer run(t, k)()

		status := func() keyring.Status { return k.Status()[0] }
		if st := status(); st.State != keyring.Unused || st.ID != w.KeyID() || st.Name != "k" ||
			st.Provider != "local" || st.Window != 12*time.Second {
			t.Errorf("at first: %+v", st)
		}

		sealed := create(t, k)
		defer sealed.Release()

		time.Sleep(time.Second)
		if st := status(); st.State != keyring.Usable || st.DEKs != 1 || st.OldestAge != time.Second ||
			st.Leases != 1 || st.Outcome != nil ||
			time.Since(st.Answered) != time.Second {
			t.Errorf("in use: %+v", st)
		}

		s.fail.Store(&kms.Error{Kind: kms.Unreachable})
		time.Sleep(11 * time.Second)

		if st := status(); st.State != keyring.Unreachable || st.Window != time.Minute || st.DEKs != 1 {
			t.Errorf("unreachable: %+v", st)
		}

		s.fail.Store(&kms.Error{Kind: kms.PendingDeletion})
		time.Sleep(11 * time.Second)

		if st := status(); st.State != keyring.Revoked || !kms.IsRevoked(st.Outcome) || st.DEKs != 0 ||
			st.Window != 12*time.Second ||
			time.Since(st.RevokedSince) > 11*time.Second {
			t.Errorf("revoked: %+v", st)
		}

		s.fail.Store(nil)
		time.Sleep(3 * time.Second)
		again := create(t, k) // an earlier probe does not make it fail
		defer again.Release()

		if st := status(); st.State != keyring.Usable || !st.RevokedSince.IsZero() {
			t.Errorf("given back: %+v", st)
		}

		k.SetProbe(0)
		if st := status(); st.Window != time.Minute {
			t.Errorf("without a probe: %+v", st)
		}
	})
}

// Each key has the timeouts of its own KMS, and a window that follows from
// them.
func TestTimeoutsByKey(t *testing.T) {
	w, _ := newLocal(t)
	other, _ := newLocal(t)
	kmstest.Bubble(t, func(t *testing.T) {
		k := newRing(t, &slow{Wrapper: w}, time.Minute, func(c *keyring.Config) {
			c.RevocationProbe = 10 * time.Second
			c.Keys[0].Timeout, c.Keys[0].ProbeTimeout = 15*time.Second, 5*time.Second
			c.Keys = append(c.Keys, keyring.Key{
				Name: "hasty", Wrapper: &bounded{&slow{Wrapper: other}}, Timeout: 900 * time.Millisecond,
				ProbeTimeout: 300 * time.Millisecond,
			})
		})

		status := k.Status()
		if got, want := status[0].Window, 15*time.Second; got != want {
			t.Errorf("window of the patient key %v, want %v", got, want)
		}
		if got, want := status[1].Window, 10300*time.Millisecond; got != want {
			t.Errorf("window of the hasty key %v, want %v", got, want)
		}

		if got, want := k.Window(time.Minute), 15*time.Second; got != want {
			t.Errorf("window of all keys %v, want the longest, %v", got, want)
		}

		if err := k.Try(t.Context(), "k"); err != nil {
			t.Errorf("a KMS that answers within the key's timeout: %v", err)
		}
		if err := k.Try(t.Context(), "hasty"); !isKind(err, kms.Unreachable) {
			t.Errorf("%v, want unreachable from a KMS that answers after the key's timeout", err)
		}
	})
}

// bounded honors its context, unlike the slow KMS inside.
type bounded struct{ *slow }

func (b *bounded) Unwrap(ctx context.Context, wrapped []byte, ec kms.EncryptionContext) ([]byte, error) {
	dek, err := b.slow.Unwrap(ctx, wrapped, ec)
	if err == nil && ctx.Err() != nil {
		return nil, &kms.Error{Kind: kms.Unreachable, Err: ctx.Err()}
	}
	return dek, err
}

func TestProbeAtOnceWhenAKeyIsCalledRevoked(t *testing.T) {
	w, _ := newLocal(t)
	kmstest.Bubble(t, func(t *testing.T) {
		s, events := &slow{Wrapper: w}, &seen{}
		k := newRing(t, s, 10*time.Minute, func(c *keyring.Config) { c.Observer = events }) // no scheduled probes
		defer run(t, k)()

		sealed := create(t, k)
		defer sealed.Release()

		st := &stream{}
		st.watch(sealed.Lease)
		time.Sleep(5 * time.Minute)

		if n := events.count("probe"); n != 0 {
			t.Fatalf("%d probes, want none", n)
		}

		s.fail.Store(&kms.Error{Kind: kms.Disabled})
		for range 20 { // a refusal for one object triggers a probe of the key
			_, err := k.Open(t.Context(), keyring.Object{Bucket: "b", Key: "other"}, sealed.KeyID, sealed.Wrapped)
			if !isKind(err, kms.Disabled) {
				t.Fatal(err)
			}
		}

		time.Sleep(3 * time.Second)
		if err := st.wasCut(); !isKind(err, kms.Disabled) {
			t.Errorf("%v, want disabled", err)
		}
	})
}

func TestSetProbe(t *testing.T) {
	w, _ := newLocal(t)
	kmstest.Bubble(t, func(t *testing.T) {
		events := &seen{}
		k := newRing(t, w, time.Hour, func(c *keyring.Config) { c.Observer = events })
		defer run(t, k)()

		sealed := create(t, k)
		defer sealed.Release()

		for _, row := range []struct {
			interval time.Duration
			probes   int // in the next minute
		}{{0, 0}, {10 * time.Second, 6}, {30 * time.Second, 2}, {5 * time.Second, 12}, {0, 0}} {
			k.SetProbe(row.interval)
			before := events.count("probe")
			time.Sleep(time.Minute + time.Millisecond)
			synctest.Wait()

			if n := events.count("probe") - before; n < row.probes-1 || n > row.probes+1 || row.probes == 0 && n > 0 {
				t.Errorf("%d probes in a minute with an interval of %v", n, row.interval)
			}
		}
	})
}

func TestABlobThatIsRefusedAloneRevokesNothing(t *testing.T) {
	w, _ := newLocal(t)
	kmstest.Bubble(t, func(t *testing.T) {
		s := &choosy{Wrapper: w}
		k := newRing(t, s, 10*time.Minute, func(c *keyring.Config) { c.RevocationProbe = 10 * time.Second })
		defer run(t, k)()

		sealed := create(t, k)
		defer sealed.Release()

		s.denied.Store("forged") // AWS's answer to a blob altered to name another key
		for range 5 {
			if _, err := k.Open(t.Context(), keyring.Object{Bucket: "forged"}, sealed.KeyID,
				sealed.Wrapped); !isKind(err, kms.Denied) {
				t.Fatal(err)
			}
			time.Sleep(5 * time.Second)
		}

		if st := k.Status()[0]; st.State != keyring.Usable || st.DEKs != 1 {
			t.Errorf("%+v", st)
		}
	})
}

// versioned is a key with a version that can be disabled: the version of
// all blobs made so far.
type versioned struct {
	kms.Wrapper
	mu       sync.Mutex
	made     [][]byte
	disabled map[string]bool
}

func (v *versioned) Wrap(ctx context.Context, dek []byte, ec kms.EncryptionContext) ([]byte, error) {
	blob, err := v.Wrapper.Wrap(ctx, dek, ec)
	v.mu.Lock()
	defer v.mu.Unlock()
	v.made = append(v.made, blob)
	return blob, err
}

func (v *versioned) Unwrap(ctx context.Context, wrapped []byte, ec kms.EncryptionContext) ([]byte, error) {
	v.mu.Lock()
	gone := v.disabled[string(wrapped)]
	v.mu.Unlock()
	if gone {
		return nil, &kms.Error{Kind: kms.Disabled}
	}
	return v.Wrapper.Unwrap(ctx, wrapped, ec)
}

func (v *versioned) rotateAndDisable() {
	v.mu.Lock()
	defer v.mu.Unlock()
	v.disabled = make(map[string]bool)
	for _, blob := range v.made {
		v.disabled[string(blob)] = true
	}
}

// A disabled version affects only its own objects, even if the probe used
// one of its blobs.
func TestADisabledVersionIsNotTheKey(t *testing.T) {
	w, _ := newLocal(t)
	kmstest.Bubble(t, func(t *testing.T) {
		v := &versioned{Wrapper: w}
		k := newRing(t, v, time.Hour, func(c *keyring.Config) { c.RevocationProbe = 10 * time.Second })
		defer run(t, k)()

		old := create(t, k)
		defer old.Release()

		v.rotateAndDisable()
		time.Sleep(12 * time.Second)

		if err := old.Check(t.Context()); !isKind(err, kms.Disabled) {
			t.Errorf("an object under the disabled version: %v", err)
		}

		sealed := create(t, k)
		defer sealed.Release()

		for range 10 {
			time.Sleep(11 * time.Second)
			lease, err := k.Open(t.Context(), obj, sealed.KeyID, sealed.Wrapped)
			must(t, err)
			lease.Release()
		}

		if st := k.Status()[0]; st.State != keyring.Usable {
			t.Errorf("%+v", st)
		}
	})
}

func TestUnopenedKeys(t *testing.T) {
	a, _ := newLocal(t)
	b, _ := newLocal(t)
	down := &kms.Error{Kind: kms.Unreachable, Op: "open", KeyID: "alias/b"}
	k := newRing(t, a, time.Minute, func(c *keyring.Config) {
		c.Keys = append(c.Keys, keyring.Key{Name: "late", Unavailable: down})
		c.Rules = []keyring.Rule{{Buckets: []string{"late"}, Key: "late"}, {Key: "k"}}
	})

	late := keyring.Object{Bucket: "late", Key: "x"}
	create(t, k).Release() // other blobs work

	for name, err := range map[string]error{
		"a new object": func() error { _, err := k.Create(t.Context(), late, "", keyring.Choice{}); return err }(),
		"a stored one": func() error { _, err := k.Open(t.Context(), late, b.KeyID(), make([]byte, 60)); return err }(),
		"a trial":      k.Try(t.Context(), "late"),
	} {
		t.Run(name, func(t *testing.T) {
			if !kms.IsUnreachable(err) {
				t.Errorf("%v, want unreachable: a client should come again", err)
			}
		})
	}

	if n, err := k.Purge("late"); n != 0 || err != nil {
		t.Errorf("%d, %v", n, err)
	}
	if st := k.Status()[1]; st.State != keyring.Unopened || !errors.Is(st.Outcome, error(down)) || st.ID != "" {
		t.Errorf("%+v", st)
	}

	must(t, k.Provide("late", b, nil))
	must(t, k.Try(t.Context(), "late"))
	sealed, err := k.Create(t.Context(), late, "", keyring.Choice{})
	must(t, err)
	defer sealed.Release()

	if sealed.KeyID != b.KeyID() {
		t.Errorf("sealed with %s", sealed.KeyID)
	}
	if _, err := k.Open(t.Context(), late, "unknown", nil); !errors.Is(err, keyring.ErrUnknownKey) {
		t.Error(err)
	}
}

// An unknown id may belong to a key that is not open yet, for any reason.
func TestUnopenedKeysAreNotUnknown(t *testing.T) {
	a, _ := newLocal(t)
	late := keyring.Object{Bucket: "late", Key: "x"}

	for _, kind := range []kms.Kind{kms.Unreachable, kms.Throttled, kms.Internal, kms.Denied, kms.NotFound} {
		t.Run(kind.String(), func(t *testing.T) {
			k := newRing(t, a, time.Minute, func(c *keyring.Config) {
				c.Keys = append(c.Keys, keyring.Key{
					Name: "late", Unavailable: &kms.Error{Kind: kind, Op: "open", KeyID: "alias/b"},
				})
				c.Rules = []keyring.Rule{{Buckets: []string{"late"}, Key: "late"}, {Key: "k", AskedKeys: []string{"*"}}}
			})

			_, err := k.Open(t.Context(), late, "some id", make([]byte, 60))
			if !errors.Is(err, keyring.ErrNotOpen) || errors.Is(err, keyring.ErrUnknownKey) || kms.IsRevoked(err) {
				t.Errorf("%v: a stored object: %v", kind, err)
			}

			_, err = k.Create(t.Context(), keyring.Object{Bucket: "b", Key: "x"}, "", keyring.Choice{KeyID: "some id"})
			if !errors.Is(err, keyring.ErrNotOpen) || kms.IsRevoked(err) {
				t.Errorf("%v: a key that a client asks for: %v", kind, err)
			}

			_, err = k.Create(t.Context(), late, "", keyring.Choice{})
			if no := kind == kms.Denied || kind == kms.NotFound; errors.Is(err, keyring.ErrNotOpen) == no ||
				kms.IsRevoked(err) != no {
				t.Errorf("%v: a new object: %v", kind, err)
			}
		})
	}
}

func TestSetRules(t *testing.T) {
	a, _ := newLocal(t)
	b, _ := newLocal(t)
	k := newRing(t, a, time.Minute, func(c *keyring.Config) {
		c.Keys = append(c.Keys,
			keyring.Key{Name: "b", Wrapper: b})
	})
	if err := k.SetRules([]keyring.Rule{{Key: "b"}, {Key: "x"}}); !errors.Is(err, keyring.ErrUnknownKey) {
		t.Error(err)
	}

	sealed := create(t, k)
	sealed.Release()

	if sealed.KeyID != a.KeyID() {
		t.Error("rules that were refused are in force")
	}

	must(t, k.SetRules([]keyring.Rule{{Key: "b"}}))
	sealed = create(t, k)
	sealed.Release()

	if sealed.KeyID != b.KeyID() {
		t.Error("the new rules are not in force")
	}
}
