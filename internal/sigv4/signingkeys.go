package sigv4

import lru "github.com/hashicorp/golang-lru/v2"

// SigningKeys remembers the keys that were derived from secrets. A derived
// key is valid for a day, a region and a service, and deriving it costs four
// HMACs. Only those of genuine requests are remembered, because clients choose
// the region.
type SigningKeys struct {
	keys *lru.Cache[signingID, []byte]
}

type signingID struct {
	secret string
	scope  scope
}

// maxSigningKeys limits how many are remembered. Each takes about 300 bytes.
const maxSigningKeys = 1024

// NewSigningKeys returns an empty SigningKeys.
func NewSigningKeys() *SigningKeys {
	keys, err := lru.New[signingID, []byte](maxSigningKeys)
	if err != nil {
		panic(err) // only for sizes below 1
	}
	return &SigningKeys{keys}
}

// get returns a key, derived now if it is not remembered.
func (s *SigningKeys) get(secret string, sc scope) []byte {
	if s != nil {
		if key, ok := s.keys.Get(signingID{secret, sc}); ok {
			return key
		}
	}
	return signingKey(secret, sc)
}

func (s *SigningKeys) remember(secret string, sc scope, key []byte) {
	if s != nil {
		s.keys.Add(signingID{secret, sc}, key)
	}
}
