package main

import (
	"fmt"
	"net/http"
	"sync/atomic"

	"go.uber.org/zap"
)

// health is what /readyz tells.
type health struct{ ready atomic.Bool }

// admin is the handler of admin_listen. It has no authentication, which is why it is never on the S3 port.
func (a *app) admin(h *health) http.Handler {
	mux := http.NewServeMux()
	mux.HandleFunc("GET /healthz", func(w http.ResponseWriter, _ *http.Request) {
		fmt.Fprintln(w, "ok")
	})
	mux.HandleFunc("GET /readyz", func(w http.ResponseWriter, _ *http.Request) {
		if !h.ready.Load() {
			http.Error(w, "draining", http.StatusServiceUnavailable)
			return
		}
		fmt.Fprintln(w, "ready")
	})
	mux.Handle("GET /metrics", a.metrics.Handler())
	mux.HandleFunc("POST /purge", func(w http.ResponseWriter, r *http.Request) {
		n := a.keys.PurgeAll()
		a.log.Warn("data keys purged", zap.String("by", r.RemoteAddr), zap.Int("purged", n))
		fmt.Fprintf(w, "%d data keys purged\n", n)
	})
	return mux
}
