package advisor

import (
	"math"
	"slices"
	"time"
)

// maxBlobs limits the sample to about half a megabyte.
const maxBlobs = 4096

// ladder contains the TTLs that are always simulated. TTL 0 needs no
// simulation.
var ladder = [...]time.Duration{
	10 * time.Second, 30 * time.Second, time.Minute, 5 * time.Minute, 15 * time.Minute, time.Hour,
}

// The simulated caches: one for each TTL in ladder, and one for the current
// TTL if it is not in ladder.
const (
	own   = len(ladder)
	slots = own + 1
)

// sample contains the simulated caches. It has the blobs whose hash level
// is at least tracked, one in 2^tracked of all blobs. If there are too
// many, the level is raised. If there are few, it is lowered again, so that
// a busy day does not leave a useless sample behind. The history of blobs
// added then is unknown, so they are not counted until the longest TTL has
// passed.
type sample struct {
	ttls    [slots]time.Duration // 0: not simulated
	lives   [slots]time.Duration // lifetime of a DEK for each TTL; 0 for TTL 0
	life    func(ttl time.Duration) time.Duration
	blobs   map[uint64]*blob // by hash
	tracked int32
	counted int32         // minimum level of counted blobs; at least tracked
	lowered time.Duration // when tracked was last lowered
	asked   [slots]asked  // counts, scaled up to all blobs
}

// blob is the state of a wrapped DEK in the simulated caches. Times are
// since the Recorder's start.
type blob struct {
	last    [slots]time.Duration // last request to the KMS for the DEK
	level   int32
	streams int32 // running streams
}

// asked counts how often a simulated cache would have asked the KMS.
type asked struct {
	misses   uint64 // for a starting stream
	renewals uint64 // for a running stream after its TTL
}

// never is longer ago than any TTL.
const never = time.Duration(math.MinInt64 / 2)

func newSample(life func(ttl time.Duration) time.Duration) sample {
	s := sample{blobs: make(map[uint64]*blob), life: life}
	copy(s.ttls[:], ladder[:])
	for i, ttl := range ladder {
		s.lives[i] = life(ttl)
	}
	return s
}

// open starts a stream that reads.
func (s *sample) open(h uint64, now time.Duration) {
	b := s.admit(h, now)
	if b == nil {
		return
	}

	weight := s.weight(b)
	for i, life := range s.lives {
		if life > 0 && now-b.last[i] >= life {
			b.last[i] = now
			s.asked[i].misses += weight
		}
	}

	b.streams++
}

// create starts a stream that writes with a new DEK from the KMS.
func (s *sample) create(h uint64, now time.Duration) {
	b := s.admit(h, now)
	if b == nil {
		return
	}

	for i := range b.last {
		b.last[i] = now
	}

	b.streams++
}

// release ends a stream. It ignores streams that started before their blob
// was in the sample.
func (s *sample) release(h uint64, now time.Duration) {
	if b := s.blobs[h]; b != nil && b.streams > 0 {
		s.renew(b, now)
		b.streams--
	}
}

// admit returns the blob of a hash, with its streams simulated up to now,
// or nil if it is not in the sample.
func (s *sample) admit(h uint64, now time.Duration) *blob {
	if b := s.blobs[h]; b != nil {
		s.renew(b, now)
		return b
	}

	for len(s.blobs) >= maxBlobs && level(h) >= s.tracked {
		s.thin(now)
	}

	if level(h) < s.tracked {
		return nil
	}

	b := &blob{level: level(h)}
	for i := range b.last {
		b.last[i] = never
	}

	s.blobs[h] = b
	return b
}

// renew simulates running streams up to now. They use the DEK continuously,
// so each cache asks for it as soon as it expires.
func (s *sample) renew(b *blob, now time.Duration) {
	if b.streams == 0 {
		return
	}

	weight := s.weight(b)
	for i, life := range s.lives {
		age := now - b.last[i]
		if life == 0 || age < life {
			continue
		}
		b.last[i] = now - age%life
		s.asked[i].renewals += weight * uint64(age/life) //nolint:gosec // at least 1
	}
}

// weight returns how many blobs a blob in the sample represents.
func (s *sample) weight(b *blob) uint64 {
	if b.level < s.counted {
		return 0
	}
	return 1 << s.counted
}

// thin raises the level and removes the blobs below it, which are about
// half.
func (s *sample) thin(now time.Duration) {
	s.tracked++
	for h, b := range s.blobs {
		if b.level < s.tracked {
			s.renew(b, now)
			delete(s.blobs, h)
		}
	}

	s.counted = max(s.counted, s.tracked)
}

// tidy simulates all streams up to now, removes the blobs that are in no
// cache, and lowers the level if there is room. It is called at every page
// of the diary.
func (s *sample) tidy(now time.Duration) {
	for h, b := range s.blobs {
		s.renew(b, now)
		if b.streams == 0 && !s.held(b, now) {
			delete(s.blobs, h)
		}
	}

	if s.counted > s.tracked && now-s.lowered >= slices.Max(s.ttls[:]) {
		s.counted = s.tracked
	}
	if s.counted > s.tracked {
		return // one step at a time
	}

	for n := len(s.blobs); s.tracked > 0 && n < maxBlobs/4; n = max(2*n, 1) {
		s.tracked--
		s.lowered = now
	}
}

// hold simulates all streams up to now, and returns how many DEKs each
// cache contains.
func (s *sample) hold(now time.Duration) (held [slots]float64) {
	for _, b := range s.blobs {
		s.renew(b, now)
		weight := s.weight(b)
		for i, life := range s.lives {
			if now-b.last[i] < life {
				held[i] += float64(weight)
			}
		}
	}

	return held
}

// size returns how many blobs are counted, and their share of all blobs.
func (s *sample) size() (n int, rate float64) {
	for _, b := range s.blobs {
		if b.level >= s.counted {
			n++
		}
	}
	return n, 1 / float64(uint64(1)<<s.counted)
}

// held reports whether any cache contains the DEK.
func (s *sample) held(b *blob, now time.Duration) bool {
	for i, life := range s.lives {
		if now-b.last[i] < life {
			return true
		}
	}
	return false
}

// choose sets the TTL of the cache for the current TTL, and reports whether
// its simulation restarted.
func (s *sample) choose(ttl, now time.Duration) bool {
	if slices.Contains(ladder[:], ttl) {
		ttl = 0
	}
	if ttl == s.ttls[own] {
		return false
	}

	s.ttls[own], s.lives[own], s.asked[own] = ttl, s.life(ttl), asked{}
	for _, b := range s.blobs {
		b.last[own] = never
		if b.streams > 0 {
			b.last[own] = now // a running stream has its DEK
		}
	}

	return true
}
