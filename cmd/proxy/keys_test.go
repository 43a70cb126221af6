package main

import (
	"context"
	"path/filepath"
	"testing"
	"time"

	"go.uber.org/zap"

	"github.com/cmekproxy/cmekproxy/internal/config"
	"github.com/cmekproxy/cmekproxy/internal/kms"
	"github.com/cmekproxy/cmekproxy/internal/metrics"
)

// The life of a DEK ends before the TTL, by enough for the KMS to be asked, and never after it.
func TestJitter(t *testing.T) {
	for _, ttl := range []time.Duration{time.Millisecond, time.Second, 2 * time.Second, 10 * time.Second, 5 * time.Minute, 24 * time.Hour} {
		least, most := ttl, time.Duration(0)
		for range 2000 {
			j := jitter(ttl)
			least, most = min(least, j), max(most, j)
		}
		if least < leastJitter(ttl) || most > leastJitter(ttl)+ttl/10 || most-least < ttl/12 {
			t.Errorf("ttl %v: jitter from %v to %v", ttl, least, most)
		}
		if leastJitter(ttl) < min(ttl/4, 500*time.Millisecond) || most >= ttl/2 {
			t.Errorf("ttl %v: least %v, most %v", ttl, leastJitter(ttl), most)
		}
	}
}

// The rate is for quotas, and a key file has none. A limiter says at once that a caller's turn would come too late.
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
		a := &app{cfg: &config.Config{KMS: config.KMS{MaxConcurrent: 1, MaxPerSecond: 1}}, log: zap.NewNop(), metrics: metrics.New()}
		w := a.weathered(config.Key{Provider: provider}, key)
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

// away is a key whose KMS is away. It counts the times that its connections are
// to be given up.
type away struct {
	kms.Wrapper
	resets chan struct{}
}

func (w *away) Unwrap(context.Context, []byte, kms.EncryptionContext) ([]byte, error) {
	return nil, &kms.Error{Kind: kms.Unreachable, Op: "unwrap", KeyID: w.KeyID()}
}

func (w *away) ResetConnections() { w.resets <- struct{}{} }

// When the breaker opens, the connections are given up: they may be what is
// dead.
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
	a := &app{cfg: &config.Config{KMS: config.KMS{MaxConcurrent: 1}}, log: zap.NewNop(), metrics: metrics.New()}
	weathered := a.weathered(config.Key{Provider: config.Local}, w)
	for range breakerFailures {
		ctx, cancel := context.WithTimeout(t.Context(), 100*time.Millisecond)
		_, _ = weathered.Unwrap(ctx, nil, nil)
		cancel()
	}
	select {
	case <-w.resets:
	case <-time.After(10 * time.Second):
		t.Error("the breaker has opened, and the connections are kept")
	}
}
