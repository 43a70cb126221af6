// The generator is a module of its own, so that Grafana's SDK is no dependency of the proxy.
module github.com/cmekproxy/cmekproxy/deploy/internal/dashboard

go 1.26.0

require github.com/grafana/grafana-foundation-sdk/go v0.0.22
