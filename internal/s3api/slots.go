package s3api

import (
	"sync"
	"time"

	"github.com/cmekproxy/cmekproxy/internal/access"
)

// A request holds a slot of one of three pools while it is served:
//
//	unsigned  requests that are not authenticated yet and cost more than
//	          computing: forms up to their file, preflights, and look-ups
//	          for the errors of unsigned requests
//	fast      authenticated requests
//	slow      requests that spend most of their time waiting for the client
//
// So unsigned requests cannot block clients, and slow clients cannot block
// fast ones. No client can block another one, because each client has only a
// share of each pool.

const (
	// slowAfter is the interval at which the pace of a request is checked.
	// Only a request that has waited for its client for half of that time
	// can be slow.
	slowAfter = time.Second
	// slowRate is the pace below which a request is slow, in bytes per
	// second of waiting for the client.
	slowRate = 128 << 10
)

// pool limits the number of concurrent requests.
type pool struct {
	size  int
	share func() int // limit for one client

	mu   sync.Mutex
	used int
	of   map[string]int // slots by name of the holder
}

// holder is who holds slots: a client, or clients that share a limit.
type holder struct {
	name string
	most int // 0 means the share of each client
}

// holderOf returns the holder of a client's slots.
func holderOf(c *access.Client) holder {
	if c.Group != "" {
		return holder{c.Group, c.GroupLimit}
	}
	return holder{name: c.Name}
}

func newPool(size int, share func() int) *pool {
	return &pool{size: size, share: share, of: make(map[string]int)}
}

// acquire takes a slot, and reports whether one was free.
func (p *pool) acquire(h holder) bool {
	most := p.share()
	if h.most > 0 {
		most = min(most, h.most)
	}

	p.mu.Lock()
	defer p.mu.Unlock()
	if p.used >= p.size || p.of[h.name] >= most {
		return false
	}
	p.used++
	p.of[h.name]++
	return true
}

func (p *pool) release(h holder) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.used--
	if p.of[h.name]--; p.of[h.name] == 0 {
		delete(p.of, h.name)
	}
}

// nearlyFull reports whether at least seven eighths of the slots are in use.
func (p *pool) nearlyFull() bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	return 8*p.used >= 7*p.size
}

// slot is the slot of a call.
type slot struct {
	mu     sync.Mutex
	pool   *pool // nil for none
	holder holder
	timer  *time.Timer // runs watchPace; nil while the pace is not watched
	left   bool

	pace, floor window // to find calls that are slow, and calls that are below MinRate
}

// window has how much a client has moved, and how long the proxy has waited
// for it, since some moment. Totals of the whole call would mislead: the
// kernel accepts the first megabytes of a response at once.
type window struct {
	moved  int64
	waited time.Duration
}

// since returns the difference between the window and now.
func (w window) since(now window) window { return window{now.moved - w.moved, now.waited - w.waited} }

func (w window) below(rate int64) bool { return float64(w.moved) < float64(rate)*w.waited.Seconds() }

func (s *slot) held() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.pool != nil
}

// move replaces the slot that is held with one that was acquired.
func (s *slot) move(to *pool, h holder) {
	if s.pool != nil {
		s.pool.release(s.holder)
	}
	s.pool, s.holder = to, h
}

// pools creates the pools of a server.
func (s *Server) pools() {
	strangers := s.MaxUnsigned
	if strangers <= 0 {
		strangers = max(1, s.MaxConcurrent/16)
	}
	s.fast, s.slow = newPool(s.MaxConcurrent, s.share), newPool(s.MaxConcurrent, s.share)
	s.unsigned = newPool(strangers, func() int { return strangers })
}

// share returns the number of slots of a pool that one client may hold. A
// single client may hold all of them.
func (s *Server) share() int {
	switch {
	case s.MaxPerClient > 0:
		return s.MaxPerClient
	case s.Clients.Clients() == 1:
		return s.MaxConcurrent
	default:
		return max(1, s.MaxConcurrent*3/4)
	}
}

// enter exchanges the call's slot for one of p. If none is free, the call
// must not cause a request to the store.
func (s *Server) enter(c *call, p *pool, h holder) error {
	if !p.acquire(h) {
		c.w.last = nil
		return errBusy()
	}
	c.slot.mu.Lock()
	defer c.slot.mu.Unlock()
	c.slot.move(p, h)
	if p == s.fast && c.slot.timer == nil {
		c.slot.timer = time.AfterFunc(slowAfter, func() { s.watchPace(c) })
	}
	return nil
}

// leave releases the slot at the end of a call.
func (s *Server) leave(c *call) {
	if c.posted != nil && c.posted.release != nil {
		c.posted.release()
	}
	c.slot.mu.Lock()
	defer c.slot.mu.Unlock()
	c.slot.left = true
	if c.slot.timer != nil {
		c.slot.timer.Stop()
	}
	c.slot.move(nil, holder{})
}

// watchPace checks the pace of a call at regular intervals. Time spent
// waiting for the store or the KMS does not count.
func (s *Server) watchPace(c *call) {
	if err := s.checkPace(c); err != nil {
		c.cut(err)
	}
}

func (s *Server) checkPace(c *call) error {
	c.slot.mu.Lock()
	defer c.slot.mu.Unlock()
	if c.slot.left {
		return nil
	}
	c.slot.timer.Reset(slowAfter)

	var now window
	now.moved, now.waited = c.idle.pace()
	lately, longer := c.slot.pace.since(now), c.slot.floor.since(now)
	c.slot.pace = now
	if longer.waited >= s.IdleTimeout {
		c.slot.floor = now
	}

	switch {
	case longer.waited >= s.IdleTimeout && longer.below(s.MinRate):
		return errIdle
	case lately.waited < slowAfter/2 || !lately.below(slowRate) || c.slot.pool != s.fast:
		return nil
	case s.slow.acquire(c.slot.holder):
		c.slot.move(s.slow, c.slot.holder)
	case s.fast.nearlyFull():
		return errBusy()
	}

	return nil
}

// within cuts the call if stop is not called in time.
func (c *call) within(limit time.Duration) (stop func()) {
	timer := time.AfterFunc(limit, func() { c.cut(errIdle) })
	return func() { timer.Stop() }
}

func errBusy() *Error {
	return &Error{Code: "SlowDown", Message: "Please reduce your request rate.", RetryAfter: retryAfter}
}
