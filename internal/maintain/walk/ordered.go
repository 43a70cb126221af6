package walk

import (
	"context"
	"iter"
	"sync"
)

// ordered is the result for one input.
type ordered[Out any] struct {
	out Out
	err error
}

// InOrder calls work for each value of in, up to parallel of them at a time.
// It yields the results in the order of in, so that everything before a
// result is done. Up to ahead results wait for an earlier one.
//
// An error of in, or of ctx, is yielded after everything before it, and ends
// the loop. When the loop ends, the context of work is canceled, and all
// calls of work have returned.
func InOrder[In, Out any](
	ctx context.Context,
	in iter.Seq2[In, error],
	parallel, ahead int,
	work func(context.Context, In) Out,
) iter.Seq2[Out, error] {
	return func(yield func(Out, error) bool) {
		inner, cancel := context.WithCancel(ctx)
		var running sync.WaitGroup
		defer running.Wait()
		defer cancel()
		pending := make(chan chan ordered[Out], ahead)
		turns := make(chan struct{}, parallel)

		running.Go(func() {
			defer close(pending)
			for value, err := range in {
				slot := make(chan ordered[Out], 1)
				if !send(inner, turns, struct{}{}) || !send(inner, pending, slot) {
					return
				}

				if err != nil {
					slot <- ordered[Out]{err: err}
					return
				}

				running.Go(func() {
					defer func() { <-turns }()
					slot <- ordered[Out]{out: work(inner, value)}
				})
			}
		})

		for slot := range pending {
			r := <-slot
			if !yield(r.out, r.err) || r.err != nil {
				return
			}
		}

		if err := ctx.Err(); err != nil {
			var none Out
			yield(none, err)
		}
	}
}

// send sends a value, and reports whether it was received before ctx ended.
func send[T any](ctx context.Context, to chan<- T, value T) bool {
	select {
	case <-ctx.Done():
		return false
	default:
	}
	select {
	case to <- value:
		return true
	case <-ctx.Done():
		return false
	}
}
