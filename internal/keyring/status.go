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
	// Answered is when the KMS last answered, whatever it said; zero for never. Outcome is that answer's error, or why
	// the key is unopened; nil for a good one.
	Answered time.Time
	Outcome  error
	// DEKs is how many are in the cache; OldestAge is since the KMS was asked for the oldest of them. Leases is how many
	// streams use one.
	DEKs      int
	OldestAge time.Duration
	Leases    int
	// Window is the longest time from the moment at which the KMS begins to refuse the key, to the last moment at which
	// a byte passes: by the probe while that is on and answered, else by the TTL. A KMS itself may take a while to begin:
	// AWS calls its key states eventually consistent. What a change of a policy revokes for some objects only, a probe
	// that asks about another does not see, and it is the TTL.
	Window time.Duration
	// RevokedSince is when the KMS first called the key revoked, zero if it does not; and LastUse how long after that a
	// byte last passed under it.
	RevokedSince time.Time
	LastUse      time.Duration
}

// Status returns the state of each key, in the order of the configuration.
func (k *Keyring) Status() []Status {
	holdings := k.cfg.Cache.Holdings()
	out := make([]Status, 0, len(k.keys))
	for _, key := range k.keys {
		s := key.status()
		if service := key.kms.Load(); service != nil {
			s.ID = service.id
			h := holdings[service.id]
			s.DEKs, s.OldestAge = h.Entries, h.OldestAge
		}
		s.Window = k.windowOf(key, k.cfg.Cache.TTL())
		if s.State == Unreachable || !key.answersProbes() {
			s.Window = k.cfg.Cache.TTL()
		}
		out = append(out, s)
	}
	return out
}

func (k *key) status() Status {
	k.mu.Lock()
	defer k.mu.Unlock()
	s := Status{
		Name: k.Name, Provider: k.Provider, Answered: k.answer, Outcome: k.outcome, Leases: int(k.leases.Load()),
		RevokedSince: k.revokedSince, LastUse: k.lastUse,
	}
	switch {
	case k.kms.Load() == nil:
		s.State, s.Outcome = Unopened, cmp.Or(s.Outcome, k.Unavailable)
	case k.unanswered:
		s.State = Unreachable
	case k.answer.IsZero():
		s.State = Unused
	case !k.revokedSince.IsZero():
		s.State = Revoked
	default:
		s.State = Usable
	}
	return s
}

// answersProbes reports whether the last probe had an answer; before the first one it is taken for granted.
func (k *key) answersProbes() bool {
	k.mu.Lock()
	defer k.mu.Unlock()
	return !k.silent
}

// Window returns the longest Status.Window of all keys for a TTL, while the KMS answers probes in time.
func (k *Keyring) Window(ttl time.Duration) (longest time.Duration) {
	if len(k.keys) == 0 {
		return ttl
	}
	for _, key := range k.keys {
		longest = max(longest, k.windowOf(key, ttl))
	}
	return longest
}

func (k *Keyring) windowOf(key *key, ttl time.Duration) time.Duration {
	interval := time.Duration(k.probe.Load())
	if interval <= 0 {
		return ttl
	}
	return min(ttl, interval+k.probeTimeout(key))
}

// ProbesPerSecond returns how many calls the probes make in a second, over all keys that are in use.
func (k *Keyring) ProbesPerSecond() (n float64) {
	interval := time.Duration(k.probe.Load())
	if interval <= 0 {
		return 0
	}
	for _, key := range k.keys {
		if key.kms.Load() != nil && key.recent.Load() != nil {
			n += 1 / interval.Seconds()
		}
	}
	return n
}

// Unopened reports whether the key of that name is still to be opened.
func (k *Keyring) Unopened(name string) bool {
	key := k.byName[name]
	return key != nil && key.kms.Load() == nil
}

// Try makes a round trip with the key of that name, through the KMS, and returns what is wrong with it.
func (k *Keyring) Try(ctx context.Context, name string) error {
	key := k.byName[name]
	if key == nil {
		return fmt.Errorf("%w %q", ErrUnknownKey, name)
	}
	service := key.kms.Load()
	if service == nil {
		return key.Unavailable
	}
	return k.ask(ctx, key, OpGenerate, k.timeout(key), func(ctx context.Context) error {
		wrapped, ec, err := kms.RoundTrip(ctx, service.wrapper)
		if err == nil {
			key.recent.Store(&sample{wrapped, ec})
		}
		return err
	})
}
