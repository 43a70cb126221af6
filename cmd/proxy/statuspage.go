package main

import (
	"cmp"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"maps"
	"net/http"
	"os"
	"slices"
	"time"

	"github.com/cmekproxy/cmekproxy/internal/config"
	"github.com/cmekproxy/cmekproxy/internal/keyring"
	"github.com/cmekproxy/cmekproxy/internal/statuspage"
)

// statusPage serves the page for the operator. Its history begins now.
func (s *server) statusPage(h *health) http.Handler {
	s.history = statuspage.NewHistory(s.metrics.Totals, s.loadNow, time.Now)
	started, host := time.Now(), hostName()
	return statuspage.Handler(func() statuspage.Report {
		r := statuspage.Report{
			Time:   time.Now(),
			Config: s.statusOfConfig(),
			Load:   s.statusOfLoad(),
			Store:  s.statusOfStore(),
			Audit:  s.statusOfAudit(),
			TLS:    s.statusOfTLS(),
		}
		r.Proxy = statuspage.Proxy{
			Version: versionString(), Host: host, Started: started, S3: s.cfg.Listen,
		}
		r.Proxy.State, r.Proxy.Since, r.Proxy.Until = h.phase()
		s.addKeys(&r)
		r.Tenants = s.statusOfTenants()
		r.Clients = busiest(s.api.Load().Clients)
		r.Complete(s.history.Points())
		return r
	})
}

func hostName() string {
	name, err := os.Hostname()
	if err != nil {
		return ""
	}
	return name
}

func (s *server) loadNow() statuspage.Now {
	return statuspage.Now{Running: s.api.Load().Running, Connections: s.open.count()}
}

func (s *server) statusOfLoad() statuspage.Load {
	l := s.api.Load()
	return statuspage.Load{
		Now:              s.loadNow(),
		ConnectionsLimit: s.open.most(),
		RunningLimit:     s.current().Limits.MaxConcurrentRequests,
		Memory:           l.Memory, MemoryLimit: l.MemoryLimit,
	}
}

// addKeys adds the keys, their data keys, and the revocation windows.
func (s *server) addKeys(r *statuspage.Report) {
	r.Keys = []statuspage.Key{}
	r.Window.Stated = s.keys.Window(s.cache.TTL()).Seconds()
	all := s.keys.Status()
	for _, status := range all {
		r.Load.DEKs += status.DEKs
		r.Load.Leases += status.Leases
		r.Window.InForce = max(r.Window.InForce, status.Window.Seconds())
	}

	var shown []keyring.Status
	shown, r.MoreKeys = shownKeys(all)
	for _, status := range shown {
		if status.State == keyring.AreTenants && s.tenants == nil {
			continue
		}
		r.Keys = append(r.Keys, keyOnPage(describeKey(status)))
	}
}

func keyOnPage(k keyStatus) statuspage.Key {
	return statuspage.Key{
		Name: k.Name, Provider: k.Provider, ID: k.ID, State: k.State, Answered: k.LastAnswer, Error: k.Error,
		Window: k.RevocationSeconds, DEKs: k.DEKs, Leases: k.Leases, Open: k.Open,
	}
}

func (s *server) statusOfStore() statuspage.Store {
	return statuspage.Store{
		Endpoint: s.cfg.Origin.Endpoint, Region: s.cfg.Origin.Region, Up: s.metrics.OriginState(),
		Capabilities: describeStore(s.capabilities.Known()),
	}
}

func (s *server) statusOfAudit() *statuspage.Audit {
	if s.audit.Load() == nil {
		return nil
	}
	return &statuspage.Audit{
		Where:    cmp.Or(s.current().Audit.File, "standard output"),
		Failures: int(s.metrics.Totals().Unaudited),
	}
}

func (s *server) statusOfTLS() *statuspage.TLS {
	files := s.tls.Load()
	if files == nil {
		return nil
	}
	leaf := files.Certificate()
	names := slices.Clone(leaf.DNSNames)
	for _, ip := range leaf.IPAddresses {
		names = append(names, ip.String())
	}
	return &statuspage.TLS{Names: names, Issuer: leaf.Issuer.String(), Begins: leaf.NotBefore, Ends: leaf.NotAfter}
}

func (s *server) statusOfTenants() *statuspage.Tenants {
	if s.tenants == nil {
		return nil
	}
	state := s.tenants.state.Load()
	out := &statuspage.Tenants{Served: len(state.Tenants), Problems: len(state.Problems)}
	if state.Err != nil {
		out.Error = state.Err.Error()
	}
	return out
}

// shownClients is how many clients the page shows.
const shownClients = 10

// busiest returns the clients with the most running requests.
func busiest(running map[string]int) []statuspage.Client {
	list := []statuspage.Client{}
	for _, name := range slices.Sorted(maps.Keys(running)) {
		list = append(list, statuspage.Client{Name: name, Running: running[name]})
	}
	slices.SortStableFunc(list, func(a, b statuspage.Client) int { return cmp.Compare(b.Running, a.Running) })
	return list[:min(len(list), shownClients)]
}

func (s *server) statusOfConfig() statuspage.Config {
	now := s.current()
	return statuspage.Config{
		Path: s.path, Fingerprint: fingerprint(now),
		Reload: s.lastReload.Load(), NeedsRestart: config.Compare(s.cfg, now).Restart,
	}
}

// fingerprint identifies the settings of a configuration. Secrets do not
// count: they encode as a fixed text.
func fingerprint(cfg *config.Config) string {
	text, err := json.Marshal(cfg)
	if err != nil {
		return "" // never: it has only strings, numbers, lists and structs
	}
	sum := sha256.Sum256(text)
	return hex.EncodeToString(sum[:6])
}
