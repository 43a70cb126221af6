package inplace_test

import (
	"bytes"
	"context"
	"crypto/rand"
	"errors"
	"io"
	"net/http"
	"net/http/httptest"
	"net/url"
	"strings"
	"sync/atomic"
	"testing"

	"github.com/cmekproxy/cmekproxy/internal/crypt"
	"github.com/cmekproxy/cmekproxy/internal/keyring"
	"github.com/cmekproxy/cmekproxy/internal/kms"
	"github.com/cmekproxy/cmekproxy/internal/maintain/inplace"
	"github.com/cmekproxy/cmekproxy/internal/proxytest"
	"github.com/cmekproxy/cmekproxy/internal/stored"
)

// store is the real store of this test process.
var store *proxytest.Bucket

const bucket = "bucket"

func TestMain(m *testing.M) {
	proxytest.RunTests(m, bucket, func(b *proxytest.Bucket) { store = b })
}

// newConfig returns a Config for the store, with keys under one local key.
func newConfig(t *testing.T) *inplace.Config {
	t.Helper()
	key, _ := proxytest.NewLocalKey(t)
	ring := func() *keyring.Keyring {
		return proxytest.NewKeyring(
			t,
			keyring.Config{Keys: []keyring.Key{{Name: "key", Wrapper: key}}, Rules: []keyring.Rule{{Key: "key"}}},
		)
	}
	return &inplace.Config{
		Send: store.Send, Keys: ring(), Check: proxytest.Opening(ring()), Random: rand.Reader,
		Abilities: inplace.Abilities{PutIfMatch: true, CompleteIfMatch: true, ETagIsMD5: true},
	}
}

func newKey(t *testing.T, cfg *inplace.Config, obj crypt.Object) *inplace.Key {
	t.Helper()
	key, err := cfg.NewKey(t.Context(), obj, keyring.Choice{})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(key.Release)
	return key
}

// The sealed and uploaded object can be read with the key as the KMS has
// unwrapped it.
func TestUpload(t *testing.T) {
	cfg, obj := newConfig(t), crypt.Object{Bucket: bucket, Key: t.Name()}
	key, s := newKey(t, cfg, obj), cfg.Store()
	up, err := s.CreateSealed(t.Context(), obj, make(http.Header), key, keyring.Format{SealMetadata: true}, rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	defer up.Abort(t.Context())

	text := make([]byte, crypt.MinPartSize+1000)
	rand.Read(text)
	for i, piece := range [][]byte{text[:crypt.MinPartSize], text[crypt.MinPartSize:]} {
		part := crypt.Part{Number: i + 1, Size: int64(len(piece)), Final: i == 1}
		if err := up.Seal(t.Context(), part, bytes.NewReader(piece), key, rand.Reader, nil); err != nil {
			t.Fatal(err)
		}
	}

	if err := up.Complete(t.Context(), ""); err != nil {
		t.Fatal(err)
	}

	o, err := cfg.Reader(s, cfg.Check).Get(t.Context(), stored.Request{Object: obj})
	if err != nil {
		t.Fatal(err)
	}
	defer o.Close()

	if got, err := io.ReadAll(o.Reader(t.Context())); err != nil || !bytes.Equal(got, text) {
		t.Errorf("read %d of %d bytes: %v", len(got), len(text), err)
	}
}

// Bytes that cannot be decrypted again never reach the store, neither from a
// single-PUT body nor from a part.
func TestAlteredOnTheWay(t *testing.T) {
	cfg, obj := newConfig(t), crypt.Object{Bucket: bucket, Key: t.Name()}
	key := newKey(t, cfg, obj)
	text := make([]byte, 300_000)
	rand.Read(text)

	sealer, err := crypt.NewSealer(bytes.NewReader(text), int64(len(text)), key.DEK(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}

	body, err := io.ReadAll(sealer)
	if err != nil {
		t.Fatal(err)
	}

	for name, row := range map[string]struct {
		change func(body []byte) []byte
		most   int // bytes that may be sent before it is noticed
	}{
		"first byte": {func(b []byte) []byte { b[0] ^= 1; return b }, 0},
		"last byte":  {func(b []byte) []byte { b[len(b)-1] ^= 1; return b }, len(body) - 1},
		"cut":        {func(b []byte) []byte { return b[:len(b)-1] }, len(body) - 1},
		"longer":     {func(b []byte) []byte { return append(b, 0) }, len(body)},
	} {
		t.Run(name, func(t *testing.T) {
			altered := row.change(bytes.Clone(body))
			checked, err := stored.CheckBody(
				t.Context(),
				bytes.NewReader(altered),
				int64(len(text)),
				sealer.Header(),
				key.Proof,
			)
			if err != nil {
				t.Fatal(err)
			}
			defer checked.Close()

			passed, err := io.ReadAll(checked)
			if err == nil || checked.Err == nil {
				t.Fatal("the end came as if all were well")
			}
			if len(passed) > row.most || !bytes.Equal(passed, altered[:len(passed)]) {
				t.Errorf("%d bytes passed, want %d at most", len(passed), row.most)
			}
		})
	}
}

// If the caller refuses a plaintext, its ciphertext is not sent.
func TestSeenKeepsBack(t *testing.T) {
	cfg, obj := newConfig(t), crypt.Object{Bucket: bucket, Key: t.Name()}
	key := newKey(t, cfg, obj)
	sealer, err := crypt.NewSealer(strings.NewReader("not this"), 8, key.DEK(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}

	checked, err := stored.CheckBody(t.Context(), sealer, 8, sealer.Header(), key.Proof)
	if err != nil {
		t.Fatal(err)
	}
	defer checked.Close()
	refused := errors.New("refused")
	checked.Seen = func([]byte) error { return refused }

	if passed, err := io.ReadAll(checked); len(passed) > 0 || !errors.Is(err, refused) {
		t.Errorf("%d bytes passed, %v", len(passed), err)
	}
}

// otherDEK wraps one data key and unwraps another.
type otherDEK struct{ kms.Wrapper }

func (w otherDEK) Unwrap(ctx context.Context, wrapped []byte, ec kms.EncryptionContext) ([]byte, error) {
	dek, err := w.Wrapper.Unwrap(ctx, wrapped, ec)
	if err == nil {
		dek[0] ^= 1
	}
	return dek, err
}

// Nothing is written under a key that does not unwrap what it has wrapped.
func TestNewKeyIsProved(t *testing.T) {
	local, _ := proxytest.NewLocalKey(t)
	ring := func(w kms.Wrapper) *keyring.Keyring {
		return proxytest.NewKeyring(
			t,
			keyring.Config{Keys: []keyring.Key{{Name: "key", Wrapper: w}}, Rules: []keyring.Rule{{Key: "key"}}},
		)
	}

	foreign, _ := proxytest.NewLocalKey(t)
	for name, row := range map[string]struct {
		check kms.Wrapper
		want  string
	}{
		"unwraps another data key": {otherDEK{local}, "another data key"},
		"does not unwrap":          {foreign, "can wrap, but not unwrap"},
	} {
		t.Run(name, func(t *testing.T) {
			cfg := &inplace.Config{Keys: ring(local), Check: proxytest.Opening(ring(row.check))}
			_, err := cfg.NewKey(t.Context(), crypt.Object{Bucket: bucket, Key: "k"}, keyring.Choice{})
			if err == nil || !strings.Contains(err.Error(), row.want) {
				t.Errorf("%v, want %q", err, row.want)
			}
		})
	}
}

// A conditional write does not overwrite an object that has changed.
func TestConditions(t *testing.T) {
	cfg, obj := newConfig(t), crypt.Object{Bucket: bucket, Key: t.Name()}
	s := cfg.Store()
	put := func(text string, header http.Header) (string, error) {
		resp, err := s.Do(
			inplace.NewRequest(
				t.Context(),
				http.MethodPut,
				obj,
				"",
				header,
				&inplace.Payload{Body: strings.NewReader(text), Length: int64(len(text))},
			),
		)
		if err != nil {
			return "", err
		}

		return resp.Header.Get("Etag"), resp.Body.Close()
	}

	first, err := put("first", nil)
	if err != nil {
		t.Fatal(err)
	}
	if err := s.Unchanged(t.Context(), obj, first); err != nil {
		t.Errorf("unchanged: %v", err)
	}

	if _, err := put("second", nil); err != nil {
		t.Fatal(err)
	}
	if err := s.Unchanged(t.Context(), obj, first); !errors.Is(err, inplace.ErrChanged) {
		t.Errorf("changed: %v", err)
	}

	if _, err := put("third", http.Header{"If-Match": {first}}); stored.StatusOf(err) != http.StatusPreconditionFailed {
		t.Errorf("If-Match of what is not there any more: %v", err)
	}
}

// toServer sends requests for the store to a server on loopback.
type toServer struct{ address string }

func (s toServer) RoundTrip(r *http.Request) (*http.Response, error) {
	u, err := url.Parse(s.address)
	if err != nil {
		return nil, err
	}
	out := r.Clone(r.Context())
	out.URL.Scheme, out.URL.Host, out.Host = u.Scheme, u.Host, u.Host
	return http.DefaultTransport.RoundTrip(out)
}

// A request that only reads is repeated if the store is overloaded. A
// refusal is final, and a write is never repeated.
func TestSender(t *testing.T) {
	impostor := errors.New("not the store's answer")
	for name, row := range map[string]struct {
		method   string
		statuses []int // statuses of the answers; the last one is repeated
		attempts int64
		want     int // status of the error, 0 for success
	}{
		"success":            {http.MethodGet, []int{200}, 1, 0},
		"busy, then well":    {http.MethodGet, []int{503, 500, 429, 200}, 4, 0},
		"busy for good":      {http.MethodGet, []int{503}, 5, 503},
		"not found":          {http.MethodHead, []int{404}, 1, 404},
		"refused":            {http.MethodGet, []int{403}, 1, 403},
		"a write that fails": {http.MethodPut, []int{503}, 1, 503},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			var asked atomic.Int64
			server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
				i := min(int(asked.Add(1)), len(row.statuses)) - 1
				w.WriteHeader(row.statuses[i])
			}))
			defer server.Close()

			send := inplace.NewSender(toServer{server.URL},
				func(*http.Request, *http.Response) error { return nil },
				func(*http.Request, int, string, []byte) error { return nil })

			resp, err := send(
				inplace.NewRequest(t.Context(), row.method, crypt.Object{Bucket: "b", Key: "k"}, "", nil, nil),
			)
			if err == nil {
				resp.Body.Close()
			}

			var refusal *inplace.StoreError
			if asked.Load() != row.attempts || (row.want == 0) != (err == nil) ||
				row.want != 0 && (!errors.As(err, &refusal) || refusal.Status() != row.want) {
				t.Errorf("%d attempts, want %d; %v, want status %d", asked.Load(), row.attempts, err, row.want)
			}
		})
	}

	for name, status := range map[string]int{"a page that says 200": 200, "a page that says 403": 403} {
		t.Run(name, func(t *testing.T) {
			server := httptest.NewServer(
				http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(status) }),
			)
			defer server.Close()
			send := inplace.NewSender(toServer{server.URL},
				func(*http.Request, *http.Response) error { return impostor },
				func(*http.Request, int, string, []byte) error { return impostor })

			_, err := send(
				inplace.NewRequest(t.Context(), http.MethodPut, crypt.Object{Bucket: "b", Key: "k"}, "", nil, nil),
			)
			if !errors.Is(err, impostor) || stored.StatusOf(err) != 0 {
				t.Errorf("%v, want an error other than an answer of the store", err)
			}
		})
	}
}

// If a store answers before it has received the whole body, the object was
// not stored.
func TestAnswerBeforeTheBody(t *testing.T) {
	early := func(r *http.Request) (*http.Response, error) {
		go func() { _ = r.Body.Close() }()
		return &http.Response{StatusCode: http.StatusOK, Body: http.NoBody, Header: http.Header{"Etag": {`"e"`}}}, nil
	}
	s := &inplace.Store{Send: early}
	_, err := s.Do(inplace.NewRequest(t.Context(), http.MethodPut, crypt.Object{Bucket: "b", Key: "k"}, "", nil,
		&inplace.Payload{Body: strings.NewReader("text"), Length: 4}))
	if !errors.Is(err, stored.ErrStore) {
		t.Errorf("%v, want an error of the store", err)
	}
}
