package keyring

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"

	"github.com/cmekproxy/cmekproxy/internal/keytemplate"
	"github.com/cmekproxy/cmekproxy/internal/kms"
)

// Template is a template for keys. Each tenant has its own key, which the
// bucket and the key of an object name. The key of a tenant is opened at its
// first use, and closed when it is idle.
//
// An envelope has the id of the KMS key, which says nothing about the tenant.
// So an object is read only through the key that the template gives for that
// object: one that someone has made under the key of another tenant is
// refused, although the proxy may use that key.
type Template struct {
	// Text gives the id of a tenant's key.
	Text *keytemplate.Template
	// Open opens the key with an id that Text has given. name is the key's
	// name: that of the template, ":" and the values of the variables.
	Open func(ctx context.Context, name, id string) (TenantKey, error)
}

// TenantKey is an open key of a template.
type TenantKey struct {
	Wrapper kms.Wrapper
	Probe   kms.Wrapper // see Key.Probe
	Close   func()      // called once when the key is closed; may be nil
}

// TenantError is why the name of an object names no tenant.
type TenantError = keytemplate.Error

// nameSeparator is between the name of a template and that of the tenant.
const nameSeparator = ":"

// configured returns the entry of the configuration that the key is from.
func (k *keyState) configured() *keyState {
	if k.tenant != nil {
		return k.tenant.family
	}
	return k
}

// belongsTo reports whether the key is that of the tenant to which an object
// belongs. Configured keys belong to all objects.
func (k *keyState) belongsTo(ring *Keyring, obj Object) bool {
	if k.tenant == nil {
		return true
	}
	if k.tenant.family == ring.fileKeys {
		files := ring.files.Load()
		t := files.tenantWith(obj)
		return t != nil && t == files.tenantOf(k.Name) && t.has(k.tenant.id)
	}
	own, err := ring.tenantOf(k.tenant.family, obj, "")
	return err == nil && own.is(k)
}

// tenantRef names a key of a tenant, which need not be open.
type tenantRef struct {
	family *keyState
	name   string
	id     string   // that the template has given; for a FileTenant, FileKey.Version
	file   *FileKey // nil for a template
}

// is reports whether the key is an open key of a tenant with this name and id.
func (r *tenantRef) is(key *keyState) bool { return key.Name == r.name && key.tenant.id == r.id }

// open opens the key in the KMS.
func (r *tenantRef) open(ctx context.Context) (TenantKey, error) {
	if r.file != nil {
		return r.file.Open(ctx)
	}
	return r.family.Template.Open(ctx, r.name, r.id)
}

// tenantOf returns the key that a template gives for an object, or the key of
// the FileTenant that has the object. A FileTenant may have several keys; then
// it is the one with keyID, and otherwise the one for new objects. Errors:
// ErrTenant, ErrNoTenant, ErrKeyName.
func (k *Keyring) tenantOf(family *keyState, obj Object, keyID string) (tenantRef, error) {
	if family == k.fileKeys {
		return k.fileKeyOf(obj, keyID)
	}
	id, values, err := family.Template.Text.Expand(obj.Bucket, obj.Key)
	if err != nil {
		return tenantRef{}, fmt.Errorf("%w of %q: %w", ErrTenant, family.Name, err)
	}
	return tenantRef{family: family, name: family.Name + nameSeparator + values, id: id}, nil
}

// tenantFunc returns the key that tenantOf gives. The caller must call letGo.
type tenantFunc func(ctx context.Context, family *keyState, obj Object, keyID string) (*keyState, error)

// openTenant opens the key, if it is not open.
func (k *Keyring) openTenant(ctx context.Context, family *keyState, obj Object, keyID string) (*keyState, error) {
	var ref tenantRef
	for range 3 { // it may be closed, or its tenant changed, before it is used
		var err error
		if ref, err = k.tenantOf(family, obj, keyID); err != nil {
			return nil, err
		}
		if key := k.tenants.take(&ref, k.now()); key != nil {
			return key, nil
		}
		if err := k.startTenant(ctx, ref); err != nil {
			return nil, err
		}
	}
	return nil, errAllInUse(ref.name)
}

// openedTenant does not open the key, and returns ErrNotCached if it is not
// open: then its DEKs are not in the cache.
func (k *Keyring) openedTenant(_ context.Context, family *keyState, obj Object, keyID string) (*keyState, error) {
	ref, err := k.tenantOf(family, obj, keyID)
	if err != nil {
		return nil, err
	}
	if key := k.tenants.take(&ref, k.now()); key != nil {
		return key, nil
	}
	return nil, ErrNotCached
}

// findToRead returns the key with the id in an envelope, if a rule allows
// reading the object with it. The caller must call letGo.
func (k *Keyring) findToRead(ctx context.Context, obj Object, keyID string, open tenantFunc) (*keyState, error) {
	key, err := k.find(keyID)
	if err == nil {
		err = k.mayRead(obj, key)
	}
	switch {
	case err == nil:
		return key.held(), nil
	case !k.set().templates || errors.Is(err, ErrKeyName) || errors.Is(err, ErrNoTenant):
		return nil, err
	}

	families, familiesErr := k.familiesOf(obj)
	if familiesErr != nil {
		return nil, familiesErr
	}
	tenant, tenantErr := findTenant(ctx, families, obj, keyID, open)
	switch {
	case tenant != nil || tenantErr != nil:
		return tenant, tenantErr
	case len(families) > 0 && errors.Is(err, ErrUnknownKey):
		return nil, fmt.Errorf("%w: bucket %q, KMS key %q, which is not the key of the tenant now; "+
			"to allow it, add it to the keys and to read_keys", ErrNotRead, obj.Bucket, keyID)
	default:
		return nil, err
	}
}

// findAny returns the key with the id in an envelope, whether or not a rule
// for the object names it. The caller must call letGo.
func (k *Keyring) findAny(ctx context.Context, obj Object, keyID string) (*keyState, error) {
	key, err := k.find(keyID)
	if err == nil {
		return key.held(), nil
	}

	var families []*keyState
	for _, key := range k.set().keys {
		if key.isTemplate() {
			families = append(families, key)
		}
	}
	tenant, tenantErr := findTenant(ctx, families, obj, keyID, k.openTenant)
	if tenant != nil || tenantErr != nil && !errors.Is(tenantErr, ErrTenant) && !errors.Is(tenantErr, ErrNoTenant) {
		return tenant, tenantErr
	}
	return nil, err
}

// familiesOf returns the templates that a rule for the object names, whatever
// the client. Errors: ErrKeyName, ErrNoTenant.
func (k *Keyring) familiesOf(obj Object) (families []*keyState, err error) {
	if r, ok, err := k.tenantRule(obj); ok || err != nil {
		families = append(families, k.fileKeys) // first, so that others are opened for old objects only
		for _, key := range k.set().keys {
			if key.isTemplate() && key != k.fileKeys && r.names(key) {
				families = append(families, key)
			}
		}
		return families, err
	}

	chosen, err := k.cfg.Defaults.Key(obj.Bucket)
	if err != nil {
		return nil, err
	}

	rules := k.set().rules
	for i := range rules {
		if k.ambiguous(&rules[i], obj) {
			return nil, fmt.Errorf("%w: bucket %q, key %q", ErrKeyName, obj.Bucket, obj.Key)
		}
	}

	for _, key := range k.set().keys {
		if !key.isTemplate() || key == k.fileKeys {
			continue
		}
		named := key.Name == chosen
		for i := range rules {
			named = named || rules[i].covers(obj) && rules[i].names(key)
		}
		if named {
			families = append(families, key)
		}
	}

	return families, nil
}

// findTenant returns the key that one of the templates gives for the object, if
// it has the id. Without such a key, it returns the first error of opening one;
// nil if all could be opened.
func findTenant(
	ctx context.Context, families []*keyState, obj Object, keyID string, open tenantFunc,
) (_ *keyState, failure error) {
	for _, family := range families {
		key, err := open(ctx, family, obj, keyID)
		switch {
		case err != nil:
			if failure == nil {
				failure = err
			}
		case kms.SameKey(key.kms.Load().id, keyID):
			return key, nil
		default:
			key.letGo()
		}
	}
	return nil, failure
}

// purgeTenants purges the open keys of a template. The others have no DEKs.
func (k *Keyring) purgeTenants(family *keyState) int {
	var ids []string
	for _, key := range k.tenants.all() {
		if key.tenant.family == family {
			ids = append(ids, key.kms.Load().id)
		}
	}
	return k.cfg.Cache.Purge(ids...)
}

// purgeTenant is Purge for a name that is not configured: it may be that of a
// tenant's key.
func (k *Keyring) purgeTenant(name string) (int, error) {
	for _, key := range k.tenants.all() {
		if key.Name == name {
			return k.cfg.Cache.Purge(key.kms.Load().id), nil
		}
	}

	template, _, _ := strings.Cut(name, nameSeparator)
	if family := k.set().byName[template]; family != nil && family.isTemplate() {
		return 0, nil // not open, or no tenant, so without DEKs
	}
	return 0, fmt.Errorf("%w %q", ErrUnknownKey, name)
}

// allKeys returns the configured keys and the open keys of templates.
func (k *Keyring) allKeys() []*keyState {
	if !k.set().templates {
		return k.set().keys
	}
	return append(slices.Clip(k.set().keys), k.tenants.all()...)
}
