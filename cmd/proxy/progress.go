package main

import (
	"context"
	"fmt"
	"io"
	"iter"
	"os"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/term"

	"github.com/cmekproxy/cmekproxy/internal/stored"
)

// How often the progress is shown: redrawn in one line of a terminal, or a
// line each time elsewhere.
const (
	drawInterval = 200 * time.Millisecond
	lineInterval = time.Minute
)

// amount is a number of objects, and of bytes as they are in the store.
type amount struct{ objects, bytes int64 }

// work is how much a command has to do for an object and for a byte. Only the
// ratio matters.
type work struct{ object, byte int64 }

// Reading a small object takes as long as 256 KiB of a large one, roughly.
var (
	workOfBodies  = work{256 << 10, 1}
	workOfHeaders = work{1, 0}
	workOfBytes   = work{0, 1} // of one object
)

func (w work) of(a amount) float64 {
	return float64(w.object)*float64(a.objects) + float64(w.byte)*float64(a.bytes)
}

// progress shows on stderr how far a command is. It is safe for concurrent
// use.
type progress struct {
	name  string // of the command
	w     io.Writer
	width func() int // columns of the terminal; nil if it is not one
	work  work

	objects, bytes, failed   atomic.Int64
	totalObjects, totalBytes atomic.Int64
	counted                  atomic.Bool // the total is complete
	stop                     context.CancelFunc
	running                  sync.WaitGroup
	older, newer             mark // rates are those since older
	mu                       sync.Mutex
	drawn                    bool // the line is on the terminal
}

// mark is a point in time of a run.
type mark struct {
	at   time.Time
	done amount
}

// markInterval is the time between two marks.
const markInterval = 30 * time.Second

func newProgress(w io.Writer, name string, of work) *progress {
	p := &progress{name: name, w: w, width: terminalWidth(w), work: of, stop: func() {}}
	p.older = mark{at: time.Now()}
	p.newer = p.older
	return p
}

// terminalWidth returns nil for a writer that is not a terminal, or one that
// cannot redraw a line.
func terminalWidth(w io.Writer) func() int {
	f, ok := w.(*os.File)
	//nolint:forbidigo // TERM is about the terminal, and no setting
	if !ok || !term.IsTerminal(int(f.Fd())) || os.Getenv("TERM") == "dumb" {
		return nil
	}
	return func() int {
		columns, _, err := term.GetSize(int(f.Fd()))
		if err != nil || columns == 0 {
			return 80
		}
		return columns
	}
}

// start shows the progress until end. If todo is not nil, its objects are
// counted meanwhile. Counting begins a moment later, so that short runs do
// without.
func (p *progress) start(ctx context.Context, todo iter.Seq2[stored.Entry, error]) {
	interval := lineInterval
	if p.width != nil {
		interval = drawInterval
	}
	ctx, p.stop = context.WithCancel(ctx)

	if todo != nil {
		p.running.Go(func() {
			select {
			case <-time.After(interval / 2):
				p.count(ctx, todo)
			case <-ctx.Done():
			}
		})
	}
	p.running.Go(func() {
		tick := time.NewTicker(interval)
		defer tick.Stop()
		for {
			select {
			case <-tick.C:
				p.show()
			case <-ctx.Done():
				return
			}
		}
	})
}

// count counts what is to be done. If that fails, the total stays unknown.
func (p *progress) count(ctx context.Context, todo iter.Seq2[stored.Entry, error]) {
	for e, err := range todo {
		if err != nil || ctx.Err() != nil {
			return
		}
		p.totalObjects.Add(1)
		p.totalBytes.Add(e.Size)
	}
	p.counted.Store(true)
}

// total sets a total that is known from the start.
func (p *progress) total(a amount) {
	p.totalObjects.Store(a.objects)
	p.totalBytes.Store(a.bytes)
	p.counted.Store(true)
}

// add records what is done.
func (p *progress) add(a amount) {
	p.objects.Add(a.objects)
	p.bytes.Add(a.bytes)
}

// end removes the line from the terminal.
func (p *progress) end() {
	p.stop()
	p.running.Wait()
	p.mu.Lock()
	defer p.mu.Unlock()
	p.erase()
}

func (p *progress) erase() {
	if p.drawn {
		p.drawn = false
		_, _ = io.WriteString(p.w, "\r\x1b[K")
	}
}

// above returns a writer for other output, which may go to the same terminal.
func (p *progress) above(w io.Writer) io.Writer { return &aboveProgress{p, w} }

type aboveProgress struct {
	p *progress
	w io.Writer
}

func (a *aboveProgress) Write(text []byte) (int, error) {
	a.p.mu.Lock()
	defer a.p.mu.Unlock()
	a.p.erase()
	return a.w.Write(text)
}

// show draws the line, or prints one.
func (p *progress) show() {
	p.mu.Lock()
	defer p.mu.Unlock()
	items := p.now(time.Now()).items()
	if p.width == nil {
		fmt.Fprintf(p.w, "%s: %s\n", p.name, strings.Join(items, ", "))
		return
	}

	line := p.name + ": " + items[0]
	room := max(p.width()-1, 0) // a full line would wrap
	for _, item := range items[1:] {
		if len(line)+len(", ")+len(item) > room {
			break
		}
		line += ", " + item
	}
	p.drawn = true
	_, _ = io.WriteString(p.w, "\r"+line[:min(len(line), room)]+"\x1b[K")
}

// now returns what is to be shown.
func (p *progress) now(t time.Time) view {
	done := amount{p.objects.Load(), p.bytes.Load()}
	if t.Sub(p.newer.at) >= markInterval {
		p.older, p.newer = p.newer, mark{t, done}
	}
	v := view{
		done: done, failed: p.failed.Load(), counted: p.counted.Load(), one: p.work.object == 0,
		total: amount{p.totalObjects.Load(), p.totalBytes.Load()},
	}

	seconds := t.Sub(p.older.at).Seconds()
	if seconds <= 0 {
		return v
	}
	recent := amount{done.objects - p.older.done.objects, done.bytes - p.older.done.bytes}
	v.objectRate, v.byteRate = float64(recent.objects)/seconds, float64(recent.bytes)/seconds
	all, soFar, rate := p.work.of(v.total), p.work.of(done), p.work.of(recent)/seconds
	if v.counted && all > 0 {
		v.fraction = min(soFar/all, 1)
		if rate > 0 && soFar < all {
			v.left = time.Duration((all - soFar) / rate * float64(time.Second))
		}
	}
	return v
}

// view is the state of a run at one time.
type view struct {
	done, total          amount
	counted              bool // total is complete
	one                  bool // one object, of which only the bytes matter
	failed               int64
	objectRate, byteRate float64 // per second
	fraction             float64 // done of total
	left                 time.Duration
}

// items returns what to show, the most important first.
func (v view) items() []string {
	of := func(done, total, unit string) string {
		switch {
		case v.counted:
			return done + " of " + total + unit
		case v.total.objects > v.done.objects:
			return done + " of at least " + total + unit
		default: // the count has just begun, or has failed
			return done + unit
		}
	}
	// Objects that were created meanwhile are not in the total.
	total := amount{max(v.total.objects, v.done.objects), max(v.total.bytes, v.done.bytes)}
	objects := of(grouped(v.done.objects), grouped(total.objects), " objects")
	bytes := of(humanBytes(float64(v.done.bytes)), humanBytes(float64(total.bytes)), "")

	var list []string
	if v.one {
		list = append(list, bytes)
	} else {
		list = append(list, objects)
	}
	if v.counted {
		list[0] += fmt.Sprintf(" (%.1f %%)", 100*v.fraction)
	}
	if v.left > 0 {
		list = append(list, humanDuration(v.left)+" left")
	}
	if v.failed > 0 {
		list = append(list, grouped(v.failed)+" failed")
	}
	if !v.one {
		list = append(list, fmt.Sprintf("%.0f objects/s", v.objectRate), bytes)
	}
	return append(list, humanBytes(v.byteRate)+"/s")
}

// grouped prints a number with commas, as in 1,234,567.
func grouped(n int64) string {
	text := strconv.FormatInt(n, 10)
	for i := len(text) - 3; i > 0; i -= 3 {
		text = text[:i] + "," + text[i:]
	}
	return text
}

// humanBytes prints a number of bytes with at least two digits.
func humanBytes(n float64) string {
	for _, unit := range []string{"B", "kB", "MB", "GB", "TB"} {
		switch {
		case n < 9.95 && unit != "B":
			return fmt.Sprintf("%.1f %s", n, unit)
		case n < 999.5:
			return fmt.Sprintf("%.0f %s", n, unit)
		}
		n /= 1000
	}
	return fmt.Sprintf("%.1f PB", n)
}

// humanDuration prints a duration in its two largest units.
func humanDuration(d time.Duration) string {
	d = max(d.Round(time.Second), time.Second)
	day := 24 * time.Hour
	switch {
	case d < time.Minute:
		return fmt.Sprintf("%ds", d/time.Second)
	case d < time.Hour:
		return fmt.Sprintf("%dm%02ds", d/time.Minute, d%time.Minute/time.Second)
	case d < day:
		return fmt.Sprintf("%dh%02dm", d/time.Hour, d%time.Hour/time.Minute)
	default:
		return fmt.Sprintf("%dd%02dh", d/day, d%day/time.Hour)
	}
}
