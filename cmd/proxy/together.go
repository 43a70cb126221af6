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

// newMembers prepares the members of all keys that consist of others. They
// may be opened later.
func (b *backend) newMembers() {
	b.members = make(map[string]*memberKey)
	for _, k := range b.cfg.Keys {
		for _, name := range k.Members {
			if b.members[name] == nil {
				b.members[name] = &memberKey{calls: kms.Member{Name: name}, probes: kms.Member{Name: name}}
			}
		}
	}
}

// ready prepares an open key for use: with limits, as a member of others, and
// with its recovery key.
func (b *backend) ready(k config.Key, w kms.Wrapper) (calls, probes kms.Wrapper, err error) {
	limited := b.withLimits(k, w)
	if m := b.members[k.Name]; m != nil {
		m.calls.Open(limited)
		m.probes.Open(w)
	}
	return recoverable(k, limited, w)
}

// provide puts an open key into the keyring.
func (b *backend) provide(k config.Key, w kms.Wrapper) error {
	calls, probes, err := b.ready(k, w)
	if err != nil {
		return err
	}
	return b.keys.Provide(k.Name, calls, probes)
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

// putTogether makes a key that consists of others.
func (b *backend) putTogether(_ context.Context, key *keyring.Key, k config.Key) (err error) {
	calls := kms.MembersConfig{ID: togetherID(k), Missing: func(member, op string, _ error) {
		b.metrics.MemberMissing(b.observer.label[k.Name], b.observer.label[member], op)
	}}
	for _, member := range b.cfg.Keys {
		if slices.Contains(k.Members, member.Name) {
			key.Timeout = max(key.Timeout, kms.AttemptsPerCall*member.Timeout)
			key.ProbeTimeout = max(key.ProbeTimeout, member.Timeout)
		}
	}

	// A probe waits for every member until its time is up: otherwise the no of
	// a KMS that is slower than the others would never be heard.
	probes := kms.MembersConfig{ID: calls.ID, Grace: key.ProbeTimeout}
	for _, name := range k.Members {
		calls.Members = append(calls.Members, &b.members[name].calls)
		probes.Members = append(probes.Members, &b.members[name].probes)
	}

	of := kms.AllOf
	if k.Provider == config.AnyOf {
		of = kms.AnyOf
	}
	key.Wrapper, key.Probe, err = recoverable(k, of(calls), of(probes))
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
