package keyring_test

import (
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/cmekproxy/cmekproxy/internal/keyring"
)

func TestRules(t *testing.T) {
	hr, _ := newLocal(t)
	app, _ := newLocal(t)
	k, err := keyring.New(keyring.Config{
		Cache: newCache(t, time.Minute),
		Keys:  []keyring.Key{{Name: "hr", Wrapper: hr}, {Name: "app", Wrapper: app}},
		Rules: []keyring.Rule{
			{Buckets: []string{"hr-*"}, Key: "hr"},
			{Buckets: []string{"shared"}, Prefixes: []string{"hr/", "pay"}, Key: "hr"},
			{Buckets: []string{"shared"}, Clients: []string{"backup"}, Key: "hr", AllowPlaintext: true},
			{Buckets: []string{"shared", "a*b*c"}, Key: "app"},
		},
	})

	must(t, err)
	for _, c := range []struct {
		bucket, object, client, key string
		plaintext                   bool
	}{
		{"hr-eu", "x", "", "hr", false},
		{"hr-", "x", "", "hr", false},
		{"hr", "x", "", "", false},
		{"xhr-eu", "x", "", "", false},
		{"shared", "hr/x", "", "hr", false},
		{"shared", "hr", "", "app", false},
		{"shared", "payroll", "", "hr", false},
		{"shared", "x/hr/", "", "app", false},
		{"shared", "x", "backup", "hr", true},
		{"shared", "x", "backup2", "app", false},
		{"shared2", "x", "", "", false},
		{"abc", "x", "", "app", false},
		{"a-b-b-c", "x", "", "app", false},
		{"acb", "x", "", "", false},
		{"ac", "x", "", "", false},
	} {
		t.Run(fmt.Sprintf("%s/%s by %q", c.bucket, c.object, c.client), func(t *testing.T) {
			obj := keyring.Object{Bucket: c.bucket, Key: c.object}
			r, err := k.Rule(obj, c.client)
			if r.Key != c.key || (c.key == "") != errors.Is(err, keyring.ErrNoRule) {
				t.Errorf("%+v: key %q, %v", c, r.Key, err)
			}
			if k.AllowPlaintext(obj, c.client) != c.plaintext {
				t.Errorf("%+v: plaintext is %v", c, !c.plaintext)
			}

			sealed, err := k.Create(t.Context(), obj, c.client, keyring.Choice{})
			if (err == nil) != (c.key != "") {
				t.Errorf("%+v: create: %v", c, err)
			}
			if err == nil {
				if want := map[string]string{"hr": hr.KeyID(), "app": app.KeyID()}[c.key]; sealed.KeyID != want {
					t.Errorf("%+v: sealed with %s, want %s", c, sealed.KeyID, want)
				}
				sealed.Release()
			}
		})
	}
}

func TestRequestedKeys(t *testing.T) {
	a, _ := newLocal(t)
	b, _ := newLocal(t)
	k, err := keyring.New(keyring.Config{
		Cache: newCache(t, time.Minute),
		Keys:  []keyring.Key{{Name: "a", Wrapper: a}, {Name: "b", Wrapper: b}},
		Rules: []keyring.Rule{{Buckets: []string{"bucket"}, Key: "a", AskedKeys: []string{"*"}}},
	})

	must(t, err)
	for requested, want := range map[string]string{
		"": a.KeyID(), "b": b.KeyID(), b.KeyID(): b.KeyID(),
		"a": a.KeyID(),
	} {
		t.Run(requested, func(t *testing.T) {
			sealed, err := k.Create(t.Context(), obj, "", keyring.Choice{KeyID: requested})
			if err != nil || sealed.KeyID != want {
				t.Errorf("requested %q: %v", requested, err)
				return
			}
			sealed.Release()
		})
	}

	if _, err := k.Create(t.Context(), obj, "", keyring.Choice{KeyID: "c"}); !errors.Is(err, keyring.ErrUnknownKey) {
		t.Errorf("an unknown key: %v", err)
	}
	if _, err := k.Create(t.Context(), keyring.Object{Bucket: "x", Key: "y"}, "",
		keyring.Choice{KeyID: "b"}); !errors.Is(err, keyring.ErrNoRule) {
		t.Errorf("a requested key where no rule applies: %v", err)
	}
}

func TestConfigsThatAreRefused(t *testing.T) {
	a, _ := newLocal(t)
	b, _ := newLocal(t)
	for want, change := range map[string]func(*keyring.Config){
		"no cache":       func(c *keyring.Config) { c.Cache = nil },
		"unknown key":    func(c *keyring.Config) { c.Rules = []keyring.Rule{{Key: "x"}} },
		`unknown key ""`: func(c *keyring.Config) { c.Rules = []keyring.Rule{{}} },
		"two keys":       func(c *keyring.Config) { c.Keys = append(c.Keys, keyring.Key{Name: "a", Wrapper: b}) },
		`successor of key "b"`: func(c *keyring.Config) {
			c.Keys = append(c.Keys, keyring.Key{Name: "b", Wrapper: b, Successor: "none"})
		},
		`successor of key "c"`: func(c *keyring.Config) {
			c.Keys = append(c.Keys, keyring.Key{Name: "b", Wrapper: b, Successor: "a"},
				keyring.Key{Name: "c", Wrapper: b, Successor: "b"})
		},
		"a key has no name": func(c *keyring.Config) { c.Keys = append(c.Keys, keyring.Key{Wrapper: b}) },
		"or no KMS":         func(c *keyring.Config) { c.Keys = append(c.Keys, keyring.Key{Name: "b"}) },
	} {
		t.Run(want, func(t *testing.T) {
			cfg := keyring.Config{
				Keys: []keyring.Key{{Name: "a", Wrapper: a}}, Rules: []keyring.Rule{{Key: "a"}},
				Cache: newCache(t, time.Minute),
			}

			change(&cfg)
			if _, err := keyring.New(cfg); err == nil || !strings.Contains(err.Error(), want) {
				t.Errorf("%v, want %q", err, want)
			}
		})
	}
}
