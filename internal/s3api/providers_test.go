package s3api_test

import (
	"bytes"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"cloud.google.com/go/kms/apiv1/kmspb"
	"github.com/aws/aws-sdk-go-v2/service/s3"

	"github.com/cmekproxy/cmekproxy/internal/keyring"
	"github.com/cmekproxy/cmekproxy/internal/kms"
	"github.com/cmekproxy/cmekproxy/internal/kms/kmstest"
	"github.com/cmekproxy/cmekproxy/internal/s3api"
)

// owned is a key in some KMS, with functions to revoke and restore it.
type owned struct {
	name       string
	wrapper    kms.Wrapper
	take, give func() error
	code       string // S3's code while the key is revoked
}

func done(f func()) func() error { return func() error { f(); return nil } }

// allProviders returns a key of each provider: cloud providers use strict
// servers on loopback, the HSM uses SoftHSM in builds with -tags pkcs11, and
// the local key is a file.
func allProviders(t *testing.T) []owned {
	t.Helper()
	amazon := kmstest.StartTest(t)
	aws := amazon.NewKey(t, nil)
	hashi := kmstest.StartVault(t)
	vault := hashi.NewKey(t, nil)
	google := kmstest.StartGCP(t)
	gcp := google.NewKey(t, nil)

	microsoft := kmstest.StartAzure(t)
	azure := microsoft.NewKey(t, "RSA-2048", nil)
	azureName := azure.KeyID()[strings.LastIndex(azure.KeyID(), "/")+1:]
	file := filepath.Join(t.TempDir(), "local.key")
	if err := kms.CreateLocalKeyFile(file); err != nil {
		t.Fatal(err)
	}

	local, err := kms.NewLocal(file)
	if err != nil {
		t.Fatal(err)
	}

	list := []owned{
		{
			"aws-kms",
			aws,
			func() error { return amazon.DisableKey(aws.KeyID()) },
			func() error { return amazon.EnableKey(aws.KeyID()) },
			"KMS.DisabledException",
		},
		{"vault-transit", vault, done(func() { hashi.Deny(true) }), done(func() { hashi.Deny(false) }), "AccessDenied"},
		{
			"gcp-kms", gcp, done(func() { google.SetState(gcp.KeyID(), 1, kmspb.CryptoKeyVersion_DISABLED) }),
			done(func() { google.SetState(gcp.KeyID(), 1, kmspb.CryptoKeyVersion_ENABLED) }), "KMS.DisabledException",
		},
		{
			"azure-keyvault", azure, done(func() { microsoft.SetEnabled(azureName, 1, false) }),
			done(func() { microsoft.SetEnabled(azureName, 1, true) }),
			"KMS.DisabledException",
		},
		{
			"local",
			local,
			func() error { return os.Rename(file, file+".gone") },
			func() error { return os.Rename(file+".gone", file) },
			"KMS.NotFoundException",
		},
	}

	if hsm := hsmKey(t); hsm != nil {
		list = append(list, *hsm)
	}
	return list
}

// TestAllProvidersAtOnce serves a bucket under a key of each provider,
// revokes each key in turn, and checks that only its bucket becomes
// unreadable.
func TestAllProvidersAtOnce(t *testing.T) {
	providers := allProviders(t)
	p := newProxy(t, func(_ *proxy, _ *s3api.Config, cfg *keyring.Config) {
		cfg.RevocationProbe = 200 * time.Millisecond
		cfg.Keys, cfg.Rules = nil, nil
		for _, o := range providers {
			cfg.Keys = append(cfg.Keys, keyring.Key{Name: o.name, Provider: o.name, Wrapper: o.wrapper})
			cfg.Rules = append(cfg.Rules, keyring.Rule{Buckets: []string{o.name + "-*"}, Key: o.name})
		}
	})

	ctx, stop := t.Context(), make(chan struct{})
	go func() { defer close(stop); p.keys.Run(ctx) }()
	t.Cleanup(func() { <-stop })
	text := randomText(100_000)
	buckets := make(map[string]string)

	for _, o := range providers {
		p.bucket = p.newBucket(o.name + "-")
		buckets[o.name] = p.bucket
		p.put("k", text)
		_, head := p.stored("k")
		if id := head.Get("X-Amz-Meta-Cmek-Key"); !strings.Contains(id, o.wrapper.KeyID()) {
			t.Fatalf("%s: sealed with %q, want %q; %v", o.name, id, o.wrapper.KeyID(), head)
		}
	}

	read := func(name string) error {
		p.bucket = buckets[name]
		got, _, err := p.get("k")
		if err == nil && !bytes.Equal(got, text) {
			t.Errorf("%s: another text", name)
		}
		return err
	}

	for _, o := range providers {
		if err := o.take(); err != nil {
			t.Fatal(o.name, err)
		}

		// A read that runs during the purge is cut, which a client sees as a
		// reset. The next read gets the reason.
		var err error

		for end := time.Now().Add(20 * time.Second); time.Now().Before(end); time.Sleep(20 * time.Millisecond) {
			if err = read(o.name); err != nil && strings.Contains(err.Error(), o.code) {
				break
			}
		}

		if err == nil || !strings.Contains(err.Error(), o.code) {
			t.Errorf("%s: reading without the key: %v, want %s", o.name, err, o.code)
		}
		bucket, key := buckets[o.name], "new"
		if _, err := p.client.PutObject(ctx, &s3.PutObjectInput{
			Bucket: &bucket, Key: &key, Body: bytes.NewReader(text),
		}); err == nil {
			t.Errorf("%s: stored without the key", o.name)
		}

		for _, other := range providers {
			if other.name != o.name {
				if err := read(other.name); err != nil {
					t.Errorf("%s is away, and %s went dark: %v", o.name, other.name, err)
				}
			}
		}

		if err := o.give(); err != nil {
			t.Fatal(o.name, err)
		}
		err = read(o.name)
		for deadline := time.Now().Add(20 * time.Second); err != nil && time.Now().Before(deadline); err = read(o.name) {
			time.Sleep(20 * time.Millisecond)
		}

		if err != nil {
			t.Errorf("%s: given back: %v", o.name, err)
		}
	}
}
