//go:build !nodev

package main

import (
	"encoding/json"
	"net/http"
	"os"
	"slices"
	"strings"
	"testing"

	"github.com/cmekproxy/cmekproxy/internal/statuspage"
)

// reportOf returns what the page at the admin root shows.
func reportOf(t *testing.T, admin string) (r statuspage.Report) {
	t.Helper()
	status, body := adminDo(t, http.MethodGet, "http://"+admin+"/", http.Header{"Accept": {"application/json"}})
	if err := json.Unmarshal(body, &r); status != http.StatusOK || err != nil {
		t.Fatalf("%d %v %s", status, err, body)
	}
	return r
}

// TestStatusPage shows a proxy with a slow download: while it serves, without
// its key, and while it drains.
func TestStatusPage(t *testing.T) {
	d := newDrained(t, "limits: {shutdown_grace: 10m}\ndek_cache: {ttl: 5m, revocation_probe: 1s}")
	s := start(t, "serve", "--config", d.config)
	slowly(t, d.put(t))

	r := reportOf(t, d.admin)
	if len(r.Attention) != 0 || r.Proxy.State != statuspage.Serving || r.Load.Running != 1 || r.Load.Connections == 0 ||
		r.Keys[0].State != "usable" || r.Load.Leases != 1 || r.Store.Endpoint == "" || r.Store.Up == nil || !*r.Store.Up || r.Config.Path != d.config ||
		len(r.Clients) != 1 || r.Clients[0] != (statuspage.Client{Name: "app", Running: 1}) {
		t.Errorf("%+v", r)
	}
	if _, page := adminDo(t, http.MethodGet, "http://"+d.admin+"/", nil); !strings.Contains(string(page), "<h1>cmekproxy") {
		t.Errorf("%s", page)
	}

	s.stop()
	waitStatus(t, "http://"+d.admin+"/readyz", http.StatusServiceUnavailable)
	if r := reportOf(t, d.admin); r.Proxy.State != statuspage.Draining || r.Proxy.Until == nil || r.Load.Running != 1 {
		t.Errorf("draining: %+v", r.Proxy)
	}

	if err := os.Rename(d.key, d.key+".away"); err != nil {
		t.Fatal(err)
	}
	s.end(t) // the download is cut
}

// TestFingerprint: settings count, secrets do not.
func TestFingerprint(t *testing.T) {
	cfg := devConfig("127.0.0.1:1", "127.0.0.1:2", "key")
	before := fingerprint(cfg)
	cfg.Clients[0].SecretKey = "another-secret"
	if fingerprint(cfg) != before {
		t.Error("a secret counts")
	}
	cfg.DEKCache.TTL++
	if fingerprint(cfg) == before || len(before) != 12 {
		t.Errorf("the TTL does not count: %s", before)
	}
}

// TestStatusOfReloads: the page says what the last reload did, and which
// settings wait for a restart.
func TestStatusOfReloads(t *testing.T) {
	r := newReloading(t)
	if s := r.statusOfConfig(); s.Reload != nil || len(s.NeedsRestart) != 0 {
		t.Errorf("before: %+v", s)
	}
	before := r.statusOfConfig().Fingerprint

	if _, err := r.reloadWith(t, "limits: {", "limits: {nonsense: 1, "); err == nil {
		t.Fatal("reloaded")
	}
	if s := r.statusOfConfig(); !strings.Contains(s.Reload.Error, "nonsense") || s.Fingerprint != before {
		t.Errorf("a failed one: %+v", s)
	}

	if _, err := r.reloadWith(t, atTop, "metrics_listen: 127.0.0.1:9\n"+atTop); err != nil {
		t.Fatal(err)
	}
	s := r.statusOfConfig()
	if s.Reload.Error != "" || !slices.Equal(s.NeedsRestart, []string{"metrics_listen"}) || s.Fingerprint == before {
		t.Errorf("a port: %+v", s)
	}

	r.write(t, r.text)
	if _, err := r.reload(t.Context(), bySignal); err != nil || len(r.statusOfConfig().NeedsRestart) != 0 {
		t.Errorf("%v %+v", err, r.statusOfConfig())
	}
}
