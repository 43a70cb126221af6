package keyring

import (
	"cmp"
	"fmt"
	"slices"
	"strings"

	"github.com/cmekproxy/cmekproxy/internal/crypt"
	"github.com/cmekproxy/cmekproxy/internal/glob"
	"github.com/cmekproxy/cmekproxy/internal/keyname"
	"github.com/cmekproxy/cmekproxy/internal/kms"
)

// Rule chooses the key for objects. An empty list matches everything.
type Rule struct {
	// Buckets are bucket names; '*' stands for any run of characters, also
	// none.
	Buckets []string
	// Prefixes are what object keys begin with, as they are.
	Prefixes []string
	// Clients are client names, as they are.
	Clients []string
	// Key is the name of the key that new objects are sealed with. Required.
	Key string
	// AskedKeys are the names of the keys that clients may ask for in place of
	// Key; '*' stands for any run of characters. None: Key alone.
	AskedKeys []string
	// ReadKeys are the names of the keys that objects may be under besides, in
	// the same form: what is there can be read, and nothing new is put under
	// them. For all clients; see Open.
	ReadKeys []string
	// RefuseCustomerKeys keeps clients from storing objects under keys of
	// their own (SSE-C). What is stored can be read.
	RefuseCustomerKeys bool
	// Reuse, if not nil, lets objects share what the KMS is asked for.
	Reuse *Reuse
	// AllowPlaintext lets objects be read that were never sealed, for buckets
	// in migration.
	AllowPlaintext bool
}

// Rule returns the first rule that matches. Errors: ErrNoRule, and ErrKeyName
// if it depends on what a path in the key means.
func (k *Keyring) Rule(obj Object, client string) (Rule, error) {
	for _, r := range *k.rules.Load() {
		if k.ambiguous(&r, obj) && r.matchesClient(client) {
			return Rule{}, fmt.Errorf("%w: bucket %q, key %q", ErrKeyName, obj.Bucket, obj.Key)
		}
		if r.matches(obj, client) {
			return r, nil
		}
	}
	return Rule{}, fmt.Errorf("%w: bucket %q, client %q", ErrNoRule, obj.Bucket, client)
}

// AllowPlaintext reports whether obj may be read by client though it was never
// sealed. Without a rule it may not.
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

// KeyID returns the id of the KMS key that Create would seal obj with. Errors:
// ErrNoRule, ErrUnknownKey, ErrNotAllowed, and that of a key that is
// unavailable.
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

// SetDefault chooses the key for new objects in a bucket, by its id or name;
// "" takes the choice back. It must be one that the client could ask for with
// each object. Errors: as KeyID, and ErrDefaults, also where there is no file
// for it.
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

// keyFor returns the key to seal obj with. A client can ask for another key
// than the rule's, but not write where no rule lets it.
func (k *Keyring) keyFor(obj Object, client, requested string) (Rule, *keyState, *service, error) {
	r, err := k.Rule(obj, client)
	if err != nil {
		return r, nil, nil, err
	}

	byDefault := requested == ""
	if byDefault {
		if requested, err = k.cfg.Defaults.Key(obj.Bucket); err != nil {
			return r, nil, nil, err
		}
	}

	key := k.byName[cmp.Or(requested, r.Key)]
	if key == nil {
		key = k.lookup(requested)
	}
	if key == nil {
		if err := k.unopenedError(); err != nil {
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

	// A bucket's key was allowed when it was chosen.
	allowed := key.Name == r.Key || byDefault && len(r.AskedKeys) == 0 || matchName(r.AskedKeys, key.Name)
	if !allowed {
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

// mayRead returns why an object may not be read under a key: no rule for it, of
// whichever client, names the key. Whoever may use a key in its KMS could make
// objects that open; they are to open only where the key has its place.
func (k *Keyring) mayRead(obj Object, opened *keyState) error {
	for _, r := range *k.rules.Load() {
		switch {
		case k.ambiguous(&r, obj):
			return fmt.Errorf("%w: bucket %q, key %q", ErrKeyName, obj.Bucket, obj.Key)
		case r.covers(obj) && k.ruleNames(&r, opened):
			return nil
		}
	}

	chosen, err := k.cfg.Defaults.Key(obj.Bucket)
	if err != nil {
		return err
	}
	if key := k.byName[chosen]; key != nil && sameKey(key, opened) {
		return nil
	}

	return fmt.Errorf("%w: bucket %q, KMS key %q; if it belongs there, name it in read_keys", ErrNotRead,
		obj.Bucket, opened.Name)
}

// ruleNames reports whether a rule names a key, by whichever of its names.
func (k *Keyring) ruleNames(r *Rule, opened *keyState) bool {
	return slices.ContainsFunc(k.keys, func(other *keyState) bool {
		return (r.Key == other.Name || matchName(r.AskedKeys, other.Name) || matchName(r.ReadKeys, other.Name)) &&
			sameKey(other, opened)
	})
}

// sameKey reports whether a key of the configuration is the one that opens
// something, has taken its place, or is the same one in the KMS.
func sameKey(other, opened *keyState) bool {
	return other == opened || other.Name == opened.Successor || other.isTwinOf(opened)
}

// Unread returns the names of the keys that no rule names: nothing under them
// can be read.
func (k *Keyring) Unread() (names []string) {
	for _, key := range k.keys {
		isRead := func(r Rule) bool { return k.ruleNames(&r, key) }
		if key.Successor == "" && !slices.ContainsFunc(*k.rules.Load(), isRead) {
			names = append(names, key.Name)
		}
	}
	return names
}

// ambiguous reports whether a rule for the object's bucket has prefixes, which
// say nothing about the object's key.
func (k *Keyring) ambiguous(r *Rule, obj Object) bool {
	return !k.cfg.LiteralKeys && keyname.HasDots(obj.Key) && r.matchesBucket(obj.Bucket) &&
		len(r.Prefixes) > 0 && !slices.Contains(r.Prefixes, "")
}

func (r *Rule) matches(obj Object, client string) bool {
	return r.covers(obj) && r.matchesClient(client)
}

// covers reports whether a rule is for an object, whatever the client.
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

// matchName reports whether one of the patterns is that of a name.
func matchName(patterns []string, name string) bool {
	return slices.ContainsFunc(patterns, func(pattern string) bool { return glob.Match(pattern, name) })
}

func matchAny(list []string, match func(string) bool) bool {
	return len(list) == 0 || slices.ContainsFunc(list, match)
}
