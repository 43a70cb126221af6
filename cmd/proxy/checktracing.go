package main

import (
	"context"
	"crypto/tls"
	"errors"
	"net"
	"net/http"
	"strings"
	"syscall"

	"github.com/cmekproxy/cmekproxy/internal/tracing"
)

// tracing sends an export without spans to the receiver. What does not work
// is a warning and not a failure: the proxy serves without its receiver, and
// a check before a start must not fail because a collector is away.
func (c *checker) tracing(ctx context.Context, tracer *tracing.Tracer, endpoint string) {
	if tracer == nil {
		return
	}
	limited, cancel := context.WithTimeout(ctx, checkTimeout)
	defer cancel()
	err := tracer.Try(limited)
	switch {
	case ctx.Err() != nil:
	case err == nil:
		c.line(checkTracing, nil, "tracing: receiver %s", endpoint)
	default:
		c.print(finding{
			Check: checkTracing, Status: "warn", Text: "tracing: receiver " + endpoint,
			Error: oneLine(err), Action: receiverAction(err),
		})
	}
}

// receiverAction says what to do about a receiver that does not accept spans.
func receiverAction(err error) string {
	if refusal, ok := errors.AsType[*tracing.RefusalError](err); ok {
		return refusalAction(refusal)
	}

	var record tls.RecordHeaderError
	var verification *tls.CertificateVerificationError
	var alert tls.AlertError
	var host *net.DNSError
	switch {
	case errors.As(err, &record), strings.Contains(err.Error(), "gave HTTP response to HTTPS client"):
		return "the receiver does not speak TLS: use http:// in tracing.endpoint, or another port"
	case errors.As(err, &verification):
		return "name the file of the receiver's authority in tracing.ca_file, and check the host in tracing.endpoint"
	case errors.As(err, &alert):
		return "the receiver refuses the TLS handshake: check its settings"
	case errors.As(err, &host):
		return "check the host in tracing.endpoint and the DNS"
	case errors.Is(err, syscall.ECONNREFUSED):
		return "nothing listens there: start the receiver, or correct tracing.endpoint"
	default: // a server of gRPC speaks first, so the error depends on who is faster
		return "check the network, the receiver, and the port in tracing.endpoint, which must be that for " +
			"OTLP over HTTP: by default that is 4318; 4317 is for gRPC"
	}
}

func refusalAction(r *tracing.RefusalError) string {
	switch status := r.Status; {
	case status == http.StatusBadRequest && strings.Contains(r.Body, "HTTPS"):
		return "the receiver speaks TLS: use https:// in tracing.endpoint"
	case status == http.StatusUnauthorized, status == http.StatusForbidden:
		return "correct tracing.headers"
	case status == http.StatusProxyAuthRequired:
		return "HTTPS_PROXY needs credentials"
	case status == http.StatusNotFound, status == http.StatusMethodNotAllowed, status < http.StatusBadRequest:
		return "correct tracing.endpoint: it is the URL of a receiver of OTLP over HTTP, without /v1/traces"
	case status == http.StatusTooManyRequests, status >= http.StatusInternalServerError:
		return "look into the receiver's log, and run check again"
	default:
		return actions[checkTracing]
	}
}
