package dekcache

import (
	"bytes"
	"context"
)

// flightID identifies a fetch. Fetches of one DEK for different groups are
// separate, because a purge of either group must invalidate its own fetch.
type flightID struct {
	id    ID
	group Group
}

// flight is a fetch, with the callers that wait for it.
//
// Logins and AWS credentials use golang.org/x/sync/singleflight instead.
// With singleflight, a later caller joins a fetch in progress, and the
// result is left to the garbage collector. Here a purge must prevent later
// callers from joining, and the DEK is wiped after the last caller has
// copied it.
type flight struct {
	term   Term
	cancel context.CancelFunc
	done   chan struct{}

	waiting int    // number of callers; protected by Cache.mu
	dek     []byte // set before done is closed; wiped after the last caller has copied it
	err     error
}

// startFlight starts a fetch. The caller holds c.mu.
func (c *Cache) startFlight(ctx context.Context, id ID, g Group, fetch func(context.Context) ([]byte, error)) *flight {
	ctx, cancel := context.WithCancel(context.WithoutCancel(ctx))
	f := &flight{term: c.term(), cancel: cancel, done: make(chan struct{})}
	f.term.group = c.group(g)
	f.term.group.flights++
	c.flights[flightID{id, g}] = f

	c.running.Go(func() {
		defer cancel()
		dek, err := run(ctx, fetch)
		c.endFlight(id, f, dek, err)
	})

	return f
}

func run(ctx context.Context, fetch func(context.Context) ([]byte, error)) (dek []byte, err error) {
	defer func() {
		if v := recover(); v != nil {
			dek, err = nil, panicError(v)
		}
	}()
	return fetch(ctx)
}

// endFlight stores the result of a fetch and wakes the callers that wait
// for it.
func (c *Cache) endFlight(id ID, f *flight, dek []byte, err error) {
	c.mu.Lock()
	defer c.mu.Unlock()

	if own := (flightID{id, f.term.group.Group}); c.flights[own] == f {
		delete(c.flights, own)
	}

	f.term.group.flights--
	switch {
	case err != nil:
		clear(dek)
		f.err = err
		if life := c.cfg.Remember(err); life > 0 && c.current(&f.term) {
			c.failures.Add(id, failure{f.term.group.Group, err, c.cfg.Now().Add(life)})
		}
	case !c.current(&f.term):
		clear(dek)
		f.err = errStale
		if c.closed {
			f.err = ErrClosed
		}
	case !f.term.InForce():
		clear(dek)
		f.err = ErrTooLate
	default:
		c.insert(id, f.term, bytes.Clone(dek))
		f.dek = dek
		if f.waiting == 0 {
			clear(dek)
		}
	}

	close(f.done)
}

// current reports whether the group has not been purged since the request
// was sent.
func (c *Cache) current(t *Term) bool { return !c.closed && t.current() }

// wait waits for a flight. The caller must already be counted in f.waiting.
func (c *Cache) wait(ctx context.Context, f *flight) (Entry, error) {
	var gone error
	select {
	case <-f.done:
	case <-ctx.Done():
		gone = context.Cause(ctx)
	}

	c.mu.Lock()
	defer c.mu.Unlock()

	f.waiting--
	if gone == nil && f.err == nil {
		e := Entry{DEK: bytes.Clone(f.dek), Term: f.term}
		f.wipe()

		if !c.current(&f.term) {
			clear(e.DEK)
			return Entry{}, errStale
		}

		return e, nil
	}

	f.wipe()
	if gone != nil {
		return Entry{}, gone
	}

	return Entry{}, f.err
}

func (f *flight) wipe() {
	if f.waiting == 0 {
		clear(f.dek)
	}
}
