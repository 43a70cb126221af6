package keyring_test

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/cmekproxy/cmekproxy/internal/keyring"
	"github.com/cmekproxy/cmekproxy/internal/keytemplate"
	"github.com/cmekproxy/cmekproxy/internal/kms"
)

// fileTenant is a tenant with its own prefix in the bucket b, whose key is one
// of s.
func fileTenant(s *tenantKMS, name, key string) keyring.FileTenant {
	return keyring.FileTenant{
		Name: name, Objects: []keyring.TenantObjects{{Bucket: "b", Prefix: name + "/"}}, Key: fileKey(s, name, key),
	}
}

func fileKey(s *tenantKMS, name, key string) keyring.FileKey {
	return keyring.FileKey{
		Version: key, Provider: "local",
		Open: func(ctx context.Context) (keyring.TenantKey, error) { return s.open(ctx, "tenant:"+name, "key/"+key) },
	}
}

// newFileTenants returns a keyring whose bucket b is the tenants', and whose
// other objects are under the key default.
func newFileTenants(t testing.TB, s *tenantKMS, change func(*keyring.Config), list ...keyring.FileTenant) *keyring.Keyring {
	t.Helper()
	w, _ := newLocal(t)
	cfg := keyring.Config{
		Keys:        []keyring.Key{{Name: "default", Wrapper: w}},
		Rules:       []keyring.Rule{{Key: "default"}, {Buckets: []string{"b"}, Tenants: true}},
		Cache:       newCache(t, time.Minute),
		FileTenants: true,
	}
	if change != nil {
		change(&cfg)
	}
	k, err := keyring.New(cfg)
	must(t, err)
	setTenants(t, k, list...)
	return k
}

func setTenants(t testing.TB, k *keyring.Keyring, list ...keyring.FileTenant) map[string]int {
	t.Helper()
	purged, err := k.SetTenants(list)
	must(t, err)
	return purged
}

func TestFileTenants(t *testing.T) {
	t.Parallel()
	s := newTenantKMS(t, "acme", "beta")
	k := newFileTenants(t, s, nil, fileTenant(s, "acme", "acme"), fileTenant(s, "beta", "beta"))
	d := createAt(t, k, "acme/x")
	defer d.Release()
	if d.KeyID != s.key("acme").KeyID() {
		t.Errorf("the key is %s", d.KeyID)
	}
	if status := k.Status(); len(status) != 3 || status[1].State != keyring.AreTenants || status[1].Open != 1 ||
		status[2].Name != "tenant:acme" || status[2].Template != keyring.FileKeys {
		t.Errorf("%+v", status)
	}

	for _, row := range []struct {
		name, key string
		want      error
	}{
		{"no tenant", "other/x", keyring.ErrNoTenant},
		{"no prefix", "x", keyring.ErrNoTenant},
		{"a longer name", "acme-2/x", keyring.ErrNoTenant},
		{"another case", "Acme/x", keyring.ErrNoTenant},
		{"nested", "other/acme/x", keyring.ErrNoTenant},
		{"an empty segment", "/acme/x", keyring.ErrNoTenant},
		{"dots", "acme/../beta/x", keyring.ErrKeyName},
		{"a dot", "./acme/x", keyring.ErrKeyName},
	} {
		t.Run(row.name, func(t *testing.T) {
			if _, err := k.Create(t.Context(), in(row.key), "app", keyring.Choice{}); !errors.Is(err, row.want) {
				t.Errorf("create: %v", err)
			}
			if _, err := k.Create(t.Context(), in(row.key), "app", keyring.Choice{KeyID: "default"}); !errors.Is(err, row.want) {
				t.Errorf("create under the other key: %v", err)
			}
			if _, err := k.Open(t.Context(), in(row.key), d.KeyID, d.Wrapped); !errors.Is(err, row.want) {
				t.Errorf("open: %v", err)
			}
			if _, err := k.OpenCached(t.Context(), in(row.key), d.KeyID, d.Wrapped); !errors.Is(err, row.want) {
				t.Errorf("open from the cache: %v", err)
			}
			if _, err := k.OpenForCustomer(t.Context(), in(row.key), d.Wrapped, make([]byte, 32)); !errors.Is(err, row.want) {
				t.Errorf("open for a customer: %v", err)
			}
			if k.AllowPlaintext(in(row.key), "app") {
				t.Error("plaintext is allowed")
			}
		})
	}

	// An object in the area that is under the key of another rule, or of another
	// tenant.
	for _, w := range []string{"default", "acme"} {
		var forged []byte
		var id string
		if w == "acme" {
			forged, id = forge(t, in("beta/x"), s.key("acme")), s.key("acme").KeyID()
		} else {
			elsewhere, err := k.Create(t.Context(), keyring.Object{Bucket: "c", Key: "x"}, "app", keyring.Choice{})
			must(t, err)
			elsewhere.Release()
			forged, id = elsewhere.Wrapped, elsewhere.KeyID
		}
		if _, err := k.Open(t.Context(), in("beta/x"), id, forged); !errors.Is(err, keyring.ErrNotRead) {
			t.Errorf("under the key %s: %v", w, err)
		}
	}
}

// TestReadKeysOfATenant: they are the tenant's only, and nothing new is written
// under them.
func TestReadKeysOfATenant(t *testing.T) {
	t.Parallel()
	s := newTenantKMS(t, "acme", "beta", "old")
	acme, beta := fileTenant(s, "acme", "acme"), fileTenant(s, "beta", "beta")
	underDefault := func(key string) (string, []byte) {
		other := newFileTenants(t, s, func(c *keyring.Config) {
			*c = keyring.Config{
				Keys: []keyring.Key{{Name: "default", Wrapper: s.key("old")}}, Rules: []keyring.Rule{{Key: "default"}},
				Cache: newCache(t, time.Minute),
			}
		})
		d := createAt(t, other, key)
		d.Release()
		return d.KeyID, d.Wrapped
	}
	k := newFileTenants(t, s, func(c *keyring.Config) { c.Keys[0].Wrapper = s.key("old") }, acme, beta)

	id, wrapped := underDefault("acme/x")
	if _, err := k.Open(t.Context(), in("acme/x"), id, wrapped); !errors.Is(err, keyring.ErrNotRead) {
		t.Errorf("without read_keys: %v", err)
	}
	acme.ReadKeys = []string{"default"}
	setTenants(t, k, acme, beta)
	l, err := k.Open(t.Context(), in("acme/x"), id, wrapped)
	must(t, err)
	l.Release()
	if _, err := k.Create(t.Context(), in("acme/y"), "app", keyring.Choice{KeyID: "default"}); !errors.Is(err, keyring.ErrNotAllowed) {
		t.Errorf("create: %v", err)
	}
	id, wrapped = underDefault("beta/x")
	if _, err := k.Open(t.Context(), in("beta/x"), id, wrapped); !errors.Is(err, keyring.ErrNotRead) {
		t.Errorf("read_keys of another tenant: %v", err)
	}

	// An earlier key of the tenant's own.
	forged := forge(t, in("beta/x"), s.key("acme"))
	earlier := fileKey(s, "beta/1", "acme")
	earlier.ID = s.key("acme").KeyID()
	beta.Earlier = []keyring.FileKey{earlier}
	setTenants(t, k, acme, beta)
	l, err = k.Open(t.Context(), in("beta/x"), earlier.ID, forged)
	must(t, err)
	l.Release()
	d := createAt(t, k, "beta/y")
	defer d.Release()
	if d.KeyID != s.key("beta").KeyID() {
		t.Errorf("a new object is under %s", d.KeyID)
	}
}

// TestReadKeysWithATemplate: objects from before, under the key of a template,
// can be read, and others do not open that key.
func TestReadKeysWithATemplate(t *testing.T) {
	t.Parallel()
	s := newTenantKMS(t, "acme", "own")
	old := newTenants(t, s, nil)
	before := createAt(t, old, "acme/x")
	before.Release()

	text, err := keytemplate.Parse("key/${prefix.1}")
	must(t, err)
	acme := fileTenant(s, "acme", "own")
	k := newFileTenants(t, s, func(c *keyring.Config) {
		c.Keys = append(c.Keys, keyring.Key{Name: "tenants", Template: &keyring.Template{Text: text, Open: s.open}})
	}, acme)
	if _, err := k.Open(t.Context(), in("acme/x"), before.KeyID, before.Wrapped); !errors.Is(err, keyring.ErrNotRead) {
		t.Errorf("without read_keys: %v", err)
	}
	acme.ReadKeys = []string{"tenants"}
	setTenants(t, k, acme)
	opens, _ := s.opened("tenants:acme")

	d := createAt(t, k, "acme/y")
	defer d.Release()
	l, err := k.Open(t.Context(), in("acme/y"), d.KeyID, d.Wrapped)
	must(t, err)
	l.Release()
	if n, _ := s.opened("tenants:acme"); n != opens || d.KeyID != s.key("own").KeyID() {
		t.Errorf("the old key was opened %d times for a new object under %s", n-opens, d.KeyID)
	}
	l, err = k.Open(t.Context(), in("acme/x"), before.KeyID, before.Wrapped)
	must(t, err)
	l.Release()
}

// TestRemovedTenant: nothing of a removed tenant opens, its running transfers
// end, and those of a tenant that shares its KMS key go on.
func TestRemovedTenant(t *testing.T) {
	t.Parallel()
	s := newTenantKMS(t, "shared")
	acme, beta := fileTenant(s, "acme", "shared"), fileTenant(s, "beta", "shared")
	k := newFileTenants(t, s, nil, acme, beta)
	ofAcme, ofBeta := createAt(t, k, "acme/x"), createAt(t, k, "beta/x")
	defer ofAcme.Release()
	defer ofBeta.Release()
	must(t, ofAcme.Check(t.Context()))
	calls := s.key("shared").unwraps.Load()

	if purged := setTenants(t, k, beta); purged["acme"] != 2 || len(purged) != 1 {
		t.Errorf("purged: %v", purged) // with those of beta, which shares the key
	}
	if _, closes := s.opened("tenant:acme"); closes != 1 {
		t.Errorf("the key was closed %d times", closes)
	}
	if err := ofAcme.Check(t.Context()); !errors.Is(err, keyring.ErrNoTenant) {
		t.Errorf("the running transfer: %v", err)
	}
	if _, err := k.Open(t.Context(), in("acme/x"), ofAcme.KeyID, ofAcme.Wrapped); !errors.Is(err, keyring.ErrNoTenant) {
		t.Errorf("open: %v", err)
	}
	if n := s.key("shared").unwraps.Load(); n != calls {
		t.Errorf("%d KMS calls for the removed tenant", n-calls)
	}

	must(t, ofBeta.Check(t.Context()))
	l, err := k.Open(t.Context(), in("beta/x"), ofBeta.KeyID, ofBeta.Wrapped)
	must(t, err)
	l.Release()
	if n, err := k.Purge("tenant:acme"); n != 0 || err != nil {
		t.Errorf("purge: %d, %v", n, err)
	}

	// Back with the same key.
	setTenants(t, k, acme, beta)
	l, err = k.Open(t.Context(), in("acme/x"), ofAcme.KeyID, ofAcme.Wrapped)
	must(t, err)
	l.Release()
}

// TestChangedKey: a transfer under the old key goes on if the object may be
// read with it now, by any name.
func TestChangedKey(t *testing.T) {
	t.Parallel()
	for _, row := range []struct {
		name   string
		change func(s *tenantKMS, acme *keyring.FileTenant)
		want   error
	}{
		{"the same key with other settings", func(_ *tenantKMS, acme *keyring.FileTenant) { acme.Key.Version = "2" }, nil},
		{"another key", func(s *tenantKMS, acme *keyring.FileTenant) { acme.Key = fileKey(s, "acme", "new") }, keyring.ErrNotRead},
		{"another key, and the old one is an earlier one", func(s *tenantKMS, acme *keyring.FileTenant) {
			old := fileKey(s, "acme/1", "old")
			old.ID = s.key("old").KeyID()
			acme.Key, acme.Earlier = fileKey(s, "acme", "new"), []keyring.FileKey{old}
		}, nil},
		{"another key, and the old one in read_keys", func(s *tenantKMS, acme *keyring.FileTenant) {
			acme.Key, acme.ReadKeys = fileKey(s, "acme", "new"), []string{"default"}
		}, nil},
		{"other objects", func(_ *tenantKMS, acme *keyring.FileTenant) {
			acme.Objects, acme.Key.Version = []keyring.TenantObjects{{Bucket: "b", Prefix: "new/"}}, "2"
		}, keyring.ErrNoTenant},
	} {
		t.Run(row.name, func(t *testing.T) {
			t.Parallel()
			s := newTenantKMS(t, "old", "new")
			acme := fileTenant(s, "acme", "old")
			k := newFileTenants(t, s, func(c *keyring.Config) { c.Keys[0].Wrapper = s.key("old") }, acme)
			d := createAt(t, k, "acme/x")
			defer d.Release()

			row.change(s, &acme)
			setTenants(t, k, acme)
			if err := d.Check(t.Context()); !errors.Is(err, row.want) {
				t.Errorf("the running transfer: %v", err)
			}
			l, err := k.Open(t.Context(), in("acme/x"), d.KeyID, d.Wrapped)
			if !errors.Is(err, row.want) {
				t.Errorf("open: %v", err)
			}
			if err == nil {
				l.Release()
			}
		})
	}
}

// TestChangedReuse: a shared data key is not used under another key.
func TestChangedReuse(t *testing.T) {
	t.Parallel()
	s := newTenantKMS(t, "old", "new")
	acme := fileTenant(s, "acme", "old")
	k := newFileTenants(t, s, func(c *keyring.Config) {
		c.Rules[1].Reuse = &keyring.Reuse{MaxAge: time.Hour, MaxObjects: 100, MaxBytes: 1 << 20}
	}, acme)
	createAt(t, k, "acme/x").Release()
	acme.Key = fileKey(s, "acme", "new")
	setTenants(t, k, acme)
	d := createAt(t, k, "acme/y")
	defer d.Release()
	if n := s.key("new").unwraps.Load(); d.KeyID != s.key("new").KeyID() || n != 0 {
		t.Errorf("key %s, %d unwraps", d.KeyID, n)
	}
}

func TestSetTenantsRefuses(t *testing.T) {
	t.Parallel()
	s := newTenantKMS(t, "acme")
	with := func(name string, objects ...keyring.TenantObjects) keyring.FileTenant {
		tenant := fileTenant(s, name, "acme")
		if len(objects) > 0 {
			tenant.Objects = objects
		}
		return tenant
	}
	k := newFileTenants(t, s, nil, with("kept"))
	for _, row := range []struct {
		name string
		list []keyring.FileTenant
	}{
		{"the same name", []keyring.FileTenant{with("a"), with("a")}},
		{"the same objects", []keyring.FileTenant{with("a"), with("c", keyring.TenantObjects{Bucket: "b", Prefix: "a/"})}},
		{"nested objects", []keyring.FileTenant{with("a"), with("c", keyring.TenantObjects{Bucket: "b", Prefix: "a/c/"})}},
		{"within a bucket", []keyring.FileTenant{with("a", keyring.TenantObjects{Bucket: "b"}), with("c")}},
		{"a prefix without a slash", []keyring.FileTenant{with("a", keyring.TenantObjects{Bucket: "b", Prefix: "a"})}},
		{"no bucket", []keyring.FileTenant{with("a", keyring.TenantObjects{Prefix: "a/"})}},
		{"no name", []keyring.FileTenant{with("")}},
		{"a name with a colon", []keyring.FileTenant{with("a:b")}},
		{"no key", []keyring.FileTenant{{Name: "a"}}},
	} {
		t.Run(row.name, func(t *testing.T) {
			if _, err := k.SetTenants(row.list); err == nil {
				t.Error("accepted")
			}
			createAt(t, k, "kept/x").Release()
		})
	}

	plain := newTenants(t, s, nil)
	if _, err := plain.SetTenants([]keyring.FileTenant{with("a")}); err == nil {
		t.Error("accepted without FileTenants")
	}
	for _, r := range []keyring.Rule{
		{Tenants: true, Key: "default"}, {Tenants: true, AskedKeys: []string{"default"}}, {Tenants: true, Clients: []string{"a"}},
	} {
		if k.SetRules([]keyring.Rule{r}) == nil {
			t.Errorf("accepted: %+v", r)
		}
	}
	if plain.SetRules([]keyring.Rule{{Tenants: true}}) == nil {
		t.Error("a rule for tenants is accepted without FileTenants")
	}
}

// TestUnopenedKeysAreAudited: the attempt to use a key that cannot be opened is
// a use, for templates too.
func TestUnopenedKeysAreAudited(t *testing.T) {
	t.Parallel()
	s, audited := newTenantKMS(t, "acme"), &trail{}
	files := newFileTenants(t, s, withTrail(audited), fileTenant(s, "acme", "gone"))
	templates := newTenants(t, newTenantKMS(t), withTrail(audited))
	ctx, n := asRequest(t), 0
	next := func() keyring.Event { n++; return audited.event(n - 1) }
	for _, row := range []struct {
		k    *keyring.Keyring
		name string
	}{{files, "tenant:acme"}, {templates, "tenants:acme"}} {
		for i, source := range []keyring.Source{keyring.FromKMS, keyring.FromCache} {
			if _, err := row.k.Create(ctx, in("acme/x"), "app", keyring.Choice{}); !kms.IsRevoked(err) {
				t.Errorf("create: %v", err)
			}
			e := next()
			if e.Action != keyring.ActionCreate || e.KeyName != row.name || e.Source != source ||
				e.Object != in("acme/x") || !kms.IsRevoked(e.Err) {
				t.Errorf("%d: %+v", i, e)
			}
		}
		if _, err := row.k.Open(ctx, in("acme/x"), "some id", []byte("x")); err == nil {
			t.Error("opened")
		}
		if e := next(); e.Action != keyring.ActionOpen || e.KeyName != row.name {
			t.Errorf("%+v", e)
		}
		_, _ = row.k.Create(ctx, in("x"), "app", keyring.Choice{}) // names no tenant, so no key
	}
	if left := audited.take(); len(left) != n {
		t.Errorf("%d events instead of %d: %q", len(left), n, left)
	}
}

// TestTenantsChangeInUse: while tenants change, each request uses the key of
// one state or the other.
func TestTenantsChangeInUse(t *testing.T) {
	t.Parallel()
	s := newTenantKMS(t, "a", "b", "c")
	states := [][]keyring.FileTenant{{fileTenant(s, "acme", "a"), fileTenant(s, "beta", "b")}}
	swapped := []keyring.FileTenant{fileTenant(s, "acme", "c"), fileTenant(s, "beta", "b")}
	states = append(states, swapped, []keyring.FileTenant{fileTenant(s, "beta", "b")})
	k := newFileTenants(t, s, nil, states[0]...)

	done := make(chan struct{})
	var ofAcme, ofBeta atomic.Int64
	var all sync.WaitGroup
	for range 4 {
		all.Go(func() {
			for {
				select {
				case <-done:
					return
				default:
				}
				d, err := k.Create(t.Context(), in("acme/x"), "app", keyring.Choice{})
				switch {
				case err == nil:
					if d.KeyID == s.key("b").KeyID() {
						t.Error("acme's object is under beta's key")
					}
					_ = d.Check(t.Context())
					d.Release()
					ofAcme.Add(1)
				case errors.Is(err, keyring.ErrNoTenant), errors.Is(err, keyring.ErrNotOpen):
				default:
					t.Errorf("acme: %v", err)
				}
				l := createAt(t, k, "beta/x")
				if err := l.Check(t.Context()); err != nil {
					t.Errorf("beta: %v", err)
				}
				l.Release()
				ofBeta.Add(1)
			}
		})
	}
	for i := 0; i < 300 || ofAcme.Load() < 100 || ofBeta.Load() < 100; i++ {
		setTenants(t, k, states[i%len(states)]...)
		time.Sleep(time.Duration(i%3) * 100 * time.Microsecond) // sometimes long enough to open a key
	}
	close(done)
	all.Wait()

	setTenants(t, k)
	if _, err := k.Create(t.Context(), in("beta/x"), "app", keyring.Choice{}); !errors.Is(err, keyring.ErrNoTenant) {
		t.Errorf("%v", err)
	}
	for _, name := range []string{"acme", "beta"} {
		if opens, closes := s.opened("tenant:" + name); opens != closes || opens == 0 {
			t.Errorf("%s: opened %d times, closed %d times", name, opens, closes)
		}
	}
}

// BenchmarkTenantRule measures finding the tenant of an object among 10,000.
func BenchmarkTenantRule(b *testing.B) {
	s := newTenantKMS(b, "acme")
	list := make([]keyring.FileTenant, 10_000)
	for i := range list {
		list[i] = fileTenant(s, fmt.Sprint("t", i), "acme")
	}
	k := newFileTenants(b, s, nil, list...)
	obj := in("t517/" + strings.Repeat("folder/", 8) + "x")
	b.ReportAllocs()
	for b.Loop() {
		if _, err := k.Rule(obj, "app"); err != nil {
			b.Fatal(err)
		}
	}
}
