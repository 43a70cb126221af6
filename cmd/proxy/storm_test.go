package main

import (
	"fmt"
	"net/http"
	"net/http/httptest"
	"net/http/httputil"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"go.uber.org/zap"
	"go.uber.org/zap/zaptest/observer"

	"github.com/cmekproxy/cmekproxy/internal/config"
	"github.com/cmekproxy/cmekproxy/internal/kms/kmstest"
)

// manyKeys are AWS keys of one KMS behind a handler that counts concurrent
// requests.
type manyKeys struct {
	server  *kmstest.Server
	url     string
	most    atomic.Int64
	aliases []string
}

func newManyKeys(t *testing.T, n int) *manyKeys {
	t.Helper()
	t.Setenv("AWS_ACCESS_KEY_ID", "AKIDEXAMPLE")
	t.Setenv("AWS_SECRET_ACCESS_KEY", "example")
	m := &manyKeys{server: kmstest.StartTest(t)}

	for i := range n {
		arn, err := m.server.CreateKey()
		if err != nil {
			t.Fatal(err)
		}

		alias := fmt.Sprint("alias/key-", i)
		if err := m.server.SetAlias(alias, arn); err != nil {
			t.Fatal(err)
		}
		m.aliases = append(m.aliases, alias)
	}

	var inside atomic.Int64
	m.url = startProxyTo(t, m.server.URL(), func(next http.Handler) http.Handler {
		return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			n := inside.Add(1)
			defer inside.Add(-1)
			for most := m.most.Load(); n > most && !m.most.CompareAndSwap(most, n); most = m.most.Load() {
			}
			time.Sleep(2 * time.Millisecond)
			next.ServeHTTP(w, r)
		})
	})

	return m
}

func (m *manyKeys) config() *config.Config {
	cfg := devConfig("127.0.0.1:0", "127.0.0.1:0", "")
	cfg.Keys = nil
	for i, alias := range m.aliases {
		cfg.Keys = append(cfg.Keys, config.Key{
			Name: fmt.Sprint(
				"key-",
				i,
			), Provider: config.AWSKMS, KeyID: alias, Endpoint: m.url, Region: m.server.Region(), Timeout: 5 * time.Second,
		})
	}
	cfg.Encryption.Rules[0].Key = "key-0"
	return cfg
}

// TestManyKeysAtTheStart: the keys are opened and tried a few at a
// time, and the number of their metrics is limited.
func TestManyKeysAtTheStart(t *testing.T) {
	m := newManyKeys(t, 150)
	core, logs := observer.New(zap.InfoLevel)
	a, err := newServer(t.Context(), m.config(), zap.New(core), "")
	if err != nil {
		t.Fatal(err)
	}
	defer a.close()

	a.tryKeys(t.Context(), a.cfg.Keys)
	eventually(t, "all keys were tried", func() bool { return logs.FilterMessage("this key works").Len() == 150 })
	if most := m.most.Load(); most > 2*startTogether {
		t.Errorf("%d calls at a time", most)
	}

	page := scrape(t, a)
	series := 0
	for line := range strings.Lines(page) {
		if strings.Contains(line, `key="`) {
			series++
		}
	}

	if series > measuredKeys*60 {
		t.Errorf("%d time series of keys", series)
	}

	for _, want := range []string{`cmekproxy_key_revoked{key="key-99"} 0`, `cmekproxy_key_revoked{key="(others)"} 0`} {
		if !strings.Contains(page, want) {
			t.Errorf("no %s", want)
		}
	}

	if strings.Contains(page, `key="key-100"`) {
		t.Error("key-100 has a label of its own")
	}
}

// TestDoesNotWorkIsTakenBack: a success of the key, in any request, ends the
// state "does not work".
func TestDoesNotWorkIsTakenBack(t *testing.T) {
	t.Parallel()
	path := writeConfig(t, "http://127.0.0.1:1", "127.0.0.1:0", "127.0.0.1:0")
	file, err := readConfig(path)
	if err != nil {
		t.Fatal(err)
	}

	core, logs := observer.New(zap.InfoLevel)
	a, err := newServer(t.Context(), file.Config, zap.New(core), "")
	if err != nil {
		t.Fatal(err)
	}
	defer a.close()

	key := filepath.Join(filepath.Dir(path), "kms.key")
	if err := os.Rename(key, key+".away"); err != nil {
		t.Fatal(err)
	}
	a.tryKeys(t.Context(), a.cfg.Keys)

	eventually(t, "the key is said not to work", func() bool {
		return logs.FilterMessage("this key does not work; requests for other keys are served").Len() == 1
	})

	if err := os.Rename(key+".away", key); err != nil {
		t.Fatal(err)
	}

	eventually(
		t,
		"it is said that the key works now",
		func() bool { return logs.FilterMessage("this key works now").Len() == 1 },
	)

	if err := a.keys.Try(t.Context(), "main"); err != nil {
		t.Fatal(err)
	}
	if n := logs.FilterMessage("this key works now").Len(); n != 1 {
		t.Errorf("it is said %d times", n)
	}
}

// startProxyTo starts a reverse proxy with a handler around it.
func startProxyTo(t *testing.T, target string, around func(http.Handler) http.Handler) string {
	t.Helper()
	u, err := url.Parse(target)
	if err != nil {
		t.Fatal(err)
	}
	forward := &httputil.ReverseProxy{Rewrite: func(r *httputil.ProxyRequest) {
		r.SetURL(u)
		r.Out.Host = r.In.Host // the signature covers it
	}}
	server := httptest.NewServer(around(forward))
	t.Cleanup(server.Close)
	return server.URL
}

func scrape(t *testing.T, a *server) string {
	t.Helper()
	recorder := httptest.NewRecorder()
	a.metrics.Handler().ServeHTTP(
		recorder,
		httptest.NewRequestWithContext(t.Context(), http.MethodGet, "/metrics", nil),
	)
	return recorder.Body.String()
}
