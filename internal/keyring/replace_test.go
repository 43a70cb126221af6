package keyring_test

import (
	"errors"
	"maps"
	"sync"
	"testing"
	"time"

	"github.com/cmekproxy/cmekproxy/internal/keyring"
	"github.com/cmekproxy/cmekproxy/internal/kms"
	"github.com/cmekproxy/cmekproxy/internal/kms/kmstest"
)

// replace replaces the keys and rules, or fails the test.
func replace(t testing.TB, k *keyring.Keyring, rules []keyring.Rule, keys ...keyring.Key) map[string]int {
	t.Helper()
	r, err := k.Prepare(keyring.Contents{Keys: keys, Rules: rules})
	must(t, err)
	return r.Apply()
}

// A new key and the rule that names it are used together, and a key that is
// removed with its rule opens nothing any more.
func TestReplace(t *testing.T) {
	a, _ := newLocal(t)
	b, _ := newLocal(t)
	k := newRing(t, a, time.Minute, nil)
	before := k.Snapshot()
	sealed := create(t, k)
	defer sealed.Release()

	cut := make(chan error, 1)
	sealed.Watch(t.Context(), func(err error) { cut <- err }, func() bool { return true })
	purged := replace(t, k, []keyring.Rule{{Key: "other"}}, keyring.Key{Name: "other", Wrapper: b})
	if want := map[string]int{"k": 1}; !maps.Equal(purged, want) {
		t.Errorf("purged %v, want %v", purged, want)
	}

	if err := <-cut; !errors.Is(err, keyring.ErrUnknownKey) {
		t.Errorf("a running transfer was cut with %v", err)
	}
	if err := sealed.Check(t.Context()); !errors.Is(err, keyring.ErrUnknownKey) {
		t.Errorf("a lease of the removed key: %v", err)
	}
	for name, ring := range map[string]*keyring.Keyring{"a new request": k, "a request that began before": before} {
		if _, err := ring.Open(t.Context(), obj, sealed.KeyID, sealed.Wrapped); err == nil {
			t.Errorf("%s opened an object under the removed key", name)
		}
	}
	if _, err := before.Create(t.Context(), obj, "app", keyring.Choice{}); !errors.Is(err, keyring.ErrNotOpen) {
		t.Errorf("a request that began before created a data key: %v", err)
	}

	fresh := create(t, k)
	defer fresh.Release()
	if fresh.KeyID != b.KeyID() {
		t.Errorf("a new object is under %s", fresh.KeyID)
	}
	if status := k.Status(); len(status) != 1 || status[0].Name != "other" {
		t.Errorf("%+v", status)
	}
}

// A request sees the rules together with their keys.
func TestReplaceIsSeenAsAWhole(t *testing.T) {
	a, _ := newLocal(t)
	b, _ := newLocal(t)
	k := newRing(t, a, time.Minute, nil)
	before := k.Snapshot()
	replace(t, k, []keyring.Rule{{Key: "other"}},
		keyring.Key{Name: "k", Wrapper: a}, keyring.Key{Name: "other", Wrapper: b})

	for _, row := range []struct {
		name string
		ring *keyring.Keyring
		want string
	}{{"before", before, a.KeyID()}, {"after", k, b.KeyID()}} {
		t.Run(row.name, func(t *testing.T) {
			rule, err := row.ring.Rule(obj, "app")
			must(t, err)
			d := create(t, row.ring)
			defer d.Release()
			if (rule.Key == "other") != (row.name == "after") || d.KeyID != row.want {
				t.Errorf("rule %q, key %s; want %s", rule.Key, d.KeyID, row.want)
			}
		})
	}
}

func TestPrepareRefuses(t *testing.T) {
	a, _ := newLocal(t)
	k := newRing(t, a, time.Minute, nil)
	key := keyring.Key{Name: "k", Wrapper: a}
	rules := []keyring.Rule{{Key: "k"}}
	for name, c := range map[string]keyring.Contents{
		"a rule without its key":      {Keys: []keyring.Key{key}, Rules: []keyring.Rule{{Key: "other"}}},
		"a rule of a removed key":     {Keys: []keyring.Key{{Name: "other", Wrapper: a}}, Rules: rules},
		"a key twice":                 {Keys: []keyring.Key{key, key}, Rules: rules},
		"a key without a KMS":         {Keys: []keyring.Key{key, {Name: "other"}}, Rules: rules},
		"a successor that is missing": {Keys: []keyring.Key{key, {Name: "o", Wrapper: a, Successor: "x"}}, Rules: rules},
	} {
		t.Run(name, func(t *testing.T) {
			if _, err := k.Prepare(c); err == nil {
				t.Fatal("accepted")
			}
			create(t, k).Release()
		})
	}
}

// A key that has only another connection continues: its transfers go on, and
// the next probe asks through the new one.
func TestReplaceKeepsTheSameKey(t *testing.T) {
	w, _ := newLocal(t)
	kmstest.Bubble(t, func(t *testing.T) {
		events := &seen{}
		k := newRing(t, w, time.Hour, func(c *keyring.Config) {
			c.Observer, c.RevocationProbe = events, 10*time.Second
		})
		stop := run(t, k)
		defer stop()
		sealed := create(t, k)
		defer sealed.Release()

		next := &slow{Wrapper: w}
		purged := replace(t, k, []keyring.Rule{{Key: "k"}}, keyring.Key{Name: "k", Wrapper: next})
		if len(purged) > 0 {
			t.Errorf("purged %v", purged)
		}
		must(t, sealed.Check(t.Context()))
		next.fail.Store(&kms.Error{Kind: kms.Denied})
		time.Sleep(15 * time.Second)
		if err := sealed.Check(t.Context()); !kms.IsRevoked(err) {
			t.Errorf("the new login is refused, but the lease is in force: %v", err)
		}
	})
}

// A key that is added while Run runs is probed, and a transfer under a renamed
// key goes on.
func TestReplaceRenames(t *testing.T) {
	w, _ := newLocal(t)
	kmstest.Bubble(t, func(t *testing.T) {
		k := newRing(t, w, time.Hour, func(c *keyring.Config) { c.RevocationProbe = 10 * time.Second })
		stop := run(t, k)
		defer stop()
		sealed := create(t, k)
		defer sealed.Release()

		s := &slow{Wrapper: w}
		replace(t, k, []keyring.Rule{{Key: "renamed"}}, keyring.Key{Name: "renamed", Wrapper: s})
		must(t, sealed.Check(t.Context()))
		fresh := create(t, k)
		defer fresh.Release()
		asked := s.unwraps.Load()
		time.Sleep(25 * time.Second)
		if s.unwraps.Load() <= asked {
			t.Error("the new key was not probed")
		}
	})
}

// Requests during replacements are served by the old or the new key, or fail
// closed.
func TestReplaceStorm(t *testing.T) {
	a, _ := newLocal(t)
	b, _ := newLocal(t)
	k := newRing(t, a, time.Minute, nil)
	stop := make(chan struct{})
	var running sync.WaitGroup
	for range 4 {
		running.Go(func() {
			for {
				select {
				case <-stop:
					return
				default:
				}
				ring := k.Snapshot()
				rule, err := ring.Rule(obj, "app")
				if err != nil {
					t.Error(err)
					return
				}
				d, err := ring.Create(t.Context(), obj, "app", keyring.Choice{})
				if errors.Is(err, keyring.ErrNotOpen) {
					continue // the key was removed in between
				}
				if err != nil {
					t.Error(err)
					return
				}
				if want := map[string]string{"k": a.KeyID(), "other": b.KeyID()}[rule.Key]; d.KeyID != want {
					t.Errorf("rule %s, but key %s", rule.Key, d.KeyID)
				}
				d.Release()
			}
		})
	}

	for i := range 200 {
		key := []keyring.Key{{Name: "k", Wrapper: a}, {Name: "other", Wrapper: b}}[i%2]
		replace(t, k, []keyring.Rule{{Key: key.Name}}, key)
	}
	close(stop)
	running.Wait()
}
