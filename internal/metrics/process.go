package metrics

import (
	"runtime"
	"sync/atomic"
	"time"

	"github.com/prometheus/client_golang/prometheus"
)

// addProcess adds the metrics of this file.
func (m *Metrics) addProcess() {
	m.buildInfo = prometheus.NewGaugeVec(prometheus.GaugeOpts{
		Name: "cmekproxy_build_info",
		Help: "Always 1; the labels describe the program.",
	}, []string{"version", "revision", "goversion", "fips"})
	m.reloadOK = prometheus.NewGauge(prometheus.GaugeOpts{
		Name: "cmekproxy_config_last_reload_successful",
		Help: "1 if the configuration could be read and applied the last time, 0 if not.",
	})
	m.reloadTime = prometheus.NewGauge(prometheus.GaugeOpts{
		Name: "cmekproxy_config_last_reload_success_timestamp_seconds",
		Help: "When the configuration in force was read, in Unix time.",
	})
	m.answering.desc = prometheus.NewDesc(
		"cmekproxy_origin_up",
		"1 while the store answers with the proxy's credentials, 0 after a fault of the store or of the credentials; "+
			"missing while that is unknown.",
		nil, nil,
	)

	m.registry.MustRegister(m.buildInfo, m.reloadOK, m.reloadTime, &m.answering)
}

// Build exports what the program was built from, and whether its FIPS 140 module
// is in use.
func (m *Metrics) Build(version, revision string, fips bool) {
	mode := map[bool]string{true: "on", false: "off"}[fips]
	m.buildInfo.WithLabelValues(version, revision, runtime.Version(), mode).Set(1)
}

// Reloaded records that the configuration was read and applied, or that it could
// not be.
func (m *Metrics) Reloaded(now time.Time, err error) {
	if err != nil {
		m.reloadOK.Set(0)
		return
	}
	m.reloadOK.Set(1)
	m.reloadTime.Set(float64(now.UnixMilli()) / 1000) //nolint:mnd // milliseconds
}

// OriginUp records whether the store answers with the proxy's credentials.
func (m *Metrics) OriginUp(up bool) { m.answering.set(up) }

// OriginState returns what OriginUp has recorded last, or nil.
func (m *Metrics) OriginState() *bool {
	state := m.answering.state.Load()
	if state == 0 {
		return nil
	}
	return new(state == isUp)
}

// latch is a gauge of 1 or 0 that has no value before it is first set.
type latch struct {
	desc  *prometheus.Desc
	state atomic.Int32 // 0 for no value
}

const (
	isDown = iota + 1
	isUp
)

// set is called for each request, so it writes only what differs: all cores
// share the value.
func (l *latch) set(up bool) { //nolint:revive // up is the value
	state := int32(isDown)
	if up {
		state = isUp
	}
	if l.state.Load() != state {
		l.state.Store(state)
	}
}

// Describe implements prometheus.Collector.
func (l *latch) Describe(ch chan<- *prometheus.Desc) { ch <- l.desc }

// Collect implements prometheus.Collector.
func (l *latch) Collect(ch chan<- prometheus.Metric) {
	if state := l.state.Load(); state != 0 {
		ch <- prometheus.MustNewConstMetric(l.desc, prometheus.GaugeValue, float64(state-isDown))
	}
}
