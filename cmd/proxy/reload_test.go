package main

import (
	"slices"
	"testing"

	"github.com/cmekproxy/cmekproxy/internal/config"
)

// A reload names the sections that it has not applied, and no others.
func TestNeedsRestart(t *testing.T) {
	for name, row := range map[string]struct {
		change func(c *config.Config)
		want   []string
	}{
		"nothing":                      {func(*config.Config) {}, nil},
		"rules":                        {func(c *config.Config) { c.Encryption.Rules = nil }, nil},
		"encryption.plaintext_objects": {func(c *config.Config) { c.Encryption.PlaintextObjects = config.Allow }, nil},
		"encryption.customer_keys":     {func(c *config.Config) { c.Encryption.CustomerKeys = config.Allow }, nil},
		"encryption.verify_head":       {func(c *config.Config) { c.Encryption.VerifyHead = true }, []string{"encryption"}},
		"secret of the store":          {func(c *config.Config) { c.Origin.SecretKey = "another" }, nil},
		"endpoint of the store":        {func(c *config.Config) { c.Origin.Endpoint = "http://other" }, []string{"origin"}},
		"headers for the receiver of spans": {func(c *config.Config) {
			c.Tracing.Headers = []config.TracingHeader{{Name: "Authorization", Value: "another"}}
		}, nil},
		"receiver of spans": {func(c *config.Config) { c.Tracing.Endpoint = "http://127.0.0.1:1" }, []string{"tracing"}},
		"listen and limits": {func(c *config.Config) {
			c.Listen, c.Limits.MaxConcurrentRequests = "127.0.0.1:1", 1
		}, []string{"listen", "limits"}},
	} {
		t.Run(name, func(t *testing.T) {
			next := *devConfig("127.0.0.1:0", "127.0.0.1:0", "")
			row.change(&next)
			if got := needsRestart(devConfig("127.0.0.1:0", "127.0.0.1:0", ""), &next); !slices.Equal(got, row.want) {
				t.Errorf("%q need a restart, want %q", got, row.want)
			}
		})
	}
}
