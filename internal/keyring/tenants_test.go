package keyring_test

import (
	"context"
	"errors"
	"fmt"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/cmekproxy/cmekproxy/internal/dekcache"
	"github.com/cmekproxy/cmekproxy/internal/keyring"
	"github.com/cmekproxy/cmekproxy/internal/keytemplate"
	"github.com/cmekproxy/cmekproxy/internal/kms"
	"github.com/cmekproxy/cmekproxy/internal/kms/kmstest"
)

// tenantKMS has a local key for each tenant, and counts what is asked of it.
type tenantKMS struct {
	dir string

	mu     sync.Mutex
	keys   map[string]*slow // by id
	fail   error            // of opening
	opens  map[string]int   // by name
	closes map[string]int
	delay  time.Duration // of opening
}

func newTenantKMS(t testing.TB, tenants ...string) *tenantKMS {
	s := &tenantKMS{
		dir: t.TempDir(), keys: make(map[string]*slow), opens: make(map[string]int), closes: make(map[string]int),
	}
	for _, name := range tenants {
		s.add(t, name)
	}
	return s
}

func (s *tenantKMS) add(t testing.TB, tenant string) *slow {
	t.Helper()
	path := filepath.Join(s.dir, fmt.Sprint(tenant, "-", time.Now().UnixNano()))
	must(t, kms.CreateLocalKeyFile(path))
	w, err := kms.NewLocal(path)
	must(t, err)

	s.mu.Lock()
	defer s.mu.Unlock()
	s.keys["key/"+tenant] = &slow{Wrapper: w}
	return s.keys["key/"+tenant]
}

func (s *tenantKMS) key(tenant string) *slow {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.keys["key/"+tenant]
}

func (s *tenantKMS) refuse(err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.fail = err
}

func (s *tenantKMS) opened(name string) (opens, closes int) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.opens[name], s.closes[name]
}

func (s *tenantKMS) open(ctx context.Context, name, id string) (keyring.TenantKey, error) {
	select {
	case <-time.After(s.delay):
	case <-ctx.Done():
		return keyring.TenantKey{}, &kms.Error{Kind: kms.Canceled, Op: "open", KeyID: id, Err: ctx.Err()}
	}

	s.mu.Lock()
	defer s.mu.Unlock()

	s.opens[name]++
	if s.fail != nil {
		return keyring.TenantKey{}, s.fail
	}
	w := s.keys[id]
	if w == nil {
		return keyring.TenantKey{}, &kms.Error{Kind: kms.NotFound, Op: "open", KeyID: id}
	}

	closed := sync.OnceFunc(func() {
		s.mu.Lock()
		defer s.mu.Unlock()
		s.closes[name]++
	})
	return keyring.TenantKey{Wrapper: w, Close: closed}, nil
}

// newTenants returns a keyring with the template key/${prefix.1}.
func newTenants(t testing.TB, s *tenantKMS, change func(*keyring.Config)) *keyring.Keyring {
	t.Helper()
	text, err := keytemplate.Parse("key/${prefix.1}")
	must(t, err)
	cfg := keyring.Config{
		Keys:  []keyring.Key{{Name: "tenants", Template: &keyring.Template{Text: text, Open: s.open}}},
		Rules: []keyring.Rule{{Buckets: []string{"b"}, Key: "tenants"}},
		Cache: newCache(t, time.Minute),
	}
	if change != nil {
		change(&cfg)
	}
	k, err := keyring.New(cfg)
	must(t, err)
	return k
}

func in(key string) keyring.Object { return keyring.Object{Bucket: "b", Key: key} }

func createAt(t testing.TB, k *keyring.Keyring, key string) *keyring.DataKey {
	t.Helper()
	d, err := k.Create(t.Context(), in(key), "app", keyring.Choice{})
	must(t, err)
	return d
}

func TestEachTenantHasItsOwnKey(t *testing.T) {
	t.Parallel()
	s, o := newTenantKMS(t, "acme", "beta"), &seen{}
	k := newTenants(t, s, func(c *keyring.Config) { c.Observer = o })
	for _, tenant := range []string{"acme", "beta"} {
		d := createAt(t, k, tenant+"/x")
		defer d.Release()
		if d.KeyID != s.key(tenant).KeyID() {
			t.Errorf("%s: the key is %s", tenant, d.KeyID)
		}

		l, err := k.Open(t.Context(), in(tenant+"/x"), d.KeyID, d.Wrapped)
		must(t, err)
		l.Release()
		if opens, _ := s.opened("tenants:" + tenant); opens != 1 {
			t.Errorf("%s was opened %d times", tenant, opens)
		}
	}

	if names := strings.Join(o.calls, ","); names != "tenants:acme open ok,tenants:acme generate ok,"+
		"tenants:beta open ok,tenants:beta generate ok" {
		t.Errorf("calls: %s", names)
	}
	status := k.Status()
	if len(status) != 3 || status[0].State != keyring.IsTemplate || status[0].Open != 2 ||
		status[1].Name != "tenants:beta" || status[1].Template != "tenants" || status[1].Leases != 1 {
		t.Errorf("status: %+v", status)
	}
	if k.Unopened("tenants") || k.Try(t.Context(), "tenants") == nil || len(k.Unread()) > 0 {
		t.Error("a template is no key")
	}
}

// forge returns a data key for an object under the key of another tenant, as
// that tenant can make one: it may use its key in the KMS.
func forge(t testing.TB, obj keyring.Object, w kms.Wrapper) []byte {
	t.Helper()
	k := newRing(t, w, time.Minute, nil)
	d, err := k.Create(t.Context(), obj, "", keyring.Choice{})
	must(t, err)
	d.Release()
	return d.Wrapped
}

func TestKeyOfAnotherTenantIsNotRead(t *testing.T) {
	t.Parallel()
	s := newTenantKMS(t, "acme", "beta")
	acme := s.key("acme")
	for _, row := range []struct {
		name string
		open func(*keyring.Keyring, []byte) (*keyring.Lease, error)
		want error
	}{
		{"open", func(k *keyring.Keyring, wrapped []byte) (*keyring.Lease, error) {
			return k.Open(t.Context(), in("beta/x"), acme.KeyID(), wrapped)
		}, keyring.ErrNotRead},
		{"open from the cache", func(k *keyring.Keyring, wrapped []byte) (*keyring.Lease, error) {
			createAt(t, k, "beta/y").Release() // so that beta's key is open
			return k.OpenCached(t.Context(), in("beta/x"), acme.KeyID(), wrapped)
		}, keyring.ErrNotRead},
		{"moved within the tenant", func(k *keyring.Keyring, wrapped []byte) (*keyring.Lease, error) {
			return k.OpenMoved(t.Context(), in("beta/x"), in("beta/y"), acme.KeyID(), wrapped)
		}, keyring.ErrNotRead},
		{"moved to the tenant", func(k *keyring.Keyring, wrapped []byte) (*keyring.Lease, error) {
			return k.OpenMoved(t.Context(), in("beta/x"), in("acme/x"), acme.KeyID(), wrapped)
		}, nil},
		{"with any key", func(k *keyring.Keyring, wrapped []byte) (*keyring.Lease, error) {
			return k.OpenAnyKey(t.Context(), in("beta/x"), acme.KeyID(), wrapped)
		}, keyring.ErrUnknownKey},
	} {
		for _, isOpen := range []bool{false, true} {
			t.Run(fmt.Sprintf("%s, acme is open: %v", row.name, isOpen), func(t *testing.T) {
				k := newTenants(t, s, nil)
				if isOpen {
					defer createAt(t, k, "acme/x").Release()
				}
				l, err := row.open(k, forge(t, in("beta/x"), acme))
				if !errors.Is(err, row.want) {
					t.Errorf("%v", err)
				}
				if err == nil {
					l.Release()
				}
			})
		}
	}
}

func TestHostilePrefixes(t *testing.T) {
	t.Parallel()
	s := newTenantKMS(t, "acme", "b")
	k := newTenants(t, s, nil)
	for _, row := range []struct {
		name, key string
		want      error
	}{
		{"dots", "../x", keyring.ErrKeyName},
		{"dots behind", "acme/../b/x", keyring.ErrKeyName},
		{"escaped", "acme%2Fx", keyring.ErrTenant},
		{"no segment", "acme", keyring.ErrTenant},
		{"an empty segment", "/acme/x", keyring.ErrTenant},
		{"65 characters", strings.Repeat("a", 65) + "/x", keyring.ErrTenant},
		{"other letters", "äcme/x", keyring.ErrTenant},
		{"a variable", "${bucket}/x", keyring.ErrTenant},
		{"a newline", "acme\n/x", keyring.ErrTenant},
	} {
		t.Run(row.name, func(t *testing.T) {
			t.Parallel()
			if _, err := k.Create(t.Context(), in(row.key), "app", keyring.Choice{}); !errors.Is(err, row.want) {
				t.Errorf("create: %v", err)
			}
			wrapped := forge(t, in(row.key), s.key("acme"))
			if _, err := k.Open(t.Context(), in(row.key), s.key("acme").KeyID(), wrapped); !errors.Is(err, row.want) {
				t.Errorf("open: %v", err)
			}
		})
	}
}

func TestFirstUsesOpenTheKeyOnce(t *testing.T) {
	t.Parallel()
	kmstest.Bubble(t, func(t *testing.T) {
		s := newTenantKMS(t, "acme")
		s.delay = time.Second
		k := newTenants(t, s, nil)
		impatient, cancel := context.WithCancel(t.Context())
		time.AfterFunc(time.Second/2, cancel)

		var all sync.WaitGroup
		all.Go(func() { // the first: the others do not depend on it
			if _, err := k.Create(impatient, in("acme/x"), "app", keyring.Choice{}); !errors.Is(err, context.Canceled) {
				t.Errorf("%v", err)
			}
		})
		time.Sleep(time.Millisecond)
		for i := range 50 {
			all.Go(func() { createAt(t, k, fmt.Sprint("acme/", i)).Release() })
		}
		all.Wait()
		if opens, closes := s.opened("tenants:acme"); opens != 1 || closes != 0 {
			t.Errorf("%d times opened, %d closed", opens, closes)
		}
	})
}

func TestKeyOfATenantThatCannotBeOpened(t *testing.T) {
	t.Parallel()
	kmstest.Bubble(t, func(t *testing.T) {
		s := newTenantKMS(t)
		k := newTenants(t, s, nil)
		try := func() error {
			d, err := k.Create(t.Context(), in("acme/x"), "app", keyring.Choice{})
			if err == nil {
				d.Release()
			}
			return err
		}

		for range 5 {
			if err := try(); !kms.IsRevoked(err) || errors.Is(err, keyring.ErrNotOpen) {
				t.Fatalf("missing: %v", err)
			}
		}
		if opens, _ := s.opened("tenants:acme"); opens != 1 {
			t.Errorf("%d attempts within a second", opens)
		}

		s.add(t, "acme")
		time.Sleep(1100 * time.Millisecond)
		must(t, try())

		s.refuse(&kms.Error{Kind: kms.Unreachable, Op: "open"})
		if _, err := k.Create(t.Context(), in("beta/x"), "app", keyring.Choice{}); !errors.Is(err, keyring.ErrNotOpen) {
			t.Errorf("unreachable: %v", err)
		}
		must(t, try()) // it is open
		s.refuse(nil)
		s.add(t, "beta")
		time.Sleep(300 * time.Millisecond)
		createAt(t, k, "beta/x").Release()
	})
}

func TestMoreTenantsThanOpenKeys(t *testing.T) {
	t.Parallel()
	kmstest.Bubble(t, func(t *testing.T) {
		s, cache := newTenantKMS(t, "a", "b", "c"), newCache(t, time.Hour)
		k := newTenants(t, s, func(c *keyring.Config) { c.MaxOpen, c.Cache = 2, cache })
		a := createAt(t, k, "a/x")
		b := createAt(t, k, "b/x")
		if _, err := k.Create(t.Context(), in("c/x"), "app", keyring.Choice{}); !errors.Is(err, keyring.ErrNotOpen) {
			t.Errorf("both are in use: %v", err)
		}

		b.Release()
		c := createAt(t, k, "c/x")
		if _, closes := s.opened("tenants:b"); closes != 1 {
			t.Errorf("b was closed %d times", closes)
		}
		if _, closes := s.opened("tenants:a"); closes != 0 {
			t.Error("a was closed, but is in use")
		}
		if h := cache.Holdings(); len(h) != 2 || h[s.key("b").KeyID()].Entries != 0 {
			t.Errorf("b has DEKs in the cache: %v", h)
		}
		must(t, a.Check(t.Context()))
		must(t, c.Check(t.Context()))

		// A revocation reaches a key that was opened again.
		c.Release()
		again, err := k.Open(t.Context(), in("b/x"), b.KeyID, b.Wrapped)
		must(t, err)
		s.key("b").fail.Store(&kms.Error{Kind: kms.Disabled})
		if n, err := k.Purge("tenants:b"); n != 1 || err != nil {
			t.Errorf("purged %d, %v", n, err)
		}
		if err := again.Check(t.Context()); !kms.IsRevoked(err) {
			t.Errorf("after the purge: %v", err)
		}
		again.Release()
		a.Release()
	})
}

func TestIdleTenantsCostNothing(t *testing.T) {
	t.Parallel()
	kmstest.Bubble(t, func(t *testing.T) {
		s, o := newTenantKMS(t), &seen{}
		k := newTenants(t, s, func(c *keyring.Config) { c.Observer, c.RevocationProbe = o, 10*time.Second })
		defer run(t, k)()

		const tenants = 50
		for i := range tenants {
			s.add(t, fmt.Sprint("t", i))
			createAt(t, k, fmt.Sprintf("t%d/x", i)).Release()
		}
		time.Sleep(30 * time.Second)
		if o.count(keyring.OpProbe) < tenants {
			t.Errorf("%d probes while the DEKs are cached", o.count(keyring.OpProbe))
		}

		time.Sleep(2 * time.Minute) // the TTL is one
		before := o.count(keyring.OpProbe)
		time.Sleep(5 * time.Minute)
		if n := o.count(keyring.OpProbe) - before; n != 0 {
			t.Errorf("%d probes of idle keys", n)
		}
		if n := k.Status()[0].Open; n != tenants {
			t.Errorf("%d keys are open", n)
		}
		if n := k.ProbesPerSecond(); n > 0.2*tenants {
			t.Errorf("%v probes per second", n)
		}

		time.Sleep(5 * time.Minute)
		if n := k.Status()[0].Open; n != 0 {
			t.Errorf("after ten minutes, %d keys are open", n)
		}
		if opens, closes := s.opened("tenants:t7"); opens != 1 || closes != 1 {
			t.Errorf("%d opens, %d closes", opens, closes)
		}
		createAt(t, k, "t7/x").Release()
	})
}

func TestARevokedTenantIsAlone(t *testing.T) {
	t.Parallel()
	kmstest.Bubble(t, func(t *testing.T) {
		s, o := newTenantKMS(t, "acme", "beta"), &seen{}
		k := newTenants(t, s, func(c *keyring.Config) { c.Observer, c.RevocationProbe = o, 10*time.Second })
		defer run(t, k)()
		acme, beta := createAt(t, k, "acme/x"), createAt(t, k, "beta/x")
		defer acme.Release()
		defer beta.Release()

		s.key("acme").fail.Store(&kms.Error{Kind: kms.Disabled})
		time.Sleep(12 * time.Second) // the interval and the time for an answer
		if err := acme.Check(t.Context()); !kms.IsRevoked(err) {
			t.Errorf("acme: %v", err)
		}
		must(t, beta.Check(t.Context()))
		createAt(t, k, "beta/y").Release()
		if len(o.revoked) != 1 {
			t.Errorf("%d revocations", len(o.revoked))
		}
		if w := k.Window(time.Minute); w != 12*time.Second {
			t.Errorf("the window is %v", w)
		}
	})
}

func TestRequestedKeyOfATenant(t *testing.T) {
	t.Parallel()
	s := newTenantKMS(t, "acme", "beta")
	other, _ := newLocal(t)
	k := newTenants(t, s, func(c *keyring.Config) { c.Keys = append(c.Keys, keyring.Key{Name: "k", Wrapper: other}) })
	for _, row := range []struct {
		name, key string
		want      error
	}{
		{"the template", "tenants", nil},
		{"its name", "tenants:acme", nil},
		{"its id", s.key("acme").KeyID(), nil},
		{"another tenant's name", "tenants:beta", keyring.ErrUnknownKey},
		{"another tenant's id", s.key("beta").KeyID(), keyring.ErrUnknownKey},
		{"a key that the rule does not name", "k", keyring.ErrNotAllowed},
	} {
		t.Run(row.name, func(t *testing.T) {
			t.Parallel()
			id, err := k.KeyID(t.Context(), in("acme/x"), "app", row.key)
			if !errors.Is(err, row.want) || err == nil && id != s.key("acme").KeyID() {
				t.Errorf("%s, %v", id, err)
			}
		})
	}
}

func TestPurgeOfTenants(t *testing.T) {
	t.Parallel()
	s := newTenantKMS(t, "acme", "beta", "gamma")
	k := newTenants(t, s, nil)
	for _, tenant := range []string{"acme", "beta", "gamma"} {
		createAt(t, k, tenant+"/x").Release()
	}
	for _, row := range []struct {
		name string
		want int
		err  error
	}{
		{"tenants:acme", 1, nil},
		{"tenants:acme", 0, nil},
		{"tenants:never-used", 0, nil},
		{"tenants", 2, nil},
		{"others:acme", 0, keyring.ErrUnknownKey},
		{"acme", 0, keyring.ErrUnknownKey},
	} {
		if n, err := k.Purge(row.name); n != row.want || !errors.Is(err, row.err) {
			t.Errorf("%s: %d, %v", row.name, n, err)
		}
	}
}

// TestAliasOfATenantMoves: the objects under the old key can be read while it
// is open, and later if it has an entry of its own.
func TestAliasOfATenantMoves(t *testing.T) {
	t.Parallel()
	s := newTenantKMS(t, "acme")
	before := s.key("acme")
	k := newTenants(t, s, nil)
	d := createAt(t, k, "acme/x")
	d.Release()
	after := s.add(t, "acme")

	l, err := k.Open(t.Context(), in("acme/x"), d.KeyID, d.Wrapped)
	must(t, err)
	l.Release()
	if err := k.Reopen(t.Context(), "tenants"); err == nil {
		t.Error("reopened as another key")
	}

	restarted := newTenants(t, s, nil)
	if _, err := restarted.Open(t.Context(), in("acme/x"), d.KeyID, d.Wrapped); !errors.Is(err, keyring.ErrNotRead) {
		t.Errorf("after a restart: %v", err)
	}
	withOld := newTenants(t, s, func(c *keyring.Config) {
		c.Keys = append(c.Keys, keyring.Key{Name: "acme-2025", Wrapper: before})
		c.Rules = append([]keyring.Rule{
			{Buckets: []string{"b"}, Prefixes: []string{"acme/"}, Key: "tenants", ReadKeys: []string{"acme-2025"}},
		}, c.Rules...)
	})
	l, err = withOld.Open(t.Context(), in("acme/x"), d.KeyID, d.Wrapped)
	must(t, err)
	l.Release()
	if id, err := withOld.KeyID(t.Context(), in("acme/x"), "app", ""); err != nil || id != after.KeyID() {
		t.Errorf("new objects: %s, %v", id, err)
	}
	wrapped := forge(t, in("beta/x"), before)
	if _, err := withOld.Open(t.Context(), in("beta/x"), d.KeyID, wrapped); err == nil {
		t.Error("the old key of acme opens an object of beta")
	}
}

func TestReopenTenants(t *testing.T) {
	t.Parallel()
	s := newTenantKMS(t, "acme")
	k := newTenants(t, s, nil)
	d := createAt(t, k, "acme/x")
	defer d.Release()
	must(t, k.Reopen(t.Context(), "tenants"))
	if opens, closes := s.opened("tenants:acme"); opens != 2 || closes != 1 {
		t.Errorf("%d opens, %d closes", opens, closes)
	}
	must(t, d.Check(t.Context()))
	if err := k.Reopen(t.Context(), "k"); !errors.Is(err, keyring.ErrUnknownKey) {
		t.Errorf("%v", err)
	}
}

// TestTenantsUnderChurn uses many more tenants than may be open, at once, with
// probes. No lease loses its key, and the cache keeps nothing of closed keys.
func TestTenantsUnderChurn(t *testing.T) {
	t.Parallel()
	const tenants, most = 40, 8
	s := newTenantKMS(t)
	for i := range tenants {
		s.add(t, fmt.Sprint("t", i))
	}
	cache := dekcache.New(dekcache.Config{TTL: time.Minute})
	t.Cleanup(cache.Close)
	k := newTenants(t, s, func(c *keyring.Config) {
		c.Cache, c.MaxOpen, c.RevocationProbe = cache, most, time.Millisecond
	})
	defer run(t, k)()

	var all sync.WaitGroup
	var refused atomic.Int64
	for worker := range 6 {
		all.Go(func() {
			for i := range 150 {
				key := in(fmt.Sprintf("t%d/x", (worker*7+i*5)%tenants))
				d, err := k.Create(t.Context(), key, "app", keyring.Choice{})
				if errors.Is(err, keyring.ErrNotOpen) {
					refused.Add(1)
					continue
				}
				must(t, err)
				l, err := k.Open(t.Context(), key, d.KeyID, d.Wrapped)
				must(t, err)
				if err := errors.Join(l.Check(t.Context()), d.Check(t.Context())); err != nil {
					t.Error(err)
				}
				l.Release()
				d.Release()
			}
		})
	}
	all.Wait()

	if n := len(k.Status()) - 1; n > most {
		t.Errorf("%d keys are open", n)
	}
	if n := len(cache.Holdings()); n > most {
		t.Errorf("the cache has DEKs of %d keys", n)
	}
	if refused.Load() > 100 {
		t.Errorf("%d of 900 uses were refused", refused.Load())
	}
}
