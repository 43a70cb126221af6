package keyring

import (
	"time"

	"github.com/cmekproxy/cmekproxy/internal/kms"
)

// How long the same error is returned without asking the KMS again.
const (
	rememberRevoked = time.Second            // the KMS refused a DEK
	rememberOutage  = 250 * time.Millisecond // the KMS was unreachable or throttled
)

// RememberFor returns how long to remember a KMS error. During that time
// the KMS is not asked again for the same DEK. It is meant for
// dekcache.Config.Remember.
func RememberFor(err error) time.Duration {
	switch {
	case IsRemembered(err):
		return 0
	case kms.IsRevoked(err):
		return rememberRevoked
	case kms.IsUnreachable(err), kms.IsThrottled(err):
		return rememberOutage
	default:
		return 0
	}
}
