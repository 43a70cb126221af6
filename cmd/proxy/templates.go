package main

import (
	"context"
	"fmt"
	"reflect"
	"sync"
	"sync/atomic"

	"go.uber.org/zap"

	"github.com/cmekproxy/cmekproxy/internal/config"
	"github.com/cmekproxy/cmekproxy/internal/keyring"
	"github.com/cmekproxy/cmekproxy/internal/keytemplate"
	"github.com/cmekproxy/cmekproxy/internal/kms"
)

// templateKeys opens the keys of a template. All of them share a login and
// connections, so a key that is open costs only memory.
type templateKeys struct {
	current atomic.Pointer[templateSource]
}

// templateSource opens the keys of a template with its current settings.
type templateSource struct {
	config config.Key
	open   openFunc
}

// openFunc opens the key with an id. Each call makes one attempt.
type openFunc func(ctx context.Context, id string) (kms.Wrapper, error)

// buildShared returns what opens the keys of a template, and what they share,
// which may need keep. It does not call a KMS.
func buildShared(ctx context.Context, k config.Key, report kms.Report) (openFunc, any, error) {
	switch k.Provider {
	case config.AWSKMS:
		keys, err := kms.NewAWSKeys(ctx, awsConfig(k, report))
		if err != nil {
			return nil, nil, err
		}
		return func(ctx context.Context, id string) (kms.Wrapper, error) { return keys.Open(ctx, id) }, keys, nil
	case config.VaultTransit:
		keys, err := kms.NewVaultKeys(vaultConfig(k, report))
		if err != nil {
			return nil, nil, err
		}
		return func(_ context.Context, id string) (kms.Wrapper, error) { return keys.Open(id) }, keys, nil
	case config.GCPKMS:
		keys, err := kms.NewGCPKeys(ctx, gcpConfig(k, report))
		if err != nil {
			return nil, nil, err
		}
		return func(_ context.Context, id string) (kms.Wrapper, error) { return keys.Open(id) }, keys, nil
	case config.Local:
		return func(_ context.Context, id string) (kms.Wrapper, error) { return kms.NewLocal(id) }, nil, nil
	default:
		return nil, nil, fmt.Errorf("a key of provider %q cannot be a template", k.Provider)
	}
}

// prepareTemplate prepares a template. If only the way to its keys has changed,
// the keys that are open remain so, and reopenTemplates opens them again.
func (b *backend) prepareTemplate(ctx context.Context, c *keyChange, key *keyring.Key, k config.Key) error {
	held := b.held[k.Name]
	if held != nil && held.family != nil && reflect.DeepEqual(held.config, k) {
		c.held[k.Name], key.Template = held, held.entry
		return nil
	}

	text, err := keytemplate.Parse(k.Template())
	if err != nil {
		return fmt.Errorf("key %s: %w", k.Name, err)
	}
	open, shared, err := buildShared(ctx, k, b.reportReread(k))
	if err != nil {
		return fmt.Errorf("key %s: %w", k.Name, err)
	}

	source := &templateSource{k, open}
	next := &heldKey{config: k, shared: shared, family: &templateKeys{}}
	if held != nil && held.family != nil && sameKMSKey(held.config, k) {
		next.family, next.entry = held.family, held.entry
		c.switched = append(c.switched, func() { next.family.current.Store(source) })
	} else {
		next.family.current.Store(source)
		next.entry = &keyring.Template{Text: text, Open: b.openOf(next.family)}
	}
	c.held[k.Name], key.Template = next, next.entry
	return nil
}

// openOf returns what opens the keys of a template.
func (b *backend) openOf(keys *templateKeys) func(ctx context.Context, name, id string) (keyring.TenantKey, error) {
	return func(ctx context.Context, name, id string) (keyring.TenantKey, error) {
		source := keys.current.Load()
		w, err := source.open(ctx, id)
		if err != nil {
			return keyring.TenantKey{}, err
		}
		state := &breakerState{gauge: b.metrics.Breaker(b.observer.labelOf(name)).Add}
		k := source.config
		limited := b.limitedTo(b.limitsOf(b.current().KMS, k.Expanded(name, id)), w, state.add)
		return keyring.TenantKey{Wrapper: limited, Probe: w, Close: state.close}, nil
	}
}

// breakerState counts the circuit breaker of a tenant's key in a gauge that
// all keys of the template share, until the key is closed.
type breakerState struct {
	gauge func(float64)

	mu     sync.Mutex
	open   float64 // 1 or 0
	closed bool
}

func (s *breakerState) add(n float64) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if !s.closed {
		s.open += n
		s.gauge(n)
	}
}

func (s *breakerState) close() {
	if s == nil {
		return
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if !s.closed {
		s.closed = true
		s.gauge(-s.open)
	}
}

// changedTemplates returns the templates whose open keys should be opened again,
// because the way to them or their limits have changed.
func (b *backend) changedTemplates(before map[string]*heldKey, limits config.KMS) (names []string) {
	for name, now := range b.held {
		old := before[name]
		if old == nil || old.family == nil || now.family != old.family {
			continue
		}
		if now != old || limits != b.current().KMS {
			names = append(names, name)
		}
	}
	return names
}

// reopenTemplates opens the open keys of templates again.
func (b *backend) reopenTemplates(ctx context.Context, names []string) {
	for _, name := range names {
		log := b.log.With(zap.String("kms_key_name", name))
		if err := b.keys.Reopen(ctx, name); err != nil {
			log.Error("opening the key of a tenant with the new settings failed; keeping the old ones", zap.Error(err))
			continue
		}
		log.Info("the open keys of the template use the new settings")
	}
}

// isTemplate reports whether the name is that of a template.
func (b *backend) isTemplate(name string) bool {
	b.holding.Lock()
	defer b.holding.Unlock()
	h := b.held[name]
	return h != nil && h.family != nil
}
