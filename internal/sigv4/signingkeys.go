package sigv4

import (
	"crypto/hmac"
	"crypto/sha256"
	"encoding/hex"
	"hash"
	"sync"
)

// signingKey is a key that was derived from a secret. It is safe for
// concurrent use.
type signingKey struct {
	secret []byte
	macs   sync.Pool // of hash.Hash: HMACs with this key
}

// newSigningKey derives the key for a scope.
func newSigningKey(secret string, s scope) *signingKey {
	key := hmacSHA256([]byte("AWS4"+secret), s.date)
	key = hmacSHA256(key, s.region)
	key = hmacSHA256(key, s.service)
	return &signingKey{secret: hmacSHA256(key, s.terminator)}
}

// newMAC returns an HMAC with the key.
func (k *signingKey) newMAC() hash.Hash { return hmac.New(sha256.New, k.secret) }

// sign appends the signature of text to b, in hex.
func (k *signingKey) sign(b, text []byte) []byte {
	mac, ok := k.macs.Get().(hash.Hash)
	if !ok {
		mac = k.newMAC()
	}
	mac.Reset()
	mac.Write(text)
	b = hex.AppendEncode(b, mac.Sum(nil))
	k.macs.Put(mac)
	return b
}

func hmacSHA256(key []byte, text string) []byte {
	h := hmac.New(sha256.New, key)
	h.Write([]byte(text))
	return h.Sum(nil)
}

// SigningKeys remembers the keys that were derived from secrets. A derived
// key is valid for a day, a region and a service, and deriving it costs four
// HMACs. Only those of genuine requests are remembered, because clients choose
// the region. It is safe for concurrent use.
type SigningKeys struct {
	mu   sync.RWMutex
	keys map[signingID]*signingKey
}

type signingID struct {
	secret string
	scope  scope
}

// maxSigningKeys limits how many are remembered. Each takes about 1 KiB.
const maxSigningKeys = 1024

// NewSigningKeys returns an empty SigningKeys.
func NewSigningKeys() *SigningKeys { return &SigningKeys{keys: make(map[signingID]*signingKey)} }

// get returns a key, derived now if it is not remembered.
func (s *SigningKeys) get(secret string, sc scope) *signingKey {
	if s == nil {
		return newSigningKey(secret, sc)
	}
	s.mu.RLock()
	key, ok := s.keys[signingID{secret, sc}]
	s.mu.RUnlock()
	if !ok {
		key = newSigningKey(secret, sc)
	}
	return key
}

// remember keeps the key of a genuine request. If there are too many, those
// of before are forgotten: most of them are of an earlier day.
func (s *SigningKeys) remember(secret string, sc scope, key *signingKey) {
	if s == nil {
		return
	}
	id := signingID{secret, sc}
	s.mu.RLock()
	_, ok := s.keys[id]
	s.mu.RUnlock()
	if ok {
		return
	}

	s.mu.Lock()
	defer s.mu.Unlock()
	if len(s.keys) >= maxSigningKeys {
		clear(s.keys)
	}
	s.keys[id] = key
}
