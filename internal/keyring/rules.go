package keyring

import (
	"fmt"
	"slices"
	"strings"

	"github.com/cmekproxy/cmekproxy/internal/glob"
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
	// AllowPlaintext lets objects be read that were never sealed, for buckets in migration.
	AllowPlaintext bool
}

// Rule returns the first rule that matches, or ErrNoRule.
func (k *Keyring) Rule(obj Object, client string) (Rule, error) {
	for i := range k.cfg.Rules {
		if k.cfg.Rules[i].matches(obj, client) {
			return k.cfg.Rules[i], nil
		}
	}
	return Rule{}, fmt.Errorf("%w: bucket %q, client %q", ErrNoRule, obj.Bucket, client)
}

// AllowPlaintext reports whether obj may be read by client though it was never sealed. Without a rule it may not.
func (k *Keyring) AllowPlaintext(obj Object, client string) bool {
	r, err := k.Rule(obj, client)
	return err == nil && r.AllowPlaintext
}

// KeyID returns the id of the KMS key that Create would seal obj with. Errors: ErrNoRule, ErrUnknownKey.
func (k *Keyring) KeyID(obj Object, client, requestedKeyID string) (string, error) {
	key, err := k.keyFor(obj, client, requestedKeyID)
	if err != nil {
		return "", err
	}
	return key.id, nil
}

// keyFor returns the key to seal obj with. A client can ask for another key than the rule's, but not write where no
// rule lets it.
func (k *Keyring) keyFor(obj Object, client, requestedKeyID string) (*key, error) {
	r, err := k.Rule(obj, client)
	if err != nil {
		return nil, err
	}
	if requestedKeyID == "" {
		return k.byName[r.Key], nil
	}
	if key := k.byID[requestedKeyID]; key != nil {
		return key, nil
	}
	if key := k.byName[requestedKeyID]; key != nil {
		return key, nil
	}
	return nil, fmt.Errorf("%w %q", ErrUnknownKey, requestedKeyID)
}

func (r *Rule) matches(obj Object, client string) bool {
	return matchAny(r.Buckets, func(pattern string) bool { return glob.Match(pattern, obj.Bucket) }) &&
		matchAny(r.Prefixes, func(prefix string) bool { return strings.HasPrefix(obj.Key, prefix) }) &&
		matchAny(r.Clients, func(name string) bool { return name == client })
}

func matchAny(list []string, match func(string) bool) bool {
	return len(list) == 0 || slices.ContainsFunc(list, match)
}
