package main

import (
	"context"
	"path/filepath"
	"testing"
	"time"

	"go.uber.org/zap"

	"github.com/cmekproxy/cmekproxy/internal/config"
	"github.com/cmekproxy/cmekproxy/internal/kms"
	"github.com/cmekproxy/cmekproxy/internal/kms/kmstest"
	"github.com/cmekproxy/cmekproxy/internal/metrics"
)

// kms.timeout limits each attempt of each key. Logins do not count.
func TestTimeoutOfAKey(t *testing.T) {
	server := kmstest.StartVault(t)
	server.AddAppRole("role", "secret", kmstest.VaultToken{TTL: time.Hour})
	key := func(name string, timeout time.Duration) config.Key {
		server.CreateKey(name, "aes256-gcm96", false)
		return config.Key{
			Name: name, Provider: config.VaultTransit, Address: server.URL(), KeyID: name, Timeout: timeout,
			Login: config.Login{AppRole: config.AppRole{RoleID: "role", SecretID: "secret"}},
		}
	}

	cfg := &config.Config{
		Keys:     []config.Key{key("patient", 5*time.Second), key("hasty", 200*time.Millisecond)},
		KMS:      config.KMS{MaxConcurrent: 10, MaxPerSecond: 1000},
		DEKCache: config.DEKCache{TTL: 5 * time.Minute, MaxEntries: 10, RevocationProbe: 10 * time.Second},
	}

	a := &backend{cfg: cfg, log: zap.NewNop(), metrics: metrics.New(), observer: &keyObserver{}}
	if err := a.openKeyring(t.Context(), nil); err != nil {
		t.Fatal(err)
	}
	defer a.cache.Close()

	if got, want := a.keys.Window(cfg.DEKCache.TTL), 15*time.Second; got != want {
		t.Errorf("window %v, want %v: the interval and the longest timeout", got, want)
	}

	server.SetTrouble(kmstest.Trouble{LoginLatency: 400 * time.Millisecond})
	if err := a.keys.Try(t.Context(), "hasty"); err != nil {
		t.Errorf("a login that takes longer than an attempt may: %v", err)
	}
	server.SetTrouble(kmstest.Trouble{Latency: 400 * time.Millisecond})

	if err := a.keys.Try(t.Context(), "patient"); err != nil {
		t.Errorf("answers within the key's timeout: %v", err)
	}
	if err := a.keys.Try(t.Context(), "hasty"); !kms.IsUnreachable(err) {
		t.Errorf("%v, want unreachable where each answer takes longer than an attempt may", err)
	}
}

// The rate is for quotas, and a key file has none. A limiter returns an
// error at once if a caller's turn would come too late.
func TestOnlyNetworkKeysHaveARate(t *testing.T) {
	for _, provider := range []config.Provider{config.Local, config.VaultTransit} {
		file := filepath.Join(t.TempDir(), "key")
		if err := kms.CreateLocalKeyFile(file); err != nil {
			t.Fatal(err)
		}

		key, err := kms.NewLocal(file)
		if err != nil {
			t.Fatal(err)
		}

		a := &backend{
			cfg:      &config.Config{KMS: config.KMS{MaxConcurrent: 1, MaxPerSecond: 1}},
			log:      zap.NewNop(),
			metrics:  metrics.New(),
			observer: &keyObserver{},
		}

		w := a.limitedTo(a.limitsOf(a.cfg.KMS, config.Key{Provider: provider}), key, func(float64) {})
		throttled := 0
		for range 5 {
			ctx, cancel := context.WithTimeout(t.Context(), 100*time.Millisecond)
			if _, _, err := kms.Generate(ctx, w, nil); kms.IsThrottled(err) {
				throttled++
			}
			cancel()
		}

		if limited := throttled > 0; limited != (provider != config.Local) {
			t.Errorf("%s: %d of 5 calls were throttled", provider, throttled)
		}
	}
}

// away is a key whose KMS is unreachable. It counts how often its
// connections are reset.
type away struct {
	kms.Wrapper
	resets chan struct{}
}

func (w *away) Unwrap(context.Context, []byte, kms.EncryptionContext) ([]byte, error) {
	return nil, &kms.Error{Kind: kms.Unreachable, Op: "unwrap", KeyID: w.KeyID()}
}

func (w *away) ResetConnections() { w.resets <- struct{}{} }

// When the breaker opens, the connections are reset, because they may be the
// cause.
func TestBreakerResetsConnections(t *testing.T) {
	file := filepath.Join(t.TempDir(), "key")
	if err := kms.CreateLocalKeyFile(file); err != nil {
		t.Fatal(err)
	}

	key, err := kms.NewLocal(file)
	if err != nil {
		t.Fatal(err)
	}

	w := &away{key, make(chan struct{}, 100)}
	a := &backend{
		cfg:      &config.Config{KMS: config.KMS{MaxConcurrent: 1}},
		log:      zap.NewNop(),
		metrics:  metrics.New(),
		observer: &keyObserver{},
	}

	limited := a.limitedTo(a.limitsOf(a.cfg.KMS, config.Key{Provider: config.Local}), w, func(float64) {})
	for range kms.DefaultBreakerFailures {
		ctx, cancel := context.WithTimeout(t.Context(), 100*time.Millisecond)
		_, _ = limited.Unwrap(ctx, nil, nil)
		cancel()
	}

	select {
	case <-w.resets:
	case <-time.After(10 * time.Second):
		t.Error("the breaker has opened, and the connections are kept")
	}
}
