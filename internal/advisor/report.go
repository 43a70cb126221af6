package advisor

import (
	"cmp"
	"slices"
	"time"
)

// Month is the month of MonthlyCost.
const Month = 30 * 24 * time.Hour

// Report is what each TTL would cost, from what was seen in the last 24 hours,
// or since the start.
type Report struct {
	Observed          time.Duration // how long
	AccessesPerSecond float64       // streams that began to read
	CreatesPerSecond  float64       // new DEKs
	ProbesPerSecond   float64       // KMS calls to find out about revocations
	SampledBlobs      int           // blobs that are simulated and counted now
	SampleRate        float64       // the part of all blobs that they are; 1: the figures are exact
	PricePer10000     float64       // of KMS calls, in Currency
	Currency          string
	Rows              []Row // from the shortest TTL, 0, to the longest
}

// Row is what one TTL would cost. With a TTL of 0 there is no cache, and each
// stream asks the KMS once, at its beginning: a yardstick, whose window says
// nothing of streams under way.
type Row struct {
	TTL              time.Duration
	Current          bool          // in force now
	CallsPerSecond   float64       // to the KMS: for reads, creates and probes
	HitRatio         float64       // the part of the accesses that cost no call; 0 without any
	MonthlyCost      float64       // of CallsPerSecond, for a Month, in Currency
	RevocationWindow time.Duration // how long a revocation takes to bite
	DEKsHeld         float64       // how many DEKs would be in the cache now
	// WarmingUp says that this TTL has been observed for less than itself: the
	// first access of everything is in the figures, and they are an upper
	// bound.
	WarmingUp bool
}

// Report returns the figures of now.
func (r *Recorder) Report() Report {
	rep := Report{
		ProbesPerSecond: r.cfg.ProbesPerSecond(),
		PricePer10000:   r.cfg.PricePer10000,
		Currency:        r.cfg.Currency,
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

// measure fills in what is known only under the lock.
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

// span is what was counted between two moments.
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

// row makes the row of a TTL, without what Config tells. Misses may be
// estimates, scaled up from the sample; accesses are always counted, and
// cannot be fewer.
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
