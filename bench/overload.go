package main

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"strconv"
	"sync"
	"sync/atomic"
	"time"
)

// overloadLoad is more load than a target can serve. Requests arrive at a
// rate, whether or not earlier ones have been answered.
type overloadLoad struct {
	clients  int           // that find the capacity: each sends its next request after an answer
	capacity time.Duration // time to find it
	factors  []float64     // times the capacity
	ramp     time.Duration // of the load before it is measured: connections are opened
	length   time.Duration // of the load that is measured
	recovery time.Duration // of half the capacity, after it
}

var (
	fullOverload = overloadLoad{
		clients: 32, capacity: 3 * time.Second, factors: []float64{0.5, 1, 2, 5, 10},
		ramp: 2 * time.Second, length: 5 * time.Second, recovery: 6 * time.Second,
	}
	shortOverload = overloadLoad{
		clients: 32, capacity: time.Second, factors: []float64{2, 10},
		ramp: 2 * time.Second, length: 3 * time.Second, recovery: 3 * time.Second,
	}
)

// The goals of the overload table.
const (
	minGoodput  = 0.8 // of the capacity
	maxSlowdown = 5.0 // p99 of what is served, times that at the capacity
	maxRecovery = 5 * time.Second
)

const (
	// maxOpen limits the connections of the generator. Arrivals that find
	// none are not sent, as with a client whose pool is used up.
	maxOpen = 6000
	// patience is how long a client waits for a response.
	patience = 5 * time.Second
	tick     = 500 * time.Microsecond // between looks at what has arrived
	// lookEvery is the interval at which memory and descriptors are read, and
	// that of the recovery.
	lookEvery = 250 * time.Millisecond
)

// overloadRow is what was measured at one factor.
type overloadRow struct {
	name     string
	factor   float64
	capacity float64       // requests per second
	usual    time.Duration // p99 at the capacity
	cost     float64       // CPU of the target for a request at the capacity, in µs
	load     tally
	took     time.Duration
	rss      int64
	files    int
	cpu      [2]float64    // cores of the target and of the generator
	recovery time.Duration // negative if it did not recover in the time
}

// measureOverload loads a new process with more than it can serve, and prints
// a table.
func measureOverload(ctx context.Context, o options, w io.Writer) error {
	l, err := newOrigin(ctx, o)
	if err != nil {
		return err
	}
	defer l.close()
	t, err := l.startOurs(ctx)
	if err != nil {
		return err
	}
	t.prepared = make(map[string]bool)

	printRow(w, "overload", "goodput", "of the capacity", "CPU for each served", "p50 / p99 in ms",
		"p99, × at capacity", "refused", "failed, not sent", "RSS", "descriptors",
		"cores: proxy, generator", "normal after", "")
	printRule(w, 13)
	for _, name := range []string{"GET 4 KiB", "PUT 4 KiB"} {
		c := cells[selectIndex(name)]
		for _, factor := range o.overload.factors {
			row, err := o.overload.measure(ctx, t, c, factor)
			if err != nil {
				return err
			}
			row.print(w)
		}
	}
	fmt.Fprintln(w)
	return nil
}

func selectIndex(name string) int {
	for i, c := range cells {
		if c.name == name {
			return i
		}
	}
	panic("no cell " + name)
}

// measure finds the capacity, and then loads the target with a multiple.
func (o overloadLoad) measure(ctx context.Context, t *target, c cell, factor float64) (row overloadRow, err error) {
	fmt.Fprintf(os.Stderr, "bench: %s at %v × the capacity\n", c.name, factor)
	time.Sleep(o.ramp / 2) // the load before has ended
	s, err := c.measure(ctx, t, o.clients, o.capacity)
	if err != nil {
		return row, err
	}
	row = overloadRow{
		name: fmt.Sprintf("%s, %s × the capacity of %s/s", c.name, number(factor),
			number(float64(len(s.latencies))/s.took.Seconds())),
		factor: factor, capacity: float64(len(s.latencies)) / s.took.Seconds(),
	}
	row.cost = s.perRequest()
	_, row.usual = percentiles(s.latencies)

	var requests []*request
	for i := range objects {
		r, err := t.sign(ctx, t.plain, c.message(t, i, i))
		if err != nil {
			return row, err
		}
		requests = append(requests, r)
	}

	pids := t.plain.pids()
	resetPeakRSS(pids)
	load := newArrivals(t.plain, requests)
	load.run(ctx, factor*row.capacity, o.ramp, func() {})
	load.take()
	before := [2]time.Duration{cpuOf(pids), cpuOf([]int{os.Getpid()})}
	start := time.Now()
	load.run(ctx, factor*row.capacity, o.length, func() { row.files = max(row.files, openFiles(pids)) })
	row.took = time.Since(start)
	row.load = load.take()
	row.cpu[0] = (cpuOf(pids) - before[0]).Seconds() / row.took.Seconds()
	row.cpu[1] = (cpuOf([]int{os.Getpid()}) - before[1]).Seconds() / row.took.Seconds()
	load.stop()
	row.rss = peakRSS(pids)
	row.recovery = o.recover(ctx, newArrivals(t.plain, requests), &row)
	return row, nil
}

// recover loads the target with half its capacity, and returns how long it
// takes until it serves that as usual.
func (o overloadLoad) recover(ctx context.Context, a *arrivals, row *overloadRow) time.Duration {
	defer a.stop()
	normal, start := time.Duration(-1), time.Now()
	a.run(ctx, row.capacity/2, o.recovery, func() {
		t := a.take()
		if t.refused+t.failed+t.unsent > 0 || len(t.served) == 0 {
			normal = -1
			return
		}
		if _, p99 := percentiles(t.served); float64(p99) > maxSlowdown*float64(row.usual) {
			normal = -1
		} else if normal < 0 {
			normal = time.Since(start)
		}
	})
	return normal
}

func (r *overloadRow) print(w io.Writer) {
	goodput := float64(len(r.load.served)) / r.took.Seconds()
	var p50, p99 time.Duration
	if len(r.load.served) > 0 {
		p50, p99 = percentiles(r.load.served)
	}
	slowdown := float64(p99) / float64(r.usual)

	recovered, verdict := number(r.recovery.Seconds())+" s", "**reached**"
	if r.recovery < 0 {
		recovered = "never"
	}
	switch {
	case r.factor < 1: // no overload
		verdict = ""
	case goodput < minGoodput*r.capacity:
		verdict = "**not**: goodput"
	case slowdown > maxSlowdown:
		verdict = "**not**: p99"
	case r.recovery < 0 || r.recovery > maxRecovery:
		verdict = "**not**: recovery"
	}

	cost := r.cpu[0] * 1e6 / goodput // of those refused, too
	printRow(w, r.name, number(goodput)+"/s", number(100*goodput/r.capacity)+" %",
		number(cost)+" µs: × "+number(cost/r.cost),
		milliseconds(p50)+" / "+milliseconds(p99), number(slowdown),
		strconv.Itoa(r.load.refused), fmt.Sprintf("%d, %d", r.load.failed, r.load.unsent),
		number(float64(r.rss)/(1<<20))+" MiB", strconv.Itoa(r.files),
		number(r.cpu[0])+", "+number(r.cpu[1]), recovered, verdict)
}

// tally is what became of requests.
type tally struct {
	served  []time.Duration // from the arrival to the end of the response
	refused int             // answered with 503
	failed  int             // answered otherwise, or not in time
	unsent  int             // there was no connection
}

// arrivals is a stream of requests that does not wait for answers. It has a
// connection for each request that is under way.
type arrivals struct {
	endpoint endpoint
	requests []*request
	ended    atomic.Bool
	all      sync.WaitGroup

	mu   sync.Mutex
	free []*sender
	open []*sender
	tally
}

// sender sends the requests of one connection.
type sender struct {
	work chan time.Time // when the request arrived
	conn atomic.Pointer[connection]
}

func newArrivals(e endpoint, requests []*request) *arrivals {
	return &arrivals{endpoint: e, requests: requests}
}

// run lets requests arrive at a rate, and calls look at intervals.
func (a *arrivals) run(ctx context.Context, rate float64, length time.Duration, look func()) {
	start := time.Now()
	looked := start
	next := 0.0 // seconds since start
	for n := 0; ctx.Err() == nil; time.Sleep(tick) {
		now := time.Since(start)
		for ; next < now.Seconds(); n++ {
			a.send(ctx, start.Add(time.Duration(next*float64(time.Second))), a.requests[n%len(a.requests)])
			next += 1 / rate
		}
		if time.Since(looked) >= lookEvery {
			looked = time.Now()
			look()
		}
		if now > length {
			return
		}
	}
}

// send gives a request to a free connection, or to a new one.
func (a *arrivals) send(ctx context.Context, at time.Time, r *request) {
	a.mu.Lock()
	defer a.mu.Unlock()
	if n := len(a.free); n > 0 {
		s := a.free[n-1] // the last one used, so that few stay open
		a.free = a.free[:n-1]
		s.work <- at
		return
	}
	if len(a.open) >= maxOpen {
		a.unsent++
		return
	}

	s := &sender{work: make(chan time.Time, 1)}
	a.open = append(a.open, s)
	s.work <- at
	a.all.Go(func() {
		for at := range s.work {
			took, outcome := s.do(ctx, a.endpoint, at, r)
			if !a.done(s, took, outcome) {
				return
			}
		}
	})
}

// done counts a request, and reports whether there may be more.
func (a *arrivals) done(s *sender, took time.Duration, status int) bool {
	a.mu.Lock()
	defer a.mu.Unlock()
	switch {
	case a.ended.Load():
		return false
	case status == http.StatusOK:
		a.served = append(a.served, took)
	case status == http.StatusServiceUnavailable:
		a.refused++
	default:
		a.failed++
	}
	a.free = append(a.free, s)
	return true
}

// take returns the tally, and begins a new one.
func (a *arrivals) take() tally {
	a.mu.Lock()
	defer a.mu.Unlock()
	t := a.tally
	a.tally = tally{}
	return t
}

// stop closes all connections.
func (a *arrivals) stop() {
	a.mu.Lock()
	a.ended.Store(true)
	for _, s := range a.open {
		if conn := s.conn.Load(); conn != nil {
			conn.close()
		}
		close(s.work)
	}
	a.mu.Unlock()
	a.all.Wait()
}

// do sends a request, and returns the status of the response, or 0.
func (s *sender) do(ctx context.Context, e endpoint, at time.Time, r *request) (took time.Duration, status int) {
	conn := s.conn.Load()
	if conn == nil {
		ctx, cancel := context.WithTimeout(ctx, patience)
		defer cancel()
		opened, err := e.dial(ctx)
		if err != nil {
			return 0, 0
		}
		opened.in = bufio.NewReaderSize(opened.conn, 8<<10) // there are thousands
		s.conn.Store(opened)
		conn = opened
	}

	resp, err := conn.tryOnce(at, r)
	if err != nil || resp.closing {
		conn.close()
		s.conn.Store(nil)
	}
	if err != nil {
		return 0, 0
	}
	return time.Since(at), resp.status
}

// tryOnce sends a request and reads the response, whatever its status is.
func (c *connection) tryOnce(at time.Time, r *request) (response, error) {
	if err := c.conn.SetDeadline(at.Add(patience)); err != nil {
		return response{}, err
	}
	sent := c.send(r)
	resp, err := c.readHead()
	if err != nil {
		return resp, errors.Join(sent, err)
	}
	_, err = c.readBody(r.method, resp, nil)
	return resp, err
}

// openFiles returns how many descriptors processes have open.
func openFiles(pids []int) (n int) {
	for _, pid := range pids {
		files, _ := os.ReadDir(filepath.Join("/proc", strconv.Itoa(pid), "fd"))
		n += len(files)
	}
	return n
}
