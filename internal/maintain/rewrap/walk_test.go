package rewrap_test

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"iter"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/cmekproxy/cmekproxy/internal/maintain/inplace"
	"github.com/cmekproxy/cmekproxy/internal/maintain/rewrap"
	"github.com/cmekproxy/cmekproxy/internal/maintain/walk"
	"github.com/cmekproxy/cmekproxy/internal/stored"
)

// walking is a Walk over keys that are all plaintext, or refused by the
// store if fails says so.
type walking struct {
	walk.Walk
	fails func(key string) bool

	mu     sync.Mutex
	looked []string
	told   []string
	end    error // error of the listing
}

func newWalking(t *testing.T, keys ...string) *walking {
	t.Helper()
	w := &walking{fails: func(string) bool { return false }}
	l := newLab(t, localKey(t))

	l.cfg.Send = func(r *http.Request) (*http.Response, error) {
		key := strings.TrimPrefix(r.URL.Path, "/"+bucket+"/")
		w.mu.Lock()
		defer w.mu.Unlock()
		w.looked = append(w.looked, key)
		if w.fails(key) {
			return nil, &inplace.StoreError{HTTPStatus: http.StatusForbidden, Code: "AccessDenied"}
		}

		return &http.Response{StatusCode: http.StatusOK, Header: http.Header{"Etag": {`"e"`}}, Body: http.NoBody}, nil
	}

	mover := rewrap.New(l.cfg)
	w.Walk = walk.Walk{
		Do: func(ctx context.Context, e stored.Entry) walk.Result { return mover.Move(ctx, bucket, e) }, Parallel: 3,
		File: filepath.Join(t.TempDir(), "state"), Now: time.Now,
		Report: func(r walk.Result) { w.told = append(w.told, fmt.Sprint(r.Key, " ", r.Outcome)) },
		List: func(_ context.Context, l stored.Listing) iter.Seq2[stored.Entry, error] {
			return func(yield func(stored.Entry, error) bool) {
				for _, key := range keys {
					if key > l.After && !yield(stored.Entry{Key: key}, nil) {
						return
					}
				}

				if w.end != nil {
					yield(stored.Entry{}, w.end)
				}
			}
		},
	}

	return w
}

func (w *walking) state(t *testing.T) walk.State {
	t.Helper()
	text, err := os.ReadFile(w.File)
	if err != nil {
		t.Fatal(err)
	}
	var s walk.State
	if err := json.Unmarshal(text, &s); err != nil {
		t.Fatal(err)
	}
	return s
}

func TestWalkGoesOnWhereItEnded(t *testing.T) {
	w := newWalking(t, "a", "b", "c", "d")
	failure := errors.New("the listing broke off")
	w.end = failure
	w.fails = func(key string) bool { return key == "b" || key == "c" }
	if err := w.Run(t.Context(), walk.State{Command: "rewrap", Bucket: bucket}); !errors.Is(err, failure) {
		t.Fatal(err)
	}

	if s := w.state(t); s.After != "d" || !slices.Equal(s.Failed, []string{"b", "c"}) {
		t.Fatalf("%+v", s)
	}
	w.looked, w.end = nil, nil
	w.fails = func(key string) bool { return key == "c" }

	if err := w.Run(t.Context(), walk.State{Command: "rewrap", Bucket: bucket}); err != nil {
		t.Fatal(err)
	}
	slices.Sort(w.looked)

	if s := w.state(t); s.After != "d" || !slices.Equal(s.Failed, []string{"c"}) ||
		!slices.Equal(w.looked, []string{"b", "c"}) {
		t.Fatalf("%+v after looking at %v", s, w.looked)
	}
	w.fails = func(string) bool { return false }

	if err := w.Run(t.Context(), walk.State{Command: "rewrap", Bucket: bucket}); err != nil {
		t.Fatal(err)
	}
	if _, err := os.Stat(w.File); err == nil {
		t.Error("all is done, and the state is still there")
	}
}

// A walk that is interrupted while it retries failed keys forgets none of
// them.
func TestWalkEndedInTheMiddleOfWhatFailed(t *testing.T) {
	w := newWalking(t, "a", "b", "c", "d", "e")
	w.fails = func(string) bool { return true }
	if err := w.Run(t.Context(), walk.State{Command: "rewrap", Bucket: bucket}); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	w.Parallel = 1

	w.fails = func(key string) bool {
		if key == "c" {
			cancel()
		}
		return key == "b"
	}

	if err := w.Run(ctx, walk.State{Command: "rewrap", Bucket: bucket}); !errors.Is(err, context.Canceled) {
		t.Fatal(err)
	}

	s := w.state(t)
	for _, key := range []string{"b", "d", "e"} {
		if !slices.Contains(s.Failed, key) {
			t.Errorf("%s is forgotten: %+v", key, s)
		}
	}
}

func TestWalkEndsWhenNothingSucceeds(t *testing.T) {
	var keys []string
	for i := range 3000 {
		keys = append(keys, fmt.Sprintf("k%05d", i))
	}
	w := newWalking(t, keys...)
	w.fails = func(key string) bool { return key > "k00009" }

	if err := w.Run(t.Context(), walk.State{Command: "rewrap", Bucket: bucket}); !errors.Is(err, walk.ErrInARow) ||
		len(w.told) != 210 {
		t.Errorf("%v after %d", err, len(w.told))
	}
	if s := w.state(t); s.After != "k00209" || len(s.Failed) != 200 {
		t.Errorf("at %s, %d failed", s.After, len(s.Failed))
	}

	w.KeepGoing = true
	w.told = nil
	if err := w.Run(t.Context(), walk.State{Command: "rewrap", Bucket: bucket}); err != nil || len(w.told) != 2990 {
		t.Errorf("kept going: %v after %d", err, len(w.told))
	}

	// More keys failed than a state holds: the others come after its
	// position.
	s := w.state(t)
	if len(s.Failed) != 1000 || s.After != "k01009" {
		t.Errorf("at %s, %d failed", s.After, len(s.Failed))
	}

	w.fails, w.looked = func(string) bool { return false }, nil
	if err := w.Run(t.Context(), walk.State{Command: "rewrap", Bucket: bucket}); err != nil || len(w.looked) != 2990 {
		t.Errorf("%v after looking at %d", err, len(w.looked))
	}
}

func TestWalkRefusesTheStateOfAnother(t *testing.T) {
	w := newWalking(t, "a")
	w.fails = func(string) bool { return true }
	if err := w.Run(t.Context(), walk.State{Command: "rewrap", Bucket: bucket, Prefix: "p"}); err != nil {
		t.Fatal(err)
	}

	if err := w.Run(t.Context(), walk.State{Command: "rewrap", Bucket: bucket}); err == nil {
		t.Error("the state of another prefix is taken")
	}
	if err := os.WriteFile(w.File, []byte("{"), 0o600); err != nil {
		t.Fatal(err)
	}

	if err := w.Run(t.Context(), walk.State{Command: "rewrap", Bucket: bucket}); err == nil {
		t.Error("half a state is taken")
	}
}
