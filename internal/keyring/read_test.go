package keyring_test

import (
	"errors"
	"path/filepath"
	"testing"
	"time"

	"github.com/cmekproxy/cmekproxy/internal/keyring"
)

// tenants returns a keyring with the keys a and b and some rules. It also
// returns an object under b, as made by an outsider who may use b.
func tenants(
	t *testing.T, defaults *keyring.Defaults, rules ...keyring.Rule,
) (k *keyring.Keyring, plant func(keyring.Object) (string, []byte)) {
	t.Helper()
	a, _ := newLocal(t)
	b, _ := newLocal(t)
	keys := []keyring.Key{{Name: "a", Wrapper: a}, {Name: "b", Wrapper: b}}
	k, err := keyring.New(keyring.Config{Cache: newCache(t, time.Minute), Keys: keys, Rules: rules, Defaults: defaults})
	must(t, err)

	theirs, err := keyring.New(keyring.Config{
		Cache: newCache(t, time.Minute), Keys: keys[1:], Rules: []keyring.Rule{{Key: "b"}},
	})

	must(t, err)
	return k, func(obj keyring.Object) (string, []byte) {
		t.Helper()
		sealed, err := theirs.Create(t.Context(), obj, "", keyring.Choice{})
		must(t, err)
		defer sealed.Release()
		return sealed.KeyID, sealed.Wrapped
	}
}

// Someone who may encrypt under one customer's key cannot plant an object
// in another customer's bucket.
func TestKeyOpensItsOwnBucketsOnly(t *testing.T) {
	for _, row := range []struct {
		name  string
		rules []keyring.Rule
		want  error
	}{
		{"another bucket's key", []keyring.Rule{
			{Buckets: []string{"a-*"}, Key: "a"},
			{Buckets: []string{"b-*"}, Key: "b"},
		}, keyring.ErrNotRead},
		{"no rule has the bucket", []keyring.Rule{{Buckets: []string{"b-*"}, Key: "b"}}, keyring.ErrNotRead},
		{
			"the key of another prefix",
			[]keyring.Rule{{Prefixes: []string{"b/"}, Key: "b"}, {Key: "a"}},
			keyring.ErrNotRead,
		},
		{"it is the key", []keyring.Rule{{Buckets: []string{"a-*"}, Key: "b"}}, nil},
		{
			"a later rule's key, of another client",
			[]keyring.Rule{{Key: "a"}, {Clients: []string{"other"}, Key: "b"}},
			nil,
		},
		{"allowed", []keyring.Rule{{Key: "a", AskedKeys: []string{"a", "b*"}}}, nil},
		{"all are allowed", []keyring.Rule{{Key: "a", AskedKeys: []string{"*"}}}, nil},
		{"read", []keyring.Rule{{Key: "a", ReadKeys: []string{"b"}}}, nil},
		{
			"others are read",
			[]keyring.Rule{{Key: "a", AskedKeys: []string{"a"}, ReadKeys: []string{"c*"}}},
			keyring.ErrNotRead,
		},
	} {
		t.Run(row.name, func(t *testing.T) {
			k, plant := tenants(t, nil, row.rules...)
			obj := keyring.Object{Bucket: "a-bucket", Key: "k"}
			id, wrapped := plant(obj)
			l, err := k.Open(t.Context(), obj, id, wrapped)
			if !errors.Is(err, row.want) {
				t.Error(err)
			}

			if err == nil {
				l.Release()
			}

			anyway, err := k.OpenAnyKey(t.Context(), obj, id, wrapped)
			if err != nil {
				t.Errorf("with any key: %v", err)
				return
			}

			anyway.Release()
		})
	}
}

// An object that was moved opens under its old name, with a key that the
// rules name for the old name or for the new one.
func TestOpenMoved(t *testing.T) {
	old, at := keyring.Object{Bucket: "old", Key: "k"}, keyring.Object{Bucket: "new", Key: "k"}
	for _, row := range []struct {
		name  string
		rules []keyring.Rule
		want  error
	}{
		{"the old name's key", []keyring.Rule{{Buckets: []string{"old"}, Key: "b"}, {Key: "a"}}, nil},
		{"the new name's key", []keyring.Rule{{Buckets: []string{"new"}, Key: "b"}, {Key: "a"}}, nil},
		{"read at the new name", []keyring.Rule{{Buckets: []string{"new"}, Key: "a", ReadKeys: []string{"b"}}}, nil},
		{"another bucket's key", []keyring.Rule{{Buckets: []string{"other"}, Key: "b"}, {Key: "a"}}, keyring.ErrNotRead},
		{"no rule names it", []keyring.Rule{{Key: "a"}}, keyring.ErrNotRead},
	} {
		t.Run(row.name, func(t *testing.T) {
			k, plant := tenants(t, nil, row.rules...)
			id, wrapped := plant(old)
			l, err := k.OpenMoved(t.Context(), old, at, id, wrapped)
			if !errors.Is(err, row.want) {
				t.Fatal(err)
			}
			if err == nil {
				l.Release()
			}

			for name, wrong := range map[string]keyring.Object{
				"the new name":      at,
				"another key":       {Bucket: "old", Key: "other"},
				"another old place": {Bucket: "other", Key: "k"},
			} {
				if _, err := k.OpenMoved(t.Context(), wrong, at, id, wrapped); err == nil {
					t.Errorf("it opens as %s", name)
				}
			}

			if _, err := k.OpenMoved(t.Context(), old, at, "local:0000000000000000", wrapped); !errors.Is(err, keyring.ErrUnknownKey) {
				t.Errorf("an unknown key: %v", err)
			}
		})
	}
}

// A client can read what it can write: it cannot request a key that no rule
// names for the object.
func TestWhatIsAskedForIsRead(t *testing.T) {
	for name, rule := range map[string]keyring.Rule{
		"no other key": {Key: "a"}, "another key": {Key: "a", AskedKeys: []string{"b"}},
		"a key to read": {Key: "a", ReadKeys: []string{"b"}},
	} {
		t.Run(name, func(t *testing.T) {
			k, _ := tenants(t, nil, rule)
			obj := keyring.Object{Bucket: "a-bucket", Key: "k"}
			sealed, err := k.Create(t.Context(), obj, "", keyring.Choice{KeyID: "b"})

			if len(rule.AskedKeys) == 0 {
				if !errors.Is(err, keyring.ErrNotAllowed) {
					t.Errorf("asking for b: %v", err)
				}
				return
			}

			must(t, err)
			l, err := k.Open(t.Context(), obj, sealed.KeyID, sealed.Wrapped)
			must(t, err)
			l.Release()
			sealed.Release()
		})
	}
}

// A key that was chosen for a bucket remains usable there, and only there.
func TestChosenKeyIsRead(t *testing.T) {
	defaults, err := keyring.OpenDefaults(filepath.Join(t.TempDir(), "defaults.json"), time.Now)
	must(t, err)
	must(t, defaults.Set("a-bucket", "b", keyring.KeepBlocking))
	k, plant := tenants(t, defaults, keyring.Rule{Key: "a"})

	for bucket, want := range map[string]error{"a-bucket": nil, "a-nother": keyring.ErrNotRead} {
		t.Run(bucket, func(t *testing.T) {
			obj := keyring.Object{Bucket: bucket, Key: "k"}
			id, wrapped := plant(obj)
			if _, err := k.Open(t.Context(), obj, id, wrapped); !errors.Is(err, want) {
				t.Error(err)
			}

			sealed, err := k.Create(t.Context(), obj, "", keyring.Choice{})
			must(t, err)

			if isB := sealed.KeyID == id; isB != (want == nil) {
				t.Errorf("new objects are under b: %v", isB)
			}
		})
	}

	if err := k.SetDefault(t.Context(), "a-nother", "", "b", keyring.KeepBlocking); !errors.Is(err, keyring.ErrNotAllowed) {
		t.Errorf("choosing a key that no rule allows: %v", err)
	}
}

func TestUnread(t *testing.T) {
	for name, row := range map[string]struct {
		rule keyring.Rule
		want int
	}{
		"one": {keyring.Rule{Key: "a"}, 1}, "none": {keyring.Rule{Key: "a", ReadKeys: []string{"b"}}, 0},
		"none, by a pattern": {keyring.Rule{Key: "b", AskedKeys: []string{"*"}}, 0},
	} {
		t.Run(name, func(t *testing.T) {
			k, _ := tenants(t, nil, row.rule)
			if got := k.Unread(); len(got) != row.want {
				t.Errorf("%q", got)
			}
		})
	}
}
