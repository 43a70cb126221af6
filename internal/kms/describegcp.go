package kms

import (
	"context"
	"slices"
	"time"

	"cloud.google.com/go/iam/apiv1/iampb"
	"cloud.google.com/go/kms/apiv1/kmspb"
)

// GCPDescription describes a key of Google Cloud KMS.
type GCPDescription struct {
	KeyErr     error // of GetCryptoKey; if it is not nil, the next fields are not set
	Purpose    string
	State      string // of the primary version
	Protection string // of the primary version, such as SOFTWARE, HSM, EXTERNAL
	Created    time.Time
	Rotation   time.Duration // 0 for none
	// DestroyAfter is how long a version stays recoverable after it was
	// scheduled for destruction.
	DestroyAfter time.Duration
	Labels       map[string]string

	// Permissions are those of GCPPermissions that the caller has.
	Permissions    []string
	PermissionsErr error // of TestIamPermissions

	Bindings    []GCPBinding
	BindingsErr error // of GetIamPolicy
}

// GCPBinding is a role on a key with its members.
type GCPBinding struct {
	Role      string
	Members   []string
	Condition string // "" for none
}

// The permissions on a key of Google Cloud KMS.
var (
	// GCPNeeded are those that the provider uses.
	GCPNeeded = []string{
		"cloudkms.cryptoKeyVersions.useToDecrypt",
		"cloudkms.cryptoKeyVersions.useToEncrypt",
	}
	// GCPReading only describe the key.
	GCPReading = []string{
		"cloudkms.cryptoKeyVersions.get",
		"cloudkms.cryptoKeyVersions.list",
		"cloudkms.cryptoKeys.get",
		"cloudkms.cryptoKeys.getIamPolicy",
	}
	// GCPChanging change the key, its versions, or who may use it.
	GCPChanging = []string{
		"cloudkms.cryptoKeyVersions.create",
		"cloudkms.cryptoKeyVersions.destroy",
		"cloudkms.cryptoKeyVersions.restore",
		"cloudkms.cryptoKeyVersions.update",
		"cloudkms.cryptoKeys.setIamPolicy",
		"cloudkms.cryptoKeys.update",
	}
)

// GCPPermissions returns the permissions about which Describe asks.
func GCPPermissions() []string { return slices.Concat(GCPNeeded, GCPReading, GCPChanging) }

// Describe reads what Google says about the key. Asking which permissions one
// has needs none, and changes nothing
// (https://cloud.google.com/iam/docs/testing-permissions).
func (g *GCP) Describe(ctx context.Context) (d GCPDescription) {
	d.KeyErr = g.call(ctx, "describe", func(call context.Context) error {
		key, err := g.conn.client().GetCryptoKey(call, &kmspb.GetCryptoKeyRequest{Name: g.name}, g.retry())
		if err == nil {
			d.setKey(key)
		}
		return err
	})

	d.PermissionsErr = g.call(ctx, "describe", func(call context.Context) error {
		out, err := g.conn.client().TestIamPermissions(call, &iampb.TestIamPermissionsRequest{
			Resource: g.name, Permissions: GCPPermissions(),
		}, g.retry())
		d.Permissions = out.GetPermissions()
		return err
	})

	d.BindingsErr = g.call(ctx, "describe", func(call context.Context) error {
		out, err := g.conn.client().GetIamPolicy(call, &iampb.GetIamPolicyRequest{
			Resource: g.name, Options: &iampb.GetPolicyOptions{RequestedPolicyVersion: 3},
		}, g.retry())
		d.Bindings = nil
		for _, b := range out.GetBindings() {
			d.Bindings = append(d.Bindings, GCPBinding{b.GetRole(), b.GetMembers(), b.GetCondition().GetExpression()})
		}
		return err
	})

	return d
}

func (d *GCPDescription) setKey(key *kmspb.CryptoKey) {
	d.Purpose, d.Labels = key.GetPurpose().String(), key.GetLabels()
	d.State, d.Protection = key.GetPrimary().GetState().String(), key.GetPrimary().GetProtectionLevel().String()
	d.Rotation, d.DestroyAfter = key.GetRotationPeriod().AsDuration(), key.GetDestroyScheduledDuration().AsDuration()
	if key.GetCreateTime() != nil {
		d.Created = key.GetCreateTime().AsTime()
	}
}
