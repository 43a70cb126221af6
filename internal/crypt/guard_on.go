//go:build goexperiment.runtimesecret

package crypt

import "runtime/secret"

// guard runs f so that the runtime wipes what it leaves behind: registers and
// stack at once, and what it has allocated when that is collected.
func guard(f func()) { secret.Do(f) }
