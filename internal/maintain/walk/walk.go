// Package walk processes all objects of a listing, several at a time and in
// the order of the listing. A walk that was interrupted can continue from
// its position.
package walk

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"iter"
	"os"
	"time"
	"unicode/utf8"

	"github.com/cmekproxy/cmekproxy/internal/atomicfile"
	"github.com/cmekproxy/cmekproxy/internal/stored"
)

const (
	// maxFailed is how many failed keys a State holds. If more fail, its
	// position no longer advances, and the next run repeats everything after
	// it.
	maxFailed = 1000
	// window is how many objects may be done while an earlier one, such as a
	// large multipart object, is not.
	window = 2000
	// inARow is how many failures in a row end a walk. The fault is then a
	// key or the store, and not the objects.
	inARow = 200
	// saveEvery is the interval at which the state is written.
	saveEvery = time.Second
)

// ErrInARow means that a walk was ended after too many failures in a row.
var ErrInARow = fmt.Errorf("the last %d objects all failed", inARow)

// ErrStop is wrapped by the error of a result after which the walk must end.
var ErrStop = errors.New("the run has ended")

// Outcome is the result for one object.
type Outcome int

// The outcomes.
const (
	Done      Outcome = iota // done, or to be done after a dry run
	Current                  // nothing was necessary
	Plaintext                // the object is plaintext, and remains so
	Gone                     // the object was deleted after it was listed
	Customer                 // the object is under a customer key (SSE-C), which only the client has
	Failed                   // the object is unchanged, unless the error says otherwise

	outcomes
)

// Counts are the numbers of objects, by outcome.
type Counts [outcomes]int64

// Result is the result for one object.
type Result struct {
	Key     string
	Version string // version id, for a listing with versions
	Outcome Outcome
	Size    int64    // size of the plaintext in bytes, if Done
	Parts   int      // number of parts of a multipart object, if Done
	KeyIDs  []string // ids of the KMS keys that were found
	// Recovery has the ids of the recovery keys that open the whole object.
	Recovery []string
	Err      error // the error, if Failed
	// Own means that the fault is this object's own, so others need not
	// fail.
	Own bool
}

// Walk processes all objects of a listing.
type Walk struct {
	// Do processes one object. It is called concurrently.
	Do       func(ctx context.Context, e stored.Entry) Result
	List     func(ctx context.Context, l stored.Listing) iter.Seq2[stored.Entry, error]
	Parallel int // objects at a time
	// File is the path of the state file, from which an interrupted walk
	// continues; "" for none.
	File string
	// DryRun reads the state, but does not write it.
	DryRun bool
	// KeepGoing continues after many failures in a row.
	KeepGoing bool
	// Grace is how long the objects in hand may take to end after ctx was
	// canceled, unless its cause is ErrStop. With 0, they are abandoned.
	Grace time.Duration
	// Begin, if not nil, is called before the first object. It may iterate
	// over what is to be done, also concurrently, to count it.
	Begin func(todo iter.Seq2[stored.Entry, error])
	// Report is called for each object, in the order of the listing.
	Report func(Result)
	// Now is the clock.
	Now func() time.Time
}

// State is the position of a walk. It is written at intervals, so it may be
// behind what is done, but never ahead of it.
type State struct {
	Command string `json:"command"`
	Bucket  string `json:"bucket"`
	Prefix  string `json:"prefix"`
	To      string `json:"to"` // To of the command's Config
	All     bool   `json:"all"`
	Bind    bool   `json:"bind,omitempty"`
	Adopt   string `json:"adopt,omitempty"`  // where the objects were, if they are adopted
	Listed  string `json:"listed,omitempty"` // digest of a list of objects, or of names

	After  string    `json:"after"`  // all keys up to this one are done, in the order of the listing, except:
	Failed []string  `json:"failed"` // keys that failed, which are tried first
	Saved  time.Time `json:"saved"`
}

// Run processes the objects of fresh.Bucket with the prefix. An existing
// state must agree with fresh. Run returns an error if it did not reach the
// end. Objects that failed are not an error of Run; Report gets them.
func (w *Walk) Run(ctx context.Context, fresh State) error {
	state, err := w.load(fresh)
	if err != nil {
		return err
	}
	todo, before := w.todo(ctx, state), state.Failed
	state.Failed = nil
	if w.Begin != nil {
		w.Begin(todo)
	}
	walkErr := w.doAll(ctx, &state, before, todo)

	switch {
	case w.File == "" || w.DryRun:
		return walkErr
	case walkErr == nil && len(state.Failed) == 0:
		if err := os.Remove(w.File); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return err
		}
		return nil
	default:
		return errors.Join(walkErr, w.save(state))
	}
}

// todo lists the objects that failed before, and then the rest of the
// listing.
func (w *Walk) todo(ctx context.Context, state State) iter.Seq2[stored.Entry, error] {
	return func(yield func(stored.Entry, error) bool) {
		for _, key := range state.Failed {
			if !yield(stored.Entry{Key: key}, nil) {
				return
			}
		}
		rest := stored.Listing{Bucket: state.Bucket, Prefix: state.Prefix, After: state.After}
		for e, err := range w.List(ctx, rest) {
			if !yield(e, err) {
				return
			}
		}
	}
}

// doAll processes the objects in todo, which starts with those that failed
// before, and updates state.
func (w *Walk) doAll(ctx context.Context, state *State, before []string, todo iter.Seq2[stored.Entry, error]) error {
	saved, row, seen, frozen := w.Now(), 0, 0, false
	defer func() {
		if seen < len(before) {
			state.Failed = append(state.Failed, before[seen:]...) // these were not reached
		}
	}()

	do, stop := w.lingering(ctx)
	defer stop()
	for r, err := range InOrder(ctx, todo, w.Parallel, window, do) {
		if err != nil {
			return err
		}
		if ctx.Err() != nil && r.Outcome == Failed {
			return ctx.Err() // the end of ctx made it fail
		}
		seen++

		w.Report(r)
		row++
		if r.Outcome != Failed || r.Own {
			row = 0
		}

		if r.Outcome == Failed {
			if frozen = frozen || len(state.Failed) == maxFailed; !frozen {
				state.Failed = append(state.Failed, r.Key)
			}
		}

		if seen > len(before) && !frozen && utf8.ValidString(r.Key) {
			state.After = r.Key
		}
		if errors.Is(r.Err, ErrStop) {
			return r.Err
		}

		if row == inARow && !w.KeepGoing {
			return ErrInARow
		}

		if now := w.Now(); now.Sub(saved) >= saveEvery && seen >= len(before) && w.File != "" && !w.DryRun {
			if err := w.save(*state); err != nil {
				return err
			}
			saved = now
		}
	}

	return nil
}

// lingering returns Do with a context that outlives ctx by Grace. It ends at
// once if the loop over the objects ends by itself.
func (w *Walk) lingering(ctx context.Context) (do func(context.Context, stored.Entry) Result, stop func()) {
	work, end := context.WithCancel(context.WithoutCancel(ctx))
	unhook := context.AfterFunc(ctx, func() {
		if w.Grace == 0 || errors.Is(context.Cause(ctx), ErrStop) {
			end()
			return
		}
		time.AfterFunc(w.Grace, end)
	})

	do = func(inner context.Context, e stored.Entry) Result {
		one, cancel := context.WithCancel(work)
		defer cancel()
		defer context.AfterFunc(inner, func() {
			if ctx.Err() == nil {
				cancel()
			}
		})()
		return w.Do(one, e)
	}
	return do, func() { unhook(); end() }
}

// load reads the state, or returns a fresh one.
func (w *Walk) load(fresh State) (State, error) {
	if w.File == "" {
		return fresh, nil
	}
	text, err := os.ReadFile(w.File)
	if errors.Is(err, fs.ErrNotExist) {
		return fresh, nil
	}
	if err != nil {
		return fresh, err
	}

	var s State
	if err := json.Unmarshal(text, &s); err != nil {
		return fresh, fmt.Errorf("%s: %w", w.File, err)
	}

	if s.Command != fresh.Command || s.Bucket != fresh.Bucket || s.Prefix != fresh.Prefix ||
		s.To != fresh.To || s.All != fresh.All || s.Bind != fresh.Bind ||
		s.Adopt != fresh.Adopt || s.Listed != fresh.Listed {
		return fresh, fmt.Errorf("%s belongs to another run, of %s: continue that one, or remove the file", w.File, s)
	}

	return s, nil
}

// String describes the run for people.
func (s State) String() string {
	text := fmt.Sprintf("%s s3://%s/%s to %q", s.Command, s.Bucket, s.Prefix, s.To)
	if s.Adopt != "" {
		text += " from " + s.Adopt
	}
	if s.Listed != "" {
		text += " with a list of objects"
	}
	return text
}

// save replaces the file atomically.
func (w *Walk) save(s State) error {
	s.Saved = w.Now().UTC()
	text, err := json.Marshal(s)
	if err != nil {
		return err
	}
	return atomicfile.Replace(w.File, append(text, '\n'), nil)
}
