//go:build !nodev

package main

import (
	"context"

	"github.com/cmekproxy/cmekproxy/internal/origin/embedded"
)

// startDevStore starts the embedded store.
func startDevStore(ctx context.Context, dir string) (socket string, stop func(), err error) {
	return embedded.Start(
		ctx,
		embedded.Config{Dir: dir, AccessKey: devAccessKey, SecretKey: devSecretKey, Region: devRegion},
	)
}
