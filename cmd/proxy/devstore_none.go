//go:build nodev

package main

import (
	"context"
	"errors"
)

// startDevStore returns an error: this binary was built without the embedded
// store, like those for production.
func startDevStore(context.Context, string) (socket string, stop func(), err error) {
	return "", nil, errors.New(
		"this binary was built with -tags nodev, without an embedded store; use cmekproxy serve, or build without the tag",
	)
}
