package keyring

import (
	"cmp"
	"fmt"
	"slices"
	"strings"

	"github.com/cmekproxy/cmekproxy/internal/crypt"
	"github.com/cmekproxy/cmekproxy/internal/glob"
	"github.com/cmekproxy/cmekproxy/internal/kms"
)

// Rule chooses the key for objects. An empty list matches everything.
type Rule struct {
	// Buckets are bucket names; '*' stands for any run of characters, also none.
	Buckets []string
	// Prefixes are what object keys begin with, as they are.
	Prefixes []string
	// Clients are client names, as they are.
	Clients []string
	// Key is the name of the key that new objects are sealed with. Required.
	Key string
	// AskedKeys are the names of the keys that clients may ask for in place of Key; '*' stands for any run of characters.
	AskedKeys []string
	// RefuseCustomerKeys keeps clients from storing objects under keys of their own (SSE-C). What is stored can be read.
	RefuseCustomerKeys bool
	// Reuse, if not nil, lets objects share what the KMS is asked for.
	Reuse *Reuse
	// AllowPlaintext lets objects be read that were never sealed, for buckets in migration.
	AllowPlaintext bool
}

// Rule returns the first rule that matches, or ErrNoRule.
func (k *Keyring) Rule(obj Object, client string) (Rule, error) {
	for _, r := range *k.rules.Load() {
		if r.matches(obj, client) {
			return r, nil
		}
	}
	return Rule{}, fmt.Errorf("%w: bucket %q, client %q", ErrNoRule, obj.Bucket, client)
}

// AllowPlaintext reports whether obj may be read by client though it was never sealed. Without a rule it may not.
func (k *Keyring) AllowPlaintext(obj Object, client string) bool {
	r, err := k.Rule(obj, client)
	return err == nil && r.AllowPlaintext
}

// CheckRules returns the error that SetRules would return.
func (k *Keyring) CheckRules(rules []Rule) error {
	for i, r := range rules {
		if k.byName[r.Key] == nil {
			return fmt.Errorf("keyring: rule %d: %w %q", i+1, ErrUnknownKey, r.Key)
		}
	}
	return nil
}

// SetRules replaces the rules, for requests from now on. Error: ErrUnknownKey.
func (k *Keyring) SetRules(rules []Rule) error {
	if err := k.CheckRules(rules); err != nil {
		return err
	}
	rules = slices.Clone(rules)
	k.rules.Store(&rules)
	return nil
}

// KeyID returns the id of the KMS key that Create would seal obj with. Errors: ErrNoRule, ErrUnknownKey, ErrNotAllowed, and
// that of a key that is unavailable.
func (k *Keyring) KeyID(obj Object, client, requestedKeyID string) (string, error) {
	_, _, service, err := k.keyFor(obj, client, requestedKeyID)
	if err != nil {
		return "", err
	}
	return service.id, nil
}

// Unbound reports whether a wrapped DEK is one of which Lease.Unbound would
// say so. It asks no KMS. A key that is not known binds nothing.
func (k *Keyring) Unbound(keyID string, wrapped []byte) bool {
	key := k.lookup(keyID)
	parsed, err := crypt.ParseWrappedKey(wrapped)
	return key != nil && err == nil && kms.Unbound(key.kms.Load().wrapper, parsed.Blob)
}

// SetDefault chooses the key for new objects in a bucket, by its id or name; "" takes the choice back. It must be one that the
// client could ask for with each object. Errors: as KeyID, and ErrDefaults, also where there is no file for it.
func (k *Keyring) SetDefault(bucket, client, requestedKeyID string) error {
	if k.cfg.Defaults == nil {
		return fmt.Errorf("%w: none is configured", ErrDefaults)
	}
	name := ""
	if requestedKeyID != "" {
		_, key, _, err := k.keyFor(Object{Bucket: bucket}, client, requestedKeyID)
		if err != nil {
			return err
		}
		name = key.Name
	}
	return k.cfg.Defaults.Set(bucket, name)
}

// HasDefaults reports whether SetDefault has a file to write to.
func (k *Keyring) HasDefaults() bool { return k.cfg.Defaults != nil }

// keyFor returns the key to seal obj with. A client can ask for another key than the rule's, but not write where no
// rule lets it.
func (k *Keyring) keyFor(obj Object, client, requested string) (Rule, *key, *service, error) {
	r, err := k.Rule(obj, client)
	if err != nil {
		return r, nil, nil, err
	}
	if requested == "" {
		if requested, err = k.cfg.Defaults.Key(obj.Bucket); err != nil {
			return r, nil, nil, err
		}
	}
	key := k.byName[cmp.Or(requested, r.Key)]
	if key == nil {
		key = k.lookup(requested)
	}
	if key == nil {
		if err := k.mayBeUnopened(); err != nil {
			return r, nil, nil, err
		}
		return r, nil, nil, fmt.Errorf("%w %q", ErrUnknownKey, requested)
	}
	if key.Successor != "" {
		key = k.byName[key.Successor]
	}
	if own := k.byName[r.Key]; own.isTwinOf(key) {
		key = own // by whichever of its names it was asked for
	}
	if key.Name != r.Key && !matchAny(r.AskedKeys, func(pattern string) bool { return glob.Match(pattern, key.Name) }) {
		return r, nil, nil, fmt.Errorf("%w: key %q in place of %q", ErrNotAllowed, key.Name, r.Key)
	}
	service := key.kms.Load()
	switch {
	case service != nil:
	case kms.IsRevoked(key.Unavailable):
		return r, nil, nil, fmt.Errorf("key %q is not open: %w", key.Name, key.Unavailable)
	default:
		return r, nil, nil, fmt.Errorf("%w: key %q: %w", ErrNotOpen, key.Name, key.Unavailable)
	}
	return r, key, service, nil
}

func (r *Rule) matches(obj Object, client string) bool {
	return matchAny(r.Buckets, func(pattern string) bool { return glob.Match(pattern, obj.Bucket) }) &&
		matchAny(r.Prefixes, func(prefix string) bool { return strings.HasPrefix(obj.Key, prefix) }) &&
		matchAny(r.Clients, func(name string) bool { return name == client })
}

func matchAny(list []string, match func(string) bool) bool {
	return len(list) == 0 || slices.ContainsFunc(list, match)
}
