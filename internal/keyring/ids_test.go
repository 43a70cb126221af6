package keyring_test

import (
	"errors"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/cmekproxy/cmekproxy/internal/keyring"
	"github.com/cmekproxy/cmekproxy/internal/kms"
	"github.com/cmekproxy/cmekproxy/internal/kms/kmstest"
)

// wantOpens checks that a ring opens what another ring has sealed.
func wantOpens(t *testing.T, name string, k *keyring.Keyring, sealed *keyring.DataKey) {
	t.Helper()
	l, err := k.Open(t.Context(), obj, sealed.KeyID, sealed.Wrapped)
	if err != nil {
		t.Errorf("%s: %v", name, err)
		return
	}
	defer l.Release()
	if !slices.Equal(l.DEK(), sealed.DEK()) {
		t.Errorf("%s: another DEK", name)
	}
}

func wantUnknown(t *testing.T, name string, k *keyring.Keyring, id string, sealed *keyring.DataKey) {
	t.Helper()
	if _, err := k.Open(t.Context(), obj, id, sealed.Wrapped); !errors.Is(err, keyring.ErrUnknownKey) {
		t.Errorf("%s: %v, want unknown key", name, err)
	}
}

// A multi-Region key is the same key in every region.
func TestMultiRegionKey(t *testing.T) {
	frankfurt, ireland := kmstest.StartRegion(t, kmstest.Config{Region: "eu-central-1"}), kmstest.StartRegion(t,
		kmstest.Config{Region: "eu-west-1"})
	primary, err := frankfurt.CreateMultiRegionKey()
	must(t, err)
	replica, err := frankfurt.Replicate(primary, ireland)
	must(t, err)
	here := newRing(t, frankfurt.OpenKey(t, primary, nil), time.Minute, nil)
	there := newRing(t, ireland.OpenKey(t, replica, nil), time.Minute, nil)
	one, two := create(t, here), create(t, there)
	defer one.Release()
	defer two.Release()

	if one.KeyID == two.KeyID {
		t.Fatalf("primary and replica are both %s", one.KeyID)
	}

	wantOpens(t, "by the replica", there, one)
	wantOpens(t, "by the primary", here, two)

	// The replica has its own state.
	must(t, ireland.DisableKey(replica))

	if n, err := there.Purge("k"); n != 2 || err != nil {
		t.Errorf("%d DEKs purged, %v; want both, of the one key", n, err)
	}
	if _, err := there.Open(t.Context(), obj, one.KeyID, one.Wrapped); !isKind(err, kms.Disabled) {
		t.Errorf("%v, want disabled", err)
	}

	wantOpens(t, "by the primary, with the replica disabled", here, two)

	for name, id := range map[string]string{
		"another account":   strings.Replace(primary, ":111122223333:", ":999922223333:", 1),
		"another partition": strings.Replace(primary, "arn:aws:", "arn:aws-cn:", 1),
		"another key":       primary[:len(primary)-1] + "x",
		"a single key":      strings.Replace(primary, "key/mrk-", "key/", 1),
	} {
		t.Run(name, func(t *testing.T) {
			wantUnknown(t, name, here, id, one)
		})
	}
}

// The same key id in another account is another key.
func TestMultiRegionKeyOfAnotherAccount(t *testing.T) {
	ours := kmstest.StartRegion(t, kmstest.Config{Region: "eu-central-1"})
	theirs := kmstest.StartRegion(t, kmstest.Config{Region: "eu-west-1", AccountID: "999922223333"})
	primary, err := ours.CreateMultiRegionKey()
	must(t, err)
	copied, err := ours.Replicate(primary, theirs)
	must(t, err)
	here := newRing(t, ours.OpenKey(t, primary, nil), time.Minute, nil)
	there := newRing(t, theirs.OpenKey(t, copied, nil), time.Minute, nil)
	sealed := create(t, there)
	defer sealed.Release()

	wantUnknown(t, "theirs, here", here, sealed.KeyID, sealed)
}

// If a primary key and a replica are both configured, each is asked for its
// own objects.
func TestMultiRegionKeyUnderTwoNames(t *testing.T) {
	a, b := kmstest.StartRegion(t, kmstest.Config{Region: "eu-central-1"}), kmstest.StartRegion(t,
		kmstest.Config{Region: "eu-west-1"})
	primary, err := a.CreateMultiRegionKey()
	must(t, err)
	replica, err := a.Replicate(primary, b)
	must(t, err)

	k := newRing(t, a.OpenKey(t, primary, nil), time.Minute, func(c *keyring.Config) {
		c.Keys = append(c.Keys, keyring.Key{Name: "replica", Wrapper: b.OpenKey(t, replica, nil)})
		c.Rules = []keyring.Rule{{Buckets: []string{"far"}, Key: "replica"}, {Key: "k"}}
	})
	if twins := k.Twins(); !slices.Equal(twins, [][2]string{{"k", "replica"}}) {
		t.Errorf("twins %q", twins)
	}

	far, err := k.Create(t.Context(), keyring.Object{Bucket: "far", Key: "x"}, "", keyring.Choice{})
	must(t, err)
	defer far.Release()

	if far.KeyID != replica {
		t.Errorf("sealed under %s, want %s", far.KeyID, replica)
	}

	must(t, b.DisableKey(replica))
	k.PurgeAll()

	if _, err := k.Open(t.Context(), keyring.Object{Bucket: "far", Key: "x"}, far.KeyID, far.Wrapped); !isKind(err,
		kms.Disabled) {
		t.Errorf("%v, want the answer of the replica, which is disabled", err)
	}
}

// A key may be configured under two names. Both can encrypt, and the first
// one decrypts.
func TestTwins(t *testing.T) {
	w, _ := newLocal(t)
	var log seen
	k := newRing(t, w, time.Minute, func(c *keyring.Config) {
		c.Keys = append(c.Keys, keyring.Key{Name: "twin", Wrapper: w}, keyring.Key{
			Name: "late", Unavailable: &kms.Error{Kind: kms.Unreachable},
		})

		c.Rules, c.Observer = []keyring.Rule{
			{Buckets: []string{"twin"}, Key: "twin", AskedKeys: []string{"twin"}},
			{Key: "k"},
		}, &log
	})
	if twins := k.Twins(); !slices.Equal(twins, [][2]string{{"k", "twin"}}) {
		t.Errorf("twins %q", twins)
	}

	must(t, k.Provide("late", w, nil))
	if twins := k.Twins(); !slices.Equal(twins, [][2]string{{"k", "twin"}, {"k", "late"}}) {
		t.Errorf("twins %q", twins)
	}

	for _, asked := range []string{"", "twin", w.KeyID()} { // each is the rule's key
		t.Run(asked, func(t *testing.T) {
			sealed, err := k.Create(t.Context(), keyring.Object{Bucket: "twin", Key: "x"}, "",
				keyring.Choice{KeyID: asked})
			if err != nil {
				t.Errorf("asked for %q: %v", asked, err)
				return
			}

			sealed.Release()
		})
	}

	k.PurgeAll()
	sealed := create(t, k)
	defer sealed.Release()

	wantOpens(t, "by the first name", k, sealed)
	if want := "twin generate ok"; log.calls[0] != want {
		t.Errorf("the first call is %q, want %q", log.calls[0], want)
	}
}

// After an alias has moved, the new key encrypts and the old one decrypts.
// The same holds before the move and after the alias has moved back.
func TestSuccessor(t *testing.T) {
	server := kmstest.StartTest(t)
	oldKey, newKey := server.NewKey(t, nil), server.NewKey(t, nil)

	// The configuration never changes: an alias, and the two keys that it
	// may point to.
	open := func(target kms.Wrapper) *keyring.Keyring {
		must(t, server.SetAlias("alias/app", target.KeyID()))
		return newRing(t, server.OpenKey(t, "alias/app", nil), time.Minute, func(c *keyring.Config) {
			c.Keys = append(c.Keys,
				keyring.Key{Name: "k/1", Wrapper: server.OpenKey(t, oldKey.KeyID(), nil), Successor: "k"},
				keyring.Key{Name: "k/2", Wrapper: server.OpenKey(t, newKey.KeyID(), nil), Successor: "k"})
		})
	}

	before := open(oldKey)
	one := create(t, before)
	defer one.Release()

	after := open(newKey)
	two := create(t, after)
	defer two.Release()

	if one.KeyID != oldKey.KeyID() || two.KeyID != newKey.KeyID() {
		t.Fatalf("sealed under %s and %s", one.KeyID, two.KeyID)
	}

	wantOpens(t, "the old object, by the new configuration", after, one)
	wantOpens(t, "the new object, by a proxy that has not seen the change", before, two)
	wantOpens(t, "the new object, after a rollback", open(oldKey), two)

	for _, asked := range []string{oldKey.KeyID(), "k/1"} {
		t.Run(asked, func(t *testing.T) {
			sealed, err := after.Create(t.Context(), obj, "", keyring.Choice{KeyID: asked})
			if err != nil || sealed.KeyID != newKey.KeyID() {
				t.Errorf("asked for %s: %v; want an object under the new key", asked, err)
				return
			}
			sealed.Release()
		})
	}

	if twins := after.Twins(); len(twins) > 0 {
		t.Errorf("twins %q", twins)
	}

	must(t, server.DisableKey(oldKey.KeyID()))
	after.PurgeAll()

	if _, err := after.Open(t.Context(), obj, one.KeyID, one.Wrapped); !isKind(err, kms.Disabled) {
		t.Errorf("the old key was disabled: %v", err)
	}

	wantOpens(t, "the new key is not", after, two)

	alone := newRing(t, server.OpenKey(t, newKey.KeyID(), nil), time.Minute, nil)
	wantUnknown(t, "an old key that is not configured", alone, one.KeyID, one)
}
