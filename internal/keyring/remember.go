package keyring

import (
	"time"

	"github.com/cmekproxy/cmekproxy/internal/kms"
)

// How long an error of a KMS stands in for an answer.
const (
	rememberRevoked = time.Second            // a DEK was refused
	rememberOutage  = 250 * time.Millisecond // the KMS did not answer, or not now
)

// RememberFor returns for how long the error of a KMS stands, in which the KMS
// is not asked again for the same DEK. It is meant for
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
