package keyring_test

import (
	"fmt"
	"testing"
	"testing/synctest"
	"time"

	"github.com/cmekproxy/cmekproxy/internal/keyring"
	"github.com/cmekproxy/cmekproxy/internal/kms"
)

// A running transfer, with a key that consists of two: a no of either ends it
// within the window. An outage of one ends it with all_of when the TTL is
// over, and never with any_of. When the KMS works again, so does the key.
func TestLeaseOfTwoKeys(t *testing.T) {
	const ttl, probe = time.Minute, 10 * time.Second
	for _, row := range []struct {
		name     string
		of       func(kms.MembersConfig) kms.Wrapper
		kind     kms.Kind
		lastsFor time.Duration // the lease is in force at this time
		endsBy   time.Duration // and not at this; 0 for never
	}{
		{"all of, one disabled", kms.AllOf, kms.Disabled, 0, probe + 3*time.Second},
		{"all of, one denied", kms.AllOf, kms.Denied, 0, probe + 3*time.Second},
		{"all of, one unreachable", kms.AllOf, kms.Unreachable, ttl - probe, ttl + 5*time.Second},
		{"any of, one disabled", kms.AnyOf, kms.Disabled, 0, probe + 3*time.Second},
		{"any of, one denied", kms.AnyOf, kms.Denied, 0, probe + 3*time.Second},
		{"any of, one unreachable", kms.AnyOf, kms.Unreachable, 10 * ttl, 0},
	} {
		for broken := range 2 {
			t.Run(fmt.Sprintf("%s: %d", row.name, broken), func(t *testing.T) {
				locals := make([]*kms.Local, 2)
				for i := range locals {
					locals[i], _ = newLocal(t)
				}
				synctest.Test(t, func(t *testing.T) {
					keys, members := []*slow{{Wrapper: locals[0]}, {Wrapper: locals[1]}}, []*kms.Member{{Name: "a"}, {Name: "b"}}
					for i, k := range keys {
						members[i].Open(k)
					}
					k := newRing(t, row.of(kms.MembersConfig{ID: "together", Members: members}), ttl,
						func(c *keyring.Config) { c.RevocationProbe, c.Timeout = probe, 2*time.Second })
					defer run(t, k)()

					sealed, err := k.Create(t.Context(), obj, "", keyring.Choice{})
					must(t, err)
					defer sealed.Release()

					keys[broken].fail.Store(&kms.Error{Kind: row.kind, Op: "unwrap", KeyID: "x"})
					if row.lastsFor > 0 {
						for range int(row.lastsFor / time.Second) {
							time.Sleep(time.Second)
							must(t, sealed.Check(t.Context()))
						}
					}
					if row.endsBy > 0 {
						time.Sleep(row.endsBy - row.lastsFor)
						if err := sealed.Check(t.Context()); err == nil {
							t.Error("the lease is still in force")
						}
						if _, err := k.Open(t.Context(), obj, sealed.KeyID, sealed.Wrapped); err == nil {
							t.Error("the object can be opened")
						}
					}

					keys[broken].fail.Store(nil)
					time.Sleep(2 * probe)
					lease, err := k.Open(t.Context(), obj, sealed.KeyID, sealed.Wrapped)
					must(t, err)
					lease.Release()
				})
			})
		}
	}
}
