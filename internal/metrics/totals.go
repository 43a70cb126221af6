package metrics

import (
	"strings"

	"github.com/prometheus/client_golang/prometheus"
	dto "github.com/prometheus/client_model/go"
)

// Totals are counts since the start of the process, summed up for a page
// that shows their course.
type Totals struct {
	Served       float64 // requests that were answered as asked
	ClientErrors float64 // with a status of 400 to 499
	ServerErrors float64 // with a status of 500 and more
	In, Out      float64 // body bytes
	KMSCalls     float64
	KMSFailed    float64            // those that failed or were refused
	Unaudited    float64            // records that could not be written to the audit log
	Errors       map[Failed]float64 // requests with an S3 error code
	Faults       map[string]float64 // of the store, by kind
}

// Failed are requests that ended alike.
type Failed struct {
	Operation string
	Code      string // the S3 error code
	Status    string // the HTTP status
}

// Totals returns the counts.
func (m *Metrics) Totals() Totals {
	t := Totals{Errors: make(map[Failed]float64), Faults: make(map[string]float64)}
	each(m.requests, func(labels map[string]string, metric *dto.Metric) {
		n := metric.GetCounter().GetValue()
		switch status := labels["status"]; {
		case strings.HasPrefix(status, "4"):
			t.ClientErrors += n
		case strings.HasPrefix(status, "5"):
			t.ServerErrors += n
		default:
			t.Served += n
		}
		if code := labels["code"]; code != "" {
			t.Errors[Failed{labels["operation"], code, labels["status"]}] += n
		}
	})

	each(m.in, func(_ map[string]string, metric *dto.Metric) { t.In = metric.GetCounter().GetValue() })
	each(m.out, func(_ map[string]string, metric *dto.Metric) { t.Out = metric.GetCounter().GetValue() })
	each(m.Unaudited, func(_ map[string]string, metric *dto.Metric) { t.Unaudited = metric.GetCounter().GetValue() })
	each(m.kmsDuration, func(labels map[string]string, metric *dto.Metric) {
		n := float64(metric.GetHistogram().GetSampleCount())
		t.KMSCalls += n
		if labels["result"] != "ok" {
			t.KMSFailed += n
		}
	})
	each(m.originFaults, func(labels map[string]string, metric *dto.Metric) {
		t.Faults[labels["fault"]] += metric.GetCounter().GetValue()
	})
	return t
}

// each calls do for each metric of a collector.
func each(c prometheus.Collector, do func(labels map[string]string, m *dto.Metric)) {
	found := make(chan prometheus.Metric)
	go func() {
		c.Collect(found)
		close(found)
	}()

	for metric := range found {
		var text dto.Metric
		if err := metric.Write(&text); err != nil {
			continue // for an invalid metric, which /metrics reports
		}
		labels := make(map[string]string, len(text.GetLabel()))
		for _, pair := range text.GetLabel() {
			labels[pair.GetName()] = pair.GetValue()
		}
		do(labels, &text)
	}
}
