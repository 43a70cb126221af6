package kms

import (
	"context"
	"time"

	"golang.org/x/sync/singleflight"
)

// loginTimeout bounds one login, or one fetch of a token.
const loginTimeout = 30 * time.Second

// logins runs logins apart from the calls that need them. A login has a bound
// of its own and is no part of an attempt, so that one which takes longer than
// an attempt may still succeeds. All callers share it, and it survives the
// caller that started it: the next caller finds it done, or nearly so.
//
// Data keys are fetched once for all callers too, but not by singleflight; see
// flight in package dekcache.
type logins[T any] struct{ group singleflight.Group }

// begin starts a login, or joins the one by the same name that is under way.
func (l *logins[T]) begin(name string, run func(ctx context.Context) (T, error)) <-chan singleflight.Result {
	return l.group.DoChan(name, func() (any, error) {
		ctx, cancel := context.WithTimeout(context.Background(), loginTimeout)
		defer cancel()
		return run(ctx)
	})
}

// wait is begin, and waits for the login until ctx ends.
func (l *logins[T]) wait(ctx context.Context, name string, run func(ctx context.Context) (T, error)) (T, error) {
	select {
	case r := <-l.begin(name, run):
		out, _ := r.Val.(T) // nil with an error
		return out, r.Err
	case <-ctx.Done():
		var none T
		return none, ctx.Err()
	}
}
