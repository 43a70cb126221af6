package kms

import (
	"cmp"
	"context"
	"crypto/rand"
	"crypto/subtle"
	"errors"
	"fmt"
	"slices"
	"sync/atomic"
	"time"

	"github.com/cmekproxy/cmekproxy/internal/crypt"
)

// Member is a KMS key that is used together with others. It may be opened
// later; until then it counts as unreachable.
type Member struct {
	Name   string // for error messages
	opened atomic.Pointer[Wrapper]
}

// Open sets the key. It can be called again.
func (m *Member) Open(w Wrapper) { m.opened.Store(&w) }

// get returns the key, or the error of one that is not open.
func (m *Member) get(op string) (Wrapper, error) {
	if w := m.opened.Load(); w != nil {
		return *w, nil
	}
	return nil, &Error{Kind: Unreachable, Op: op, KeyID: m.Name, Err: errors.New("the key is not open yet")}
}

// MembersConfig configures AllOf and AnyOf.
type MembersConfig struct {
	// ID is the id in the envelopes of objects.
	ID string
	// Members are two to four different keys.
	Members []*Member
	// Grace is how long AnyOf waits for the other answers after one member
	// has unwrapped or wrapped a data key. A no within this time is final.
	// 0 means 1 s.
	Grace time.Duration
	// Missing is called when AnyOf has done without a member. It may be nil.
	Missing func(member, op string, err error)
}

const defaultGrace = time.Second

// AllOf returns a key that consists of several, which must all agree: the
// data key is split, and each member wraps a share. Each share alone is
// random. A no of any member is final; if one is unreachable, so is the key.
func AllOf(cfg MembersConfig) Wrapper { return &members{cfg, allWraps} }

// AnyOf returns a key that consists of several, each of which wraps the data
// key. One is enough, as long as no other one says no: a member that fails in
// another way is passed over, and a no of any member is final.
//
// All members are asked each time. A no has no effect if it cannot be heard:
// that KMS is unreachable, or was so when the object was written, so that it
// has no wrap in it.
func AnyOf(cfg MembersConfig) Wrapper { return &members{cfg, anyWrap} }

type members struct {
	cfg    MembersConfig
	scheme scheme
}

// KeyID implements Wrapper.
func (m *members) KeyID() string { return m.cfg.ID }

// answer is the answer of one member.
type answer struct {
	member int
	wrap   bundleWrap // of a wrap
	key    []byte     // of an unwrap
	trace  string     // the KMS's id of the request, after the member's name
	err    error
}

// Wrap implements Wrapper.
func (m *members) Wrap(ctx context.Context, dek []byte, ec EncryptionContext) ([]byte, error) {
	if err := checkWrap(ctx, m.KeyID(), dek, ec); err != nil {
		return nil, err
	}
	shares := m.shares(dek)
	defer func() {
		for _, share := range shares {
			clear(share)
		}
	}()

	answers, err := m.ask(ctx, "wrap", len(shares), func(ctx context.Context, i int) (out answer) {
		w, err := m.cfg.Members[i].get("wrap")
		if err != nil {
			return answer{err: err}
		}
		share := slices.Clone(shares[i]) // an answer may come after this call has ended
		defer clear(share)
		out.wrap.keyID = w.KeyID()
		out.wrap.blob, out.err = Wrap(ctx, w, share, ec)
		return out
	})
	if err != nil {
		return nil, err
	}

	b := &bundle{scheme: m.scheme}
	for _, a := range answers {
		b.wraps = append(b.wraps, a.wrap)
	}
	out, err := b.bytes()
	if err != nil {
		return nil, &Error{Kind: Internal, Op: "wrap", KeyID: m.KeyID(), Err: err}
	}
	return out, checkFit("wrap", m.KeyID(), out)
}

// shares returns what each member wraps.
func (m *members) shares(dek []byte) [][]byte {
	n := len(m.cfg.Members)
	shares := make([][]byte, n)
	last := slices.Clone(dek)
	for i := range n - 1 {
		if m.scheme == anyWrap {
			shares[i] = slices.Clone(dek)
			continue
		}
		shares[i] = make([]byte, crypt.DEKSize)
		rand.Read(shares[i]) // never fails: it crashes the program instead
		subtle.XORBytes(last, last, shares[i])
	}
	shares[n-1] = last
	return shares
}

// Unwrap implements Wrapper.
func (m *members) Unwrap(ctx context.Context, wrapped []byte, ec EncryptionContext) ([]byte, error) {
	if err := checkCall(ctx, "unwrap", m.KeyID(), ec); err != nil {
		return nil, err
	}
	b, err := m.parse(wrapped)
	if err != nil {
		return nil, &Error{Kind: InvalidCiphertext, Op: "unwrap", KeyID: m.KeyID(), Err: err}
	}

	answers, err := m.ask(ctx, "unwrap", len(m.cfg.Members), func(ctx context.Context, i int) (out answer) {
		w, err := m.cfg.Members[i].get("unwrap")
		if err != nil {
			return answer{err: err}
		}
		blob := b.blobOf(w.KeyID())
		if blob == nil {
			return answer{err: m.noWrap(w.KeyID())}
		}
		out.key, out.err = Unwrap(ctx, w, blob, ec)
		return out
	})
	defer func() {
		for _, a := range answers {
			clear(a.key)
		}
	}()
	if err != nil {
		return nil, err
	}
	return m.join(answers)
}

// parse decodes the bundle. Its scheme must be that of this key: otherwise
// one member alone could make objects that need the agreement of all.
func (m *members) parse(wrapped []byte) (*bundle, error) {
	if !isBundle(wrapped) {
		return nil, errors.New("it was wrapped by one key alone")
	}
	b, err := parseBundle(wrapped)
	switch {
	case err != nil:
		return nil, err
	case b.scheme != m.scheme:
		return nil, errors.New("its wraps belong together in another way than those of this key")
	case m.scheme == allWraps && len(b.wraps) != len(m.cfg.Members):
		return nil, fmt.Errorf("it has %d wraps, and the key has %d members", len(b.wraps), len(m.cfg.Members))
	}
	return b, m.checkIDs(b)
}

// checkIDs refuses a bundle with a wrap of a key that is not a member.
func (m *members) checkIDs(b *bundle) error {
	var ids []string
	for _, member := range m.cfg.Members {
		w, err := member.get("unwrap")
		if err != nil {
			return nil //nolint:nilerr // its id is not known yet
		}
		ids = append(ids, w.KeyID())
	}

	for _, wrap := range b.wraps {
		if !slices.ContainsFunc(ids, func(id string) bool { return SameKey(id, wrap.keyID) }) {
			return fmt.Errorf("it was wrapped by %s, which is not one of the keys of %s", wrap.keyID, m.KeyID())
		}
	}
	return nil
}

// blobOf returns the blob of a member, or nil.
func (b *bundle) blobOf(keyID string) []byte {
	for _, w := range b.wraps {
		if SameKey(w.keyID, keyID) {
			return w.blob
		}
	}
	return nil
}

// noWrap is the error for a member that has not wrapped this data key. For
// anyOf it is like one that is unreachable, because it was so when the
// object was written.
func (m *members) noWrap(keyID string) error {
	kind := InvalidCiphertext
	if m.scheme == anyWrap {
		kind = Unreachable
	}
	return &Error{Kind: kind, Op: "unwrap", KeyID: keyID, Err: errNoWrap}
}

var errNoWrap = errors.New("it has not wrapped this data key")

// join returns the data key of the members' answers.
func (m *members) join(answers []answer) ([]byte, error) {
	dek := slices.Clone(answers[0].key)
	for _, a := range answers[1:] {
		if m.scheme == allWraps {
			subtle.XORBytes(dek, dek, a.key)
			continue
		}
		if subtle.ConstantTimeCompare(dek, a.key) != 1 {
			clear(dek)
			return nil, &Error{
				Kind: InvalidCiphertext, Op: "unwrap", KeyID: m.KeyID(),
				Err: errors.New("its members have wrapped different data keys"),
			}
		}
	}
	return dek, nil
}

// ask asks all members at the same time, and returns the good answers in the
// order of the members. It returns an error if a member says no, or if there
// are too few good answers.
func (m *members) ask(
	ctx context.Context, op string, n int, call func(ctx context.Context, i int) answer,
) ([]answer, error) {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	came := make(chan answer, n)
	for i := range n {
		go func() {
			var trace Trace
			a := call(WithTrace(ctx, &trace), i)
			a.member = i
			if id := trace.RequestID(); id != "" {
				a.trace = m.cfg.Members[i].Name + "=" + id
			}
			came <- a
		}()
	}

	var good []answer
	traces := make([]string, n)
	defer func() { traceRequests(ctx, traces) }()
	failed := make([]error, n)
	waiting := make(map[int]bool, n)
	for i := range n {
		waiting[i] = true
	}

	var grace <-chan time.Time
	for len(waiting) > 0 {
		select {
		case a := <-came:
			delete(waiting, a.member)
			traces[a.member] = a.trace
			if failed[a.member] = a.err; a.err == nil {
				good = append(good, a)
			}
			if IsRevoked(a.err) || hasKind(a.err, InvalidCiphertext) { // final, whatever the others say
				wipeLate(came, len(waiting))
				return good, a.err
			}
			if m.scheme == anyWrap && grace == nil && a.err == nil {
				grace = time.After(cmp.Or(m.cfg.Grace, defaultGrace))
			}
		case <-grace:
			for i := range waiting {
				failed[i] = &Error{Kind: Unreachable, Op: op, KeyID: m.cfg.Members[i].Name, Err: errTooLate}
			}
			wipeLate(came, len(waiting))
			clear(waiting)
		}
	}

	slices.SortFunc(good, func(a, b answer) int { return a.member - b.member })
	return good, m.verdict(op, good, failed)
}

var errTooLate = errors.New("another member was faster, and this one did not answer soon after it")

// verdict returns the error of all answers together, if none is a no. A
// member that cannot be reached says less than one that has answered.
func (m *members) verdict(op string, good []answer, failed []error) error {
	var first error
	for i, err := range failed {
		switch {
		case err == nil:
			continue
		case first == nil, IsUnreachable(first) && !IsUnreachable(err):
			first = err
		}
		if m.scheme == anyWrap && len(good) > 0 && m.cfg.Missing != nil {
			m.cfg.Missing(m.cfg.Members[i].Name, op, err)
		}
	}
	if m.scheme == anyWrap && len(good) > 0 {
		return nil
	}
	return first
}

// wipeLate wipes the keys in n answers that nobody waits for.
func wipeLate(came <-chan answer, n int) {
	go func() {
		for range n {
			a := <-came
			clear(a.key)
		}
	}()
}

// Unbound implements Unbounder. A data key that all members must make is
// bound if one of its shares is.
func (m *members) Unbound(wrapped []byte) bool {
	b, err := m.parse(wrapped)
	if err != nil {
		return false
	}
	unbound := 0
	for _, member := range m.cfg.Members {
		if w, err := member.get("unwrap"); err == nil && Unbound(w, b.blobOf(w.KeyID())) {
			unbound++
		}
	}
	return unbound > 0 && (m.scheme == anyWrap || unbound == len(m.cfg.Members))
}
