package s3api

import (
	"errors"
	"io"
	"net/http"
	"os"
	"sync"
	"sync/atomic"
	"time"
)

// idle ends a call if its client moves no bytes while the proxy waits for
// it. It sets deadlines on the client's connection, only for the reads and
// writes of one call. Timeouts of the store belong to package origin.
//
// A read deadline must not remain set when the proxy is not reading the
// request's body. net/http then reads from the connection to notice when the
// client closes it. If that read meets a deadline, net/http cancels the
// context of the connection, and with it every later request on the
// connection.
//
// It is safe for concurrent use: the transport reads an upload in another
// goroutine.
type idle struct {
	limit  time.Duration
	client http.ResponseController
	now    func() time.Time // for differences only, which use the monotonic clock
	start  time.Time

	received, writing pacer // bytes from the client, and bytes to it

	reading atomic.Bool  // the request's body is being read
	written atomic.Int64 // when the write deadline was set, as nanoseconds since start; -1 for never
	read    atomic.Int64 // the same for the read deadline

	mu     sync.Mutex // held while deadlines are set
	ended  bool       // only stop may still set deadlines
	readBy time.Time  // the read deadline; zero for none
	late   bool       // the client has missed a read deadline
	whole  bool       // the request's body was read to its end, or reading failed
}

// granularity is the shortest time between two settings of a deadline. One
// for each read and write would cost too much.
const granularity = time.Second

// begin starts a call.
func (i *idle) begin(limit time.Duration, client http.ResponseController, now func() time.Time) {
	i.limit, i.client, i.now, i.start = limit, client, now, now()
	i.written.Store(-1)
	i.read.Store(-1)
}

// due reports whether a deadline must be set again. last is when it was last
// set.
func (i *idle) due(last *atomic.Int64) bool {
	elapsed, before := int64(i.now().Sub(i.start)), last.Load()
	if before >= 0 && elapsed-before < int64(min(granularity, i.limit/4)) {
		return false
	}
	last.Store(elapsed)
	return true
}

func (i *idle) beforeWrite() {
	if !i.due(&i.written) {
		return
	}
	i.mu.Lock()
	defer i.mu.Unlock()
	if !i.ended {
		_ = i.client.SetWriteDeadline(time.Now().Add(i.limit))
	}
}

func (i *idle) beforeRead() {
	i.reading.Store(true)
	if !i.due(&i.read) {
		return
	}
	i.beforeWrite() // the first read may write 100 Continue
	i.mu.Lock()
	defer i.mu.Unlock()
	if !i.ended && !i.whole {
		i.readBy = time.Now().Add(i.limit)
		_ = i.client.SetReadDeadline(i.readBy)
	}
}

// afterRead removes the read deadline at the end of the body.
func (i *idle) afterRead(err error) {
	i.reading.Store(false)
	if err == nil {
		return
	}
	i.mu.Lock()
	defer i.mu.Unlock()
	i.whole = true
	if i.ended {
		return
	}
	i.late = errors.Is(err, os.ErrDeadlineExceeded)
	i.readBy = time.Time{}
	_ = i.client.SetReadDeadline(time.Time{})
}

// isLate reports whether the client has missed its read deadline. It can be
// true before that read returns: net/http may cancel the call's context
// earlier, so that the call ends first.
func (i *idle) isLate() bool {
	i.mu.Lock()
	defer i.mu.Unlock()
	return i.late || i.reading.Load() && !i.readBy.IsZero() && !time.Now().Before(i.readBy)
}

// interrupt makes all reads from the client and writes to it return at once.
func (i *idle) interrupt() {
	i.mu.Lock()
	defer i.mu.Unlock()
	i.ended, i.readBy = true, time.Time{}
	_ = i.client.SetReadDeadline(time.Unix(1, 0))
	_ = i.client.SetWriteDeadline(time.Unix(1, 0))
}

// lingerTime limits how long net/http may wait for the rest of an unread
// body. It waits before it writes the response, so the response needs more
// time than that.
const lingerTime = 5 * time.Second

// stop ends the call's deadlines, and sets final ones for the rest of the
// response and of the request's body.
func (i *idle) stop() {
	i.mu.Lock()
	defer i.mu.Unlock()
	i.ended = true
	now := time.Now()
	_ = i.client.SetWriteDeadline(now.Add(2*i.limit + lingerTime))
	if !i.whole {
		_ = i.client.SetReadDeadline(now.Add(min(lingerTime, i.limit)))
	}
}

// clientBody is the body of a client's request. It sets the read deadlines.
type clientBody struct {
	io.ReadCloser
	idle *idle
}

func (b *clientBody) Read(p []byte) (int, error) {
	b.idle.beforeRead()
	b.idle.received.begin()
	n, err := b.ReadCloser.Read(p)
	b.idle.received.end(n)
	b.idle.afterRead(err)
	return n, err
}

// pacer measures how long the proxy waits for a client, and for how many
// bytes. At most one read and one write run at a time.
type pacer struct {
	moved, waited atomic.Int64 // bytes, nanoseconds
	since         atomic.Int64 // start of the current wait, as time since epoch; 0 for none
}

// epoch is the zero time of pacers.
var epoch = time.Now()

func (p *pacer) begin() { p.since.Store(max(1, int64(time.Since(epoch)))) }

func (p *pacer) end(n int) {
	p.moved.Add(int64(n))
	p.waited.Add(int64(time.Since(epoch)) - p.since.Swap(0))
}

func (p *pacer) read() (moved, waited int64) {
	moved, waited = p.moved.Load(), p.waited.Load()
	if since := p.since.Load(); since > 0 {
		waited += int64(time.Since(epoch)) - since
	}
	return moved, waited
}

// pace returns how many bytes the client has moved, and how long the proxy
// has waited for it.
func (i *idle) pace() (moved int64, waited time.Duration) {
	in, forIn := i.received.read()
	out, forOut := i.writing.read()
	return in + out, time.Duration(forIn + forOut)
}
