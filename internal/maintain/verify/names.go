package verify

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"net/url"

	"github.com/cmekproxy/cmekproxy/internal/crypt"
	"github.com/cmekproxy/cmekproxy/internal/keyname"
	"github.com/cmekproxy/cmekproxy/internal/keyring"
	"github.com/cmekproxy/cmekproxy/internal/kms"
	"github.com/cmekproxy/cmekproxy/internal/maintain/inplace"
	"github.com/cmekproxy/cmekproxy/internal/maintain/walk"
	"github.com/cmekproxy/cmekproxy/internal/sigv4"
	"github.com/cmekproxy/cmekproxy/internal/stored"
)

// A store that uses keys as paths lists an object that was put under "a//b"
// as "a/b". Its MAC and its KMS context have "a//b", so by the listed name it
// looks like an object that was moved or altered. Verify tells the two apart:
// it reads the bytes that the store has under the listed name as an object
// that was put under another name, for the few names that such a store would
// list in this way. Only the right name verifies.

// NameError means that an object is intact, but is listed under another name
// than it was put under.
type NameError struct {
	Put string // the name under which it was put
}

func (e *NameError) Error() string {
	return fmt.Sprintf("it is intact, but was put under the name %q, and the store lists it under another: "+
		"read it by that name, or copy it from that name to the listed one through the proxy", e.Put)
}

// maxFutile is how many objects in a row may have none of the names that are
// tried. After that no names are tried, because each is a request to the KMS:
// in a bucket that was restored under another name, every object fails.
const maxFutile = 100

// findName returns the result for an object that fails under its listed name:
// r, or one with a NameError.
func (v *Verifier) findName(ctx context.Context, bucket string, e stored.Entry, r walk.Result) walk.Result {
	if v.cfg.LiteralKeys || !isBoundElsewhere(r.Err) || v.futile.Load() >= maxFutile {
		return r
	}

	for _, name := range keyname.Unfold(e.Key) {
		q := stored.Request{Object: crypt.Object{Bucket: bucket, Key: name}, Version: e.Version}
		if v.cfg.Wait != nil && v.cfg.Wait(ctx) != nil {
			return r
		}

		found, err := v.read(ctx, q, v.at(bucket, e.Key))
		switch {
		case err == nil && found.Outcome == walk.Done:
			v.futile.Store(0)
			if v.exists(ctx, q) {
				r.Err, r.KeyIDs = &NameError{name}, found.KeyIDs
			}
			return r
		case !isBoundElsewhere(err) && !errors.Is(err, keyring.ErrNoRule) && !errors.Is(err, keyring.ErrNotRead):
			return r // the KMS or the store: other names say no more
		}
	}

	v.futile.Add(1)
	return r
}

// exists reports whether the store has an object under the name that was
// found. If it does not, the store does not fold the name: somebody moved the
// object.
func (v *Verifier) exists(ctx context.Context, q stored.Request) bool {
	query := ""
	if q.Version != "" {
		query = url.Values{"versionId": {q.Version}}.Encode()
	}
	resp, err := v.store.Do(inplace.NewRequest(ctx, http.MethodHead, q.Object, query, nil, nil))
	if err != nil {
		return false
	}
	_ = resp.Body.Close()
	return true
}

// isBoundElsewhere reports whether an error is that of an object which is
// bound to another name, or was altered.
func isBoundElsewhere(err error) bool {
	if key, ok := errors.AsType[*kms.Error](err); ok {
		return key.Kind == kms.InvalidCiphertext
	}
	return errors.Is(err, crypt.ErrAuth)
}

// at returns a sender of requests about any object that reads what the store
// has under a key. A store that keeps both names apart could have another
// object under the name that is tried.
func (v *Verifier) at(bucket, key string) inplace.Sender {
	return func(r *http.Request) (*http.Response, error) {
		out := r.Clone(r.Context())
		out.URL.Path = "/" + bucket + "/" + key
		out.URL.RawPath = sigv4.EscapePath(out.URL.Path)
		return v.store.Do(out)
	}
}
