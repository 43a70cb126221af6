package dekcache

import (
	"crypto/rand"
	"encoding/binary"
	"time"
)

// A DEK lives for less than the TTL. It is shorter by a margin, so that the
// KMS can be asked again, and what is on its way to a slow client can arrive,
// before the TTL is over. And it is shorter by a random part, so that DEKs
// that were fetched together are not fetched together again.
const (
	marginPercent = 5                      // of the TTL
	minMargin     = 500 * time.Millisecond // or a quarter of the TTL, if that is less
	randomPercent = 10                     // of the TTL, at most
)

func margin(ttl time.Duration) time.Duration {
	return max(ttl*marginPercent/100, min(minMargin, ttl/4))
}

// RandomJitter returns by how much shorter than the TTL the life of a DEK is.
// It is meant for Config.Jitter.
func RandomJitter(ttl time.Duration) time.Duration {
	var random [4]byte
	rand.Read(random[:])
	thousandths := int64(binary.BigEndian.Uint32(random[:]) % 1001)
	return margin(ttl) + time.Duration(int64(ttl)/1000*thousandths*randomPercent/100)
}

// MeanLife returns how long a DEK lives on average, with RandomJitter.
func MeanLife(ttl time.Duration) time.Duration {
	return ttl - margin(ttl) - ttl*randomPercent/2/100
}
