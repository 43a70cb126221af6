package verify_test

import (
	"bytes"
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"maps"
	"math"
	"net/http"
	"net/http/httptest"
	"net/url"
	"strconv"
	"testing"

	"github.com/cmekproxy/cmekproxy/internal/crypt"
	"github.com/cmekproxy/cmekproxy/internal/keyring"
	"github.com/cmekproxy/cmekproxy/internal/kms"
	"github.com/cmekproxy/cmekproxy/internal/maintain/inplace"
	"github.com/cmekproxy/cmekproxy/internal/maintain/verify"
	"github.com/cmekproxy/cmekproxy/internal/maintain/walk"
	"github.com/cmekproxy/cmekproxy/internal/proxytest"
	"github.com/cmekproxy/cmekproxy/internal/stored"
)

type answered int

func (a answered) Error() string { return fmt.Sprint("answered ", int(a)) }
func (a answered) Status() int   { return int(a) }

func TestFaultOf(t *testing.T) {
	of := func(kind kms.Kind) error { return fmt.Errorf("opening: %w", &kms.Error{Kind: kind, Op: "unwrap"}) }
	for want, errs := range map[verify.Fault][]error{
		verify.Integrity: {
			crypt.ErrAuth, crypt.ErrTruncated, crypt.ErrTrailing, crypt.ErrSize, crypt.ErrEnvelope, crypt.ErrVersion,
			crypt.ErrDEK,
			fmt.Errorf("%w: %w", stored.ErrIntegrity, errors.New("x")), of(kms.InvalidCiphertext),
		},
		verify.Plaintext:  {fmt.Errorf("k: %w", verify.ErrPlaintext)},
		verify.KeyRevoked: {of(kms.Disabled), of(kms.Denied), of(kms.PendingDeletion), of(kms.NotFound)},
		verify.KeyUnknown: {fmt.Errorf("%w %q", keyring.ErrUnknownKey, "x"), keyring.ErrTenant},
		verify.KeyUnavailable: {
			of(kms.Unreachable), of(kms.Throttled), of(kms.Internal), of(kms.Canceled), of(kms.Invalid), keyring.ErrChanged,
			keyring.ErrNotOpen, errors.Join(crypt.ErrAuth, of(kms.Unreachable)),
		},
		verify.Store: {
			answered(403), answered(503), inplace.ErrUnanswered, stored.ErrStore, stored.ErrOverwritten,
			fmt.Errorf("%w: %w", inplace.ErrUnanswered, crypt.ErrTruncated), errors.New("x"),
		},
	} {
		for _, err := range errs {
			if got := verify.FaultOf(err); got != want {
				t.Errorf("%v: %s, not %s", err, got, want)
			}
		}
	}
}

// If the store's connection breaks within a body, the object is not damaged.
// It is read again.
func TestABrokenConnectionIsNoDamage(t *testing.T) {
	key, _ := proxytest.NewLocalKey(t)
	keys := proxytest.NewKeyring(
		t,
		keyring.Config{Keys: []keyring.Key{{Name: "key", Wrapper: key}}, Rules: []keyring.Rule{{Key: "key"}}},
	)
	body, metadata := sealed(t, keys, crypt.Object{Bucket: "b", Key: "k"}, 300_000)
	breaks, asked, flip := 0, 0, -1

	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		for name, value := range metadata {
			w.Header().Set(stored.MetaPrefix+name, value)
		}
		w.Header().Set("Etag", `"e"`)
		w.Header().Set("Content-Length", strconv.Itoa(len(body)))
		out := bytes.Clone(body)

		if flip >= 0 {
			out[flip] ^= 1
		}
		if asked++; asked <= breaks {
			w.Write(out[:200_000])
			panic(http.ErrAbortHandler)
		}

		w.Write(out)
	}))
	defer server.Close()

	address, err := url.Parse(server.URL)
	if err != nil {
		t.Fatal(err)
	}

	v := verify.New(verify.Config{
		Send: func(r *http.Request) (*http.Response, error) {
			r.URL.Scheme, r.URL.Host = address.Scheme, address.Host
			return server.Client().Transport.RoundTrip(r)
		},
		Open: func(ctx context.Context, obj crypt.Object, keyID string, wrapped []byte) (stored.Lease, error) {
			return keys.Open(ctx, obj, keyID, wrapped)
		},
		AllowPlaintext: func(crypt.Object) bool { return false },
	})

	for name, row := range map[string]struct {
		breaks, flip int
		want         walk.Outcome
		fault        verify.Fault
	}{
		"whole":           {0, -1, walk.Done, ""},
		"broken twice":    {2, -1, walk.Done, ""},
		"broken for good": {100, -1, walk.Failed, verify.Store},
		"damaged":         {0, 299_000, walk.Failed, verify.Integrity},
		"moved":           {0, -1, walk.Failed, verify.Integrity},
	} {
		breaks, asked, flip = row.breaks, 0, row.flip
		entry := stored.Entry{Key: "k"}
		if name == "moved" {
			entry.Key = "other"
		}

		r := v.Verify(t.Context(), "b", entry)
		if r.Outcome != row.want || row.fault != "" && verify.FaultOf(r.Err) != row.fault || len(r.KeyIDs) != 1 ||
			r.Own != (row.fault == verify.Integrity) {
			t.Errorf("%s: %+v", name, r)
		}
	}
}

// sealed returns an object as the proxy stores it.
func sealed(t *testing.T, keys *keyring.Keyring, obj crypt.Object, size int) ([]byte, map[string]string) {
	t.Helper()
	dek, err := keys.Create(t.Context(), obj, "", keyring.Choice{})
	if err != nil {
		t.Fatal(err)
	}
	defer dek.Release()

	sealer, err := crypt.NewSealer(bytes.NewReader(make([]byte, size)), int64(size), dek.DEK(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}

	body, err := io.ReadAll(sealer)
	if err != nil {
		t.Fatal(err)
	}

	e := crypt.Envelope{KeyID: dek.KeyID, WrappedDEK: dek.Wrapped, Header: sealer.Header(), Size: int64(size)}
	if err := e.Sign(dek.DEK(), obj); err != nil {
		t.Fatal(err)
	}

	metadata, err := e.Metadata()
	if err != nil {
		t.Fatal(err)
	}
	return body, metadata
}

// While an object is overwritten, a store may show two writes in one answer.
// The object is read again if the next answer is another. If it is the same,
// the object is reported as altered.
func TestTwoWritesInOneAnswer(t *testing.T) {
	key, _ := proxytest.NewLocalKey(t)
	keys := proxytest.NewKeyring(
		t,
		keyring.Config{Keys: []keyring.Key{{Name: "key", Wrapper: key}}, Rules: []keyring.Rule{{Key: "key"}}},
	)
	obj := crypt.Object{Bucket: "b", Key: "k"}
	before, beforeMetadata := sealed(t, keys, obj, 1000)
	after, afterMetadata := sealed(t, keys, obj, 1000)
	half := maps.Clone(afterMetadata)
	half["cmek-dek"] = beforeMetadata["cmek-dek"]

	for _, row := range []struct {
		name, etag string
		body       []byte
		metadata   map[string]string
		answers    int // that are mixed
		deleted    bool
		want       walk.Outcome
		fault      verify.Fault
	}{
		{"the old body", `"after"`, before[:800], afterMetadata, 1, false, walk.Done, ""},
		{"the old metadata", `"after"`, after, beforeMetadata, 1, false, walk.Done, ""},
		{"the old ETag and metadata", `"before"`, after, beforeMetadata, 1, false, walk.Done, ""},
		{"some of the metadata", `"after"`, after, half, 1, false, walk.Done, ""},
		{"no metadata yet", `"after"`, after, nil, 1, false, walk.Done, ""},
		{"deleted meanwhile", `"after"`, after, beforeMetadata, 1, true, walk.Gone, ""},
		{"altered for good", `"after"`, before, afterMetadata, math.MaxInt, false, walk.Failed, verify.Integrity},
		{"plaintext for good", `"after"`, after, nil, math.MaxInt, false, walk.Failed, verify.Plaintext},
	} {
		t.Run(row.name, func(t *testing.T) {
			t.Parallel()
			asked := 0
			v := verify.New(verify.Config{
				Send: func(r *http.Request) (*http.Response, error) {
					etag, body, metadata := `"after"`, after, afterMetadata
					if asked++; asked <= row.answers {
						etag, body, metadata = row.etag, row.body, row.metadata
					} else if row.deleted {
						return nil, answered(http.StatusNotFound)
					}
					resp := &http.Response{
						StatusCode: http.StatusOK, Header: http.Header{"Etag": {etag}}, Request: r,
						ContentLength: int64(len(body)), Body: io.NopCloser(bytes.NewReader(body)),
					}
					for name, value := range metadata {
						resp.Header.Set(stored.MetaPrefix+name, value)
					}
					return resp, nil
				},
				Open:           proxytest.Opening(keys),
				AllowPlaintext: func(crypt.Object) bool { return false },
			})

			r := v.Verify(t.Context(), obj.Bucket, stored.Entry{Key: obj.Key})
			if r.Outcome != row.want || row.fault != "" && verify.FaultOf(r.Err) != row.fault || r.Own != (row.fault != "") {
				t.Errorf("%+v", r)
			}
		})
	}
}
