package main

import (
	"context"
	"fmt"
	"slices"
	"strings"

	"github.com/cmekproxy/cmekproxy/internal/config"
	"github.com/cmekproxy/cmekproxy/internal/keyring"
	"github.com/cmekproxy/cmekproxy/internal/kms"
)

// memberKey is a key that other keys consist of: for calls, and for probes.
type memberKey struct{ calls, probes kms.Member }

// open makes the key that consists of others use an open key.
func (m *memberKey) open(h *heldKey) {
	if m != nil {
		m.calls.Open(h.limited)
		m.probes.Open(h.raw)
	}
}

// newMembers prepares the members of all keys that consist of others. They
// may be opened later.
func newMembers(keys []config.Key) map[string]*memberKey {
	members := make(map[string]*memberKey)
	for _, k := range keys {
		for _, name := range k.Members {
			if members[name] == nil {
				members[name] = &memberKey{calls: kms.Member{Name: name}, probes: kms.Member{Name: name}}
			}
		}
	}
	return members
}

// recoverable adds the recovery key, if there is one.
func recoverable(k config.Key, calls, probes kms.Wrapper) (kms.Wrapper, kms.Wrapper, error) {
	var recovery *kms.RecoveryPublicKey
	if k.RecoveryPublicKey != "" {
		var err error
		if recovery, err = kms.ParseRecoveryPublicKey(k.RecoveryPublicKey); err != nil {
			return nil, nil, fmt.Errorf("key %s: recovery_public_key: %w", k.Name, err)
		}
	}
	return kms.Recoverable(calls, recovery), kms.Recoverable(probes, recovery), nil
}

// prepareTogether prepares a key that consists of others.
func (b *backend) prepareTogether(c *keyChange, key *keyring.Key, k config.Key) (err error) {
	calls := kms.MembersConfig{ID: togetherID(k), Missing: func(member, op string, _ error) {
		b.metrics.MemberMissing(b.observer.labelOf(k.Name), b.observer.labelOf(member), op)
	}}
	for _, member := range c.cfg.Keys {
		if slices.Contains(k.Members, member.Name) {
			key.Timeout = max(key.Timeout, kms.AttemptsPerCall*member.Timeout)
			key.ProbeTimeout = max(key.ProbeTimeout, member.Timeout)
		}
	}

	// A probe waits for every member until its time is up: otherwise the no of
	// a KMS that is slower than the others would never be heard.
	probes := kms.MembersConfig{ID: calls.ID, Grace: key.ProbeTimeout}
	for _, name := range k.Members {
		calls.Members = append(calls.Members, &c.members[name].calls)
		probes.Members = append(probes.Members, &c.members[name].probes)
	}

	of := kms.AllOf
	if k.Provider == config.AnyOf {
		of = kms.AnyOf
	}
	key.Wrapper, key.Probe, err = recoverable(k, of(calls), of(probes))
	c.held[k.Name] = &heldKey{config: k}
	return err
}

// togetherID is the id of a key that consists of others. Its name is part of
// the id, because the members' ids are not known until they are open.
func togetherID(k config.Key) string { return string(k.Provider) + ":" + k.Name }

// checkTogether wraps and unwraps a data key with all members of a key.
func checkTogether(ctx context.Context, k config.Key, keys []config.Key) (string, error) {
	cfg := kms.MembersConfig{ID: togetherID(k)}
	for _, name := range k.Members {
		i := slices.IndexFunc(keys, func(k config.Key) bool { return k.Name == name })
		wrapper, err := buildWrapper(ctx, keys[i], nil)
		if err != nil {
			return cfg.ID, fmt.Errorf("member %s: %w", name, err)
		}
		member := &kms.Member{Name: name}
		member.Open(wrapper)
		cfg.Members = append(cfg.Members, member)
	}

	// Also for any-of, all members must work now.
	w := kms.AllOf(cfg)
	if _, _, err := kms.RoundTrip(ctx, w); err != nil {
		return cfg.ID, err
	}
	detail, err := checkRecovery(ctx, k, w)
	return cfg.ID + " of " + strings.Join(k.Members, ", ") + detail, err
}

// checkRecovery wraps a data key to the recovery key of a key. The private
// half is not here, so nobody can try to unwrap it.
func checkRecovery(ctx context.Context, k config.Key, w kms.Wrapper) (string, error) {
	if k.RecoveryPublicKey == "" {
		return "", nil
	}
	recovery, err := kms.ParseRecoveryPublicKey(k.RecoveryPublicKey)
	if err != nil {
		return "", fmt.Errorf("recovery_public_key: %w", err)
	}
	if _, _, err := kms.RoundTrip(ctx, kms.Recoverable(w, recovery)); err != nil {
		return "", err
	}
	return "; " + recovery.ID() + ", not tried: try it with cmekproxy decrypt --recovery-key", nil
}
