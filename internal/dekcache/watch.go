package dekcache

import (
	"sync"
	"time"
)

// Watch calls ended, in a goroutine of its own, when the term has ended. It
// does so at most once, and not after stop. The term must be that of a DEK.
//
// One timer serves all watches of a group, so a watch costs little: there is
// one for each transfer.
func (t *Term) Watch(ended func()) (stop func()) {
	w := &watch{term: t, ended: ended}
	t.group.watches.add(w)
	if !t.InForce() { // it ended before it was added
		t.group.watches.check()
	}
	return w.stop
}

type watch struct {
	term  *Term
	ended func()
}

func (w *watch) stop() { w.term.group.watches.remove(w) }

// watches are the watches of a group.
type watches struct {
	mu    sync.Mutex
	all   map[*watch]struct{}
	timer *time.Timer // calls check; nil until there was a watch
	next  time.Time   // when the timer fires; zero for never
}

func (s *watches) add(w *watch) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.all == nil {
		s.all = make(map[*watch]struct{})
	}
	s.all[w] = struct{}{}
	s.wake(w.term)
}

func (s *watches) remove(w *watch) {
	s.mu.Lock()
	defer s.mu.Unlock()
	delete(s.all, w)
}

// check ends the watches whose terms have ended.
func (s *watches) check() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.next = time.Time{}
	for w := range s.all {
		if w.term.InForce() {
			s.wake(w.term)
			continue
		}
		delete(s.all, w)
		go w.ended()
	}
}

// wake makes the timer fire at the end of a term. The caller holds mu.
func (s *watches) wake(t *Term) {
	end := t.Expires()
	if !s.next.IsZero() && !end.Before(s.next) {
		return
	}

	s.next = end
	in := end.Sub(t.cache.cfg.Now())
	if s.timer == nil {
		s.timer = time.AfterFunc(in, s.check)
		return
	}
	s.timer.Reset(in)
}
