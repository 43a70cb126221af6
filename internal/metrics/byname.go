package metrics

import (
	"strings"
	"sync"
	"unicode"
	"unicode/utf8"

	"github.com/prometheus/client_golang/prometheus"
)

// OtherNames is the label of all clients, buckets or keys without a label of
// their own.
const OtherNames = "(others)"

const (
	noName  = "(none)" // the label of requests without a client or a bucket
	maxName = 255      // bytes of a name that can be a label
)

// byName counts requests and body bytes for each name, up to a limit of names.
// Further names share OtherNames.
type byName struct {
	requests, bytes *prometheus.CounterVec

	mu       sync.RWMutex
	limit    int // 0 for no counters at all
	counters map[string]*nameCounters
	shared   map[string]*nameCounters // by label: noName and OtherNames
}

// nameCounters are the counters with one label. They exist from the first
// request on, because rate does not see the appearance of a counter.
type nameCounters struct {
	classes [4]prometheus.Counter // 2xx to 5xx
	in, out prometheus.Counter
}

// addByName adds the metrics of this file. They have no series before
// CountByName.
func (m *Metrics) addByName() {
	m.clients = newByName("client", "Clients")
	m.buckets = newByName("bucket", "Buckets")
	m.registry.MustRegister(m.clients.requests, m.clients.bytes, m.buckets.requests, m.buckets.bytes)
}

func newByName(label, many string) *byName {
	further := many + " beyond a limit share the label " + OtherNames + "."
	return &byName{
		requests: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "cmekproxy_" + label + "_requests_total",
			Help: "S3 requests by " + label + " and class of the HTTP status. " + further,
		}, []string{label, "status_class"}),
		bytes: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "cmekproxy_" + label + "_bytes_total",
			Help: "Body bytes exchanged with clients, by " + label + ": in or out. " + further,
		}, []string{label, "direction"}),
	}
}

// CountByName counts the requests and bytes of so many clients and so many
// buckets, and those of all others together. 0 means no counters. It must be
// called before the first request.
func (m *Metrics) CountByName(clients, buckets int) {
	m.clients.allow(clients)
	m.buckets.allow(buckets)
}

// RequestBy counts a request for its client and its bucket. client is "" if the
// request was not authenticated. A bucket gets a label when a client's request
// to it has succeeded, so that names of buckets that do not exist use up none.
func (m *Metrics) RequestBy(client, bucket string, status int, in, out int64) {
	m.clients.count(client, client != "", status, in, out)
	m.buckets.count(bucket, client != "" && status < 400, status, in, out)
}

func (n *byName) allow(limit int) {
	n.limit = limit
	n.counters = make(map[string]*nameCounters)
	n.shared = make(map[string]*nameCounters)
	if limit > 0 {
		for _, label := range []string{noName, OtherNames} {
			n.shared[label] = n.newCounters(label)
		}
	}
}

func (n *byName) newCounters(label string) *nameCounters {
	c := &nameCounters{in: n.bytes.WithLabelValues(label, "in"), out: n.bytes.WithLabelValues(label, "out")}
	for i, class := range []string{"2xx", "3xx", "4xx", "5xx"} {
		c.classes[i] = n.requests.WithLabelValues(label, class)
	}
	return c
}

// count counts a request. mayAdd allows counters for a name that has none.
func (n *byName) count(name string, mayAdd bool, status int, in, out int64) {
	if n.limit == 0 {
		return
	}
	c := n.of(name, mayAdd)

	class := status/100 - 2 //nolint:mnd // the first class is 2xx
	if class < 0 || class >= len(c.classes) {
		class = len(c.classes) - 1 // the client got no status
	}
	c.classes[class].Inc()
	c.in.Add(float64(in))
	c.out.Add(float64(out))
}

// isLabel reports whether a name can be a label. prometheus panics for one that
// is not UTF-8.
func isLabel(name string) bool {
	return len(name) <= maxName && utf8.ValidString(name) && !strings.ContainsFunc(name, unicode.IsControl)
}

func (n *byName) of(name string, mayAdd bool) *nameCounters {
	if name == "" {
		return n.shared[noName]
	}

	n.mu.RLock()
	c, full := n.counters[name], len(n.counters) >= n.limit
	n.mu.RUnlock()
	switch {
	case c != nil:
		return c
	case full, !mayAdd, !isLabel(name):
		return n.shared[OtherNames]
	}

	n.mu.Lock()
	defer n.mu.Unlock()
	if c := n.counters[name]; c != nil {
		return c
	}
	if len(n.counters) >= n.limit {
		return n.shared[OtherNames]
	}
	c = n.newCounters(name)
	n.counters[name] = c
	return c
}
