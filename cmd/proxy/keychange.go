package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"reflect"
	"slices"
	"time"

	"go.uber.org/zap"

	"github.com/cmekproxy/cmekproxy/internal/config"
	"github.com/cmekproxy/cmekproxy/internal/keyring"
	"github.com/cmekproxy/cmekproxy/internal/kms"
)

// heldKey is a key of the configuration as it is in use.
type heldKey struct {
	config  config.Key        // with which it was opened
	shared  any               // the open key, or what the keys of a template share; nil for none
	raw     kms.Wrapper       // the open key; nil if there is none
	limited kms.Wrapper       // raw with limits, as other keys use it
	calls   kms.Wrapper       // limited with the recovery key
	probes  kms.Wrapper       // raw with the recovery key
	breaker *breakerState     // of limited; nil for none
	limits  config.KMS        // of limited
	family  *templateKeys     // of a template; nil for others
	entry   *keyring.Template // of a template
}

// keyChange is the keys of a configuration, opened but not in use yet.
type keyChange struct {
	cfg      *config.Config
	held     map[string]*heldKey
	members  map[string]*memberKey
	labels   map[string]string // of metrics, by name of the key
	keys     []keyring.Key     // in the order in which ids are looked up
	late     []config.Key      // that could not be opened
	switched []func()          // what templates switch to
}

// prepareKeys opens the keys of a configuration that differ from those in use.
// A KMS that cannot be reached is no error: the key is opened later. The caller
// holds holding.
func (b *backend) prepareKeys(ctx context.Context, cfg *config.Config) (_ *keyChange, err error) {
	c := &keyChange{
		cfg: cfg, held: make(map[string]*heldKey), members: newMembers(cfg.Keys), labels: keyLabels(cfg.Keys),
	}
	defer func() {
		if err != nil {
			c.discard(b.held)
		}
	}()

	var earlier []keyring.Key
	opened := b.openKeys(ctx, cfg.Keys)
	for i, k := range cfg.Keys {
		key := keyring.Key{
			Name:         k.Name,
			Provider:     string(k.Provider),
			Timeout:      kms.AttemptsPerCall * k.Timeout,
			ProbeTimeout: k.Timeout,
		}

		switch {
		case k.IsTogether():
			err = b.prepareTogether(c, &key, k)
		case k.IsTemplate():
			err = b.prepareTemplate(ctx, c, &key, k)
		default:
			err = b.prepareKey(c, &key, k, opened[i])
		}
		if err != nil {
			return nil, err
		}

		c.keys = append(c.keys, key)
		before, err := b.prepareEarlier(ctx, c, k)
		if err != nil {
			return nil, err
		}
		earlier = append(earlier, before...)
	}

	c.keys = append(c.keys, earlier...)
	return c, nil
}

// unchanged returns the key as it is in use, if it is open with these settings.
func (b *backend) unchanged(k config.Key) *heldKey {
	held := b.held[k.Name]
	if held == nil || held.raw == nil || !reflect.DeepEqual(held.config, k) {
		return nil
	}
	return held
}

// prepareKey prepares a key that is not made of others, and no template.
func (b *backend) prepareKey(c *keyChange, key *keyring.Key, k config.Key, opened openedKey) error {
	held := b.unchanged(k)
	switch failure := (*kms.Error)(nil); {
	case held != nil:
		opened.wrapper = held.raw
	case opened.err == nil:
	case !errors.As(opened.err, &failure) || failure.Kind == kms.Invalid:
		return fmt.Errorf("key %s: %w", k.Name, opened.err)
	case b.held[k.Name] != nil && b.held[k.Name].raw != nil && sameKMSKey(b.held[k.Name].config, k):
		b.log.Error("opening a key with its new settings failed; keeping the old ones until it succeeds",
			zap.String("kms_key_name", k.Name), zap.Error(opened.err))
		c.late = append(c.late, k)
		k, opened.wrapper = b.held[k.Name].config, b.held[k.Name].raw
	default:
		key.Unavailable = opened.err
		if old := b.held[k.Name]; old == nil || !reflect.DeepEqual(old.config, k) {
			c.late = append(c.late, k)
		}
		c.held[k.Name] = &heldKey{config: k}
		return nil
	}
	return b.put(c, key, k, opened.wrapper)
}

// put adds an open key to a change.
func (b *backend) put(c *keyChange, key *keyring.Key, k config.Key, w kms.Wrapper) error {
	held := b.held[k.Name]
	if held == nil || held.raw != w || held.limits != c.cfg.KMS {
		var err error
		if held, err = b.ready(c.cfg.KMS, c.labels[k.Name], k, w); err != nil {
			return err
		}
	}

	c.held[k.Name] = held
	c.members[k.Name].open(held)
	key.Wrapper, key.Probe = held.calls, held.probes
	return nil
}

// sameKMSKey reports whether two configurations of a key differ only in how the
// key is reached.
func sameKMSKey(a, b config.Key) bool {
	return reflect.DeepEqual(identityOf(a), identityOf(b))
}

// identityOf returns the settings that say which key it is.
func identityOf(k config.Key) config.Key {
	k = withoutSecrets(k)
	k.RoleARN, k.ExternalID, k.Endpoint, k.Insecure, k.FIPS, k.CAFile = "", "", "", false, false, ""
	k.Login, k.Timeout, k.RecoveryPublicKey, k.AlsoKnownAs = config.Login{}, 0, "", nil
	return k
}

func withoutSecrets(k config.Key) config.Key {
	k.PIN, k.Login.Token, k.Login.AppRole.SecretID = "", "", ""
	return k
}

// ready prepares an open key for use, with limits and its recovery key.
// label is that of its metrics.
func (b *backend) ready(limits config.KMS, label string, k config.Key, w kms.Wrapper) (*heldKey, error) {
	h := &heldKey{config: k, shared: w, raw: w, limits: limits}
	h.breaker = &breakerState{gauge: b.metrics.Breaker(label).Add}
	h.limited = b.limitedTo(b.limitsOf(limits, k), w, h.breaker.add)
	var err error
	h.calls, h.probes, err = recoverable(k, h.limited, w)
	return h, err
}

// useKeys makes the keyring's keys those of a change, after the keyring has
// them. The caller holds holding.
func (b *backend) useKeys(c *keyChange) (before map[string]*heldKey) {
	for _, change := range c.switched {
		change()
	}
	before = b.held
	b.held, b.members = c.held, c.members
	b.observer.labels.Store(&c.labels)
	return before
}

// discard closes what was opened for a change that is not made.
func (c *keyChange) discard(inUse map[string]*heldKey) {
	for name, h := range c.held {
		if old := inUse[name]; old == nil || old.shared != h.shared {
			h.breaker.close()
			closeLater(h.shared)
		}
	}
}

// closeAfter is longer than any call to a KMS.
const closeAfter = 2 * time.Minute

// endKeys ends what the earlier keys need, except those that are still in use,
// and their metrics.
func (b *backend) endKeys(before map[string]*heldKey) {
	inUse := make(map[string]bool)
	for name := range b.held {
		inUse[b.observer.labelOf(name)] = true
	}

	for name, old := range before {
		now := b.held[name]
		if now == old {
			continue
		}
		old.breaker.close()
		if now == nil || now.shared != old.shared {
			b.stopKeeping(name)
			closeLater(old.shared)
		}
		if now == nil {
			b.observer.broken.Delete(name)
		}
		if !inUse[name] {
			b.metrics.ForgetKey(name)
		}
	}
}

// closeLater closes the connections of a key when its last calls have ended.
func closeLater(shared any) {
	if c, ok := shared.(io.Closer); ok {
		time.AfterFunc(closeAfter, func() { _ = c.Close() }) // nothing depends on it any more
	}
}

// provide puts an open key into the keyring. It reports false if the
// configuration has changed meanwhile.
func (b *backend) provide(k config.Key, w kms.Wrapper) (ok bool, err error) {
	b.holding.Lock()
	defer b.holding.Unlock()
	if !b.wants(k) {
		closeLater(w)
		return false, nil
	}

	h, err := b.ready(b.current().KMS, b.observer.labelOf(k.Name), k, w)
	if err == nil {
		err = b.keys.Provide(k.Name, h.calls, h.probes)
	}
	if err != nil {
		return false, err
	}

	old := b.held[k.Name]
	b.held[k.Name] = h
	b.members[k.Name].open(h)
	old.breaker.close()
	closeLater(old.shared)
	return true, nil
}

// wants reports whether the current configuration has a key with these settings.
func (b *backend) wants(k config.Key) bool {
	return slices.ContainsFunc(b.current().Keys, func(now config.Key) bool { return reflect.DeepEqual(now, k) })
}

// isLate reports whether a key must still be opened.
func (b *backend) isLate(k config.Key) bool {
	b.holding.Lock()
	defer b.holding.Unlock()
	return !k.IsTogether() && !k.IsTemplate() && b.wants(k) && b.unchanged(k) == nil
}

// beginKeys starts the background work of the keys that before does not have:
// until ctx ends, or the key is opened again.
func (b *backend) beginKeys(ctx context.Context, before map[string]*heldKey) {
	b.holding.Lock()
	defer b.holding.Unlock()
	for name, h := range b.held {
		if old := before[name]; h.shared != nil && (old == nil || old.shared != h.shared) {
			b.begin(ctx, h)
		}
	}
}

// begin starts the background work of a key.
func (b *backend) begin(ctx context.Context, h *heldKey) {
	ctx = b.keep(ctx, h.config.Name, h.shared)
	if h.raw != nil {
		go b.watchAlias(ctx, h.config, h.raw, aliasCheck)
	}
}

// beginOne is begin for a key that has been opened later.
func (b *backend) beginOne(ctx context.Context, name string) {
	b.holding.Lock()
	defer b.holding.Unlock()
	if h := b.held[name]; h != nil && h.shared != nil {
		b.begin(ctx, h)
	}
}
