//go:build nodev

package main

import (
	"context"
	"errors"
)

// startDevStore says that this binary was built without the embedded store, as
// those for production are.
func startDevStore(context.Context, string) (socket string, stop func(), err error) {
	return "", nil, errors.New(
		"this binary was built with -tags nodev, without an embedded store; use cmekproxy serve, or build without the tag",
	)
}
