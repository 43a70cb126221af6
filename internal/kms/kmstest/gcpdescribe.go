package kmstest

import (
	"context"
	"slices"
	"time"

	"cloud.google.com/go/iam/apiv1/iampb"
	"cloud.google.com/go/kms/apiv1/kmspb"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/types/known/durationpb"
	"google.golang.org/protobuf/types/known/timestamppb"
)

// GCPAccess is what a key of GCPServer says about itself, and what its caller
// may do. There is one caller. It may encrypt and decrypt anyway.
type GCPAccess struct {
	Permissions  []string // in addition to those for encrypting and decrypting
	Bindings     []*iampb.Binding
	Labels       map[string]string
	Rotation     time.Duration
	DestroyAfter time.Duration
	Protection   kmspb.ProtectionLevel // unspecified means SOFTWARE
}

// SetAccess replaces what a key says about itself.
func (s *GCPServer) SetAccess(name string, a GCPAccess) {
	s.lock.Lock()
	defer s.lock.Unlock()
	s.keys[name].access = a
}

// describe finds a key for an operation that describes it. The caller holds
// s.lock.
func (s *GCPServer) describe(name, permission string) (*gcpKey, error) {
	k := s.keys[name]
	if k != nil && (permission == "" || slices.Contains(k.access.Permissions, permission)) {
		return k, nil
	}
	return nil, refuseGCP(codes.PermissionDenied, "Permission '"+permission+"' denied on resource '"+name+
		"' (or it may not exist).", gcpInfo("IAM_PERMISSION_DENIED", "cloudkms.googleapis.com"))
}

// GetCryptoKey implements kmspb.KeyManagementServiceServer.
func (s *GCPServer) GetCryptoKey(ctx context.Context, in *kmspb.GetCryptoKeyRequest) (*kmspb.CryptoKey, error) {
	if err := s.misbehave(ctx, "GetCryptoKey", in.GetName()); err != nil {
		return nil, err
	}
	s.lock.Lock()
	defer s.lock.Unlock()
	k, err := s.describe(in.GetName(), "cloudkms.cryptoKeys.get")
	if err != nil {
		return nil, err
	}

	level := k.access.Protection
	if level == kmspb.ProtectionLevel_PROTECTION_LEVEL_UNSPECIFIED {
		level = kmspb.ProtectionLevel_SOFTWARE
	}
	out := &kmspb.CryptoKey{
		Name: in.GetName(), Purpose: kmspb.CryptoKey_ENCRYPT_DECRYPT, Labels: k.access.Labels,
		Primary:                  &kmspb.CryptoKeyVersion{State: k.versions[k.primary-1].state, ProtectionLevel: level},
		CreateTime:               timestamppb.New(time.Unix(1_790_000_000, 0)),
		DestroyScheduledDuration: durationpb.New(k.access.DestroyAfter),
	}
	if k.access.Rotation > 0 {
		out.RotationSchedule = &kmspb.CryptoKey_RotationPeriod{RotationPeriod: durationpb.New(k.access.Rotation)}
	}
	return out, nil
}

// TestIamPermissions implements iampb.IAMPolicyServer. Everyone may ask.
func (s *GCPServer) TestIamPermissions(
	ctx context.Context, in *iampb.TestIamPermissionsRequest,
) (*iampb.TestIamPermissionsResponse, error) {
	if err := s.misbehave(ctx, "TestIamPermissions", in.GetResource()); err != nil {
		return nil, err
	}
	s.lock.Lock()
	defer s.lock.Unlock()

	out := new(iampb.TestIamPermissionsResponse)
	k := s.keys[in.GetResource()]
	for _, p := range in.GetPermissions() {
		switch {
		case !gcpPermissionForm.MatchString(p):
			return nil, status.Errorf(codes.InvalidArgument, "Permission %s is not valid for this resource.", p)
		case k == nil: // not an error, as documented
		case p == "cloudkms.cryptoKeyVersions.useToEncrypt", p == "cloudkms.cryptoKeyVersions.useToDecrypt",
			slices.Contains(k.access.Permissions, p):
			out.Permissions = append(out.Permissions, p)
		}
	}
	return out, nil
}

// GetIamPolicy implements iampb.IAMPolicyServer.
func (s *GCPServer) GetIamPolicy(ctx context.Context, in *iampb.GetIamPolicyRequest) (*iampb.Policy, error) {
	if err := s.misbehave(ctx, "GetIamPolicy", in.GetResource()); err != nil {
		return nil, err
	}
	s.lock.Lock()
	defer s.lock.Unlock()
	k, err := s.describe(in.GetResource(), "cloudkms.cryptoKeys.getIamPolicy")
	if err != nil {
		return nil, err
	}
	return &iampb.Policy{Version: 3, Bindings: k.access.Bindings}, nil
}
