package kmstest

import (
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/aws/aws-sdk-go-v2/credentials"

	"github.com/cmekproxy/cmekproxy/internal/kms"
)

// CreateKey makes a new enabled key and returns its ARN.
func (s *Server) CreateKey() (arn string, err error) {
	s.store.mu.Lock()
	defer s.store.mu.Unlock()
	k, err := s.store.add("", "")
	if err != nil {
		return "", err
	}
	return s.store.arn(k), nil
}

// CreateMultiRegionKey makes a new primary key that can be replicated, and
// returns its ARN.
func (s *Server) CreateMultiRegionKey() (arn string, err error) {
	s.store.mu.Lock()
	defer s.store.mu.Unlock()
	k, err := s.store.add("", multiRegion)
	if err != nil {
		return "", err
	}
	return s.store.arn(k), nil
}

// Replicate is what ReplicateKey does: it makes a replica of a multi-Region key
// in the region of another server, and returns its ARN. Its state, policy,
// grants and aliases are its own.
func (s *Server) Replicate(key string, to *Server) (arn string, err error) {
	s.store.mu.Lock()
	k, err := s.store.findNoAlias(key)
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
	to.store.Keys[replica.ID] = replica
	return to.store.arn(replica), to.store.save()
}

// DisableKey is the operation of that name. The key may be given as an id or
// an ARN, as in all that follow.
func (s *Server) DisableKey(key string) error { return s.do((*store).disableKey, key) }

// EnableKey is the operation of that name.
func (s *Server) EnableKey(key string) error { return s.do((*store).enableKey, key) }

// CancelKeyDeletion is the operation of that name: the key is then disabled.
func (s *Server) CancelKeyDeletion(key string) error { return s.do((*store).cancelKeyDeletion, key) }

// ScheduleKeyDeletion is the operation of that name, with 7 days to wait.
func (s *Server) ScheduleKeyDeletion(key string) error {
	return s.do(func(st *store, in keyIn) (any, error) {
		return st.scheduleKeyDeletion(deleteIn{KeyID: in.KeyID, PendingWindowInDays: 7})
	}, key)
}

// DestroyKey is the end of a key whose waiting time is over.
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

// SetAlias points an alias, "alias/name", to a key, whether it exists yet or
// not.
func (s *Server) SetAlias(alias, key string) error {
	return s.do(func(st *store, in keyIn) (any, error) {
		return st.setAlias(aliasIn{AliasName: alias, TargetKeyID: in.KeyID})
	}, key)
}

// UserARN is the principal, for policies and grants, that signs with an access
// key.
func (s *Server) UserARN(accessKeyID string) string { return s.store.user(accessKeyID) }

// PutKeyPolicy is the operation of that name, with a policy document in JSON.
func (s *Server) PutKeyPolicy(key, document string) error {
	return s.do(func(st *store, in keyIn) (any, error) {
		return st.putKeyPolicy(policyIn{KeyID: in.KeyID, Policy: document})
	}, key)
}

// CreateGrant is the operation of that name. The grant is in force when it
// returns.
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

// RevokeGrant is the operation of that name.
func (s *Server) RevokeGrant(key, id string) error {
	return s.do(func(st *store, in keyIn) (any, error) { return st.revokeGrant(grantIn{in.KeyID, id}) }, key)
}

// RetireGrant is the operation of that name, which here does as RevokeGrant
// does.
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

// StartTest starts a server for the time of a test.
func StartTest(t testing.TB) *Server { return StartRegion(t, Config{}) }

// StartRegion is StartTest for another region or account.
func StartRegion(t testing.TB, cfg Config) *Server {
	t.Helper()
	s, err := Start(cfg)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = s.Close() })
	return s
}

// AccessKeyID is what NewKey and OpenKey sign with.
const AccessKeyID = "AKIDEXAMPLE"

// NewKey makes a new key and returns it through the provider aws-kms. change,
// if not nil, edits its configuration, which has two attempts and a timeout of
// 2 seconds.
func (s *Server) NewKey(t testing.TB, change func(*kms.AWSConfig)) *kms.AWS {
	t.Helper()
	arn, err := s.CreateKey()
	if err != nil {
		t.Fatal(err)
	}
	return s.OpenKey(t, arn, change)
}

// OpenKey is NewKey for a key that exists, by any name that AWS takes.
func (s *Server) OpenKey(t testing.TB, id string, change func(*kms.AWSConfig)) *kms.AWS {
	t.Helper()
	cfg := kms.AWSConfig{
		KeyID:       id,
		Region:      s.Region(),
		Endpoint:    s.URL(),
		Credentials: credentials.NewStaticCredentialsProvider(AccessKeyID, "example", ""),
		Timeout:     2 * time.Second,
		MaxAttempts: 2,
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
