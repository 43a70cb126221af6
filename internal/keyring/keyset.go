package keyring

import (
	"cmp"
	"errors"
	"fmt"
	"maps"
	"slices"
	"sync/atomic"

	"github.com/cmekproxy/cmekproxy/internal/crypt"
	"github.com/cmekproxy/cmekproxy/internal/kms"
)

// keySet is the keys and the rules at some moment. It is replaced as a whole,
// so that no rule is seen without its keys.
type keySet struct {
	keys      []*keyState
	byName    map[string]*keyState
	byID      *atomic.Pointer[map[string]*keyState] // by id and canonical id; see index
	rules     []Rule
	format    crypt.Version
	templates bool // some keys are templates, or there is fileKeys
}

// Snapshot returns a Keyring that keeps the current keys and rules, whatever Apply
// and SetRules do later. Use one for a whole request. Keys that are removed
// meanwhile cannot be used, though.
func (k *Keyring) Snapshot() *Keyring {
	if k.pinned != nil {
		return k
	}
	return k.latest()
}

// latest is Snapshot for a Keyring that is pinned to earlier keys and rules, too.
func (k *Keyring) latest() *Keyring { return k.current.Load() }

func (k *Keyring) set() *keySet { return k.Snapshot().pinned }

// use makes a set the current one.
func (k *Keyring) use(s *keySet) { k.current.Store(&Keyring{k.ring, s}) }

// Contents is what a Replacement replaces. See Config for the fields.
type Contents struct {
	Keys          []Key
	Rules         []Rule
	FormatVersion crypt.Version
}

// Replacement is checked and not applied yet.
type Replacement struct {
	keyring *Keyring
	keys    []*keyState
	rules   []Rule
	format  crypt.Version
}

// Prepare checks what is to replace the keys and rules. Errors: ErrUnknownKey
// for a rule or successor without its key, and others for unusable keys.
func (k *Keyring) Prepare(c Contents) (*Replacement, error) {
	r := &Replacement{keyring: k, rules: c.Rules, format: c.FormatVersion}
	for _, key := range c.Keys {
		fresh, err := newConfiguredKey(key)
		if err != nil {
			return nil, err
		}
		r.keys = append(r.keys, fresh)
	}
	if _, err := k.newSet(r.keys, r.rules, r.format); err != nil {
		return nil, err
	}
	return r, nil
}

func newConfiguredKey(c Key) (*keyState, error) {
	if c.Name == "" || c.Wrapper == nil && c.Unavailable == nil && c.Template == nil {
		return nil, errors.New("keyring: a key has no name or no KMS")
	}
	if c.Template != nil && (c.Wrapper != nil || c.Successor != "") {
		return nil, fmt.Errorf("keyring: key %q is a template, and cannot be a key too", c.Name)
	}

	fresh := newKey(c)
	if c.Wrapper == nil {
		return fresh, nil
	}
	return fresh, fresh.open(c.Wrapper, c.Probe)
}

// Apply replaces the keys and rules for requests that call Snapshot from now on. A
// key with the same name, provider and id as before, or the same Template,
// continues: it may have another Wrapper and other timeouts.
//
// All others of the earlier keys are closed: their DEKs are wiped, and running
// transfers end unless a key that the object may be read with now opens their
// DEK. Apply returns how many DEKs of each were wiped, by name.
func (r *Replacement) Apply() (purged map[string]int) {
	k := r.keyring
	k.changing.Lock()
	defer k.changing.Unlock()

	before := k.latest().set()
	keys := slices.Clone(r.keys)
	for i, fresh := range keys {
		if old := before.byName[fresh.Name]; old != nil && old.continuesAs(fresh) {
			old.adopt(fresh)
			keys[i] = old
		}
	}
	next, err := k.newSet(keys, r.rules, r.format)
	if err != nil {
		panic(err) // Prepare has checked the same names
	}

	k.use(next)
	for _, key := range next.keys {
		if before.byName[key.Name] != key {
			k.beginProbes(key)
		}
	}
	return k.retireAll(before, next)
}

// retireAll closes the keys that are not in the next set. The caller holds
// changing.
func (k *Keyring) retireAll(before, next *keySet) (purged map[string]int) {
	purged = make(map[string]int)
	for _, key := range before.keys {
		if next.byName[key.Name] == key {
			continue
		}

		key.retired.Store(true) // first: no DEK is fetched after the purge
		key.endProbes()
		purged[key.Name] = 0
		if key.isTemplate() {
			purged[key.Name] = k.retireTenants(key)
			continue
		}
		if service := key.kms.Load(); service != nil {
			purged[key.Name] = k.cfg.Cache.Purge(service.id)
		}
		k.tenants.mu.Lock()
		k.tenants.leaving = append(k.tenants.leaving, key)
		k.forgetLeaving()
		k.tenants.mu.Unlock()
	}
	return purged
}

// retireTenants closes the open keys of a template.
func (k *Keyring) retireTenants(family *keyState) (purged int) {
	for _, key := range k.tenants.all() {
		if key.tenant.family == family {
			k.tenants.mu.Lock()
			purged += k.retire(key)
			k.tenants.mu.Unlock()
		}
	}
	return purged
}

// continuesAs reports whether a new key is the same key, so that its DEKs and
// leases remain.
func (k *keyState) continuesAs(fresh *keyState) bool {
	if k.Provider != fresh.Provider || k.Successor != fresh.Successor || k.Template != fresh.Template {
		return false
	}
	old, now := k.kms.Load(), fresh.kms.Load()
	return k.isTemplate() || old != nil && now != nil && old.id == now.id
}

// adopt makes a key use the KMS and the timeouts of a new one.
func (k *keyState) adopt(fresh *keyState) {
	k.callLimit.Store(fresh.callLimit.Load())
	k.probeLimit.Store(fresh.probeLimit.Load())
	if now := fresh.kms.Load(); now != nil {
		k.kms.Store(now)
	}
}

// newSet checks keys and rules, and returns them as a set.
func (k *Keyring) newSet(keys []*keyState, rules []Rule, format crypt.Version) (*keySet, error) {
	s := &keySet{
		keys: slices.Clone(keys), byName: make(map[string]*keyState), byID: new(atomic.Pointer[map[string]*keyState]),
		format: format,
	}
	if k.fileKeys != nil {
		s.keys = append(s.keys, k.fileKeys)
	}
	for _, key := range s.keys {
		if s.byName[key.Name] != nil {
			return nil, fmt.Errorf("keyring: two keys are named %q", key.Name)
		}
		s.byName[key.Name] = key
		s.templates = s.templates || key.isTemplate()
	}

	for _, key := range s.keys {
		if key.Successor != "" && (s.byName[key.Successor] == nil || s.byName[key.Successor].Successor != "") {
			return nil, fmt.Errorf("keyring: the successor of key %q: %w %q", key.Name, ErrUnknownKey, key.Successor)
		}
	}
	if err := s.setRules(rules, k.fileKeys != nil); err != nil {
		return nil, err
	}
	s.index()
	return s, nil
}

// setRules checks the rules and sets them. fileTenants is set if there may be
// rules for tenants.
func (s *keySet) setRules(rules []Rule, fileTenants bool) error { //nolint:revive // a fact, not a mode
	s.rules = slices.Clone(rules)
	for i := range s.rules {
		r := &s.rules[i]
		if r.Tenants {
			if !fileTenants || r.Key != "" || len(r.AskedKeys)+len(r.Clients) > 0 {
				return fmt.Errorf("keyring: rule %d: a rule for tenants needs tenants, and no keys and clients", i+1)
			}
			r.Key = FileKeys
			continue
		}
		if s.byName[r.Key] == nil {
			return fmt.Errorf("keyring: rule %d: %w %q", i+1, ErrUnknownKey, r.Key)
		}
	}
	return nil
}

// SetRules replaces the rules alone. Error: ErrUnknownKey.
func (k *Keyring) SetRules(rules []Rule) error {
	k.changing.Lock()
	defer k.changing.Unlock()

	next := *k.latest().set()
	if err := next.setRules(rules, k.fileKeys != nil); err != nil {
		return err
	}
	k.use(&next)
	return nil
}

// index maps ids to the keys that open them. An exact id takes precedence
// over a canonical id, a current key over one with a successor, and
// otherwise the first in the configuration wins.
func (s *keySet) index() {
	byID := make(map[string]*keyState)
	add := func(id string, key *keyState) {
		if byID[id] == nil {
			byID[id] = key
		}
	}

	var used, earlier []*keyState
	for _, key := range s.keys {
		switch {
		case key.kms.Load() == nil:
		case key.Successor == "":
			used = append(used, key)
		default:
			earlier = append(earlier, key)
		}
	}

	for _, key := range used {
		add(key.kms.Load().id, key)
	}

	for _, key := range used {
		add(kms.CanonicalID(key.kms.Load().id), key)
	}

	ours := maps.Clone(byID)
	for _, key := range earlier {
		id := key.kms.Load().id
		if ours[kms.CanonicalID(id)] == nil { // otherwise a current key opens it
			add(id, key)
			add(kms.CanonicalID(id), key)
		}
	}

	s.byID.Store(&byID)
}

// SetMaxOpen changes Config.MaxOpen. If more keys are open, they are closed when
// others are opened.
func (k *Keyring) SetMaxOpen(most int) {
	k.tenants.mu.Lock()
	defer k.tenants.mu.Unlock()
	k.tenants.most = cmp.Or(most, DefaultMaxOpen)
}
