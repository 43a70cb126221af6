package keyring

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/cmekproxy/cmekproxy/internal/kms"
)

// FileKeys is the name of the keys of all FileTenants together, in metrics and
// Status. The key of the tenant acme is named tenant:acme.
const FileKeys = "tenant"

// FileTenant is a tenant with its own key. Its objects must be in a rule with
// Tenants.
//
// As for a Template, an object is read only through the keys of the tenant that
// has it.
type FileTenant struct {
	Name    string
	Objects []TenantObjects
	// Key encrypts new objects. Earlier are keys under which objects of the
	// tenant can be read; their IDs must be set.
	Key     FileKey
	Earlier []FileKey
	// ReadKeys are names of configured keys under which objects of the tenant
	// can be read.
	ReadKeys []string
}

// TenantObjects are the objects of a bucket with a prefix, which must end with
// "/"; or all objects, if it is empty.
type TenantObjects struct{ Bucket, Prefix string }

// FileKey is a key of a FileTenant. It is opened at its first use, and closed
// when it is idle.
type FileKey struct {
	// Version is another one if the key has changed.
	Version string
	// ID is the id of the key in the KMS, for an earlier key.
	ID                    string
	Provider              string
	Timeout, ProbeTimeout time.Duration // see Key
	Open                  func(ctx context.Context) (TenantKey, error)
}

// tenantIndex is an immutable set of FileTenants.
type tenantIndex struct {
	byName  map[string]*FileTenant
	objects map[TenantObjects]*FileTenant
	slowest *keyState // with the longest ProbeTimeout
}

func newTenantIndex() *tenantIndex {
	return &tenantIndex{
		byName: make(map[string]*FileTenant), objects: make(map[TenantObjects]*FileTenant), slowest: &keyState{},
	}
}

// tenantWith returns the tenant that has the object; nil for none.
func (x *tenantIndex) tenantWith(obj Object) *FileTenant {
	if t := x.objects[TenantObjects{obj.Bucket, ""}]; t != nil {
		return t
	}
	for i := range len(obj.Key) {
		if obj.Key[i] != '/' {
			continue
		}
		if t := x.objects[TenantObjects{obj.Bucket, obj.Key[:i+1]}]; t != nil {
			return t
		}
	}
	return nil
}

// add adds a tenant that has nothing in common with the others.
func (x *tenantIndex) add(t *FileTenant) error {
	if t.Name == "" || strings.ContainsAny(t.Name, nameSeparator+"/") || t.Key.Open == nil || x.byName[t.Name] != nil {
		return fmt.Errorf("keyring: tenant %q has no usable name, no key, or the name of another one", t.Name)
	}
	for _, o := range t.Objects {
		if o.Prefix != "" && !strings.HasSuffix(o.Prefix, "/") || o.Bucket == "" {
			return fmt.Errorf("keyring: tenant %q: a prefix must end with /", t.Name)
		}
		if other := x.objects[o]; other != nil && other != t {
			return fmt.Errorf("keyring: tenants %q and %q have the same objects", other.Name, t.Name)
		}
		x.objects[o] = t
	}

	x.byName[t.Name] = t
	x.slowest.probeLimit.Store(max(x.slowest.probeLimit.Load(), int64(t.Key.ProbeTimeout)))
	return nil
}

// checkNested refuses objects of a tenant within those of another one.
func (x *tenantIndex) checkNested() error {
	for o, t := range x.objects {
		outer := x.tenantWith(Object{Bucket: o.Bucket, Key: o.Prefix})
		if outer != t {
			return fmt.Errorf("keyring: tenants %q and %q have the same objects", outer.Name, t.Name)
		}
	}
	return nil
}

// tenantOf returns the tenant that has the key with this name; nil for none.
func (x *tenantIndex) tenantOf(keyName string) *FileTenant { return x.byName[tenantName(keyName)] }

// tenantName returns the name of the FileTenant that has the key with a name.
func tenantName(keyName string) string {
	name, _, _ := strings.Cut(strings.TrimPrefix(keyName, FileKeys+nameSeparator), "/")
	return name
}

// has reports whether the tenant has the key.
func (t *FileTenant) has(version string) bool {
	return t != nil && (t.Key.Version == version ||
		slices.ContainsFunc(t.Earlier, func(k FileKey) bool { return k.Version == version }))
}

// SetTenants replaces the tenants for subsequent requests. Keys of tenants that
// were removed, and keys that have changed, are closed: their DEKs are wiped,
// and running transfers end unless a key that the object may be read with now
// opens their DEK. It returns how many DEKs were wiped, by tenant.
//
// If it returns an error, nothing has changed.
func (k *Keyring) SetTenants(list []FileTenant) (purged map[string]int, err error) {
	next := newTenantIndex()
	if k.fileKeys == nil && len(list) > 0 {
		return nil, fmt.Errorf("keyring: tenant %q: there can be no tenants", list[0].Name)
	}
	for i := range list {
		if err := next.add(&list[i]); err != nil {
			return nil, err
		}
	}
	if err := next.checkNested(); err != nil {
		return nil, err
	}

	k.files.Store(next) // first: see addTenant
	purged = make(map[string]int)
	for _, key := range k.tenants.all() {
		if key.tenant.family == k.fileKeys && !next.tenantOf(key.Name).has(key.tenant.id) {
			k.tenants.mu.Lock()
			purged[tenantName(key.Name)] += k.retire(key)
			k.tenants.mu.Unlock()
		}
	}
	return purged, nil
}

// retire closes a key that may be in use. The caller holds openKeys.mu.
func (k *Keyring) retire(key *keyState) (purged int) {
	if key.tenant.ended {
		return 0
	}

	key.retired.Store(true) // first: no DEK is fetched after the purge
	k.endTenant(key)
	purged = k.cfg.Cache.Purge(key.rest.group.KeyID)
	k.tenants.leaving = append(k.tenants.leaving, key)
	k.forgetLeaving()
	return purged
}

// forgetLeaving forgets retired keys that are not in use any more. The caller
// holds openKeys.mu.
func (k *Keyring) forgetLeaving() {
	k.tenants.leaving = slices.DeleteFunc(k.tenants.leaving, func(key *keyState) bool {
		if key.inUse() {
			return false
		}
		if key.tenant != nil {
			k.forgetTenant(key)
		} else {
			k.forgetDEKs(key.rest.group.KeyID)
		}
		return true
	})
}

// isRetired reports whether the key must not be used any more.
func (k *keyState) isRetired() bool { return k.retired.Load() }

// replacement returns the key that unwraps the DEK of a lease. It is another
// one if the key of the lease has been retired and the object may be read with
// that one. The caller must call end.
func (k *Keyring) replacement(ctx context.Context, l *Lease) (by unwrapper, end func(), err error) {
	if !l.key.isRetired() {
		return unwrapper{l.key, l.part, l.wrapper()}, func() {}, nil
	}
	k = k.latest() // the request may have begun before the key was retired
	key, err := k.findToRead(ctx, l.obj, l.service.id, k.openTenant)
	if err != nil {
		return by, nil, fmt.Errorf("%w: key %q: %w", ErrRetired, l.key.Name, err)
	}
	return unwrapper{key, key.rest, key.kms.Load().wrapper}, key.letGo, nil
}

// isOpenAs reports whether the key is open and has this id.
func (o *openKeys) isOpenAs(ref *tenantRef, keyID string) bool {
	o.mu.Lock()
	defer o.mu.Unlock()
	key := o.byName[ref.name]
	return key != nil && ref.is(key) && kms.SameKey(key.kms.Load().id, keyID)
}

// unwrapper is a key that unwraps a DEK.
type unwrapper struct {
	key     *keyState
	part    *part
	wrapper kms.Wrapper
}

// tenantRule returns the rule for an object of a tenant, with the ReadKeys of
// the tenant. ok is false if the object is in no rule with Tenants. Errors:
// ErrKeyName, and ErrNoTenant.
func (k *Keyring) tenantRule(obj Object) (r Rule, ok bool, err error) {
	k = k.Snapshot()
	if k.fileKeys == nil {
		return r, false, nil
	}
	rules := k.set().rules
	for i := range rules {
		if rules[i].Tenants && k.ambiguous(&rules[i], obj) {
			return r, false, fmt.Errorf("%w: bucket %q, key %q", ErrKeyName, obj.Bucket, obj.Key)
		}
	}

	i := slices.IndexFunc(rules, func(r Rule) bool { return r.Tenants && r.covers(obj) })
	if i < 0 {
		return r, false, nil
	}
	r = rules[i]
	t := k.files.Load().tenantWith(obj)
	if t == nil {
		return r, true, fmt.Errorf("%w: bucket %q, key %q; add it to the objects of a tenant in tenants_dir",
			ErrNoTenant, obj.Bucket, obj.Key)
	}
	if len(t.ReadKeys) > 0 {
		r.ReadKeys = append(slices.Clip(r.ReadKeys), t.ReadKeys...)
	}
	return r, true, nil
}

// CheckTenant returns ErrNoTenant if the object is in a rule with Tenants and no
// tenant has it, and ErrKeyName if that is not certain.
func (k *Keyring) CheckTenant(obj Object) error {
	_, _, err := k.tenantRule(obj)
	return err
}

// fileKeyOf is tenantOf for FileTenants.
func (k *Keyring) fileKeyOf(obj Object, keyID string) (ref tenantRef, err error) {
	if _, ok, err := k.tenantRule(obj); err != nil || !ok {
		if err == nil {
			err = fmt.Errorf("%w: bucket %q, key %q", ErrNoTenant, obj.Bucket, obj.Key)
		}
		return ref, err
	}
	t := k.files.Load().tenantWith(obj)
	if t == nil {
		return ref, fmt.Errorf("%w: bucket %q, key %q", ErrNoTenant, obj.Bucket, obj.Key)
	}

	ref = tenantRef{family: k.fileKeys, name: FileKeys + nameSeparator + t.Name, id: t.Key.Version, file: &t.Key}
	for i := range t.Earlier {
		if keyID != "" && kms.SameKey(t.Earlier[i].ID, keyID) && !k.tenants.isOpenAs(&ref, keyID) {
			ref.name, ref.id, ref.file = fmt.Sprintf("%s/%d", ref.name, i+1), t.Earlier[i].Version, &t.Earlier[i]
			break
		}
	}
	return ref, nil
}
