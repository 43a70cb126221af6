// Package metrics exports Prometheus metrics of the proxy.
// docs/metrics.md documents their names and labels.
//
//	metrics.go  Metrics, and what is counted in it
//	process.go  the build, the configuration, and whether the store answers
//	byname.go   counters for each client and each bucket
//
// There is no example: its names are what matters, and docs/metrics.md
// lists them.
package metrics

import (
	"net/http"
	"strconv"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"
	"github.com/prometheus/client_golang/prometheus/promhttp"

	"github.com/cmekproxy/cmekproxy/internal/storefault"
)

// Metrics contains the proxy's metrics. There are no labels for object keys,
// because their number is unlimited, and none for clients and buckets unless
// CountByName limits them; see the access log for these.
type Metrics struct {
	InFlight  prometheus.Gauge   // S3 requests being served
	OpenEnds  prometheus.Counter // multipart objects without an authenticated end
	Untagged  prometheus.Counter // multipart objects whose record does not have the tags of the parts
	Unaudited prometheus.Counter // records that could not be written to the audit log

	registry       *prometheus.Registry
	openMetrics    bool
	requests       *prometheus.CounterVec
	refusals       *prometheus.CounterVec
	duration       *prometheus.HistogramVec
	bytes          *prometheus.CounterVec
	in, out        prometheus.Counter // of bytes
	originDuration *prometheus.HistogramVec
	originFaults   *prometheus.CounterVec
	kmsWaits       *prometheus.CounterVec
	kmsWaited      *prometheus.CounterVec
	membersMissing *prometheus.CounterVec
	originRetries  *prometheus.CounterVec
	kmsDuration    *prometheus.HistogramVec
	leases         *prometheus.CounterVec
	breakers       *prometheus.GaugeVec
	capabilities   *prometheus.GaugeVec

	buildInfo            *prometheus.GaugeVec
	reloadOK, reloadTime prometheus.Gauge
	answering            latch // origin up
	clients, buckets     *byName
}

// seconds are the upper bounds of the histograms, from a small cached GET
// to a large transfer.
var seconds = []float64{.001, .0025, .005, .01, .025, .05, .1, .25, .5, 1, 2.5, 5, 10, 30, 60}

// New returns Metrics with a separate registry, which includes metrics of
// the Go runtime and the process.
func New() *Metrics {
	m := &Metrics{
		registry: prometheus.NewRegistry(),
		InFlight: prometheus.NewGauge(prometheus.GaugeOpts{
			Name: "cmekproxy_requests_in_flight", Help: "S3 requests being processed.",
		}),
		Untagged: prometheus.NewCounter(prometheus.CounterOpts{
			Name: "cmekproxy_untagged_uploads_total",
			Help: "Multipart objects whose record does not identify the attempts at their parts: some were sealed " +
				"by other replicas and the client took their ETags from a listing.",
		}),
		OpenEnds: prometheus.NewCounter(prometheus.CounterOpts{
			Name: "cmekproxy_open_ends_total",
			Help: "Multipart objects written without an authenticated end, " +
				"because the store requires parts of equal length.",
		}),
		Unaudited: prometheus.NewCounter(prometheus.CounterOpts{
			Name: "cmekproxy_audit_failures_total",
			Help: "Records that could not be written to the audit log. These uses were refused.",
		}),
		requests: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "cmekproxy_requests_total",
			Help: "S3 requests, by operation, HTTP status and S3 error code.",
		}, []string{"operation", "status", "code"}),
		refusals: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "cmekproxy_requests_refused_total",
			Help: "S3 requests that were refused with 503 SlowDown because there was no room for them, by reason.",
		}, []string{"reason"}),
		duration: prometheus.NewHistogramVec(prometheus.HistogramOpts{
			Name: "cmekproxy_request_duration_seconds",
			Help: "Time from the header of a request to the end of its response.", Buckets: seconds,
		}, []string{"operation"}),
		bytes: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "cmekproxy_bytes_total", Help: "Body bytes exchanged with clients: in or out.",
		}, []string{"direction"}),
		originDuration: prometheus.NewHistogramVec(prometheus.HistogramOpts{
			Name:    "cmekproxy_origin_duration_seconds",
			Help:    "Time of requests to the store up to the response header; status 0 means no response.",
			Buckets: seconds,
		}, []string{"operation", "status"}),
		originFaults: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "cmekproxy_origin_faults_total",
			Help: "Requests to the store that failed for a reason that is not in the request, by kind of fault.",
		}, []string{"fault"}),
		originRetries: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "cmekproxy_origin_retries_total",
			Help: "Requests to the store that were repeated, by kind of the fault before.",
		}, []string{"fault"}),
		kmsDuration: prometheus.NewHistogramVec(prometheus.HistogramOpts{
			Name: "cmekproxy_kms_duration_seconds",
			Help: "Time of requests to the KMS, by name of the key, operation and result.", Buckets: seconds,
		}, []string{"key", "operation", "result"}),
		kmsWaits: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "cmekproxy_kms_limit_waits_total",
			Help: "Attempts at calls to the KMS that waited because of the proxy's own limits, by name of the key.",
		}, []string{"key"}),
		kmsWaited: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "cmekproxy_kms_limit_wait_seconds_total",
			Help: "Time that these attempts waited, by name of the key.",
		}, []string{"key"}),
		membersMissing: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "cmekproxy_kms_member_missing_total",
			Help: "Uses of an any-of key without one of its members, by names of both keys and operation.",
		}, []string{"key", "member", "operation"}),
		leases: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "cmekproxy_dek_leases_total",
			Help: "Leases of running transfers that ran out, by name of the key: " +
				"renewed by the KMS, or cut with the transfer.",
		}, []string{"key", "event"}),
		breakers: prometheus.NewGaugeVec(prometheus.GaugeOpts{
			Name: "cmekproxy_kms_breaker_open",
			Help: "Circuit breakers that are open, because the KMS does not answer, by name of the key.",
		}, []string{"key"}),
		capabilities: prometheus.NewGaugeVec(prometheus.GaugeOpts{
			Name: "cmekproxy_store_capability",
			Help: "1 if the store can do something, 0 if it cannot; missing while that is unknown.",
		}, []string{"capability"}),
	}

	m.addProcess()
	m.addByName()
	m.registry.MustRegister(m.InFlight, m.OpenEnds, m.Untagged, m.Unaudited)
	m.registry.MustRegister(m.requests, m.refusals, m.duration, m.bytes, m.originDuration,
		m.originFaults, m.originRetries, m.kmsDuration, m.kmsWaits, m.kmsWaited, m.membersMissing,
		m.leases, m.breakers, m.capabilities,
		collectors.NewGoCollector(), collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}))
	m.originFaultKinds()
	m.in, m.out = m.bytes.WithLabelValues("in"), m.bytes.WithLabelValues("out")

	return m
}

// Request records a finished request. code is the S3 error code, or empty.
// trace is the id of a recorded trace with the request, or empty.
func (m *Metrics) Request(operation string, status int, code string, took time.Duration, trace string) {
	m.requests.WithLabelValues(operation, strconv.Itoa(status), code).Inc()
	m.observe(m.duration.WithLabelValues(operation), took, trace)
}

// Received counts body bytes from a client.
func (m *Metrics) Received(n int64) { m.in.Add(float64(n)) }

// Sent counts body bytes to a client.
func (m *Metrics) Sent(n int64) { m.out.Add(float64(n)) }

// observe adds a duration to a histogram, with the trace as its exemplar.
func (m *Metrics) observe(histogram prometheus.Observer, took time.Duration, trace string) {
	if with, ok := histogram.(prometheus.ExemplarObserver); ok && trace != "" {
		with.ObserveWithExemplar(took.Seconds(), prometheus.Labels{"trace_id": trace})
		return
	}
	histogram.Observe(took.Seconds())
}

// Refused records a request that was refused because there was no room for
// it.
func (m *Metrics) Refused(reason string) { m.refusals.WithLabelValues(reason).Inc() }

// Origin records a request to the store. status is 0 if there was no
// response.
func (m *Metrics) Origin(operation string, status int, took time.Duration) {
	m.originDuration.WithLabelValues(operation, strconv.Itoa(status)).Observe(took.Seconds())
}

// originFaultKinds makes the counters of all kinds of faults. A counter that
// appears with its first fault would hide that fault from rate.
func (m *Metrics) originFaultKinds() {
	for _, kind := range storefault.Kinds() {
		m.originFaults.WithLabelValues(string(kind))
	}
}

// OriginFault records a request to the store that failed for a reason that is
// not in the request. kind is a storefault.Kind.
func (m *Metrics) OriginFault(kind string) { m.originFaults.WithLabelValues(kind).Inc() }

// OriginRetry records a request to the store that is repeated after a fault.
func (m *Metrics) OriginRetry(kind string) { m.originRetries.WithLabelValues(kind).Inc() }

// KMS records a request to the KMS. result is "ok" or a kind of error.
func (m *Metrics) KMS(key, operation, result string, took time.Duration) {
	m.kmsDuration.WithLabelValues(key, operation, result).Observe(took.Seconds())
}

// MemberMissing records a use of an any-of key without one of its members.
func (m *Metrics) MemberMissing(key, member, operation string) {
	m.membersMissing.WithLabelValues(key, member, operation).Inc()
}

// KMSWait records that an attempt at a call to the KMS waited because of the
// proxy's own limits.
func (m *Metrics) KMSWait(key string, waited time.Duration) {
	m.kmsWaits.WithLabelValues(key).Inc()
	m.kmsWaited.WithLabelValues(key).Add(waited.Seconds())
}

// Lease records what happened to a lease that ran out: it was renewed or
// cut.
func (m *Metrics) Lease(key, event string) { m.leases.WithLabelValues(key, event).Inc() }

// ForgetKey removes the metrics of a key that is gone.
func (m *Metrics) ForgetKey(key string) {
	label := prometheus.Labels{"key": key}
	m.kmsDuration.DeletePartialMatch(label)
	for _, c := range []*prometheus.CounterVec{m.kmsWaits, m.kmsWaited, m.membersMissing, m.leases} {
		c.DeletePartialMatch(label)
	}
	m.membersMissing.DeletePartialMatch(prometheus.Labels{"member": key})
	m.breakers.DeletePartialMatch(label)
}

// StoreCapability records whether the store can do something.
func (m *Metrics) StoreCapability(name string, able bool) {
	value := map[bool]float64{true: 1}[able]
	m.capabilities.WithLabelValues(name).Set(value)
}

// Breaker returns the gauge for the circuit breakers of the keys with this
// label.
func (m *Metrics) Breaker(key string) prometheus.Gauge { return m.breakers.WithLabelValues(key) }

// ByKey adds a gauge with a value for each key, read at each scrape. each
// must call its argument for every key.
func (m *Metrics) ByKey(name, help string, each func(func(key string, value float64))) {
	m.registry.MustRegister(byKey{prometheus.NewDesc(name, help, []string{"key"}, nil), each})
}

type byKey struct {
	desc *prometheus.Desc
	each func(func(key string, value float64))
}

// Describe implements prometheus.Collector.
func (b byKey) Describe(ch chan<- *prometheus.Desc) { ch <- b.desc }

// Collect implements prometheus.Collector.
func (b byKey) Collect(ch chan<- prometheus.Metric) {
	b.each(func(key string, value float64) {
		ch <- prometheus.MustNewConstMetric(b.desc, prometheus.GaugeValue, value, key)
	})
}

// Counter adds a counter that is read at each scrape.
func (m *Metrics) Counter(name, help string, value func() float64) {
	m.registry.MustRegister(prometheus.NewCounterFunc(prometheus.CounterOpts{Name: name, Help: help}, value))
}

// Gauge adds a gauge that is read at each scrape.
func (m *Metrics) Gauge(name, help string, value func() float64) {
	m.registry.MustRegister(prometheus.NewGaugeFunc(prometheus.GaugeOpts{Name: name, Help: help}, value))
}

// UseExemplars makes Handler offer OpenMetrics, the format that has
// exemplars. Call it before Handler.
func (m *Metrics) UseExemplars() { m.openMetrics = true }

// Handler serves /metrics.
func (m *Metrics) Handler() http.Handler {
	return promhttp.HandlerFor(
		m.registry,
		promhttp.HandlerOpts{Registry: m.registry, EnableOpenMetrics: m.openMetrics},
	)
}

// Describe implements the method of prometheus.Collector. It includes
// metrics that have no value yet.
func (m *Metrics) Describe(ch chan<- *prometheus.Desc) { m.registry.Describe(ch) }
