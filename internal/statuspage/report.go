// Package statuspage is the page for the operator: what the proxy does, what
// is wrong, and what to do about it. The same facts are there as JSON.
//
// There is no example: it is a page to look at. docs/running.md has a picture.
package statuspage

import (
	"cmp"
	"slices"
	"time"

	"github.com/cmekproxy/cmekproxy/internal/metrics"
)

// Report is the state of the proxy. Times in seconds are named so; a time
// that does not exist is missing.
type Report struct {
	Time      time.Time  `json:"time"`
	Attention []Notice   `json:"attention"` // the worst first
	Proxy     Proxy      `json:"proxy"`
	Config    Config     `json:"config"`
	Window    Window     `json:"revocation_window"`
	Load      Load       `json:"load"`
	Keys      []Key      `json:"keys"`
	MoreKeys  int        `json:"more_keys,omitempty"` // keys of tenants that are not listed
	Store     Store      `json:"store"`
	TLS       *TLS       `json:"tls,omitempty"`     // missing for plain HTTP
	Audit     *Audit     `json:"audit,omitempty"`   // missing without an audit log
	Tenants   *Tenants   `json:"tenants,omitempty"` // missing without a tenants_dir
	Clients   []Client   `json:"clients"`           // those with running requests, the busiest first
	Course    []Point    `json:"course"`            // the oldest first
	Errors    []Failures `json:"errors"`            // of the time of Course, the most frequent first
}

// State is what the proxy is doing.
type State string

// The states.
const (
	Starting State = "starting" // ports are being opened
	Serving  State = "serving"
	Draining State = "draining" // it will end when its requests have
)

// Proxy is the process.
type Proxy struct {
	Version string     `json:"version"`
	Host    string     `json:"host"`
	Started time.Time  `json:"started"`
	State   State      `json:"state"`
	Since   time.Time  `json:"since"`           // the beginning of the state
	Until   *time.Time `json:"until,omitempty"` // when a drain aborts the requests that still run
	S3      string     `json:"s3_address"`
}

// Config is the configuration that is in force.
type Config struct {
	Path        string  `json:"path,omitempty"`
	Fingerprint string  `json:"fingerprint"` // equal for equal settings; secrets do not count
	Reload      *Reload `json:"last_reload,omitempty"`
	// NeedsRestart are settings that differ from those that the proxy started
	// with, and were not applied.
	NeedsRestart []string `json:"needs_restart,omitempty"`
}

// Reload is an attempt to reload the configuration.
type Reload struct {
	Time  time.Time `json:"time"`
	Error string    `json:"error,omitempty"` // the configuration before is in force
}

// Window is the time from the refusal of a key to the last byte under it.
type Window struct {
	Stated  float64 `json:"stated_seconds"`   // if probes are answered
	InForce float64 `json:"in_force_seconds"` // the longest of all keys, now
}

// Load is what the proxy has to do at the moment, and how much it takes on.
type Load struct {
	Now

	ConnectionsLimit int   `json:"connections_limit"` // 0 for none
	RunningLimit     int   `json:"running_limit"`
	Memory           int64 `json:"memory_bytes"`
	MemoryLimit      int64 `json:"memory_limit_bytes"` // 0 for none
	DEKs             int   `json:"deks"`               // unwrapped data keys in memory
	Leases           int   `json:"leases"`             // transfers that use one
}

// Key is a key of the customer's KMS.
type Key struct {
	Name     string     `json:"name"`
	Provider string     `json:"provider"`
	ID       string     `json:"id,omitempty"`
	State    string     `json:"state"` // of package keyring
	Answered *time.Time `json:"last_answer,omitempty"`
	Error    string     `json:"error,omitempty"`
	Window   float64    `json:"revocation_window_seconds"`
	DEKs     int        `json:"deks"`
	Leases   int        `json:"leases"`
	Open     *int       `json:"open,omitempty"` // for a template, how many of its keys are open
}

// Store is the store behind the proxy.
type Store struct {
	Endpoint     string            `json:"endpoint"`
	Region       string            `json:"region"`
	Up           *bool             `json:"up,omitempty"` // missing before the first answer
	Capabilities map[string]string `json:"capabilities"`
	Faults       map[string]int    `json:"faults"` // of the time of Course, by kind
}

// TLS is the certificate of the S3 port.
type TLS struct {
	Names  []string  `json:"names"`
	Issuer string    `json:"issuer"`
	Begins time.Time `json:"not_before"`
	Ends   time.Time `json:"not_after"`
}

// Audit is the audit log.
type Audit struct {
	Where    string `json:"where"`
	Failures int    `json:"failures"`        // records that could not be written, since the start
	Recent   int    `json:"recent_failures"` // those of the time of Course
}

// Tenants are those of tenants_dir.
type Tenants struct {
	Served   int    `json:"served"`
	Problems int    `json:"files_with_errors"`
	Error    string `json:"error,omitempty"` // why the directory cannot be read
}

// Client is a client with running requests.
type Client struct {
	Name    string `json:"name"`
	Running int    `json:"running"`
}

// Failures are requests that ended with the same error.
type Failures struct {
	Operation string `json:"operation"`
	Status    string `json:"status"`
	Code      string `json:"code"`
	Count     int    `json:"count"`
}

// Complete fills in what follows from the rest of the report.
func (r *Report) Complete(points []Point) {
	r.Course = points
	r.Errors = errorsOf(points)
	r.Store.Faults = make(map[string]int)
	for kind, n := range sumOf(points, func(p Point) map[string]float64 { return p.faults }) {
		r.Store.Faults[kind] = int(n)
	}
	if r.Audit != nil {
		r.Audit.Recent = 0
		for _, p := range points {
			r.Audit.Recent += int(p.Unaudited)
		}
	}
	r.Attention = r.notices()
}

// errorsOf returns the errors of all points, the most frequent first.
func errorsOf(points []Point) []Failures {
	list := []Failures{}
	for kind, n := range sumOf(points, func(p Point) map[metrics.Failed]float64 { return p.errors }) {
		list = append(list, Failures{kind.Operation, kind.Status, kind.Code, int(n)})
	}
	slices.SortFunc(list, func(a, b Failures) int {
		return cmp.Or(cmp.Compare(b.Count, a.Count), cmp.Compare(a.Operation, b.Operation), cmp.Compare(a.Code, b.Code))
	})
	return list[:min(len(list), kinds)]
}
