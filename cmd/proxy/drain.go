package main

import (
	"context"
	"errors"
	"net/http"
	"os"
	"os/signal"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"go.uber.org/zap"

	"github.com/cmekproxy/cmekproxy/internal/statuspage"
)

// signalError is the cause of a context that was canceled by a signal.
type signalError struct{ os.Signal }

func (s signalError) Error() string { return s.String() }

// untilSignal returns a context that is canceled by the first SIGINT or
// SIGTERM. A second one ends the process at once, also where SIGINT is ignored
// from the start, as in the background job of a shell. A command that calls
// secondSignal handles it instead.
func untilSignal() (ctx context.Context, stop func()) {
	second := &secondStop{signaled: make(chan struct{})}
	ctx, cancel := context.WithCancelCause(context.WithValue(context.Background(), secondKey{}, second))
	stopped := make(chan struct{})
	signals := make(chan os.Signal, 2)
	signal.Notify(signals, os.Interrupt, syscall.SIGTERM)

	// One registration for all signals: between two of them, a signal would
	// do what it does by default, which is nothing or an end without a reset.
	go func() {
		for {
			select {
			case s := <-signals:
				switch {
				case ctx.Err() == nil:
					cancel(signalError{s})
				case second.handled.Load():
					second.once.Do(func() { close(second.signaled) })
				default:
					os.Exit(exitCode(ctx, signalError{s}))
				}
			case <-stopped:
				return
			}
		}
	}()

	return ctx, func() {
		signal.Stop(signals)
		close(stopped)
		cancel(nil)
	}
}

// secondStop is the second signal to stop.
type secondStop struct {
	once     sync.Once
	signaled chan struct{} // closed by the signal
	handled  atomic.Bool   // by a command, so that it does not end the process
}

type secondKey struct{}

// secondSignal returns a channel that the second signal to stop closes. Until
// release is called, signals do not end the process. Without untilSignal there
// is no such signal, and the channel is nil.
func secondSignal(ctx context.Context) (signaled <-chan struct{}, release func()) {
	second, ok := ctx.Value(secondKey{}).(*secondStop)
	if !ok {
		return nil, func() {}
	}
	second.handled.Store(true)
	return second.signaled, func() { second.handled.Store(false) }
}

// health is the state of the proxy, which /readyz reports.
type health struct {
	ready atomic.Bool
	state atomic.Pointer[phase]
}

// phase is a state since a time.
type phase struct {
	state statuspage.State
	since time.Time
	until *time.Time // for a drain, when it aborts requests
}

func newHealth() *health {
	h := &health{}
	h.state.Store(&phase{statuspage.Starting, time.Now(), nil})
	return h
}

func (h *health) serve() {
	h.state.Store(&phase{statuspage.Serving, time.Now(), nil})
	h.ready.Store(true)
}

func (h *health) drain(until time.Time) {
	h.ready.Store(false)
	h.state.Store(&phase{statuspage.Draining, time.Now(), &until})
}

func (h *health) phase() (state statuspage.State, since time.Time, until *time.Time) {
	p := h.state.Load()
	return p.state, p.since, p.until
}

// leaving makes each response on the S3 port close its connection once the
// proxy is stopping. Clients with long-lived connections then move to
// another proxy while the port still answers.
func (h *health) leaving(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if !h.ready.Load() {
			w = &lastResponse{w}
		}
		next.ServeHTTP(w, r)
	})
}

// lastResponse closes its connection.
type lastResponse struct{ http.ResponseWriter }

// WriteHeader sets the header last, because the handler copies headers from
// the store's answer.
func (w *lastResponse) WriteHeader(status int) {
	w.Header().Set("Connection", "close")
	w.ResponseWriter.WriteHeader(status)
}

// Unwrap is for http.ResponseController.
func (w *lastResponse) Unwrap() http.ResponseWriter { return w.ResponseWriter }

var (
	errGrace        = errors.New("limits.shutdown_grace is over")
	errSecondSignal = errors.New("a second signal to stop")
)

// drain stops the server. After a SIGTERM, the port still answers for
// limits.shutdown_delay, so that load balancers notice /readyz. Then it
// accepts no more connections, and waits for running requests. Idle
// connections stay open until they were idle for three times shutdown_delay,
// and their next response closes them. All of this takes at most limits.shutdown_grace.
// A second signal ends the wait at once. Requests that still run are then
// aborted.
func (s *server) drain(cause error, second <-chan struct{}, s3 *http.Server) error {
	grace, end := context.WithCancelCause(context.Background())
	defer end(nil)
	grace, cancel := context.WithTimeoutCause(grace, s.current().Limits.ShutdownGrace, errGrace)
	defer cancel()
	go func() {
		select {
		case <-second:
			end(errSecondSignal)
		case <-grace.Done():
		}
	}()

	s.log.Info("draining", zap.Error(cause), zap.Stringer("shutdown_delay", s.delay(cause)),
		zap.Stringer("shutdown_grace", s.current().Limits.ShutdownGrace))
	s.notifyStopping()
	select {
	case <-time.After(s.delay(cause)):
	case <-grace.Done():
	}

	s.open.leave(grace, s.delay(cause))
	if err := s3.Shutdown(grace); err != nil {
		s.log.Warn(
			"aborting the requests that are still running",
			zap.NamedError("reason", context.Cause(grace)),
			zap.Error(err),
		)
		s.open.reset()
		return s3.Close()
	}

	s.log.Info("drained")
	return nil
}

// delay returns how long the port still answers. Only a SIGTERM has a delay:
// orchestrators send it while they remove the proxy from their load
// balancers.
func (s *server) delay(cause error) time.Duration {
	var ended signalError
	if errors.As(cause, &ended) && ended.Signal == syscall.SIGTERM {
		return s.current().Limits.ShutdownDelay
	}
	return 0
}
