// Package walk looks at all objects of a listing, several at a time and in its
// order, and can go on where it was ended.
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
	// maxFailed is how many failed keys a State holds. When there are more,
	// its position stands still, and the next run looks at all that comes
	// after it.
	maxFailed = 1000
	// window is how many objects may be done while an earlier one, such as a
	// large one in parts, is not.
	window = 2000
	// inARow is how many failures in a row end a walk: the fault is then with
	// a key or the store, and not with the objects.
	inARow = 200
	// saveEvery is how often the state is written.
	saveEvery = time.Second
)

// ErrInARow says that a walk was ended because nothing succeeded any more.
var ErrInARow = fmt.Errorf("the last %d objects have all failed", inARow)

// ErrStop is in the error of a result after which nothing more is to be done.
var ErrStop = errors.New("the run is ended")

// Outcome is what became of an object.
type Outcome int

// The outcomes.
const (
	Done      Outcome = iota // or would be, in a dry run
	Current                  // it is as it should be already
	Plaintext                // it was never encrypted, and is to be left so
	Gone                     // it was deleted since it was listed
	Customer                 // it is under a key that its client brings (SSE-C), and nobody else has
	Failed                   // it is as it was, unless the error says otherwise

	outcomes
)

// Counts are numbers of objects, by outcome.
type Counts [outcomes]int64

// Result is what became of an object, and why.
type Result struct {
	Key     string
	Version string // id, where versions were asked for
	Outcome Outcome
	Size    int64    // of the plaintext, in bytes, of one that is done
	Parts   int      // of a multipart one that is done
	KeyIDs  []string // of the KMS keys that it is under, as far as that was looked at
	Err     error    // of one that failed
	// Own says that the fault is the object's own, and tells nothing of those
	// that come after it.
	Own bool
}

// Walk does something with all objects of a listing.
type Walk struct {
	// Do does it with one. It is called concurrently.
	Do       func(ctx context.Context, e stored.Entry) Result
	List     func(ctx context.Context, l stored.Listing) iter.Seq2[stored.Entry, error]
	Parallel int // objects at a time
	// File is the path of the state, by which a walk that was ended goes on;
	// "" for none.
	File string
	// DryRun reads the state, and does not write it.
	DryRun bool
	// KeepGoing does not end the walk for failures in a row.
	KeepGoing bool
	// Report is told of each object, in the order of the listing.
	Report func(Result)
	// Now is the clock.
	Now func() time.Time
}

// State is how far a walk has come. It is written now and then, and lags
// behind what is done, never ahead of it.
type State struct {
	Command string `json:"command"`
	Bucket  string `json:"bucket"`
	Prefix  string `json:"prefix"`
	To      string `json:"to"` // Config.To
	All     bool   `json:"all"`
	Bind    bool   `json:"bind,omitempty"`
	Listed  string `json:"listed,omitempty"` // digest of a list of objects

	After  string    `json:"after"`  // all keys up to this one are done, in the order of the listing, but for:
	Failed []string  `json:"failed"` // they are tried again first
	Saved  time.Time `json:"saved"`
}

// Run walks over what of fresh.Bucket has the prefix. What fresh says of
// itself must be what a state says that is gone on with. It returns an error
// if it did not come to the end; that objects failed is none, and told to
// Report only.
func (w *Walk) Run(ctx context.Context, fresh State) error {
	state, err := w.load(fresh)
	if err != nil {
		return err
	}
	todo, before := w.todo(ctx, state), state.Failed
	state.Failed = nil
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

// todo lists what failed before, and then what has not been looked at yet.
func (w *Walk) todo(ctx context.Context, state State) iter.Seq2[stored.Entry, error] {
	return func(yield func(stored.Entry, error) bool) {
		for _, key := range state.Failed {
			if !yield(stored.Entry{Key: key}, nil) {
				return
			}
		}
		for e, err := range w.List(ctx, stored.Listing{Bucket: state.Bucket, Prefix: state.Prefix, After: state.After}) {
			if !yield(e, err) {
				return
			}
		}
	}
}

// doAll does what is to be done, which begins with what failed before, and
// notes it in state.
func (w *Walk) doAll(ctx context.Context, state *State, before []string, todo iter.Seq2[stored.Entry, error]) error {
	saved, row, seen, frozen := w.Now(), 0, 0, false
	defer func() {
		if seen < len(before) {
			state.Failed = append(state.Failed, before[seen:]...) // it did not even come to these
		}
	}()

	for r, err := range InOrder(ctx, todo, w.Parallel, window, w.Do) {
		if err != nil {
			return err
		}
		if ctx.Err() != nil && r.Outcome == Failed {
			return ctx.Err() // it has not failed by itself
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

// load reads the state, or begins with a fresh one.
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

	if s.Command != fresh.Command || s.Bucket != fresh.Bucket || s.Prefix != fresh.Prefix || s.To != fresh.To || s.All != fresh.All ||
		s.Bind != fresh.Bind ||
		s.Listed != fresh.Listed {
		return fresh, fmt.Errorf(
			"%s is of another run, of %s s3://%s/%s to %q: go on with that one, or remove the file",
			w.File,
			s.Command,
			s.Bucket,
			s.Prefix,
			s.To,
		)
	}

	return s, nil
}

// save replaces the file as a whole.
func (w *Walk) save(s State) error {
	s.Saved = w.Now().UTC()
	text, err := json.Marshal(s)
	if err != nil {
		return err
	}
	return atomicfile.Replace(w.File, append(text, '\n'), nil)
}
