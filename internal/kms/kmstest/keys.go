package kmstest

import (
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/aws/aws-sdk-go-v2/credentials"

	"github.com/cmekproxy/cmekproxy/internal/kms"
)

// CreateKey creates an enabled key and returns its ARN.
func (s *Server) CreateKey() (arn string, err error) {
	s.store.mu.Lock()
	defer s.store.mu.Unlock()
	k, err := s.store.add("", "")
	if err != nil {
		return "", err
	}
	return s.store.arn(k), nil
}

// CreateMultiRegionKey creates a multi-Region primary key and returns its
// ARN.
func (s *Server) CreateMultiRegionKey() (arn string, err error) {
	s.store.mu.Lock()
	defer s.store.mu.Unlock()
	k, err := s.store.add("", multiRegion)
	if err != nil {
		return "", err
	}
	return s.store.arn(k), nil
}

// Replicate implements ReplicateKey: it creates a replica of a multi-Region
// key on another server, which has another region, and returns its ARN. The
// replica has its own state, policy, grants and aliases.
func (s *Server) Replicate(key string, to *Server) (arn string, err error) {
	s.store.mu.Lock()
	k, err := s.store.findNoAlias(key)
	if err == nil {
		k.Replicas = append(k.Replicas, to.store.region)
	}
	s.store.mu.Unlock()

	switch {
	case err != nil:
		return "", err
	case !strings.HasPrefix(k.ID, multiRegion):
		return "", refuse("UnsupportedOperationException", "%s is not a multi-Region key.", key)
	}

	to.store.mu.Lock()
	defer to.store.mu.Unlock()

	replica, err := to.store.add("", multiRegion)
	if err != nil {
		return "", err
	}

	delete(to.store.Keys, replica.ID)
	replica.ID, replica.Material = k.ID, slices.Clone(k.Material)
	replica.Primary, replica.Replicas = s.store.region, slices.Clone(k.Replicas)
	to.store.Keys[replica.ID] = replica
	return to.store.arn(replica), to.store.save()
}

// DisableKey implements the AWS operation of that name. key is an id or an
// ARN, also in the methods below.
func (s *Server) DisableKey(key string) error { return s.do((*store).disableKey, key) }

// EnableKey implements the AWS operation of that name.
func (s *Server) EnableKey(key string) error { return s.do((*store).enableKey, key) }

// EnableKeyRotation implements the AWS operation of that name.
func (s *Server) EnableKeyRotation(key string) error { return s.do((*store).enableKeyRotation, key) }

// CancelKeyDeletion implements the AWS operation of that name. The key is
// then disabled.
func (s *Server) CancelKeyDeletion(key string) error { return s.do((*store).cancelKeyDeletion, key) }

// ScheduleKeyDeletion implements the AWS operation of that name, with a
// waiting period of 7 days.
func (s *Server) ScheduleKeyDeletion(key string) error {
	return s.do(func(st *store, in keyIn) (any, error) {
		return st.scheduleKeyDeletion(deleteIn{KeyID: in.KeyID, PendingWindowInDays: 7})
	}, key)
}

// DestroyKey deletes a key as at the end of its waiting period.
func (s *Server) DestroyKey(key string) error {
	return s.do(func(st *store, in keyIn) (any, error) {
		k, err := st.findNoAlias(in.KeyID)
		if err != nil {
			return nil, err
		}
		delete(st.Keys, k.ID)
		return nil, st.save()
	}, key)
}

// SetAlias creates an alias, "alias/name", or moves it to another key.
func (s *Server) SetAlias(alias, key string) error {
	return s.do(func(st *store, in keyIn) (any, error) {
		return st.setAlias(aliasIn{AliasName: alias, TargetKeyID: in.KeyID})
	}, key)
}

// UserARN returns the principal, for policies and grants, of the user with
// an access key.
func (s *Server) UserARN(accessKeyID string) string { return s.store.user(accessKeyID) }

// PutKeyPolicy implements the AWS operation of that name. document is a
// JSON policy.
func (s *Server) PutKeyPolicy(key, document string) error {
	return s.do(func(st *store, in keyIn) (any, error) {
		return st.putKeyPolicy(policyIn{KeyID: in.KeyID, Policy: document})
	}, key)
}

// CreateGrant implements the AWS operation of that name. The grant is
// effective at once.
func (s *Server) CreateGrant(key string, g Grant) (id string, err error) {
	err = s.do(func(st *store, in keyIn) (any, error) {
		out, err := st.createGrant(createGrantIn{Grant: g, KeyID: in.KeyID})
		if err == nil {
			id, _ = out.(object)["GrantId"].(string)
		}
		return nil, err
	}, key)
	return id, err
}

// RevokeGrant implements the AWS operation of that name.
func (s *Server) RevokeGrant(key, id string) error {
	return s.do(func(st *store, in keyIn) (any, error) { return st.revokeGrant(grantIn{in.KeyID, id}) }, key)
}

// RetireGrant implements the AWS operation of that name. It has the same
// effect as RevokeGrant.
func (s *Server) RetireGrant(key, id string) error {
	return s.do(func(st *store, in keyIn) (any, error) {
		return st.retireGrant(retireGrantIn{KeyID: in.KeyID, GrantID: id})
	}, key)
}

func (s *Server) do(run func(*store, keyIn) (any, error), key string) error {
	s.store.mu.Lock()
	defer s.store.mu.Unlock()
	_, err := run(s.store, keyIn{KeyID: key})
	return err
}

// StartTest starts a server that runs until the end of the test.
func StartTest(t testing.TB) *Server { return StartRegion(t, Config{}) }

// StartRegion is StartTest with a configuration, for example for another
// region or account.
func StartRegion(t testing.TB, cfg Config) *Server {
	t.Helper()
	s, err := Start(cfg)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = s.Close() })
	return s
}

// AccessKeyID is the access key of clients from NewKey and OpenKey.
const AccessKeyID = "AKIDEXAMPLE"

// NewKey creates a key and returns it as a Wrapper of the provider aws-kms.
// change, if not nil, edits the configuration, which has a timeout of 2
// seconds.
func (s *Server) NewKey(t testing.TB, change func(*kms.AWSConfig)) *kms.AWS {
	t.Helper()
	arn, err := s.CreateKey()
	if err != nil {
		t.Fatal(err)
	}
	return s.OpenKey(t, arn, change)
}

// OpenKey is NewKey for an existing key. id is any identifier that AWS
// accepts.
func (s *Server) OpenKey(t testing.TB, id string, change func(*kms.AWSConfig)) *kms.AWS {
	t.Helper()
	cfg := kms.AWSConfig{
		KeyID:       id,
		Region:      s.Region(),
		Endpoint:    s.URL(),
		Credentials: credentials.NewStaticCredentialsProvider(AccessKeyID, "example", ""),
		Timeout:     2 * time.Second,
	}

	if change != nil {
		change(&cfg)
	}

	w, err := kms.NewAWS(t.Context(), cfg)
	if err != nil {
		t.Fatal(err)
	}

	return w
}
