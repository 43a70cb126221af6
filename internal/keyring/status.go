package keyring

import (
	"cmp"
	"context"
	"fmt"
	"time"

	"github.com/cmekproxy/cmekproxy/internal/kms"
)

// State is what is known of a key.
type State string

// The states.
const (
	Unused      State = "unused"      // the KMS was not asked yet
	Usable      State = "usable"      // by its last answer
	Revoked     State = "revoked"     // by its last answer to a probe, or about a blob that it knew before
	Unreachable State = "unreachable" // the last call had no answer
	Unopened    State = "unopened"    // the key could not be opened yet
)

// Status is the state of one key.
type Status struct {
	Name     string
	Provider string
	ID       string // in the KMS; "" while it is unopened
	State    State
	// Answered is when the KMS last answered, whatever it said; zero for
	// never. Outcome is that answer's error, or why the key is unopened; nil
	// for a good one.
	Answered time.Time
	Outcome  error
	// DEKs is how many are in the cache; OldestAge is since the KMS was asked
	// for the oldest of them. Leases is how many streams use one.
	DEKs      int
	OldestAge time.Duration
	Leases    int
	// Parts is how many parts of what the key protects are in use, and probed
	// by themselves: by version of the key, bucket, prefix of the rule, and
	// what clients have added to the encryption context. PartsRevoked is how
	// many of them the KMS refuses. Unprobed is whether more are in use than
	// are probed.
	Parts, PartsRevoked int
	Unprobed            bool
	// Window is the longest time from the moment at which the KMS begins to
	// refuse the key, or a part, to the last moment at which a byte passes: by
	// the probe while that is on, answered, and asks about all parts in use;
	// else by the TTL. A KMS itself may take a while to begin: AWS calls its
	// key states eventually consistent. A policy that denies some objects of a
	// part is not seen by a probe that asks about another one, and then it is
	// the TTL.
	Window time.Duration
	// RevokedSince is when the KMS first called the key revoked, zero if it
	// does not; and LastUse how long after that a byte last passed under it.
	RevokedSince time.Time
	LastUse      time.Duration
}

// Status returns the state of each key, in the order of the configuration.
func (k *Keyring) Status() []Status {
	holdings := k.cfg.Cache.Holdings()
	out := make([]Status, 0, len(k.keys))

	for _, key := range k.keys {
		s := k.statusOf(key)
		if service := key.kms.Load(); service != nil {
			s.ID = service.id
			h := holdings[service.id]
			s.DEKs, s.OldestAge = h.Entries, h.OldestAge
		}

		s.Window = k.windowOf(key, k.cfg.Cache.TTL())
		if s.State == Unreachable || s.Unprobed || !key.answersProbes() {
			s.Window = k.cfg.Cache.TTL()
		}

		out = append(out, s)
	}

	return out
}

func (k *Keyring) statusOf(key *keyState) Status {
	key.mu.Lock()
	defer key.mu.Unlock()

	s := Status{
		Name: key.Name, Provider: key.Provider, Answered: key.answeredAt, Outcome: key.outcome,
		Leases:       int(key.leases.Load()),
		RevokedSince: key.revokedSince, LastUse: key.lastUse, Unprobed: !k.idle(key.rest),
	}

	for _, p := range key.parts {
		if !k.idle(p) {
			s.Parts++
		}
		if !p.revokedSince.IsZero() {
			s.PartsRevoked++
			s.LastUse = max(s.LastUse, p.lastUse)
		}
	}

	switch {
	case key.kms.Load() == nil:
		s.State, s.Outcome = Unopened, cmp.Or(s.Outcome, key.Unavailable)
	case key.unanswered:
		s.State = Unreachable
	case key.answeredAt.IsZero():
		s.State = Unused
	case !key.revokedSince.IsZero():
		s.State = Revoked
	default:
		s.State = Usable
	}

	return s
}

// probesAtOnce is how many calls one probe of the key makes.
func (k *keyState) probesAtOnce() int {
	k.mu.Lock()
	defer k.mu.Unlock()
	return max(1, k.probedBlobs)
}

// answersProbes reports whether the last probe had an answer; before the first
// one it is taken for granted.
func (k *keyState) answersProbes() bool {
	k.mu.Lock()
	defer k.mu.Unlock()
	return !k.probeUnanswered
}

// Window returns the longest Status.Window of all keys for a TTL, while the KMS
// answers probes in time.
func (k *Keyring) Window(ttl time.Duration) (longest time.Duration) {
	if len(k.keys) == 0 {
		return ttl
	}
	for _, key := range k.keys {
		longest = max(longest, k.windowOf(key, ttl))
	}
	return longest
}

func (k *Keyring) windowOf(key *keyState, ttl time.Duration) time.Duration {
	interval := time.Duration(k.probe.Load())
	if interval <= 0 {
		return ttl
	}
	return min(ttl, interval+k.probeTimeout(key))
}

// ProbesPerSecond returns how many calls the probes make in a second, over all
// keys that are in use.
func (k *Keyring) ProbesPerSecond() (n float64) {
	interval := time.Duration(k.probe.Load())
	if interval <= 0 {
		return 0
	}
	for _, key := range k.keys {
		if key.kms.Load() != nil && key.newestSample.Load() != nil {
			n += float64(key.probesAtOnce()) / interval.Seconds()
		}
	}
	return n
}

// Unopened reports whether the key of that name is still to be opened.
func (k *Keyring) Unopened(name string) bool {
	key := k.byName[name]
	return key != nil && key.kms.Load() == nil
}

// Try makes a round trip with the key of that name, through the KMS, and
// returns what is wrong with it.
func (k *Keyring) Try(ctx context.Context, name string) error {
	key := k.byName[name]
	if key == nil {
		return fmt.Errorf("%w %q", ErrUnknownKey, name)
	}

	service := key.kms.Load()
	if service == nil {
		return key.Unavailable
	}

	return k.ask(ctx, key, key.rest, OpGenerate, k.timeout(key), func(ctx context.Context) error {
		wrapped, ec, err := kms.RoundTrip(ctx, service.wrapper)
		if err == nil {
			key.newestSample.Store(&sample{wrapped, ec, nil})
		}
		return err
	})
}
