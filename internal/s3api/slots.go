package s3api

import (
	"container/list"
	"context"
	"net/http"
	"runtime"
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
//
// While the CPU is saturated, the fast pool has fewer slots for requests that
// are young: their response has not begun, and they are less than a second
// old. Others are transfers, which the pace of clients and store limits. So a
// limit need not be set for the CPU, and a slow store does not count as load.

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
	// crowd is how many young requests may run while the CPU is saturated. 0
	// means as many as otherwise.
	crowd     int
	saturated func() bool

	mu    sync.Mutex
	used  int
	young int
	of    map[string]*holding // by name of the holder
	line  list.List           // of *waiter: young requests that wait until fewer run
	// shortUntil is until when the line is short, because it was full.
	shortUntil time.Time
}

// age is that of a request. Requests begin young, except long uploads.
type age int

const (
	young age = iota
	old
)

// longUpload is the length in bytes from which an upload is a transfer from
// its beginning.
const longUpload = 1 << 20

// ageOf returns the age at which a request begins.
func ageOf(r *http.Request) age {
	if r.ContentLength > longUpload {
		return old
	}
	return young
}

// holding are the slots of a holder.
type holding struct{ used, young int }

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
	return &pool{size: size, share: share, of: make(map[string]*holding)}
}

// acquire takes a slot. It returns why there is none, or "".
func (p *pool) acquire(h holder, at age) refusal {
	most := p.most(h)
	p.mu.Lock()
	defer p.mu.Unlock()
	why := p.refusal(h, most, at)
	if why == "" {
		p.take(h, at)
	}
	return why
}

// waiter is a request that waits in line.
type waiter struct {
	holder holder
	most   int
	turn   chan refusal // its place in the line has come
}

// A tool with hundreds of connections sends its next request when one is
// answered. So the line becomes no longer than the slots, and nothing has to
// be refused. If the line becomes full, requests come whether they are
// answered or not. Then it is short until no request has been refused for a
// while: those that are served should not be late too.
const (
	// lineTime is how long a request waits in the line at most, and
	// shortLineTime in a short one.
	lineTime      = 2 * time.Second
	shortLineTime = 100 * time.Millisecond
	// shortLine is the length of a short line, for each young request that
	// may run.
	shortLine = 2
	// shortFor is how long the line remains short.
	shortFor = 3 * time.Second
)

// acquireInLine is acquire, but while the CPU is saturated it waits for a
// moment until fewer young requests run.
func (p *pool) acquireInLine(ctx context.Context, h holder, at age) refusal {
	w := &waiter{h, p.most(h), make(chan refusal, 1)}
	p.mu.Lock()
	why := p.refusal(h, w.most, at)
	if why == "" {
		p.take(h, at)
	}
	if why != noCPU || !p.hasPlace() {
		p.mu.Unlock()
		return why
	}
	place := p.line.PushBack(w)
	limit := lineTime
	if time.Now().Before(p.shortUntil) {
		limit = shortLineTime
	}
	p.mu.Unlock()

	timer := time.NewTimer(limit)
	defer timer.Stop()
	select {
	case why = <-w.turn:
		return why
	case <-timer.C:
	case <-ctx.Done():
	}

	p.mu.Lock()
	defer p.mu.Unlock()
	p.line.Remove(place)
	select {
	case why = <-w.turn: // it came meanwhile
		return why
	default:
	}
	if ctx.Err() == nil {
		p.shorten()
	}
	return noCPU
}

// hasPlace reports whether one more request may wait in line. p.mu is held.
func (p *pool) hasPlace() bool {
	switch n := p.line.Len(); {
	case n < shortLine*p.crowd:
		return true
	case n+p.used < p.size && !time.Now().Before(p.shortUntil):
		return true
	default:
		p.shorten()
		return false
	}
}

func (p *pool) shorten() { p.shortUntil = time.Now().Add(shortFor) }

// admitNext gives slots to those who wait in line. If the CPU is not saturated
// any more, the line becomes shorter by one for each request that ends, so that
// it is not saturated again at once. p.mu is held.
func (p *pool) admitNext() {
	for n := 0; p.line.Len() > 0 && (p.young < p.crowd || n == 0 && !p.saturated()); n++ {
		first := p.line.Front()
		w := first.Value.(*waiter) //nolint:forcetypeassert // the list has nothing else
		p.line.Remove(first)
		own := p.of[w.holder.name]
		switch {
		case p.used >= p.size:
			w.turn <- noSlot
		case own != nil && own.used >= w.most:
			w.turn <- noShare
		default:
			p.take(w.holder, young)
			w.turn <- ""
		}
	}
}

// take takes a slot that is free. p.mu is held.
func (p *pool) take(h holder, at age) {
	own := p.of[h.name]
	if own == nil {
		own = &holding{}
		p.of[h.name] = own
	}
	p.used++
	own.used++
	if at == young {
		p.young++
		own.young++
	}
}

// full returns why a request would get neither a slot nor a place in the
// line, or "".
func (p *pool) full(h holder, at age) refusal {
	most := p.most(h)
	p.mu.Lock()
	defer p.mu.Unlock()
	why := p.refusal(h, most, at)
	if why == noCPU && p.hasPlace() {
		return ""
	}
	return why
}

func (p *pool) most(h holder) int {
	if h.most > 0 {
		return min(p.share(), h.most)
	}
	return p.share()
}

// refusal returns why a holder may not have one more slot, or "". While the
// CPU is saturated, each client has an equal part of the crowd. What is left
// of it is for any client that has not used up its share.
func (p *pool) refusal(h holder, most int, at age) refusal {
	own := holding{}
	others := len(p.of)
	if held := p.of[h.name]; held != nil {
		own = *held
		others--
	}

	switch {
	case p.used >= p.size:
		return noSlot
	case own.used >= most:
		return noShare
	case p.crowd == 0 || at == old || own.young < max(1, p.crowd/(others+1)):
		return ""
	case p.young < p.crowd && own.young < max(1, p.crowd*most/p.size):
		return ""
	case p.line.Len() > 0 || p.saturated():
		return noCPU
	default:
		return ""
	}
}

func (p *pool) release(h holder, at age) {
	p.mu.Lock()
	defer p.mu.Unlock()
	own := p.of[h.name]
	p.used--
	own.used--
	if at == young {
		p.young--
		own.young--
	}
	if own.used == 0 {
		delete(p.of, h.name)
	}
	p.admitNext()
}

// age counts a request as no longer young.
func (p *pool) age(h holder) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.young--
	p.of[h.name].young--
	p.admitNext()
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
	age    age
	timer  *time.Timer // runs watchPace; nil while the pace is not watched
	left   bool
	memory reservation

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
func (s *slot) move(to *pool, h holder, at age) {
	if s.pool != nil {
		s.pool.release(s.holder, s.age)
	}
	s.pool, s.holder, s.age = to, h, at
}

// begun makes the request count as no longer young, because its response has
// begun: from now on, the client sets the pace.
func (s *slot) begun() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.grow()
}

func (s *slot) grow() {
	if s.pool != nil && s.age == young {
		s.pool.age(s.holder)
		s.age = old
	}
}

// pools creates the pools of a server.
func (s *Server) pools() {
	s.fast, s.slow, s.unsigned = newPool(0, s.share), newPool(0, s.share), newPool(0, s.strangers)
	s.budget = &budget{of: make(map[string]int64)}
	if s.Admission != nil {
		s.fast.crowd, s.fast.saturated = crowdOf*runtime.GOMAXPROCS(0), s.Admission.Saturated
	}
	s.resize()
}

// resize gives the pools the sizes in the settings. Requests that run keep their
// slots, so there may be more than the size for a while.
func (s *Server) resize() {
	now := s.settings.Load()
	s.fast.resize(now.MaxConcurrent)
	s.slow.resize(now.MaxConcurrent)
	s.unsigned.resize(s.strangers())
	s.budget.resize(now.Memory)
}

// strangers returns the number of slots for requests that are not authenticated.
func (s *Server) strangers() int {
	now := s.settings.Load()
	if now.MaxUnsigned > 0 {
		return now.MaxUnsigned
	}
	return max(1, now.MaxConcurrent/16)
}

func (p *pool) resize(size int) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.size = size
	p.admitNext()
}

// limit returns the size of the pool.
func (p *pool) limit() int {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.size
}

// crowdOf is the number of young requests for each CPU that may run even if
// it is saturated. A few are enough to keep it busy. But one tool may send a
// hundred requests at a time and not repeat what is refused, and it waits only
// some milliseconds for each of them.
const crowdOf = 64

// Load is what the server has to do at the moment, and how much it takes on.
type Load struct {
	Running     int   // authenticated requests
	Young       int   // those whose response has not begun, and that are less than a second old
	YoungLimit  int   // more wait in line
	Memory      int64 // bytes that running requests may hold
	MemoryLimit int64 // requests that need more are refused; 0 for no limit
	// Clients are the authenticated requests of each client, by its name.
	// Tenants count as one client.
	Clients map[string]int
}

// Load returns the load at the moment.
func (s *Server) Load() Load {
	l := Load{Clients: make(map[string]int)}
	l.Running = s.slow.count(l.Clients)
	s.budget.mu.Lock()
	l.Memory, l.MemoryLimit = s.budget.used, s.budget.size
	s.budget.mu.Unlock()

	s.fast.mu.Lock()
	defer s.fast.mu.Unlock()
	l.Running += s.fast.countLocked(l.Clients)
	l.Young, l.YoungLimit = s.fast.young, s.fast.size
	if s.fast.crowd > 0 && s.fast.saturated() {
		l.YoungLimit = min(s.fast.crowd, s.fast.size)
	}
	return l
}

// count returns the number of slots that are held, and adds it up by holder.
func (p *pool) count(byHolder map[string]int) int {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.countLocked(byHolder)
}

func (p *pool) countLocked(byHolder map[string]int) int {
	for name, h := range p.of {
		byHolder[name] += h.used
	}
	return p.used
}

// share returns the number of slots of a pool that one client may hold. A
// single client may hold all of them.
func (s *Server) share() int {
	switch now := s.settings.Load(); {
	case now.MaxPerClient > 0:
		return now.MaxPerClient
	case s.Clients.Clients() == 1:
		return now.MaxConcurrent
	default:
		return max(1, now.MaxConcurrent*3/4)
	}
}

// enter exchanges the call's slot for one of p, with the memory that the call
// may hold. If there is none, the call must not cause a request to the store.
func (s *Server) enter(c *call, p *pool, h holder) error {
	need, at := reservation{h.name, c.memory()}, ageOf(c.Request)
	why := p.acquireInLine(c.Context(), h, at)
	if why == "" && !s.budget.reserve(need, p.most(h), p.limit()) {
		p.release(h, at)
		why = noMemory
	}
	if why != "" {
		c.w.last = nil
		return s.refused(c.Context(), why)
	}

	c.slot.mu.Lock()
	defer c.slot.mu.Unlock()
	c.slot.move(p, h, at)
	s.budget.free(c.slot.memory)
	c.slot.memory = need
	c.w.begin = c.slot.begun
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
	c.slot.move(nil, holder{}, old)
	s.budget.free(c.slot.memory)
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
	c.slot.grow()

	var now window
	now.moved, now.waited = c.idle.pace()
	lately, longer := c.slot.pace.since(now), c.slot.floor.since(now)
	c.slot.pace = now
	if longer.waited >= c.settings.IdleTimeout {
		c.slot.floor = now
	}

	switch {
	case longer.waited >= c.settings.IdleTimeout && longer.below(c.settings.MinRate):
		return errIdle
	case lately.waited < slowAfter/2 || !lately.below(slowRate) || c.slot.pool != s.fast:
		return nil
	case s.slow.acquire(c.slot.holder, old) == "":
		c.slot.move(s.slow, c.slot.holder, old)
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
