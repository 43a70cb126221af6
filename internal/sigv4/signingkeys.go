package sigv4

import "sync"

// SigningKeys remembers the keys that were derived from secrets. A derived
// key is valid for a day, a region and a service, and deriving it costs four
// HMACs. Only those of genuine requests are remembered, because clients choose
// the region. It is safe for concurrent use.
type SigningKeys struct {
	mu   sync.RWMutex
	keys map[signingID][]byte
}

type signingID struct {
	secret string
	scope  scope
}

// maxSigningKeys limits how many are remembered. Each takes about 300 bytes.
const maxSigningKeys = 1024

// NewSigningKeys returns an empty SigningKeys.
func NewSigningKeys() *SigningKeys { return &SigningKeys{keys: make(map[signingID][]byte)} }

// get returns a key, derived now if it is not remembered.
func (s *SigningKeys) get(secret string, sc scope) []byte {
	if s == nil {
		return signingKey(secret, sc)
	}
	s.mu.RLock()
	key, ok := s.keys[signingID{secret, sc}]
	s.mu.RUnlock()
	if !ok {
		key = signingKey(secret, sc)
	}
	return key
}

// remember keeps the key of a genuine request. If there are too many, those
// of before are forgotten: most of them are of an earlier day.
func (s *SigningKeys) remember(secret string, sc scope, key []byte) {
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
