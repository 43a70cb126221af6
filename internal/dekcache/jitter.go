package dekcache

import (
	"crypto/rand"
	"encoding/binary"
	"time"
)

// The lifetime of a DEK is shorter than the TTL for two reasons. A fixed
// margin leaves time to ask the KMS again, and for data in transit to a
// slow client to arrive, before the TTL ends. A random part prevents DEKs
// that were fetched together from being fetched together again.
const (
	marginPercent = 5                      // of the TTL
	minMargin     = 500 * time.Millisecond // or a quarter of the TTL, if that is less
	randomPercent = 10                     // of the TTL, at most
)

func margin(ttl time.Duration) time.Duration {
	return max(ttl*marginPercent/100, min(minMargin, ttl/4))
}

// RandomJitter returns how much shorter than the TTL the lifetime of a DEK
// is. It is meant for Config.Jitter.
func RandomJitter(ttl time.Duration) time.Duration {
	var random [4]byte
	rand.Read(random[:])
	thousandths := int64(binary.BigEndian.Uint32(random[:]) % 1001)
	return margin(ttl) + time.Duration(int64(ttl)/1000*thousandths*randomPercent/100)
}

// MeanLife returns the mean lifetime of a DEK with RandomJitter.
func MeanLife(ttl time.Duration) time.Duration {
	return ttl - margin(ttl) - ttl*randomPercent/2/100
}
