package http1

import (
	"slices"
	"sync"
	"time"
)

// key says what a connection leads to.
type key struct{ proxy, scheme, address string }

// pool contains the idle connections, those used last at the end.
type pool struct {
	max     int
	timeout time.Duration

	mu    sync.Mutex
	idle  map[key][]*conn
	count int
	sweep *time.Timer // runs while there are idle connections
}

// get removes and returns the connection that was used last, or nil.
func (p *pool) get(k key) *conn {
	p.mu.Lock()
	defer p.mu.Unlock()
	list := p.idle[k]
	if len(list) == 0 {
		return nil
	}

	last := len(list) - 1
	c := list[last]
	list[last] = nil
	p.idle[k] = list[:last]
	p.count--
	return c
}

// put adds a connection. If there are too many, it is closed.
func (p *pool) put(c *conn) {
	p.mu.Lock()
	full := p.count >= p.max
	if !full {
		p.add(c)
	}
	p.mu.Unlock()

	if full {
		c.close()
	}
}

func (p *pool) add(c *conn) {
	if p.idle == nil {
		p.idle = make(map[key][]*conn)
	}
	if p.sweep == nil && p.timeout > 0 {
		p.sweep = time.AfterFunc(p.timeout, p.closeOld)
	}
	c.idleSince = time.Now()
	p.idle[c.key] = append(p.idle[c.key], c)
	p.count++
}

// closeOld closes what has been idle for too long.
func (p *pool) closeOld() {
	p.mu.Lock()
	old := p.remove(time.Now().Add(-p.timeout))
	p.sweep = nil
	if p.count > 0 {
		p.sweep = time.AfterFunc(p.timeout/4, p.closeOld)
	}
	p.mu.Unlock()

	for _, c := range old {
		c.close()
	}
}

func (p *pool) closeAll() {
	p.mu.Lock()
	all := p.remove(time.Now())
	if p.sweep != nil {
		p.sweep.Stop()
		p.sweep = nil
	}
	p.mu.Unlock()

	for _, c := range all {
		c.close()
	}
}

// remove removes and returns what has been idle since a time, or longer.
func (p *pool) remove(since time.Time) []*conn {
	var removed []*conn
	for k, list := range p.idle {
		old := 0
		for old < len(list) && !list[old].idleSince.After(since) {
			old++
		}

		removed = append(removed, list[:old]...)
		p.count -= old
		if old == len(list) {
			delete(p.idle, k)
		} else {
			p.idle[k] = slices.Clone(list[old:])
		}
	}
	return removed
}
