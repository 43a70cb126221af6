package kms_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"regexp"
	"sync/atomic"
	"testing"
	"time"

	"github.com/cmekproxy/cmekproxy/internal/kms"
	"github.com/cmekproxy/cmekproxy/internal/kms/kmstest"
)

func localMember(t *testing.T, name string) *kms.Member {
	t.Helper()
	w, _ := newLocal(t)
	m := &kms.Member{Name: name}
	m.Open(w)
	return m
}

func TestMembersContract(t *testing.T) {
	for name, of := range map[string]func(kms.MembersConfig) kms.Wrapper{"all of": kms.AllOf, "any of": kms.AnyOf} {
		t.Run(name, func(t *testing.T) {
			made := 0
			kmstest.RunContract(t, func(t *testing.T) kms.Wrapper {
				made++
				return of(kms.MembersConfig{
					ID:      fmt.Sprintf("together:%d", made),
					Members: []*kms.Member{localMember(t, "a"), localMember(t, "b")},
				})
			}, nil)
		})
	}
}

// memberStates are the states of a member's KMS.
var memberStates = map[string]func(s *kmstest.Server, id string) error{
	"works":    func(*kmstest.Server, string) error { return nil },
	"disabled": func(s *kmstest.Server, id string) error { return s.DisableKey(id) },
	"pending":  func(s *kmstest.Server, id string) error { return s.ScheduleKeyDeletion(id) },
	"denied":   func(s *kmstest.Server, _ string) error { s.SetFaults(kmstest.Faults{Deny: true}); return nil },
	"drops":    func(s *kmstest.Server, _ string) error { s.SetFaults(kmstest.Faults{Drop: true}); return nil },
	"hangs":    func(s *kmstest.Server, _ string) error { s.SetFaults(kmstest.Faults{Hang: true}); return nil },
	"fails": func(s *kmstest.Server, _ string) error {
		s.SetFaults(kmstest.Faults{Fail: "KMSInternalException"})
		return nil
	},
}

func saysNo(state string) bool { return state == "disabled" || state == "pending" || state == "denied" }

// All combinations of the states of two KMSs. With all_of both must work.
// With any_of one must work, and the other must not say no. In each case, the
// key works again as soon as both do.
func TestMembersInEveryState(t *testing.T) {
	for one, breakOne := range memberStates {
		for two, breakTwo := range memberStates {
			t.Run(one+" and "+two, func(t *testing.T) {
				t.Parallel()
				servers := []*kmstest.Server{kmstest.StartTest(t), kmstest.StartTest(t)}
				members, ids := []*kms.Member{{Name: "one"}, {Name: "two"}}, make([]string, 2)
				for i, s := range servers {
					timeout := 20 * time.Second // longer than a busy machine takes to answer
					if []string{one, two}[i] == "hangs" {
						timeout = time.Second
					}
					w := s.NewKey(t, func(c *kms.AWSConfig) { c.Timeout = timeout })
					members[i].Open(w)
					ids[i] = w.KeyID()
				}

				var missing atomic.Int64
				all := kms.AllOf(kms.MembersConfig{ID: "all-of:x", Members: members})
				anyKey := kms.AnyOf(kms.MembersConfig{
					ID: "any-of:x", Members: members, Grace: 5 * time.Second,
					Missing: func(string, string, error) { missing.Add(1) },
				})
				ec, dek := kmstest.Context("b", "k"), kmstest.NewDEK()
				allBlob, err := all.Wrap(t.Context(), dek, ec)
				must(t, err)
				anyBlob, err := anyKey.Wrap(t.Context(), dek, ec)
				must(t, err)

				must(t, breakOne(servers[0], ids[0]))
				must(t, breakTwo(servers[1], ids[1]))
				no, works := saysNo(one) || saysNo(two), one == "works" && two == "works"

				_, err = all.Unwrap(t.Context(), allBlob, ec)
				check(t, "all_of: unwrap", err, works, no)
				_, err = all.Wrap(t.Context(), dek, ec)
				check(t, "all_of: wrap", err, works, no)

				works = (one == "works" || two == "works") && !no
				got, err := anyKey.Unwrap(t.Context(), anyBlob, ec)
				check(t, "any_of: unwrap", err, works, no)
				if works && !bytes.Equal(got, dek) {
					t.Error("any_of: another data key")
				}
				late, err := anyKey.Wrap(t.Context(), dek, ec)
				check(t, "any_of: wrap", err, works, no)
				if alone := works && one != two; alone != (missing.Load() > 0) {
					t.Errorf("any_of: a member is missing: %t, and it was reported %d times", alone, missing.Load())
				}

				for i, s := range servers {
					s.SetFaults(kmstest.Faults{})
					_ = s.CancelKeyDeletion(ids[i]) // fails if it was not pending
					must(t, s.EnableKey(ids[i]))
				}
				for what, row := range map[string]struct {
					w    kms.Wrapper
					blob []byte
				}{"all_of": {all, allBlob}, "any_of": {anyKey, anyBlob}, "any_of, written meanwhile": {anyKey, late}} {
					if row.blob == nil {
						continue
					}
					if got, err := row.w.Unwrap(t.Context(), row.blob, ec); err != nil || !bytes.Equal(got, dek) {
						t.Errorf("%s, restored: %v", what, err)
					}
				}
			})
		}
	}
}

func check(t *testing.T, what string, err error, works, no bool) {
	t.Helper()
	if (err == nil) != works || kms.IsRevoked(err) != no || !works && !no && !kms.IsUnreachable(err) {
		t.Errorf("%s: %v; want it to work: %t, a no: %t", what, err, works, no)
	}
}

// A member that is not open yet is like one that is unreachable.
func TestMembersOpenedLater(t *testing.T) {
	one, two := localMember(t, "one"), &kms.Member{Name: "two"}
	ec, dek := kmstest.Context("b", "k"), kmstest.NewDEK()
	all := kms.AllOf(kms.MembersConfig{ID: "all-of:x", Members: []*kms.Member{one, two}})
	anyKey := kms.AnyOf(kms.MembersConfig{ID: "any-of:x", Members: []*kms.Member{one, two}})

	if _, err := all.Wrap(t.Context(), dek, ec); !kms.IsUnreachable(err) {
		t.Errorf("all_of: %v", err)
	}
	alone, err := anyKey.Wrap(t.Context(), dek, ec)
	must(t, err)

	w, _ := newLocal(t)
	two.Open(w)
	both, err := anyKey.Wrap(t.Context(), dek, ec)
	must(t, err)
	_, err = all.Wrap(t.Context(), dek, ec)
	must(t, err)

	for _, blob := range [][]byte{alone, both} {
		if got, err := anyKey.Unwrap(t.Context(), blob, ec); err != nil || !bytes.Equal(got, dek) {
			t.Errorf("any_of: %v", err)
		}
	}
}

// One member alone cannot make what all must agree to, and no other key can
// make what one of the members must.
func TestMembersRefuseWhatOthersMade(t *testing.T) {
	one, two, other := localMember(t, "one"), localMember(t, "two"), localMember(t, "other")
	ec, dek := kmstest.Context("b", "k"), kmstest.NewDEK()
	pair := []*kms.Member{one, two}
	all := kms.AllOf(kms.MembersConfig{ID: "all-of:x", Members: pair})
	anyKey := kms.AnyOf(kms.MembersConfig{ID: "any-of:x", Members: pair})
	single, _ := newLocal(t)

	for name, row := range map[string]struct{ reads, wrote kms.Wrapper }{
		"any of them instead of all": {all, anyKey},
		"all instead of any":         {anyKey, all},
		"one alone":                  {all, single},
		"one alone, any_of":          {anyKey, single},
		"with a third": {all, kms.AllOf(kms.MembersConfig{
			ID: "all-of:x", Members: []*kms.Member{one, two, other},
		})},
		"with another": {all, kms.AllOf(kms.MembersConfig{ID: "all-of:x", Members: []*kms.Member{one, other}})},
		"with another, any_of": {anyKey, kms.AnyOf(kms.MembersConfig{
			ID: "any-of:x", Members: []*kms.Member{one, other},
		})},
		"recoverable, and one alone": {kms.Recoverable(all, nil), kms.Recoverable(single, recoveryKey(t).Public())},
	} {
		t.Run(name, func(t *testing.T) {
			blob, err := row.wrote.Wrap(t.Context(), dek, ec)
			must(t, err)
			if _, err := row.reads.Unwrap(t.Context(), blob, ec); err == nil || kms.IsRevoked(err) || kms.IsUnreachable(err) {
				t.Errorf("%v", err)
			}
		})
	}
}

// The audit log can name the request to each KMS.
func TestMembersTrace(t *testing.T) {
	members := []*kms.Member{{Name: "customer"}, {Name: "vendor"}}
	for _, m := range members {
		m.Open(kmstest.StartTest(t).NewKey(t, nil))
	}
	for name, w := range map[string]kms.Wrapper{
		"all of": kms.AllOf(kms.MembersConfig{ID: "all-of:x", Members: members}),
		"any of": kms.AnyOf(kms.MembersConfig{ID: "any-of:x", Members: members}),
	} {
		t.Run(name, func(t *testing.T) {
			var trace kms.Trace
			_, err := w.Wrap(kms.WithTrace(t.Context(), &trace), kmstest.NewDEK(), kmstest.Context("b", "k"))
			must(t, err)
			if ids := trace.RequestID(); !regexp.MustCompile(`^customer=\S+ vendor=\S+$`).MatchString(ids) {
				t.Errorf("%q", ids)
			}
		})
	}
}

// The shares of two members are independent: neither is the data key.
func TestSharesAreNotTheDataKey(t *testing.T) {
	one, two := &recordingKey{}, &recordingKey{}
	members := []*kms.Member{{Name: "one"}, {Name: "two"}}
	members[0].Open(one)
	members[1].Open(two)
	dek := kmstest.NewDEK()
	_, _ = kms.AllOf(kms.MembersConfig{ID: "x", Members: members}).Wrap(t.Context(), dek, kmstest.Context("b", "k"))

	if len(one.saw) != 32 || len(two.saw) != 32 || bytes.Equal(one.saw, dek) || bytes.Equal(two.saw, dek) {
		t.Errorf("%x and %x of %x", one.saw, two.saw, dek)
	}
}

// answering unwraps everything to the same key.
type answering struct {
	id  string
	key []byte
}

func (a *answering) KeyID() string { return a.id }

func (a *answering) Wrap(context.Context, []byte, kms.EncryptionContext) ([]byte, error) {
	return nil, errors.New("only unwraps")
}

func (a *answering) Unwrap(context.Context, []byte, kms.EncryptionContext) ([]byte, error) {
	return bytes.Clone(a.key), nil
}

// spyKey keeps what it has wrapped.
type spyKey struct {
	kms.Wrapper
	wrapped []byte
}

func (s *spyKey) Wrap(ctx context.Context, dek []byte, ec kms.EncryptionContext) ([]byte, error) {
	s.wrapped = bytes.Clone(dek)
	return s.Wrapper.Wrap(ctx, dek, ec)
}
