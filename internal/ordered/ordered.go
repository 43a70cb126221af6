// Package ordered does work in parallel and hands out the results in the order of what they came of, so that a position
// in the input is one up to which all is done.
package ordered

import (
	"context"
	"iter"
	"sync"
)

// result is what became of one input.
type result[Out any] struct {
	out Out
	err error
}

// Map calls work for each value of in, up to parallel of them at a time, and yields what it returns in the order of in. Up
// to ahead results wait for an earlier one. An error of in, and that of ctx, is yielded after all that came before it, and
// is the last. When the loop is left, the context of work is canceled, and all of it has returned.
func Map[In, Out any](ctx context.Context, in iter.Seq2[In, error], parallel, ahead int, work func(context.Context, In) Out) iter.Seq2[Out, error] {
	return func(yield func(Out, error) bool) {
		inner, cancel := context.WithCancel(ctx)
		var running sync.WaitGroup
		defer running.Wait()
		defer cancel()
		pending := make(chan chan result[Out], ahead)
		turns := make(chan struct{}, parallel)
		running.Go(func() {
			defer close(pending)
			for value, err := range in {
				slot := make(chan result[Out], 1)
				if !send(inner, turns, struct{}{}) || !send(inner, pending, slot) {
					return
				}
				if err != nil {
					slot <- result[Out]{err: err}
					return
				}
				running.Go(func() {
					defer func() { <-turns }()
					slot <- result[Out]{out: work(inner, value)}
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

// send reports whether the value was taken before ctx ended.
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
