package main

import (
	"context"
	"fmt"
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
	open atomic.Pointer[openFunc]
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

// putTemplate makes a template.
func (b *backend) putTemplate(ctx context.Context, key *keyring.Key, k config.Key) error {
	text, err := keytemplate.Parse(k.Template())
	if err != nil {
		return fmt.Errorf("key %s: %w", k.Name, err)
	}
	open, shared, err := buildShared(ctx, k, b.reportReread(k))
	if err != nil {
		return fmt.Errorf("key %s: %w", k.Name, err)
	}

	keys := &templateKeys{}
	keys.open.Store(&open)
	if b.shared == nil {
		b.shared = make(map[string]*templateKeys)
	}
	b.shared[k.Name] = keys
	b.opened = append(b.opened, openKey{k.Name, shared})

	key.Template = &keyring.Template{
		Text: text,
		Open: func(ctx context.Context, name, id string) (keyring.TenantKey, error) {
			w, err := (*keys.open.Load())(ctx, id)
			if err != nil {
				return keyring.TenantKey{}, err
			}
			state := &breakerState{gauge: b.metrics.Breaker(b.observer.labelOf(name)).Add}
			return keyring.TenantKey{
				Wrapper: b.limited(k.Expanded(name, id), w, state.add), Probe: w, Close: state.close,
			}, nil
		},
	}
	return nil
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
	s.mu.Lock()
	defer s.mu.Unlock()
	s.closed = true
	s.gauge(-s.open)
}

// reopenTemplate makes a template use a new secret. If that fails, the old one
// remains in use.
func (b *backend) reopenTemplate(ctx context.Context, k config.Key) {
	log := b.log.With(zap.String("kms_key_name", k.Name))
	open, shared, err := buildShared(ctx, k, b.reportReread(k))
	if err != nil {
		log.Error("opening a key with its new secret failed; keeping the old one", zap.Error(err))
		return
	}

	b.shared[k.Name].open.Store(&open)
	b.keep(ctx, openKey{k.Name, shared})
	if err := b.keys.Reopen(ctx, k.Name); err != nil {
		log.Error("opening the key of a tenant with the new secret failed; keeping the old one", zap.Error(err))
		return
	}
	log.Info("key opened with its new secret")
}
