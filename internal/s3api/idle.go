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

// idle ends a call whose client moves no byte while the proxy waits for it. It
// sets deadlines of the client's connection, for a read or a write of a call
// only. What the store may take is the origin's to say.
//
// A read deadline must never be in force when nobody reads the request's body.
// net/http then reads by itself, to find out whether the client goes away, and
// takes a deadline for that: it cancels the context of the connection, and so
// every later request on it.
//
// It is safe for concurrent use: the transport reads an upload in a goroutine
// of its own.
type idle struct {
	limit  time.Duration
	client *http.ResponseController
	now    func() time.Time // only differences count, which the monotonic clock tells
	start  time.Time

	received, writing pacer // bytes of the client's, and those for it

	reading atomic.Bool  // a read of the request's body is under way
	written atomic.Int64 // when the write deadline was set, since start; -1 for never
	read    atomic.Int64 // the same of the read deadline

	mu     sync.Mutex // held while deadlines are set
	ended  bool       // nothing but stop sets a deadline any more
	readBy time.Time  // the read deadline; zero for none
	late   bool       // the client has let a read deadline pass
	whole  bool       // the request's body was read to its end, or has failed
}

// granularity is how far apart two deadlines are set at least: one for each
// read and write would cost too much.
const granularity = time.Second

func newIdle(limit time.Duration, client *http.ResponseController, now func() time.Time) *idle {
	i := &idle{limit: limit, client: client, now: now, start: now()}
	i.written.Store(-1)
	i.read.Store(-1)
	return i
}

// due reports whether a deadline that was set at last is to be set again.
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
	i.beforeWrite() // a first read may write 100 Continue
	i.mu.Lock()
	defer i.mu.Unlock()
	if !i.ended && !i.whole {
		i.readBy = time.Now().Add(i.limit)
		_ = i.client.SetReadDeadline(i.readBy)
	}
}

// afterRead takes the read deadline away at the end of the body.
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

// isLate reports whether the client has sent nothing for the time that it has.
// It is true before the read returns that has found out: net/http cancels the
// context of the call ahead of that, so that the call may end first.
func (i *idle) isLate() bool {
	i.mu.Lock()
	defer i.mu.Unlock()
	return i.late || i.reading.Load() && !i.readBy.IsZero() && !time.Now().Before(i.readBy)
}

// interrupt has whatever waits for the client return at once.
func (i *idle) interrupt() {
	i.mu.Lock()
	defer i.mu.Unlock()
	i.ended, i.readBy = true, time.Time{}
	_ = i.client.SetReadDeadline(time.Unix(1, 0))
	_ = i.client.SetWriteDeadline(time.Unix(1, 0))
}

// lingerTime is how long the server may wait for the rest of a body that
// nobody wants any more. It does so before it writes the answer, which
// therefore needs more time than that.
const lingerTime = 5 * time.Second

// stop ends the watch. The client gets as much time again to take what is
// still to be said.
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

// clientBody is the body of a client's request.
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

// pacer measures how long a client is waited for, and for how many bytes. There
// is one read and one write at a time.
type pacer struct {
	moved, waited atomic.Int64 // bytes, nanoseconds
	since         atomic.Int64 // when the wait that is going on began, since epoch; 0 for none
}

// epoch is when the monotonic clock of pacers begins.
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

// pace returns how many bytes the client has moved, and for how long it was
// waited for.
func (i *idle) pace() (moved int64, waited time.Duration) {
	in, forIn := i.received.read()
	out, forOut := i.writing.read()
	return in + out, time.Duration(forIn + forOut)
}
