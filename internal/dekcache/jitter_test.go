package dekcache

import (
	"testing"
	"time"
)

// A DEK expires before the TTL, early enough to ask the KMS again.
func TestJitter(t *testing.T) {
	for _, ttl := range []time.Duration{
		time.Millisecond, time.Second, 2 * time.Second, 10 * time.Second,
		5 * time.Minute, 24 * time.Hour,
	} {
		least, most := ttl, time.Duration(0)
		for range 2000 {
			j := RandomJitter(ttl)
			least, most = min(least, j), max(most, j)
		}

		if least < margin(ttl) || most > margin(ttl)+ttl/10 || most-least < ttl/12 {
			t.Errorf("ttl %v: jitter from %v to %v", ttl, least, most)
		}
		if margin(ttl) < min(ttl/4, 500*time.Millisecond) || most >= ttl/2 {
			t.Errorf("ttl %v: least %v, most %v", ttl, margin(ttl), most)
		}
	}
}
