package keyring

import (
	"cmp"
	"context"
	"fmt"
	"time"

	"github.com/cmekproxy/cmekproxy/internal/kms"
)

// State summarizes the state of a key.
type State string

// The states.
const (
	Unused      State = "unused"      // the KMS has not been asked yet
	Usable      State = "usable"      // the last answer was a success
	Revoked     State = "revoked"     // refused in the last answer to a probe or about a genuine blob
	Unreachable State = "unreachable" // the last call got no answer
	Unopened    State = "unopened"    // the key could not be opened yet
	IsTemplate  State = "template"    // not a key, but a template for the keys of tenants
	AreTenants  State = "tenants"     // not a key, but the keys of the tenants of SetTenants
)

// Status is the state of one key.
type Status struct {
	Name     string
	Provider string
	ID       string // in the KMS; "" until the key is opened
	State    State
	// Template is the name of the key's template, or FileKeys; "" for a
	// configured key. Open is how many keys of a template are open.
	Template string
	Open     int
	// Answered is when the KMS last answered, with success or an error;
	// zero for never. Outcome is the error of that answer, or why the key
	// is not open; nil for success.
	Answered time.Time
	Outcome  error
	// DEKs is the number of cached DEKs. OldestAge is the time since the
	// KMS was asked for the oldest of them. Leases is the number of streams
	// that use one.
	DEKs      int
	OldestAge time.Duration
	Leases    int
	// Parts is the number of parts of the key that are in use and probed
	// separately: by key version, bucket, rule prefix, and the client's
	// encryption context. PartsRevoked is how many of them the KMS refuses.
	// Unprobed is set if there are more parts in use than are probed.
	Parts, PartsRevoked int
	Unprobed            bool
	// Window is the longest time from the moment the KMS starts to refuse
	// the key, or a part, to the last byte sent. It follows from the probes
	// while they are on, are answered, and cover all parts in use;
	// otherwise it is the TTL.
	//
	// The KMS itself may take time to refuse: AWS key states are eventually
	// consistent. If a policy denies some objects of a part, the probe of
	// another object does not see it, and the window for these is the TTL.
	Window time.Duration
	// Stated is Window while the probes are answered, and cover all parts
	// in use: what the configuration promises.
	Stated time.Duration
	// RevokedSince is when the KMS first refused the key; zero if it does
	// not. LastUse is how long after that the last byte was sent.
	RevokedSince time.Time
	LastUse      time.Duration
}

// Status returns the state of each key, in configuration order, and then that
// of each open key of a template, the most recently used first.
func (k *Keyring) Status() []Status {
	holdings := k.cfg.Cache.Holdings()
	tenants, open := k.tenants.all(), make(map[*keyState]int)
	for _, key := range tenants {
		open[key.configured()]++
	}

	out := make([]Status, 0, len(k.set().keys)+len(tenants))
	for _, key := range k.allKeys() {
		s := k.statusOf(key)
		s.Open = open[key]
		if service := key.kms.Load(); service != nil {
			s.ID = service.id
			h := holdings[service.id]
			s.DEKs, s.OldestAge = h.Entries, h.OldestAge
		}

		s.Stated = k.windowOf(key, k.cfg.Cache.TTL())
		s.Window = s.Stated
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

	if key.tenant != nil {
		s.Template = key.tenant.family.Name
	}

	switch {
	case key == k.fileKeys:
		s.State = AreTenants
	case key.isTemplate():
		s.State = IsTemplate
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

// probesAtOnce returns the number of KMS calls in one probe of the key.
func (k *keyState) probesAtOnce() int {
	k.mu.Lock()
	defer k.mu.Unlock()
	return max(1, k.probedBlobs)
}

// answersProbes reports whether the last probe was answered. Before the
// first probe it returns true.
func (k *keyState) answersProbes() bool {
	k.mu.Lock()
	defer k.mu.Unlock()
	return !k.probeUnanswered
}

// Window returns the longest Status.Window of all keys for a given TTL, as
// long as the KMS answers probes in time.
func (k *Keyring) Window(ttl time.Duration) (longest time.Duration) {
	if len(k.set().keys) == 0 {
		return ttl
	}
	for _, key := range k.set().keys {
		longest = max(longest, k.windowOf(key, ttl))
	}
	return max(longest, k.windowOf(k.files.Load().slowest, ttl))
}

func (k *Keyring) windowOf(key *keyState, ttl time.Duration) time.Duration {
	interval := time.Duration(k.probe.Load())
	if interval <= 0 {
		return ttl
	}
	return min(ttl, interval+k.probeTimeout(key))
}

// ProbesPerSecond returns how many KMS calls per second the probes make,
// for all keys in use.
func (k *Keyring) ProbesPerSecond() (n float64) {
	interval := time.Duration(k.probe.Load())
	if interval <= 0 {
		return 0
	}

	for _, key := range k.allKeys() {
		if key.kms.Load() != nil && key.newestSample.Load() != nil {
			n += float64(key.probesAtOnce()) / interval.Seconds()
		}
	}

	return n
}

// Unopened reports whether the named key has not been opened yet.
func (k *Keyring) Unopened(name string) bool {
	key := k.set().byName[name]
	return key != nil && !key.isTemplate() && key.kms.Load() == nil
}

// Try makes a round trip with the named key through the KMS, and returns
// any error.
func (k *Keyring) Try(ctx context.Context, name string) error {
	key := k.set().byName[name]
	if key == nil {
		return fmt.Errorf("%w %q", ErrUnknownKey, name)
	}
	if key.isTemplate() {
		return fmt.Errorf("%w: %q is a template, and no key by itself", ErrUnknownKey, name)
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
