package walk_test

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"iter"
	"os"
	"path/filepath"
	"slices"
	"testing"
	"time"

	"github.com/cmekproxy/cmekproxy/internal/maintain/walk"
	"github.com/cmekproxy/cmekproxy/internal/stored"
)

// over returns a walk over n keys, which do processes.
func over(t *testing.T, n int, do func(key string) walk.Result) (w *walk.Walk, told *[]string) {
	t.Helper()
	told = new([]string)
	return &walk.Walk{
		Do: func(_ context.Context, e stored.Entry) walk.Result {
			r := do(e.Key)
			r.Key = e.Key
			return r
		},
		List: func(_ context.Context, l stored.Listing) iter.Seq2[stored.Entry, error] {
			return func(yield func(stored.Entry, error) bool) {
				for i := range n {
					if key := fmt.Sprintf("k%04d", i); key > l.After && !yield(stored.Entry{Key: key}, nil) {
						return
					}
				}
			}
		},
		Parallel: 2, File: filepath.Join(t.TempDir(), "state"), Now: time.Now,
		Report: func(r walk.Result) { *told = append(*told, r.Key) },
	}, told
}

var errFailure = errors.New("it failed")

// A result with ErrStop ends the walk, and the state has its key among the
// failed ones.
func TestStop(t *testing.T) {
	w, told := over(t, 100, func(key string) walk.Result {
		if key == "k0005" {
			return walk.Result{Outcome: walk.Failed, Err: fmt.Errorf("%w: %w", errFailure, walk.ErrStop)}
		}
		return walk.Result{}
	})
	w.KeepGoing = true

	if err := w.Run(t.Context(), walk.State{Command: "c", Bucket: "b"}); !errors.Is(err, errFailure) ||
		len(*told) != 6 {
		t.Fatalf("%v after %v", err, *told)
	}

	text, err := os.ReadFile(w.File)
	if err != nil {
		t.Fatal(err)
	}

	var s walk.State
	if err := json.Unmarshal(text, &s); err != nil || !slices.Equal(s.Failed, []string{"k0005"}) || s.After != "k0005" {
		t.Errorf("%+v, %v", s, err)
	}
}

// Faults of objects do not end a walk, however many there are. Faults of
// keys and stores do.
func TestFaultsInARow(t *testing.T) {
	for _, own := range []bool{true, false} {
		w, told := over(
			t,
			300,
			func(string) walk.Result { return walk.Result{Outcome: walk.Failed, Err: errFailure, Own: own} },
		)
		err := w.Run(t.Context(), walk.State{Command: "c", Bucket: "b"})
		if own && (err != nil || len(*told) != 300) || !own && (!errors.Is(err, walk.ErrInARow) || len(*told) != 200) {
			t.Errorf("own: %t: %v after %d", own, err, len(*told))
		}
	}
}

// A state belongs to one command, and a dry run does not change it.
func TestStateOfAnother(t *testing.T) {
	w, _ := over(t, 10, func(string) walk.Result { return walk.Result{Outcome: walk.Failed, Err: errFailure} })
	fresh := walk.State{Command: "encrypt", Bucket: "b", Prefix: "p"}
	w.DryRun = true
	if err := w.Run(t.Context(), fresh); err != nil {
		t.Fatal(err)
	}

	if _, err := os.Stat(w.File); err == nil {
		t.Error("a dry run writes a state")
	}
	w.DryRun = false
	if err := w.Run(t.Context(), fresh); err != nil {
		t.Fatal(err)
	}

	for _, other := range []walk.State{
		{Command: "verify", Bucket: "b", Prefix: "p"},
		{Command: "encrypt", Bucket: "c", Prefix: "p"},
		{Command: "encrypt", Bucket: "b"},
		{Command: "encrypt", Bucket: "b", Prefix: "p", To: "key"},
		{Command: "encrypt", Bucket: "b", Prefix: "p", All: true},
	} {
		if err := w.Run(t.Context(), other); err == nil {
			t.Errorf("%+v continues with it", other)
		}
	}

	if err := w.Run(t.Context(), fresh); err != nil {
		t.Error(err)
	}
}
