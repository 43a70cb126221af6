package main

import (
	"cmp"
	"crypto/subtle"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"net/http"
	"slices"
	"strings"
	"time"

	"go.uber.org/zap"

	"github.com/cmekproxy/cmekproxy/internal/audit"
	"github.com/cmekproxy/cmekproxy/internal/capability"
	"github.com/cmekproxy/cmekproxy/internal/keyring"
	"github.com/cmekproxy/cmekproxy/internal/kms"
)

// sidePort is a port other than the S3 port.
type sidePort struct {
	address string
	mux     *http.ServeMux
}

// sidePorts returns the ports of health checks, metrics and the admin API.
// They can share one port.
func (s *server) sidePorts(h *health) []sidePort {
	var ports []sidePort
	at := func(setting string) *http.ServeMux {
		address := cmp.Or(setting, s.cfg.AdminListen)
		i := slices.IndexFunc(ports, func(p sidePort) bool { return p.address == address })
		if i < 0 {
			ports = append(ports, sidePort{address, http.NewServeMux()})
			i = len(ports) - 1
		}
		return ports[i].mux
	}

	admin, health, metrics := at(s.cfg.AdminListen), at(s.cfg.HealthListen), at(s.cfg.MetricsListen)
	health.HandleFunc("GET /healthz", func(w http.ResponseWriter, _ *http.Request) {
		fmt.Fprintln(w, "ok")
	})
	health.HandleFunc("GET /readyz", func(w http.ResponseWriter, _ *http.Request) {
		if !h.ready.Load() {
			http.Error(w, "draining", http.StatusServiceUnavailable)
			return
		}
		fmt.Fprintln(w, "ready")
	})

	metrics.Handle("GET /metrics", s.metrics.Handler())
	admin.Handle("/admin/", sameSite(s.operatorsOnly(s.adminAPI())))
	admin.Handle("/{$}", sameSite(s.operatorsOnly(s.statusPage(h))))
	return ports
}

func (s *server) adminAPI() http.Handler {
	mux := http.NewServeMux()
	mux.HandleFunc("POST /admin/purge", s.servePurge)
	mux.HandleFunc("POST /admin/reload", s.serveReload)
	mux.HandleFunc("GET /admin/log-level", s.serveLogLevel)
	mux.HandleFunc("PUT /admin/log-level", s.changeLogLevel)
	mux.HandleFunc("GET /admin/keys", s.serveKeys)
	mux.HandleFunc("GET /admin/tenants", s.serveTenants)
	mux.HandleFunc("GET /admin/store", s.serveStore)
	mux.HandleFunc("POST /admin/store", s.probeStore)
	mux.HandleFunc(
		"GET /admin/ttl-advisor",
		func(w http.ResponseWriter, r *http.Request) { s.advisor.Handler().ServeHTTP(w, r) },
	)
	return mux
}

// sameSite refuses requests that a web page of another site makes an
// operator's browser send.
func sameSite(next http.Handler) http.Handler { return http.NewCrossOriginProtection().Handler(next) }

// operatorsOnly accepts requests with the admin_token. If none is
// configured, it accepts requests from this machine that use a loopback
// name. A web page whose DNS name was pointed at this machine has its own
// name in the Host header.
func (s *server) operatorsOnly(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		token := s.adminToken.Load()
		switch {
		case token != nil && *token != "":
			if subtle.ConstantTimeCompare([]byte(givenToken(r)), []byte(*token)) != 1 {
				w.Header().Add("WWW-Authenticate", `Bearer realm="cmekproxy admin"`)
				w.Header().Add("WWW-Authenticate", `Basic realm="cmekproxy admin", charset="UTF-8"`)
				http.Error(
					w,
					"send the configuration's admin_token as a bearer token, or as the password of any user",
					http.StatusUnauthorized,
				)
				return
			}
		case !arrivedOnLoopback(r):
			http.Error(
				w,
				"/admin needs an admin_token in the configuration, or a request on a loopback address of the proxy",
				http.StatusForbidden,
			)
			return
		case !isLoopback(r.Host):
			http.Error(
				w,
				"use localhost or a loopback address for /admin, or set an admin_token",
				http.StatusForbidden,
			)
			return
		}

		next.ServeHTTP(w, r)
	})
}

// givenToken returns the token of a request, or "". A browser can send it only
// as a password.
func givenToken(r *http.Request) string {
	if _, password, ok := r.BasicAuth(); ok {
		return password
	}
	token, _ := strings.CutPrefix(r.Header.Get("Authorization"), "Bearer ")
	return token
}

func arrivedOnLoopback(r *http.Request) bool {
	local, ok := r.Context().Value(http.LocalAddrContextKey).(net.Addr)
	return ok && isLoopback(local.String())
}

// isLoopback reports whether HOST or HOST:PORT is a loopback address or
// localhost.
func isLoopback(host string) bool {
	if name, _, err := net.SplitHostPort(host); err == nil {
		host = name
	}
	ip := net.ParseIP(strings.Trim(host, "[]"))
	return strings.EqualFold(host, "localhost") || ip != nil && ip.IsLoopback()
}

// servePurge purges the data keys of the key that the query names, or of all
// keys.
func (s *server) servePurge(w http.ResponseWriter, r *http.Request) {
	for name := range r.URL.Query() {
		if name != "key" {
			http.Error(
				w,
				fmt.Sprintf("unknown parameter %q; use key=NAME, or no parameter to purge all keys", name),
				http.StatusBadRequest,
			)
			return
		}
	}

	n, err := s.purge(r.URL.Query().Get("key"), r.URL.Query().Has("key"), "POST /admin/purge", r.RemoteAddr)
	switch {
	case errors.Is(err, keyring.ErrUnknownKey):
		http.Error(w, err.Error(), http.StatusNotFound)
	case err != nil:
		http.Error(
			w,
			fmt.Sprintf("%d data keys were purged, but that is not in the audit log: %v", n, err),
			http.StatusInternalServerError,
		)
	default:
		answerJSON(w, map[string]int{"purged": n})
	}
}

// purge removes the data keys of one key or of all keys from memory, and
// records it in the audit log. It only removes access, so it is done even if
// the record cannot be written. by is what asked for it, and remote is the
// client's address, if there is one.
func (s *server) purge( //nolint:revive // one distinguishes key "" from all keys
	key string,
	one bool,
	by, remote string,
) (n int, err error) {
	if one {
		n, err = s.keys.Purge(key)
	} else {
		key, n = "*", s.keys.PurgeAll()
	}
	if err != nil {
		return 0, err
	}
	s.log.Warn("data keys purged", zap.String("kms_key_name", key), zap.String("by", by), zap.Int("purged", n))
	return n, s.record(audit.Record{
		Event: "purge", Result: audit.OK, KMSKeyName: key, Operation: by, Remote: remote, Purged: &n,
	})
}

// serveStore shows what is known about the store.
func (s *server) serveStore(w http.ResponseWriter, _ *http.Request) {
	answerJSON(w, describeStore(s.capabilities.Known()))
}

// probeStore asks the store what it can do, now, in the bucket that the
// parameter names.
func (s *server) probeStore(w http.ResponseWriter, r *http.Request) {
	bucket := r.URL.Query().Get("bucket")
	if bucket == "" {
		http.Error(w, "give the bucket in which test objects may be written: bucket=NAME", http.StatusBadRequest)
		return
	}
	found, err := s.capabilities.Probe(r.Context(), bucket)
	if err != nil {
		http.Error(w, err.Error(), http.StatusBadGateway)
		return
	}
	answerJSON(w, describeStore(found))
}

func describeStore(set capability.Set) map[string]string {
	answers := make(map[string]string)
	for c := range capability.All {
		answers[c.String()] = set[c].String()
	}
	return answers
}

// keyStatus is a key in the response of /admin/keys.
type keyStatus struct {
	Name              string     `json:"name"`
	Provider          string     `json:"provider"`
	ID                string     `json:"id,omitempty"`
	Template          string     `json:"template,omitempty"` // for the key of a tenant, its template
	Open              *int       `json:"open,omitempty"`     // for a template, how many of its keys are open
	State             string     `json:"state"`
	LastAnswer        *time.Time `json:"last_answer,omitempty"` // time of the KMS's last answer
	Answer            string     `json:"answer,omitempty"`      // ok, or the kind of an error
	Error             string     `json:"error,omitempty"`
	DEKs              int        `json:"deks"`
	OldestSeconds     float64    `json:"oldest_seconds"`
	Leases            int        `json:"leases"`
	Parts             int        `json:"parts"` // parts in use that are probed separately
	PartsRevoked      int        `json:"parts_revoked"`
	Unprobed          bool       `json:"unprobed,omitempty"` // more parts are in use than can be probed
	RevocationSeconds float64    `json:"revocation_window_seconds"`
	RevokedSince      *time.Time `json:"revoked_since,omitempty"`
	LastByteSeconds   float64    `json:"last_byte_seconds,omitempty"` // time from RevokedSince to the last byte
}

// shownTenants is how many keys of templates /admin/keys shows, those that
// were used most recently.
const shownTenants = 100

func (s *server) serveKeys(w http.ResponseWriter, _ *http.Request) {
	list := []keyStatus{}
	shown, _ := shownKeys(s.keys.Status())
	for _, status := range shown {
		list = append(list, describeKey(status))
	}
	answerJSON(w, map[string]any{"keys": list})
}

// shownKeys returns the keys to show, and how many keys of templates are left
// out.
func shownKeys(all []keyring.Status) (shown []keyring.Status, more int) {
	tenants := 0
	for _, status := range all {
		if status.Template != "" {
			tenants++
		}
		if tenants <= shownTenants || status.Template == "" {
			shown = append(shown, status)
		}
	}
	return shown, len(all) - len(shown)
}

func describeKey(s keyring.Status) keyStatus {
	out := keyStatus{
		Name: s.Name, Provider: s.Provider, ID: s.ID, State: string(s.State),
		DEKs: s.DEKs, OldestSeconds: s.OldestAge.Seconds(), Leases: s.Leases,
		Parts: s.Parts, PartsRevoked: s.PartsRevoked, Unprobed: s.Unprobed,
		RevocationSeconds: s.Window.Seconds(), LastByteSeconds: s.LastUse.Seconds(),
	}
	out.Template = s.Template
	if s.State == keyring.IsTemplate || s.State == keyring.AreTenants {
		out.Open = &s.Open
	}
	if !s.Answered.IsZero() {
		out.LastAnswer, out.Answer = &s.Answered, "ok"
	}

	if !s.RevokedSince.IsZero() {
		out.RevokedSince = &s.RevokedSince
	}

	if s.Outcome != nil {
		out.Answer, out.Error = "error", s.Outcome.Error()
		if failure := (*kms.Error)(nil); errors.As(s.Outcome, &failure) {
			out.Answer = failure.Kind.String()
		}
	}
	return out
}

// tenantsStatus is the response of /admin/tenants.
type tenantsStatus struct {
	Served int            `json:"served"`          // number of tenants
	Error  string         `json:"error,omitempty"` // why the directory cannot be read
	Files  []tenantStatus `json:"files_with_errors"`
}

type tenantStatus struct {
	Path   string `json:"path"`
	Tenant string `json:"tenant,omitempty"`
	Error  string `json:"error"`
	Served bool   `json:"earlier_version_served"`
}

// serveTenants shows which files of tenants have errors.
func (s *server) serveTenants(w http.ResponseWriter, _ *http.Request) {
	if s.tenants == nil {
		http.Error(w, "there is no tenants_dir in the configuration", http.StatusNotFound)
		return
	}

	state := s.tenants.state.Load()
	out := tenantsStatus{Served: len(state.Tenants), Files: []tenantStatus{}}
	if state.Err != nil {
		out.Error = state.Err.Error()
	}
	for _, p := range state.Problems[:min(len(state.Problems), shownTenants)] {
		out.Files = append(out.Files, tenantStatus{p.Path, p.Tenant, p.Err.Error(), p.Served})
	}
	answerJSON(w, out)
}

func answerJSON(w http.ResponseWriter, body any) {
	w.Header().Set("Content-Type", "application/json")
	w.Header().Set("Cache-Control", "no-store")
	encoder := json.NewEncoder(w)
	encoder.SetIndent("", "  ")
	_ = encoder.Encode(body) // an error means that the client has disconnected
}
