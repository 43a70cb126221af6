package kms

import (
	"context"
	"time"

	"golang.org/x/sync/singleflight"
)

// loginTimeout limits one login, or one request for a token.
const loginTimeout = 30 * time.Second

// logins runs logins separately from the calls that need them. A login has
// its own time limit, so it may take longer than an attempt at a call. All
// callers share it. It continues when the caller that started it leaves, so
// the next caller finds it finished or nearly finished.
//
// Fetches of data keys are shared too, but without singleflight; see flight
// in package dekcache.
type logins[T any] struct{ group singleflight.Group }

// begin starts a login, or joins the login with the same name that is in
// progress.
func (l *logins[T]) begin(name string, run func(ctx context.Context) (T, error)) <-chan singleflight.Result {
	return l.group.DoChan(name, func() (any, error) {
		ctx, cancel := context.WithTimeout(context.Background(), loginTimeout)
		defer cancel()
		return run(ctx)
	})
}

// wait calls begin, and waits for the login until ctx ends.
func (l *logins[T]) wait(ctx context.Context, name string, run func(ctx context.Context) (T, error)) (T, error) {
	select {
	case r := <-l.begin(name, run):
		out, _ := r.Val.(T) // nil if there is an error
		return out, r.Err
	case <-ctx.Done():
		var none T
		return none, ctx.Err()
	}
}
