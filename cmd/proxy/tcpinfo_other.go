//go:build !linux

package main

import (
	"math"
	"time"
)

// sinceReceived returns the time since the kernel last received data on a
// connection, if it is known.
func sinceReceived(any) time.Duration { return math.MaxInt64 }

// queueLength returns how many connections to a listener the kernel holds
// until they are accepted, if it is known.
func queueLength(any) int { return 0 }
