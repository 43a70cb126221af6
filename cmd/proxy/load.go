package main

import (
	"cmp"
	"crypto/fips140"
	"time"

	"go.uber.org/zap"

	"github.com/cmekproxy/cmekproxy/internal/admission"
	"github.com/cmekproxy/cmekproxy/internal/s3api"
)

// load is what the S3 port's admission of requests depends on.
type load struct {
	*admission.CPU
	*admission.Refusals
}

func newAdmission(log *zap.Logger) load {
	return load{admission.NewCPU(), admission.NewRefusals(func(reason string, n int64) {
		log.Warn("refusing requests; clients should retry", zap.String("reason", reason), zap.Int64("refused", n))
	})}
}

// exportProcess exports what runs, and with which configuration.
func (s *server) exportProcess() {
	s.metrics.Build(cmp.Or(release, "devel"), cmp.Or(revision(), "unknown"), fips140.Enabled())
	s.metrics.Reloaded(time.Now(), nil)
	s.metrics.CountByName(s.cfg.Metrics.Clients, s.cfg.Metrics.Buckets)
}

// exportLoad exports the load of the S3 port and its limits as metrics.
func (s *server) exportLoad(api *s3api.Server) {
	for _, gauge := range []struct {
		name, help string
		value      func() int
	}{
		{
			"cmekproxy_memory_reserved_bytes", "Bytes that running S3 requests may hold.",
			func() int { return int(api.Load().Memory) },
		},
		{
			"cmekproxy_memory_budget_bytes", "Bytes that S3 requests may hold together; 0 for any number.",
			func() int { return int(api.Load().MemoryLimit) },
		},
		{
			"cmekproxy_young_requests",
			"S3 requests that are less than a second old and whose response has not begun.",
			func() int { return api.Load().Young },
		},
		{
			"cmekproxy_young_requests_limit",
			"How many such requests may run now. It is lower while the CPU is saturated.",
			func() int { return api.Load().YoungLimit },
		},
		{"cmekproxy_connections", "Open connections of the S3 port.", s.open.count},
		{
			"cmekproxy_connections_limit", "How many connections the S3 port accepts.",
			s.open.most,
		},
	} {
		s.metrics.Gauge(gauge.name, gauge.help, func() float64 { return float64(gauge.value()) })
	}
}
