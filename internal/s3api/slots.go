package s3api

import (
	"sync"
	"time"
)

// A request is served while it holds a slot of one of three pools:
//
//	unsigned  what is not authenticated yet and costs more than arithmetic: forms
//	          up to their policy, preflights, look-ups for the errors of strangers
//	fast      all that is authenticated
//	slow      what has turned out to wait for its client most of the time
//
// So strangers cannot keep clients out, slow clients cannot keep fast ones out,
// and no client can keep another one out, as it has a share of each pool only.

const (
	// slowAfter is how often the pace of a request is looked at. It must have
	// waited for its client for half of that.
	slowAfter = time.Second
	// slowRate is the pace, in bytes for each second of waiting for the client,
	// below which a request is slow.
	slowRate = 128 << 10
)

// pool bounds how many requests do something at a time.
type pool struct {
	size  int
	share func() int // of one client

	mu   sync.Mutex
	used int
	of   map[string]int // by client
}

func newPool(size int, share func() int) *pool {
	return &pool{size: size, share: share, of: make(map[string]int)}
}

// acquire reports whether there was a slot for the client, which has it then.
func (p *pool) acquire(client string) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.used >= p.size || p.of[client] >= p.share() {
		return false
	}
	p.used++
	p.of[client]++
	return true
}

func (p *pool) release(client string) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.used--
	if p.of[client]--; p.of[client] == 0 {
		delete(p.of, client)
	}
}

// nearlyFull reports whether the pool is nearly full.
func (p *pool) nearlyFull() bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	return 8*p.used >= 7*p.size
}

// slot is what a call holds.
type slot struct {
	mu     sync.Mutex
	pool   *pool // nil for none
	client string
	timer  *time.Timer // of watchPace; nil while the pace is not watched
	left   bool

	pace, floor window // what tells a slow call, and one that is too slow
}

// window is what a client has moved, and for how long it was waited for, since
// a moment. The whole of a call would not tell: the kernel takes the first
// megabytes of an answer at once.
type window struct {
	moved  int64
	waited time.Duration
}

// since returns what there was since the window began.
func (w window) since(now window) window { return window{now.moved - w.moved, now.waited - w.waited} }

func (w window) below(rate int64) bool { return float64(w.moved) < float64(rate)*w.waited.Seconds() }

func (s *slot) held() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.pool != nil
}

// move puts a slot that was taken in the place of the one that is held.
func (s *slot) move(to *pool, client string) {
	if s.pool != nil {
		s.pool.release(s.client)
	}
	s.pool, s.client = to, client
}

// pools makes the pools of a server.
func (s *Server) pools() {
	strangers := s.MaxUnsigned
	if strangers <= 0 {
		strangers = max(1, s.MaxConcurrent/16)
	}
	s.fast, s.slow = newPool(s.MaxConcurrent, s.share), newPool(s.MaxConcurrent, s.share)
	s.unsigned = newPool(strangers, func() int { return strangers })
}

// share is how many slots of a pool one client may have. Where there is one
// client only, there is nobody to keep out.
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

// enter gives the call a slot in place of the one that it has. A call that gets
// none must not cost the store a request.
func (s *Server) enter(c *call, p *pool, client string) error {
	if !p.acquire(client) {
		c.w.last = nil
		return errBusy()
	}
	c.slot.mu.Lock()
	defer c.slot.mu.Unlock()
	c.slot.move(p, client)
	if p == s.fast && c.slot.timer == nil {
		c.slot.timer = time.AfterFunc(slowAfter, func() { s.watchPace(c) })
	}
	return nil
}

// leave is for the end of a call.
func (s *Server) leave(c *call) {
	c.slot.mu.Lock()
	defer c.slot.mu.Unlock()
	c.slot.left = true
	if c.slot.timer != nil {
		c.slot.timer.Stop()
	}
	c.slot.move(nil, "")
}

// watchPace looks at the pace of a call, time and again. What the store or the
// KMS takes does not count.
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
	case s.slow.acquire(c.slot.client):
		c.slot.move(s.slow, c.slot.client)
	case s.fast.nearlyFull():
		return errBusy()
	}

	return nil
}

// within ends the call if it is not over with something in time.
func (c *call) within(limit time.Duration) (stop func()) {
	timer := time.AfterFunc(limit, func() { c.cut(errIdle) })
	return func() { timer.Stop() }
}

func errBusy() *Error {
	return &Error{Code: "SlowDown", Message: "Please reduce your request rate.", RetryAfter: retryAfter}
}
