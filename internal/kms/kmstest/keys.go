package kmstest

import (
	"testing"
	"time"

	"github.com/aws/aws-sdk-go-v2/credentials"

	"github.com/cmekproxy/cmekproxy/internal/kms"
)

// CreateKey makes a new enabled key and returns its ARN.
func (s *Server) CreateKey() (arn string, err error) {
	s.store.mu.Lock()
	defer s.store.mu.Unlock()
	k, err := s.store.add()
	if err != nil {
		return "", err
	}
	return s.store.arn(k), nil
}

// DisableKey is the operation of that name. The key may be given as an id or an ARN, as in all that follow.
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

// SetAlias points an alias, "alias/name", to a key, whether it exists yet or not.
func (s *Server) SetAlias(alias, key string) error {
	return s.do(func(st *store, in keyIn) (any, error) {
		return st.setAlias(aliasIn{AliasName: alias, TargetKeyID: in.KeyID})
	}, key)
}

func (s *Server) do(run func(*store, keyIn) (any, error), key string) error {
	s.store.mu.Lock()
	defer s.store.mu.Unlock()
	_, err := run(s.store, keyIn{KeyID: key})
	return err
}

// StartTest starts a server for the time of a test.
func StartTest(t testing.TB) *Server {
	t.Helper()
	s, err := Start(Config{})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = s.Close() })
	return s
}

// NewKey makes a new key and returns it through the provider aws-kms. change, if not nil, edits its configuration,
// which has two attempts and a timeout of 2 seconds.
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
		Credentials: credentials.NewStaticCredentialsProvider("AKIDEXAMPLE", "example", ""),
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
