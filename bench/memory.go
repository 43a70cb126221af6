package main

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"sync"
	"time"
)

const (
	transfers   = 64
	transferred = int64(1 << 30)
	memoryLimit = 128 << 20
)

// memory runs 64 transfers of 1 GiB at a time through a fresh proxy, first down, then up, and compares its peak memory
// with the limit. Downloads come from the real store; uploads go to a sink.
func memory(ctx context.Context, l *lab, o options) error {
	down, err := l.startProxy(ctx, "memory-get", l.store)
	if err != nil {
		return err
	}
	if _, err := down.do(ctx, http.MethodPut, "/"+bucket+"/1GiB", &endless{left: transferred}, transferred); err != nil {
		return err
	}
	up, err := l.startProxy(ctx, "memory-put", l.newSink())
	if err != nil {
		return err
	}
	return errors.Join(
		transfer(ctx, down, o, "GET", func(ctx context.Context, _ int) error {
			_, err := down.do(ctx, http.MethodGet, "/"+bucket+"/1GiB", nil, 0)
			return err
		}),
		transfer(ctx, up, o, "PUT", func(ctx context.Context, n int) error {
			_, err := up.do(ctx, http.MethodPut, fmt.Sprintf("/%s/%d", bucket, n), &endless{left: transferred}, transferred)
			return err
		}),
	)
}

func transfer(ctx context.Context, t *target, o options, method string, one func(context.Context, int) error) error {
	if !o.full {
		var cancel context.CancelFunc
		ctx, cancel = context.WithTimeout(ctx, o.memory)
		defer cancel()
	}
	var wg sync.WaitGroup
	errs := make([]error, transfers)
	start := time.Now()
	for n := range transfers {
		wg.Go(func() { errs[n] = one(ctx, n) })
	}
	wg.Wait()
	how := "to their end"
	if !o.full {
		how = fmt.Sprintf("for %v", o.memory)
		for i := range errs {
			if errors.Is(errs[i], context.DeadlineExceeded) {
				errs[i] = nil
			}
		}
	}
	peak := t.peakRSS()
	fmt.Printf("%d concurrent %s of 1 GiB, %s (%.0f s): peak RSS of cmekproxy %.1f MiB\n", transfers, method, how, time.Since(start).Seconds(), float64(peak)/(1<<20))
	if peak > memoryLimit {
		errs = append(errs, fmt.Errorf("%s: more than %d MiB", method, memoryLimit>>20))
	}
	return errors.Join(errs...)
}
