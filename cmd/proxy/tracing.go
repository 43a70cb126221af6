package main

import (
	"context"
	"crypto/tls"
	"fmt"
	"net"
	"net/http"
	"os"
	"time"

	"go.uber.org/zap"

	"github.com/cmekproxy/cmekproxy/internal/config"
	"github.com/cmekproxy/cmekproxy/internal/metrics"
	"github.com/cmekproxy/cmekproxy/internal/origin"
	"github.com/cmekproxy/cmekproxy/internal/pemfile"
	"github.com/cmekproxy/cmekproxy/internal/tracing"
)

// lastSpansTime limits how long the last spans may take at the end.
const lastSpansTime = 3 * time.Second

// buildTracing returns nil if tracing is off.
func buildTracing(
	ctx context.Context, cfg config.Tracing, log *zap.Logger, m *metrics.Metrics,
) (*tracing.Tracer, error) {
	if cfg.Endpoint == "" {
		return nil, nil
	}

	transport, err := receiverTransport(cfg.CAFile, log)
	if err != nil {
		return nil, err
	}
	host, err := os.Hostname()
	if err != nil {
		return nil, fmt.Errorf("tracing: finding the name of this machine: %w", err)
	}

	tracer, err := tracing.New(ctx, tracing.Config{
		Endpoint: cfg.Endpoint, Header: tracingHeader(cfg.Headers), Transport: transport,
		Ratio: cfg.SamplingRatio, ObjectKeys: cfg.ObjectKeys,
		Service: cfg.ServiceName, Version: versionString(), Instance: host,
		Report: func(err error, lost uint64) {
			if err != nil {
				log.Warn("sending spans failed; spans are dropped until it works", zap.Error(err))
				return
			}
			log.Info("spans are sent again", zap.Uint64("dropped", lost))
		},
	})
	if err != nil {
		return nil, err
	}

	m.UseExemplars()
	m.Counter("cmekproxy_trace_spans_exported_total", "Spans that the receiver has accepted.",
		func() float64 { return float64(tracer.Exported()) })
	m.Counter("cmekproxy_trace_spans_dropped_total", "Spans that were recorded and did not reach the receiver.",
		func() float64 { return float64(tracer.Dropped()) })
	return tracer, nil
}

// tracedTransport returns a transport to the store with a span for each
// request.
func tracedTransport(next http.RoundTripper, cfg config.Tracing) http.RoundTripper {
	if cfg.Endpoint == "" {
		return next
	}
	return &tracing.StoreTransport{Next: next, ObjectKeys: cfg.ObjectKeys, KindOf: origin.KindOf}
}

// receiverTransport returns the transport to the receiver of spans.
func receiverTransport(caFile string, log *zap.Logger) (http.RoundTripper, error) {
	base := &http.Transport{
		Proxy:                 http.ProxyFromEnvironment,
		DialContext:           (&net.Dialer{Timeout: 5 * time.Second, KeepAlive: 30 * time.Second}).DialContext,
		TLSClientConfig:       &tls.Config{MinVersion: tls.VersionTLS12},
		TLSHandshakeTimeout:   5 * time.Second,
		ResponseHeaderTimeout: 10 * time.Second,
		IdleConnTimeout:       90 * time.Second,
		ForceAttemptHTTP2:     true,
	}
	if caFile == "" {
		return base, nil
	}

	pool, err := pemfile.OpenPool(caFile, func(err error) {
		if err != nil {
			log.Error("reading tracing.ca_file failed; keeping the authorities read before", zap.Error(err))
			return
		}
		log.Info("tracing.ca_file read again")
	})
	if err != nil {
		return nil, fmt.Errorf("tracing.ca_file: %w", err)
	}
	return pool.Transport(base), nil
}

func tracingHeader(list []config.TracingHeader) http.Header {
	header := make(http.Header)
	for _, h := range list {
		header.Set(h.Name, h.Value.Reveal())
	}
	return header
}

// sendLastSpans ends tracing.
func (s *server) sendLastSpans() {
	ctx, cancel := context.WithTimeout(context.Background(), timeForSpans(s.end, time.Now()))
	defer cancel()
	if err := s.tracer.Shutdown(ctx); err != nil {
		s.log.Warn("some of the last spans were not sent", zap.Error(err))
	}
}

// timeForSpans returns how long sending the last spans may take: what
// limits.shutdown_grace has left at its end. Spans are worth less than the
// promise that the process has ended then. end is zero without a drain.
func timeForSpans(end, now time.Time) time.Duration {
	if end.IsZero() {
		return lastSpansTime
	}
	return max(0, min(lastSpansTime, end.Sub(now)))
}
