//go:build live

package kms_test

import (
	"os"
	"strings"
	"sync/atomic"
	"testing"

	"github.com/cmekproxy/cmekproxy/internal/kms"
	"github.com/cmekproxy/cmekproxy/internal/kms/kmstest"
)

// TestLive runs the contract test against the vendors' own services.
// Environment variables name two keys of each kind, separated by a space.
// Use keys that protect nothing. Credentials come from each vendor's
// default chain; Vault's token is VAULT_TOKEN.
//
//	KMS_LIVE_AWS    two key ARNs
//	KMS_LIVE_GCP    two resource names
//	KMS_LIVE_AZURE  two key identifiers
//	KMS_LIVE_VAULT  two key names, at VAULT_ADDR
func TestLive(t *testing.T) {
	ran := false
	for name, open := range map[string]func(t *testing.T, id string) (kms.Wrapper, error){
		"KMS_LIVE_AWS": func(t *testing.T, id string) (kms.Wrapper, error) {
			return kms.NewAWS(t.Context(), kms.AWSConfig{KeyID: id})
		},
		"KMS_LIVE_GCP": func(t *testing.T, id string) (kms.Wrapper, error) {
			return kms.NewGCP(t.Context(), kms.GCPConfig{KeyID: id})
		},
		"KMS_LIVE_AZURE": func(_ *testing.T, id string) (kms.Wrapper,
			error,
		) {
			return kms.NewAzure(kms.AzureConfig{KeyID: id})
		},
		"KMS_LIVE_VAULT": func(_ *testing.T, id string) (kms.Wrapper, error) {
			return kms.NewVault(kms.VaultConfig{
				Address: os.Getenv("VAULT_ADDR"), KeyID: id, Login: kms.VaultLogin{Token: os.Getenv("VAULT_TOKEN")},
			})
		},
	} {
		ids := strings.Fields(os.Getenv(name))
		if len(ids) == 0 {
			continue
		}
		if len(ids) != 2 {
			t.Errorf("%s has %d keys, want two", name, len(ids))
			continue
		}

		ran = true
		t.Run(name, func(t *testing.T) {
			var next atomic.Int64
			kmstest.RunContract(t, func(t *testing.T) kms.Wrapper {
				w, err := open(t, ids[next.Add(1)%2])
				if err != nil {
					t.Fatal(err)
				}
				return w
			}, nil)
		})
	}

	if !ran {
		t.Fatal("no key is named: set KMS_LIVE_AWS, KMS_LIVE_GCP, KMS_LIVE_AZURE or KMS_LIVE_VAULT; see " +
			"internal/kms/live_test.go")
	}
}
