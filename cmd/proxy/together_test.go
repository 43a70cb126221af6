package main

import (
	"testing"
	"time"

	"go.uber.org/zap"

	"github.com/cmekproxy/cmekproxy/internal/config"
	"github.com/cmekproxy/cmekproxy/internal/kms"
	"github.com/cmekproxy/cmekproxy/internal/kms/kmstest"
	"github.com/cmekproxy/cmekproxy/internal/metrics"
)

// A use of an any-of key does not wait long for a member that is slower than
// another one. A probe does: otherwise the no of a slow KMS would never be
// heard.
func TestProbesWaitForASlowNo(t *testing.T) {
	t.Setenv("AWS_ACCESS_KEY_ID", kmstest.AccessKeyID)
	t.Setenv("AWS_SECRET_ACCESS_KEY", "example")
	slow := kmstest.StartTest(t)
	cfg := &config.Config{KMS: config.KMS{MaxConcurrent: 8, MaxPerSecond: 100}}
	var id string
	for name, server := range map[string]*kmstest.Server{"fast": kmstest.StartTest(t), "slow": slow} {
		arn, err := server.CreateKey()
		if err != nil {
			t.Fatal(err)
		}
		if server == slow {
			id = arn
		}
		cfg.Keys = append(cfg.Keys, config.Key{
			Name: name, Provider: config.AWSKMS, KeyID: arn, Endpoint: server.URL(), Timeout: 20 * time.Second,
		})
	}
	cfg.Keys = append(cfg.Keys, config.Key{Name: "any", Provider: config.AnyOf, Members: []string{"fast", "slow"}})

	b := &backend{cfg: cfg, log: zap.NewNop(), metrics: metrics.New()}
	b.observer = &keyObserver{log: b.log, metrics: b.metrics}
	change, err := b.prepareKeys(t.Context(), cfg)
	if err != nil {
		t.Fatal(err)
	}
	keys := change.keys
	ec := kmstest.Context("b", "k")
	blob, err := keys[2].Wrapper.Wrap(t.Context(), kmstest.NewDEK(), ec)
	if err != nil {
		t.Fatal(err)
	}

	if err := slow.DisableKey(id); err != nil {
		t.Fatal(err)
	}
	slow.SetFaults(kmstest.Faults{LatencyMS: 2500})
	if _, err := keys[2].Probe.Unwrap(t.Context(), blob, ec); !kms.IsRevoked(err) {
		t.Errorf("the probe does not hear the no: %v", err)
	}
}
