package s3api

import (
	"context"
	"net/http"
	"net/http/httptest"
	"testing"
	"time"

	"go.uber.org/zap"

	"github.com/cmekproxy/cmekproxy/internal/access"
	"github.com/cmekproxy/cmekproxy/internal/dekcache"
	"github.com/cmekproxy/cmekproxy/internal/keyring"
	"github.com/cmekproxy/cmekproxy/internal/metrics"
)

// A connection whose context net/http has canceled because of a deadline
// serves one more request and is then closed.
func TestAPoisonedConnection(t *testing.T) {
	cache := dekcache.New(dekcache.Config{})
	defer cache.Close()
	keys, err := keyring.New(keyring.Config{Cache: cache})
	if err != nil {
		t.Fatal(err)
	}
	s := New(Config{
		Keys: keys, Clients: &access.Directory{}, Log: zap.NewNop(), Metrics: metrics.New(), Now: time.Now,
		Settings: Settings{IdleTimeout: time.Minute, MaxConcurrent: 1},
	})
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	w := httptest.NewRecorder()
	s.ServeHTTP(w, httptest.NewRequestWithContext(ctx, http.MethodGet, "/b!d/k", nil))

	if w.Code != http.StatusBadRequest || w.Header().Get("Connection") != "close" {
		t.Errorf("%d %v", w.Code, w.Header())
	}
	w = httptest.NewRecorder()
	s.ServeHTTP(w, httptest.NewRequestWithContext(t.Context(), http.MethodGet, "/b!d/k", nil))

	if w.Code != http.StatusBadRequest || w.Header().Get("Connection") != "" {
		t.Errorf("a good connection: %d %v", w.Code, w.Header())
	}
}
