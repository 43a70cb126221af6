package main

import (
	"context"
	"encoding/hex"
	"fmt"

	"go.uber.org/zap"

	"github.com/cmekproxy/cmekproxy/internal/config"
	"github.com/cmekproxy/cmekproxy/internal/kms"
)

// buildWrapper opens a key with its configured provider. Each call makes one
// attempt; kms.Retry repeats them.
func buildWrapper(ctx context.Context, k config.Key, report kms.Report) (kms.Wrapper, error) {
	switch k.Provider {
	case config.AWSKMS:
		return kms.NewAWS(ctx, awsConfig(k, report))
	case config.VaultTransit:
		return kms.NewVault(vaultConfig(k, report))
	case config.GCPKMS:
		return kms.NewGCP(ctx, gcpConfig(k, report))
	case config.AzureKeyVault:
		return kms.NewAzure(kms.AzureConfig{
			KeyID: k.KeyID, Algorithm: k.Algorithm, EnvelopeID: k.EnvelopeID, CAFile: k.CAFile, Report: report,
			Bindings: k.Bindings, AcceptForm: k.AcceptForm, WriteForm: k.WriteForm, Timeout: k.Timeout, MaxAttempts: 1,
		})
	case config.PKCS11:
		id, err := hex.DecodeString(k.KeyID)
		if err != nil {
			return nil, fmt.Errorf("key_id: %w", err)
		}
		return kms.NewPKCS11(ctx, kms.PKCS11Config{
			Module:     k.Module,
			TokenLabel: k.Token,
			KeyLabel:   k.KeyLabel,
			KeyID:      id,
			PIN:        k.PIN.Reveal(),
			Timeout:    k.Timeout,
		})
	case config.Local:
		return kms.NewLocal(k.KeyFile)
	default:
		return nil, fmt.Errorf("unknown provider %q", k.Provider)
	}
}

func awsConfig(k config.Key, report kms.Report) kms.AWSConfig {
	return kms.AWSConfig{
		KeyID:      k.KeyID,
		Region:     k.Region,
		Endpoint:   k.Endpoint,
		RoleARN:    k.RoleARN,
		ExternalID: k.ExternalID,
		FIPS:       k.FIPS,
		CAFile:     k.CAFile,
		Report:     report,
		Timeout:    k.Timeout,
	}
}

func gcpConfig(k config.Key, report kms.Report) kms.GCPConfig {
	return kms.GCPConfig{
		KeyID: k.KeyID, Endpoint: k.Endpoint, CAFile: k.CAFile, Report: report, Timeout: k.Timeout, MaxAttempts: 1,
	}
}

func vaultConfig(k config.Key, report kms.Report) kms.VaultConfig {
	return kms.VaultConfig{
		Address: k.Address, Namespace: k.Namespace, Mount: k.Mount, KeyID: k.KeyID, EnvelopeID: k.EnvelopeID,
		Login: vaultLogin(k.Login), CAFile: k.CAFile, Report: report, Timeout: k.Timeout, MaxAttempts: 1,
	}
}

func vaultLogin(l config.Login) kms.VaultLogin {
	out := kms.VaultLogin{Token: l.Token.Reveal(), TokenFile: l.TokenFile}
	if l.AppRole != (config.AppRole{}) {
		out.AppRole = &kms.VaultAppRole{
			RoleID:       l.AppRole.RoleID,
			SecretID:     l.AppRole.SecretID.Reveal(),
			SecretIDFile: l.AppRole.SecretIDFile,
			Mount:        l.AppRole.Mount,
		}
	}

	if l.Kubernetes != (config.Kubernetes{}) {
		out.Kubernetes = &kms.VaultKubernetes{
			Role:      l.Kubernetes.Role,
			TokenFile: l.Kubernetes.TokenFile,
			Mount:     l.Kubernetes.Mount,
		}
	}

	return out
}

// reportReread returns a function that logs when the files of a key are read
// again.
func (b *backend) reportReread(k config.Key) kms.Report {
	return func(what string, err error) {
		if err != nil {
			b.log.Error("reading "+what+" again failed; keeping what was read before",
				zap.String("kms_key_name", k.Name), zap.Error(err))
			return
		}
		b.log.Info(what+" read again", zap.String("kms_key_name", k.Name))
	}
}

// warnOfUnread warns of keys that no rule names.
func (b *backend) warnOfUnread() {
	for _, name := range b.keys.Unread() {
		b.log.Warn(
			"no rule names this key (key, allowed_keys, read_keys): objects under it cannot be read",
			zap.String("kms_key_name", name),
		)
	}
}
