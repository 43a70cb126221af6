package main

import (
	"context"
	"encoding/hex"
	"fmt"

	"github.com/cmekproxy/cmekproxy/internal/config"
	"github.com/cmekproxy/cmekproxy/internal/kms"
)

// buildWrapper opens a key with the provider that its configuration names. One attempt for each call: kms.Retry makes the
// others.
func buildWrapper(ctx context.Context, k config.Key) (kms.Wrapper, error) {
	switch k.Provider {
	case config.AWSKMS:
		return kms.NewAWS(ctx, kms.AWSConfig{
			KeyID: k.KeyID, Region: k.Region, Endpoint: k.Endpoint, RoleARN: k.RoleARN, ExternalID: k.ExternalID, FIPS: k.FIPS,
			Timeout: k.Timeout, MaxAttempts: 1,
		})
	case config.VaultTransit:
		return kms.NewVault(kms.VaultConfig{
			Address: k.Address, Namespace: k.Namespace, Mount: k.Mount, KeyID: k.KeyID, EnvelopeID: k.EnvelopeID,
			Login: vaultLogin(k.Login), CAFile: k.CAFile, Timeout: k.Timeout, MaxAttempts: 1,
		})
	case config.GCPKMS:
		return kms.NewGCP(ctx, kms.GCPConfig{KeyID: k.KeyID, Endpoint: k.Endpoint, Timeout: k.Timeout, MaxAttempts: 1})
	case config.AzureKeyVault:
		return kms.NewAzure(kms.AzureConfig{
			KeyID: k.KeyID, Algorithm: k.Algorithm, EnvelopeID: k.EnvelopeID, Timeout: k.Timeout, MaxAttempts: 1,
		})
	case config.PKCS11:
		id, err := hex.DecodeString(k.KeyID)
		if err != nil {
			return nil, fmt.Errorf("key_id: %w", err)
		}
		return kms.NewPKCS11(ctx, kms.PKCS11Config{
			Module: k.Module, TokenLabel: k.Token, KeyLabel: k.KeyLabel, KeyID: id, PIN: k.PIN.Reveal(), Timeout: k.Timeout,
		})
	case config.Local:
		return kms.NewLocal(k.KeyFile)
	default:
		return nil, fmt.Errorf("unknown provider %q", k.Provider)
	}
}

func vaultLogin(l config.Login) kms.VaultLogin {
	out := kms.VaultLogin{Token: l.Token.Reveal(), TokenFile: l.TokenFile}
	if l.AppRole != (config.AppRole{}) {
		out.AppRole = &kms.VaultAppRole{
			RoleID: l.AppRole.RoleID, SecretID: l.AppRole.SecretID.Reveal(), SecretIDFile: l.AppRole.SecretIDFile, Mount: l.AppRole.Mount,
		}
	}
	if l.Kubernetes != (config.Kubernetes{}) {
		out.Kubernetes = &kms.VaultKubernetes{Role: l.Kubernetes.Role, TokenFile: l.Kubernetes.TokenFile, Mount: l.Kubernetes.Mount}
	}
	return out
}
