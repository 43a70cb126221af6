package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"sync"
	"sync/atomic"
	"time"
)

const (
	transfers   = 64
	transferred = int64(1 << 30)
	memoryLimit = 128 << 20
)

// memory runs 64 transfers of 1 GiB at a time through a new proxy, downloads
// first and then uploads. It compares the peak memory of the proxy with the
// limit. Downloads come from the real store. Uploads go to a sink.
func memory(ctx context.Context, l *lab, o options) error {
	down, err := l.startProxy(ctx, "memory-get", l.store)
	if err != nil {
		return err
	}
	if _, err := down.do(
		ctx,
		http.MethodPut,
		"/"+bucket+"/1GiB",
		&endless{left: transferred},
		transferred,
	); err != nil {
		return fmt.Errorf("storing the object to read: %w", err)
	}
	up, err := l.startProxy(ctx, "memory-put", l.newSink())
	if err != nil {
		return err
	}
	get := crowd{method: http.MethodGet, target: down, options: o, one: download}
	put := crowd{method: http.MethodPut, target: up, options: o, one: upload}
	return errors.Join(get.run(ctx), put.run(ctx), partsMemory(ctx, l, o))
}

func download(ctx context.Context, t *target, _ int, p *pace) error {
	resp, err := t.send(ctx, http.MethodGet, "/"+bucket+"/1GiB", nil, nil, 0)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	p.src = resp.Body
	n, err := discard(p)
	if err == nil && n != transferred {
		err = fmt.Errorf("%d bytes came, not %d", n, transferred)
	}
	return err
}

func upload(ctx context.Context, t *target, n int, p *pace) error {
	p.src = &endless{left: transferred}
	_, err := t.do(ctx, http.MethodPut, fmt.Sprintf("/%s/%d", bucket, n), p, transferred)
	return err
}

// crowd is a group of concurrent transfers.
type crowd struct {
	method  string
	target  *target
	options options
	one     func(ctx context.Context, t *target, n int, p *pace) error
	paces   [transfers]pace
}

// run returns an error if a transfer fails, if the transfers never all ran
// at the same time, or if the proxy used too much memory.
func (c *crowd) run(ctx context.Context) error {
	cut, cancel := ctx, context.CancelFunc(func() {})
	how := "to their end"
	if !c.options.full {
		cut, cancel = context.WithTimeout(ctx, c.options.memory)
		how = fmt.Sprintf("cut after %v", c.options.memory)
	}
	defer cancel()

	var wg sync.WaitGroup
	errs := make([]error, transfers)
	start := time.Now()
	for n := range transfers {
		p := &c.paces[n]
		p.start, p.rate = start, c.options.rate<<20
		wg.Go(func() {
			errs[n] = c.one(cut, c.target, n, p)
			p.done.Store(true)
		})
	}

	most := c.watch(&wg)
	if ctx.Err() != nil {
		return ctx.Err()
	}

	var moved int64
	for n := range c.paces {
		moved += c.paces[n].moved.Load()
		if !c.options.full && errors.Is(errs[n], context.DeadlineExceeded) {
			errs[n] = nil
		}
	}

	peak := c.target.peakRSS()
	fmt.Printf(
		"%d %s of 1 GiB, %s: %d under way at once, %.1f GiB in %.0f s, peak RSS of cmekproxy %.1f MiB (limit %d)\n",
		transfers,
		c.method,
		how,
		most,
		float64(moved)/(1<<30),
		time.Since(start).Seconds(),
		float64(peak)/(1<<20),
		memoryLimit>>20,
	)
	if most < transfers {
		errs = append(
			errs,
			fmt.Errorf(
				"%s: only %d of %d transfers were ever under way at once, which proves nothing",
				c.method,
				most,
				transfers,
			),
		)
	}
	if peak > memoryLimit {
		errs = append(errs, fmt.Errorf("%s: more than %d MiB", c.method, memoryLimit>>20))
	}

	return errors.Join(errs...)
}

// watch waits for the transfers and returns the highest number that it saw
// running at once.
func (c *crowd) watch(wg *sync.WaitGroup) (most int) {
	finished := make(chan struct{})
	go func() {
		wg.Wait()
		close(finished)
	}()

	ticker := time.NewTicker(50 * time.Millisecond)
	defer ticker.Stop()
	for {
		select {
		case <-finished:
			return most
		case <-ticker.C:
		}

		moving := 0
		for n := range c.paces {
			if c.paces[n].underWay() {
				moving++
			}
		}
		most = max(most, moving)
	}
}

// pace is a reader that limits the rate and counts bytes.
type pace struct {
	src   io.Reader
	start time.Time
	rate  int64 // bytes/s
	moved atomic.Int64
	done  atomic.Bool
}

// underWay reports whether a transfer has moved more bytes than all buffers
// on the way can hold, but not all of its bytes.
func (p *pace) underWay() bool {
	n := p.moved.Load()
	return n >= 8<<20 && n < transferred && !p.done.Load()
}

func (p *pace) Read(b []byte) (int, error) {
	due := time.Duration(float64(p.moved.Load()) / float64(p.rate) * float64(time.Second))
	time.Sleep(due - time.Since(p.start))
	n, err := p.src.Read(b)
	p.moved.Add(int64(n))
	return n, err
}
