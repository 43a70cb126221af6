package keyring

import (
	"cmp"
	"context"
	"fmt"
	"slices"
	"strings"

	"github.com/cmekproxy/cmekproxy/internal/crypt"
	"github.com/cmekproxy/cmekproxy/internal/glob"
	"github.com/cmekproxy/cmekproxy/internal/keyname"
	"github.com/cmekproxy/cmekproxy/internal/kms"
)

// Rule chooses the key for matching objects. An empty list matches
// everything.
type Rule struct {
	// Buckets are bucket names; "*" matches any run of characters, even an
	// empty one.
	Buckets []string
	// Prefixes are literal prefixes of object keys.
	Prefixes []string
	// Clients are literal client names.
	Clients []string
	// Key is the name of the key that encrypts new objects. Required.
	Key string
	// AskedKeys are names of keys that clients may request instead of Key;
	// "*" matches any run of characters. If empty, only Key is allowed.
	AskedKeys []string
	// ReadKeys are names of additional keys, with "*" as above. Objects
	// under these keys can be read, but no new objects are encrypted under
	// them. They apply to all clients; see Open.
	ReadKeys []string
	// RefuseCustomerKeys forbids clients to store objects under their own
	// keys (SSE-C). Existing objects can still be read.
	RefuseCustomerKeys bool
	// Reuse, if not nil, allows bucket keys.
	Reuse *Reuse
	// AllowPlaintext allows reading objects that are not encrypted, for
	// buckets in migration.
	AllowPlaintext bool
	// SealMetadata seals the metadata of new objects.
	SealMetadata bool
	// Tenants gives the objects to the tenants of SetTenants. No other rule
	// applies to them. Then Key, AskedKeys and Clients must not be set.
	Tenants bool
}

// Format says how a new object is written.
type Format struct {
	Version      crypt.Version
	SealMetadata bool
}

// Format returns how client writes obj.
func (k *Keyring) Format(obj Object, client string) Format {
	k = k.Snapshot()
	f := Format{Version: cmp.Or(k.set().format, crypt.Newest)}
	if r, err := k.Rule(obj, client); err == nil {
		f.SealMetadata = r.SealMetadata
	}
	return f
}

// Rule returns the first rule that matches. Errors: ErrNoRule, ErrKeyName if
// the result depends on how the store interprets "." or ".." in the key, and
// ErrNoTenant together with the rule.
func (k *Keyring) Rule(obj Object, client string) (Rule, error) {
	k = k.Snapshot()
	if r, ok, err := k.tenantRule(obj); ok || err != nil {
		return r, err
	}

	for _, r := range k.set().rules {
		if k.ambiguous(&r, obj) && r.matchesClient(client) {
			return Rule{}, fmt.Errorf("%w: bucket %q, key %q", ErrKeyName, obj.Bucket, obj.Key)
		}
		if r.matches(obj, client) {
			return r, nil
		}
	}

	return Rule{}, fmt.Errorf("%w: bucket %q, client %q", ErrNoRule, obj.Bucket, client)
}

// AllowPlaintext reports whether client may read obj if it is not
// encrypted. Without a matching rule, it may not.
func (k *Keyring) AllowPlaintext(obj Object, client string) bool {
	r, err := k.Rule(obj, client)
	return err == nil && r.AllowPlaintext
}

// MayHavePlaintext reports whether AllowPlaintext can be true for any object
// of a bucket.
func (k *Keyring) MayHavePlaintext(bucket string) bool {
	return slices.ContainsFunc(k.set().rules, func(r Rule) bool {
		return r.AllowPlaintext && r.matchesBucket(bucket)
	})
}

// KeyID returns the id of the KMS key that Create would use for obj. It asks
// the KMS only to open the key of a tenant. Errors: ErrNoRule, ErrUnknownKey,
// ErrNotAllowed, ErrTenant, and the error of an unavailable key.
func (k *Keyring) KeyID(ctx context.Context, obj Object, client, requestedKeyID string) (string, error) {
	_, key, service, err := k.keyFor(ctx, obj, client, requestedKeyID)
	if err != nil {
		return "", err
	}
	key.letGo()
	return service.id, nil
}

// Unbound is Lease.Unbound for a wrapped DEK. It does not ask the KMS. It
// returns false if the key is unknown, or not open.
func (k *Keyring) Unbound(keyID string, wrapped []byte) bool {
	w := k.opened(keyID)
	parsed, err := crypt.ParseWrappedKey(wrapped)
	return w != nil && err == nil && kms.Unbound(w, parsed.Blob)
}

// SetDefault chooses the key for new objects in a bucket, by id or name; ""
// removes the choice. The client must be allowed to request this key for
// objects. block changes whether customer keys are blocked in the bucket; the
// rules still hold where they are not. Errors: those of KeyID, and
// ErrDefaults, also if no file is configured.
func (k *Keyring) SetDefault(
	ctx context.Context, bucket, client, requestedKeyID string, block Blocking,
) error {
	if k.cfg.Defaults == nil {
		return fmt.Errorf("%w: none is configured", ErrDefaults)
	}

	name := ""
	if requestedKeyID != "" {
		_, key, _, err := k.keyFor(ctx, Object{Bucket: bucket}, client, requestedKeyID)
		if err != nil {
			return err
		}
		name = key.configured().Name
		key.letGo()
	}

	return k.cfg.Defaults.Set(bucket, name, block)
}

// HasDefaults reports whether a file for SetDefault is configured.
func (k *Keyring) HasDefaults() bool { return k.cfg.Defaults != nil }

// AllowsCustomerKeys reports whether some client may store some object of the
// bucket under a customer key.
func (k *Keyring) AllowsCustomerKeys(bucket string) (bool, error) {
	blocked, err := k.cfg.Defaults.Blocks(bucket)
	if blocked || err != nil {
		return false, err
	}
	return k.RulesAllowCustomerKeys(bucket), nil
}

// RulesAllowCustomerKeys is AllowsCustomerKeys without what was chosen for the
// bucket.
func (k *Keyring) RulesAllowCustomerKeys(bucket string) bool {
	for _, r := range k.set().rules {
		switch {
		case !r.matchesBucket(bucket):
		case !r.RefuseCustomerKeys:
			return true
		case len(r.Prefixes) == 0 && len(r.Clients) == 0:
			return false // later rules do not apply
		}
	}
	return false
}

// keyFor returns the key to encrypt obj with. A client may request another
// key than the rule's, but only if a rule allows it to write. The caller must
// call letGo.
func (k *Keyring) keyFor(
	ctx context.Context, obj Object, client, requested string,
) (Rule, *keyState, *service, error) {
	k = k.Snapshot()
	r, err := k.Rule(obj, client)
	if err != nil {
		return r, nil, nil, err
	}

	byDefault := requested == ""
	if byDefault && !r.Tenants {
		if requested, err = k.cfg.Defaults.Key(obj.Bucket); err != nil {
			return r, nil, nil, err
		}
	}

	key := k.set().byName[cmp.Or(requested, r.Key)]
	if key == nil {
		key = k.lookup(requested)
	}
	if key == nil || r.Tenants && key != k.fileKeys {
		return k.tenantFor(ctx, obj, r, requested)
	}

	if key.Successor != "" {
		key = k.set().byName[key.Successor]
	}
	if own := k.set().byName[r.Key]; own.isTwinOf(key) {
		key = own // the same KMS key under the rule's name
	}

	// A bucket's default key was checked when it was chosen.
	allowed := r.mayWrite(key) || byDefault && len(r.AskedKeys) == 0
	if !allowed {
		return r, nil, nil, fmt.Errorf("%w: key %q instead of %q", ErrNotAllowed, key.Name, r.Key)
	}
	if key.isTemplate() {
		if key, err = k.openTenant(ctx, key, obj, ""); err != nil {
			return r, nil, nil, err
		}
		return r, key, key.kms.Load(), nil
	}

	service := key.kms.Load()
	switch {
	case service != nil:
	case kms.IsRevoked(key.Unavailable):
		return r, nil, nil, fmt.Errorf("key %q is not open: %w", key.Name, key.Unavailable)
	default:
		return r, nil, nil, fmt.Errorf("%w: key %q: %w", ErrNotOpen, key.Name, key.Unavailable)
	}

	return r, key.held(), service, nil
}

// mayWrite reports whether the rule allows new objects under a configured key.
func (r *Rule) mayWrite(key *keyState) bool {
	return key.Name == r.Key || matchName(r.AskedKeys, key.Name)
}

// tenantFor is keyFor for a requested key that is not configured: it may be
// the key of the tenant that the object belongs to.
func (k *Keyring) tenantFor(
	ctx context.Context, obj Object, r Rule, requested string,
) (Rule, *keyState, *service, error) {
	for _, family := range k.set().keys {
		if !family.isTemplate() || !r.mayWrite(family) {
			continue
		}
		key, err := k.openTenant(ctx, family, obj, "")
		if err != nil {
			return r, nil, nil, err
		}
		if service := key.kms.Load(); key.Name == requested || kms.SameKey(service.id, requested) {
			return r, key, service, nil
		}
		key.letGo()
	}

	if r.Tenants {
		return r, nil, nil, fmt.Errorf("%w: key %q instead of that of the tenant", ErrNotAllowed, requested)
	}
	if err := k.unopenedError(); err != nil {
		return r, nil, nil, err
	}
	return r, nil, nil, fmt.Errorf("%w %q", ErrUnknownKey, requested)
}

// mayRead returns an error if no rule for the object names the key,
// whatever the client. Anyone who may use a key in its KMS can make objects
// that open, so they must open only where the key belongs.
func (k *Keyring) mayRead(obj Object, opened *keyState) error {
	k = k.Snapshot()
	if r, ok, err := k.tenantRule(obj); ok || err != nil {
		if err == nil && (!k.ruleNames(&r, opened) || !opened.belongsTo(k, obj)) {
			err = fmt.Errorf("%w: bucket %q, KMS key %q; to allow it, add the key to read_keys of the tenant",
				ErrNotRead, obj.Bucket, opened.Name)
		}
		return err
	}

	for _, r := range k.set().rules {
		switch {
		case k.ambiguous(&r, obj):
			return fmt.Errorf("%w: bucket %q, key %q", ErrKeyName, obj.Bucket, obj.Key)
		case r.covers(obj) && k.ruleNames(&r, opened) && opened.belongsTo(k, obj):
			return nil
		}
	}

	chosen, err := k.cfg.Defaults.Key(obj.Bucket)
	if err != nil {
		return err
	}
	if key := k.set().byName[chosen]; key != nil && sameKey(key, opened) && opened.belongsTo(k, obj) {
		return nil
	}

	return fmt.Errorf("%w: bucket %q, KMS key %q; to allow it, add the key to read_keys", ErrNotRead,
		obj.Bucket, opened.Name)
}

// ruleNames reports whether a rule names the key, or another name of the
// same KMS key.
func (k *Keyring) ruleNames(r *Rule, opened *keyState) bool {
	return slices.ContainsFunc(k.set().keys, func(other *keyState) bool {
		return r.names(other) && sameKey(other, opened)
	})
}

// names reports whether a rule names a configured key, for any use.
func (r *Rule) names(key *keyState) bool { return r.mayWrite(key) || matchName(r.ReadKeys, key.Name) }

// sameKey reports whether a configured key is the opened key itself, its
// template, its successor, or the same key in the KMS.
func sameKey(other, opened *keyState) bool {
	return other == opened.configured() || other.Name == opened.Successor || other.isTwinOf(opened)
}

// Unread returns the names of keys that no rule names. Objects under these
// keys cannot be read.
func (k *Keyring) Unread() (names []string) {
	for _, key := range k.set().keys {
		isRead := func(r Rule) bool { return k.ruleNames(&r, key) }
		if key.Successor == "" && !slices.ContainsFunc(k.set().rules, isRead) {
			names = append(names, key.Name)
		}
	}
	return names
}

// ambiguous reports whether a rule for the object's bucket depends on
// prefixes, and the object key has "." or ".." segments.
func (k *Keyring) ambiguous(r *Rule, obj Object) bool {
	return !k.cfg.LiteralKeys && keyname.HasDots(obj.Key) && r.matchesBucket(obj.Bucket) &&
		(len(r.Prefixes) > 0 && !slices.Contains(r.Prefixes, "") || r.Tenants || k.usesKey(r))
}

// usesKey reports whether a rule names a template whose key depends on the
// object key.
func (k *Keyring) usesKey(r *Rule) bool {
	return k.set().templates && slices.ContainsFunc(k.set().keys, func(key *keyState) bool {
		return key.isTemplate() && key != k.fileKeys && key.Template.Text.UsesKey() && r.names(key)
	})
}

func (r *Rule) matches(obj Object, client string) bool {
	return r.covers(obj) && r.matchesClient(client)
}

// covers reports whether a rule applies to an object, for some client.
func (r *Rule) covers(obj Object) bool {
	return r.matchesBucket(obj.Bucket) &&
		matchAny(r.Prefixes, func(prefix string) bool { return strings.HasPrefix(obj.Key, prefix) })
}

func (r *Rule) matchesBucket(bucket string) bool {
	return matchAny(r.Buckets, func(pattern string) bool { return glob.Match(pattern, bucket) })
}

func (r *Rule) matchesClient(client string) bool {
	return matchAny(r.Clients, func(name string) bool { return name == client })
}

// matchName reports whether a name matches one of the patterns.
func matchName(patterns []string, name string) bool {
	return slices.ContainsFunc(patterns, func(pattern string) bool { return glob.Match(pattern, name) })
}

func matchAny(list []string, match func(string) bool) bool {
	return len(list) == 0 || slices.ContainsFunc(list, match)
}
