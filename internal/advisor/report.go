package advisor

import (
	"cmp"
	"slices"
	"time"
)

// Month is the length of a month for MonthlyCost.
const Month = 30 * 24 * time.Hour

// Report estimates the cost of each TTL, from the accesses of the last 24
// hours or since the start.
type Report struct {
	Observed          time.Duration // time covered
	AccessesPerSecond float64       // streams that started to read
	CreatesPerSecond  float64       // new DEKs
	ProbesPerSecond   float64       // KMS calls that detect revocations
	SampledBlobs      int           // blobs simulated and counted now
	SampleRate        float64       // their share of all blobs; 1 means exact results
	PricePer10000     float64       // of KMS calls, in Currency
	Currency          string
	Rows              []Row // sorted by TTL, starting with 0
}

// Row is the estimate for one TTL. TTL 0 is for comparison: there is no
// cache, and each stream asks the KMS once, at its start. Its window does
// not cover running streams.
type Row struct {
	TTL              time.Duration
	Current          bool          // the current TTL
	CallsPerSecond   float64       // to the KMS, for reads, creates and probes
	HitRatio         float64       // share of accesses without a KMS call; 0 if there are none
	MonthlyCost      float64       // of CallsPerSecond for a Month, in Currency
	RevocationWindow time.Duration // how long a revocation takes
	DEKsHeld         float64       // number of DEKs in the cache now
	// WarmingUp is set if this TTL has been observed for less than one TTL.
	// The results then include first accesses and are upper bounds.
	WarmingUp bool
}

// Report returns the current estimates.
func (r *Recorder) Report() Report {
	price := r.price.Load()
	rep := Report{
		ProbesPerSecond: r.cfg.ProbesPerSecond(),
		PricePer10000:   price.per10000,
		Currency:        price.currency,
	}

	r.measure(&rep)
	slices.SortFunc(rep.Rows, func(a, b Row) int { return cmp.Compare(a.TTL, b.TTL) })

	for i := range rep.Rows {
		row := &rep.Rows[i]
		row.CallsPerSecond += rep.ProbesPerSecond
		row.MonthlyCost = row.CallsPerSecond * Month.Seconds() / 10_000 * rep.PricePer10000
		row.RevocationWindow = r.cfg.Window(row.TTL)
	}

	return rep
}

// measure sets the fields that need the lock.
func (r *Recorder) measure(rep *Report) {
	r.mu.Lock()
	defer r.mu.Unlock()

	now := r.advance()
	held := r.sample.hold(now)
	present, oldest := r.tally(now), r.diary.oldest()
	seen := between(oldest, present)

	rep.Observed = seen.took
	rep.AccessesPerSecond = seen.perSecond(seen.accesses)
	rep.CreatesPerSecond = seen.perSecond(seen.creates)
	rep.SampledBlobs, rep.SampleRate = r.sample.size()
	rep.Rows = append(rep.Rows, seen.row(0, asked{misses: seen.accesses}))

	for i, ttl := range r.sample.ttls {
		if ttl == 0 {
			continue
		}

		s := seen
		if i == own && r.since.at >= oldest.at {
			s = between(r.since, present)
		}

		row := s.row(ttl, s.asked[i])
		row.DEKsHeld = held[i]
		rep.Rows = append(rep.Rows, row)
	}

	for i := range rep.Rows {
		rep.Rows[i].Current = rep.Rows[i].TTL == r.ttl
	}
}

// span contains the counts between two points in time.
type span struct {
	took              time.Duration
	accesses, creates uint64
	asked             [slots]asked
}

func between(from, to tally) span {
	s := span{took: to.at - from.at, accesses: to.accesses - from.accesses, creates: to.creates - from.creates}
	for i := range s.asked {
		s.asked[i].misses = to.asked[i].misses - from.asked[i].misses
		s.asked[i].renewals = to.asked[i].renewals - from.asked[i].renewals
	}
	return s
}

// row returns the row of a TTL, without the fields that depend on Config.
// Misses may be estimates from the sample; accesses are always counted, so
// misses are limited to them.
func (s *span) row(ttl time.Duration, a asked) Row {
	misses := min(a.misses, s.accesses)
	row := Row{
		TTL:            ttl,
		CallsPerSecond: s.perSecond(misses + a.renewals + s.creates),
		WarmingUp:      s.took < ttl,
	}

	if s.accesses > 0 {
		row.HitRatio = float64(s.accesses-misses) / float64(s.accesses)
	}
	return row
}

func (s *span) perSecond(n uint64) float64 {
	if s.took <= 0 {
		return 0
	}
	return float64(n) / s.took.Seconds()
}
