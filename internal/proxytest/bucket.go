package proxytest

import (
	"bytes"
	"context"
	"io"
	"net/http"
	"net/url"
	"os"
	"testing"
	"time"

	"github.com/cmekproxy/cmekproxy/internal/crypt"
	"github.com/cmekproxy/cmekproxy/internal/dekcache"
	"github.com/cmekproxy/cmekproxy/internal/keyring"
	"github.com/cmekproxy/cmekproxy/internal/maintain/inplace"
	"github.com/cmekproxy/cmekproxy/internal/origin"
	"github.com/cmekproxy/cmekproxy/internal/stored"
)

// Bucket is a bucket of a Store, for tests of what works on a bucket.
type Bucket struct {
	Name string

	store  *Store
	origin *origin.Origin
}

// StartBucket starts a store with one bucket. Like StartStore it is for
// TestMain.
func StartBucket(name string) (*Bucket, error) {
	store, err := StartStore()
	if err != nil {
		return nil, err
	}
	b := &Bucket{Name: name, store: store, origin: origin.New(OriginConfig(store.Transport(10 * time.Second)))}
	if err := b.Ask(context.Background(), http.MethodPut, "", nil, nil); err != nil {
		return nil, err
	}
	return b, nil
}

// RunTests is the body of a TestMain: it starts a store with one bucket, calls
// use with it, runs the tests, and exits.
func RunTests(m *testing.M, name string, use func(*Bucket)) {
	b, err := StartBucket(name)
	if err != nil {
		panic(err)
	}
	use(b)
	code := m.Run()
	if err := b.Close(); err != nil {
		panic(err)
	}
	os.Exit(code)
}

// Close stops the store and removes what it has.
func (b *Bucket) Close() error { return b.store.Close() }

// OriginConfig returns what is needed to send requests to the store.
func (b *Bucket) OriginConfig() origin.Config {
	return OriginConfig(b.store.Transport(10 * time.Second))
}

// Send is stored.Reader.Send for the store.
func (b *Bucket) Send(r *http.Request) (*http.Response, error) {
	resp, err := b.origin.RoundTrip(r)
	if err != nil || resp.StatusCode < 300 {
		return resp, err
	}
	defer resp.Body.Close()
	var body bytes.Buffer
	if _, err := body.ReadFrom(resp.Body); err != nil {
		return nil, err
	}
	return nil, &inplace.StoreError{
		HTTPStatus: resp.StatusCode,
		Code:       http.StatusText(resp.StatusCode),
		Message:    body.String(),
	}
}

// Ask sends a request for a key of the bucket, or for the bucket if key is
// empty.
func (b *Bucket) Ask(ctx context.Context, method, key string, header http.Header, body []byte) error {
	path := "/" + b.Name
	if key != "" {
		path += "/" + key
	}
	r := &http.Request{
		Method:        method,
		URL:           &url.URL{Path: path},
		Header:        header,
		Body:          io.NopCloser(bytes.NewReader(body)),
		ContentLength: int64(len(body)),
	}
	if header == nil {
		r.Header = make(http.Header)
	}
	resp, err := b.Send(r.WithContext(ctx))
	if err == nil {
		resp.Body.Close()
	}
	return err
}

// NewKeyring returns a keyring with a cache of its own, for the time of the
// test.
func NewKeyring(t testing.TB, cfg keyring.Config) *keyring.Keyring {
	t.Helper()
	cache := dekcache.New(dekcache.Config{TTL: time.Minute, MaxEntries: 1000, Now: time.Now})
	t.Cleanup(cache.Close)
	cfg.Cache = cache
	k, err := keyring.New(cfg)
	if err != nil {
		t.Fatal(err)
	}
	return k
}

// Opening returns what stored.Reader.Open needs, from a keyring. One that has
// not seen what another has wrapped has to ask the KMS.
func Opening(k *keyring.Keyring) func(context.Context, crypt.Object, string, []byte) (stored.Lease, error) {
	return func(ctx context.Context, obj crypt.Object, keyID string, wrapped []byte) (stored.Lease, error) {
		lease, err := k.Open(ctx, obj, keyID, wrapped)
		if err != nil {
			return nil, err // and not a nil *Lease in an interface
		}
		return lease, nil
	}
}
