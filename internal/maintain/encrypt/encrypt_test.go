package encrypt_test

import (
	"bytes"
	"context"
	"crypto/rand"
	"errors"
	"io"
	"maps"
	"math"
	"net/http"
	"strings"
	"sync/atomic"
	"testing"

	"github.com/cmekproxy/cmekproxy/internal/checksum"
	"github.com/cmekproxy/cmekproxy/internal/crypt"
	"github.com/cmekproxy/cmekproxy/internal/keyring"
	"github.com/cmekproxy/cmekproxy/internal/kms"
	"github.com/cmekproxy/cmekproxy/internal/maintain/encrypt"
	"github.com/cmekproxy/cmekproxy/internal/maintain/inplace"
	"github.com/cmekproxy/cmekproxy/internal/maintain/walk"
	"github.com/cmekproxy/cmekproxy/internal/proxytest"
	"github.com/cmekproxy/cmekproxy/internal/stored"
)

// store is the real store of this test process.
var store *proxytest.Bucket

const bucket = "bucket"

func TestMain(m *testing.M) {
	proxytest.RunTests(m, bucket, func(b *proxytest.Bucket) { store = b })
}

// send is a function, so that tests can wrap it.
func send(r *http.Request) (*http.Response, error) { return store.Send(r) }

func ask(method, key string, body []byte) ([]byte, error) {
	p := &inplace.Payload{Body: bytes.NewReader(body), Length: int64(len(body))}
	path, query, _ := strings.Cut(key, "?")
	return (&inplace.Store{Send: send}).Ask(
		context.Background(),
		method,
		crypt.Object{Bucket: bucket, Key: path},
		query,
		nil,
		p,
	)
}

// lab is a store with one plaintext object, and an Encrypter's
// configuration.
type lab struct {
	*testing.T
	key  string
	text []byte
	cfg  encrypt.Config
}

func newLab(t *testing.T, key kms.Wrapper, sizes ...int) *lab {
	t.Helper()
	ring := func() *keyring.Keyring {
		return proxytest.NewKeyring(t, keyring.Config{
			Keys: []keyring.Key{{Name: "key", Wrapper: key}}, Rules: []keyring.Rule{{Key: "key", AllowPlaintext: true}},
		})
	}
	l := &lab{T: t, key: "dir/" + t.Name()}
	l.cfg = encrypt.Config{Config: inplace.Config{
		Send: send, Keys: ring(), Random: rand.Reader,
		Abilities: inplace.Abilities{PutIfMatch: true, CompleteIfMatch: true, ETagIsMD5: true},
		Check:     proxytest.Opening(ring()),
	}}
	l.store(sizes...)
	return l
}

// store stores the object with one PUT, or in several parts.
func (l *lab) store(sizes ...int) {
	l.Helper()
	up := &inplace.Upload{}
	var err error

	if len(sizes) > 1 {
		if up, err = (&inplace.Store{
			Send: send,
		}).Create(l.Context(), crypt.Object{Bucket: bucket, Key: l.key}, make(http.Header)); err != nil {
			l.Fatal(err)
		}
	}

	l.text = nil
	for i, size := range sizes {
		text := make([]byte, size)
		rand.Read(text)
		l.text = append(l.text, text...)

		if len(sizes) == 1 {
			_, err = ask(http.MethodPut, l.key, text)
		} else {
			err = up.Send(l.Context(), i+1, &inplace.Payload{Body: bytes.NewReader(text), Length: int64(size)})
		}

		if err != nil {
			l.Fatal(err)
		}
	}

	if len(sizes) > 1 {
		if err := up.Complete(l.Context(), ""); err != nil {
			l.Fatal(err)
		}
	}
}

func (l *lab) encrypt() walk.Result {
	return encrypt.New(l.cfg).Encrypt(l.Context(), bucket, stored.Entry{Key: l.key})
}

// is checks the object's content, and whether it is encrypted.
func (l *lab) is(encrypted bool) {
	l.Helper()
	s := &stored.Reader{Send: send, Cache: stored.NewCache(), Open: l.cfg.Check}
	o, err := s.Get(
		l.Context(),
		stored.Request{Object: crypt.Object{Bucket: bucket, Key: l.key}, Plaintext: func(int64) error { return nil }},
	)
	if err != nil {
		l.Fatal(err)
	}
	defer o.Close()

	got, err := io.ReadAll(o.Reader(l.Context()))
	if err != nil || !bytes.Equal(got, l.text) || o.Plaintext == encrypted {
		l.Errorf("%d of %d bytes, plaintext: %t, %v", len(got), len(l.text), o.Plaintext, err)
	}
}

func localKey(t *testing.T) kms.Wrapper {
	t.Helper()
	key, _ := proxytest.NewLocalKey(t)
	return key
}

const mib = 1 << 20

// sizes are a single-PUT object and a multipart object.
var sizes = map[string][]int{"whole": {300_000}, "multipart": {5 * mib, 5 * mib, 100}}

// isBody reports whether a request sends ciphertext.
func isBody(r *http.Request) bool { return r.Method == http.MethodPut && r.ContentLength > 0 }

// isPlain reports whether a request reads the plaintext.
func isPlain(r *http.Request) bool {
	return r.Method == http.MethodGet && r.URL.RawQuery == "" && r.Header.Get("X-Amz-Checksum-Mode") == ""
}

// cut is a body that ends with an error.
type cut struct {
	io.ReadCloser
	left int64
}

func (c *cut) Read(p []byte) (int, error) {
	if c.left <= 0 {
		return 0, io.ErrUnexpectedEOF
	}
	n, err := c.ReadCloser.Read(p[:min(int64(len(p)), c.left)])
	c.left -= int64(n)
	return n, err
}

// If the store fails in the middle of an upload, or while the object is
// read, the old object does not change.
func TestAStoreThatFails(t *testing.T) {
	for name, sizes := range sizes {
		for what, fault := range map[string]func(r *http.Request) (*http.Response, error){
			"in mid-PUT": func(r *http.Request) (*http.Response, error) {
				if isBody(r) {
					r.Body = &cut{r.Body, 200_000}
				}
				return send(r)
			},
			"in mid-GET": func(r *http.Request) (*http.Response, error) {
				resp, err := send(r)
				if err == nil && isPlain(r) {
					resp.Body = &cut{resp.Body, 200_000}
				}
				return resp, err
			},
			"with 503": func(r *http.Request) (*http.Response, error) {
				if isBody(r) {
					io.CopyN(io.Discard, r.Body, 1000)
					r.Body.Close()
					return nil, &inplace.StoreError{HTTPStatus: http.StatusServiceUnavailable, Code: "SlowDown"}
				}
				return send(r)
			},
			"at the end of the upload": func(r *http.Request) (*http.Response, error) {
				if isBody(
					r,
				) && r.URL.RawQuery == "" || r.Method == http.MethodPost && strings.HasPrefix(r.URL.RawQuery, "uploadId") {
					io.Copy(io.Discard, r.Body)
					r.Body.Close()
					return nil, &inplace.StoreError{HTTPStatus: http.StatusInternalServerError, Code: "InternalError"}
				}
				return send(r)
			},
		} {
			t.Run(name+" "+what, func(t *testing.T) {
				t.Parallel()
				l := newLab(t, localKey(t), sizes...)
				l.cfg.Send = fault
				if r := l.encrypt(); r.Outcome != walk.Failed || r.Err == nil || errors.Is(r.Err, encrypt.ErrLost) {
					t.Errorf("%+v", r)
				}
				l.is(false)
			})
		}
	}
}

// A transient error only costs another attempt.
func TestAFaultThatPasses(t *testing.T) {
	for name, sizes := range sizes {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			l := newLab(t, localKey(t), sizes...)
			var faults atomic.Int64

			l.cfg.Send = func(r *http.Request) (*http.Response, error) {
				if isBody(r) && faults.Add(1) == 2 {
					r.Body = &cut{r.Body, 200_000}
				}
				resp, err := send(r)
				if err == nil && isPlain(r) && faults.Add(1) == 1 {
					resp.Body = &cut{resp.Body, 200_000}
				}

				return resp, err
			}

			if r := l.encrypt(); r.Outcome != walk.Done || r.Err != nil || r.Size != int64(len(l.text)) {
				t.Errorf("%+v", r)
			}
			l.is(true)
		})
	}
}

// All checksums that the store has for the full object are kept, even if a
// part has to be read twice to verify them.
func TestChecksumsAreKept(t *testing.T) {
	for name, sizes := range map[string][]int{"whole": {300_000}, "multipart": {5 * mib, 5 * mib}} {
		l := newLab(t, localKey(t), sizes...)
		faults := 0
		l.cfg.Send = func(r *http.Request) (*http.Response, error) {
			resp, err := send(r)
			if err == nil && isPlain(r) {
				if faults++; faults == 2 {
					resp.Body = &cut{resp.Body, 200_001}
				}
			}

			if err == nil && r.Method == http.MethodHead {
				resp.Header.Set("X-Amz-Checksum-Type", "FULL_OBJECT")
				for _, a := range checksum.All {
					resp.Header.Set(a.Header(), checksum.Encode(sum(a, l.text)))
				}
			}
			return resp, err
		}

		if r := l.encrypt(); r.Outcome != walk.Done || r.Err != nil {
			t.Fatalf("%s: %+v", name, r)
		}
		l.is(true)
		if len(sizes) > 1 && faults < 3 {
			t.Errorf("%s: no part was read twice", name)
		}

		s := &stored.Reader{Send: send, Cache: stored.NewCache(), Open: l.cfg.Check}
		q := stored.Request{Object: crypt.Object{Bucket: bucket, Key: l.key}}
		o, err := s.Head(t.Context(), q)
		if err == nil {
			err = s.Survey(t.Context(), q, o)
		}
		if err != nil {
			t.Fatal(err)
		}

		kept, err := o.Checksum(t.Context())
		if err != nil || kept.Type != crypt.FullObject {
			t.Errorf("%s: type %d, %v", name, kept.Type, err)
		}

		for _, a := range checksum.All {
			if !bytes.Equal(kept.Digests[a.ID], sum(a, l.text)) {
				t.Errorf("%s: %s is %x", name, a.Name, kept.Digests[a.ID])
			}
		}
	}
}

func sum(a *checksum.Algorithm, text []byte) []byte {
	h := a.New()
	h.Write(text)
	return h.Sum(nil)
}

// An object that does not match the store's checksums is not encrypted.
func TestADamagedSource(t *testing.T) {
	for name, sizes := range sizes {
		l := newLab(t, localKey(t), sizes...)
		header := "X-Amz-Checksum-Xxhash128"
		l.cfg.Send = func(r *http.Request) (*http.Response, error) {
			resp, err := send(r)
			if err == nil && isPlain(r) {
				resp.Body = &flipped{resp.Body, 77}
			}
			if err == nil && r.Method == http.MethodHead && len(sizes) > 1 {
				resp.Header.Set(header, "AAAAAAAAAAAAAAAAAAAAAA==")
				resp.Header.Set("X-Amz-Checksum-Type", "FULL_OBJECT")
			}

			return resp, err
		}

		if r := l.encrypt(); r.Outcome != walk.Failed || !errors.Is(r.Err, encrypt.ErrSource) {
			t.Errorf("%s: %+v", name, r)
		}
		l.is(false)
	}
}

// While an object is overwritten, a store may show two writes in one answer:
// here the metadata of the old one with the body of the new one. That is no
// damage, neither of the original nor of what was encrypted. The next attempt
// takes the object as it is then.
func TestTwoWritesInOneAnswer(t *testing.T) {
	for _, row := range []struct {
		name  string
		mixed func(r *http.Request, reads int) bool // an answer after which a client overwrites the object
	}{
		{"the original", func(r *http.Request, reads int) bool { return isPlain(r) && reads == 1 }},
		{"what was encrypted", func(r *http.Request, reads int) bool { return isPlain(r) && reads == 2 }},
	} {
		t.Run(row.name, func(t *testing.T) {
			t.Parallel()
			l := newLab(t, localKey(t), 100_000)
			reads := 0
			l.cfg.Send = func(r *http.Request) (*http.Response, error) {
				resp, err := send(r)
				if isPlain(r) {
					reads++
				}
				if err != nil || !row.mixed(r, reads) {
					return resp, err
				}

				resp.Body = &flipped{resp.Body, 50_000} // as of the other write
				l.store(100_000)
				return resp, nil
			}

			if r := l.encrypt(); r.Outcome != walk.Done || r.Err != nil {
				t.Errorf("%+v", r)
			}
			l.is(true)
		})
	}
}

// Plaintext where the rule denies it is looked at again: the store may not
// have had the metadata of a client's write yet.
func TestMetadataThatComesLater(t *testing.T) {
	for name, row := range map[string]struct {
		answers int // without the metadata
		want    walk.Outcome
	}{"one answer": {1, walk.Current}, "all answers": {math.MaxInt, walk.Failed}} {
		t.Run(name, func(t *testing.T) {
			l := newLab(t, localKey(t), 1000)
			if r := l.encrypt(); r.Outcome != walk.Done {
				t.Fatalf("%+v", r)
			}
			l.cfg.Keys = proxytest.NewKeyring(t, keyring.Config{
				Keys: []keyring.Key{{Name: "key", Wrapper: localKey(t)}}, Rules: []keyring.Rule{{Key: "key"}},
			})
			asked := 0
			l.cfg.Send = func(r *http.Request) (*http.Response, error) {
				resp, err := send(r)
				if asked++; err == nil && asked <= row.answers {
					maps.DeleteFunc(resp.Header, func(name string, _ []string) bool {
						return strings.HasPrefix(name, stored.MetaPrefix)
					})
				}
				return resp, err
			}
			if r := l.encrypt(); r.Outcome != row.want || row.want == walk.Failed && !errors.Is(r.Err, encrypt.ErrDenied) {
				t.Errorf("%+v", r)
			}
		})
	}
}

// flipped is a body with one changed byte.
type flipped struct {
	io.ReadCloser
	at int64
}

func (f *flipped) Read(p []byte) (int, error) {
	n, err := f.ReadCloser.Read(p)
	if f.at >= 0 && f.at < int64(n) {
		p[f.at] ^= 1
	}
	f.at -= int64(n)
	return n, err
}

// A store that alters what it receives is detected: for a part, before the
// old object is overwritten, and for a single-PUT object, right afterwards.
// Then nothing more is written.
func TestAStoreThatAltersWhatItGets(t *testing.T) {
	for name, sizes := range sizes {
		l := newLab(t, localKey(t), sizes...)
		altered := 0
		l.cfg.Send = func(r *http.Request) (*http.Response, error) {
			if isBody(r) {
				altered++
				r.Body = &flipped{r.Body, 50_000}
			}
			return send(r)
		}

		e := encrypt.New(l.cfg)
		r := e.Encrypt(t.Context(), bucket, stored.Entry{Key: l.key})
		if len(sizes) > 1 {
			if r.Outcome != walk.Failed || errors.Is(r.Err, encrypt.ErrLost) {
				t.Errorf("%s: %+v", name, r)
			}
			l.is(false)
			continue
		}

		if r.Outcome != walk.Failed || !errors.Is(r.Err, encrypt.ErrLost) || !errors.Is(r.Err, walk.ErrStop) ||
			altered != 1 {
			t.Errorf("%s: %+v", name, r)
		}
		l.key += "-next"
		l.store(sizes...)

		if r := e.Encrypt(t.Context(), bucket, stored.Entry{Key: l.key}); r.Outcome != walk.Failed || altered != 1 {
			t.Errorf("%s: it continues: %+v", name, r)
		}
		l.is(false)
	}
}

// oneWay is a key that can wrap, but does not unwrap what it has wrapped, or
// unwraps it to something else.
type oneWay struct {
	kms.Wrapper
	answer func() ([]byte, error)
}

func (o oneWay) Unwrap(context.Context, []byte, kms.EncryptionContext) ([]byte, error) {
	return o.answer()
}

func TestAKeyThatOnlyWrapsGetsNothing(t *testing.T) {
	for what, answer := range map[string]func() ([]byte, error){
		"denied": func() ([]byte, error) {
			return nil, &kms.Error{
				Kind: kms.Denied, Op: "unwrap", Err: errors.New("no"),
			}
		},
		"another data key": func() ([]byte, error) { return bytes.Repeat([]byte{7}, kms.DEKSize), nil },
	} {
		for name, sizes := range sizes {
			l := newLab(t, oneWay{localKey(t), answer}, sizes...)
			writes := 0
			l.cfg.Send = func(r *http.Request) (*http.Response, error) {
				if r.Method == http.MethodPut || r.Method == http.MethodPost {
					writes++
				}
				return send(r)
			}

			if r := l.encrypt(); r.Outcome != walk.Failed || r.Err == nil || writes > 0 {
				t.Errorf("%s, %s: %+v, %d writes", what, name, r, writes)
			}
		}
	}
}

// If the answer of a successful write is lost, the object is read back
// anyway.
func TestAnAnswerThatIsLost(t *testing.T) {
	for name, sizes := range sizes {
		l := newLab(t, localKey(t), sizes...)
		lost, back := 0, 0
		l.cfg.Send = func(r *http.Request) (*http.Response, error) {
			last := r.Method == http.MethodPut && r.URL.RawQuery == "" ||
				r.Method == http.MethodPost && strings.HasPrefix(r.URL.RawQuery, "uploadId")
			resp, err := send(r)
			if err == nil && last && lost == 0 {
				lost++
				resp.Body.Close()
				return nil, io.ErrUnexpectedEOF
			}

			if err == nil && lost > 0 && isPlain(r) {
				back += int(resp.ContentLength)
			}
			return resp, err
		}

		if r := l.encrypt(); r.Outcome != walk.Done || r.Err != nil || lost != 1 || back < len(l.text) {
			t.Errorf("%s: %+v, %d bytes were read back", name, r, back)
		}
		l.is(true)
	}
}

// If the store does not report the parts of an object, the upload has the
// same number of equal parts.
func TestAStoreThatDoesNotTellParts(t *testing.T) {
	l := newLab(t, localKey(t), 5*mib, 6*mib, 3)
	l.cfg.Send = func(r *http.Request) (*http.Response, error) {
		if strings.HasPrefix(r.URL.RawQuery, "partNumber=") && r.Method == http.MethodHead {
			return nil, &inplace.StoreError{HTTPStatus: http.StatusNotImplemented, Code: "NotImplemented"}
		}
		return send(r)
	}
	if r := l.encrypt(); r.Outcome != walk.Done || r.Parts != 2 { // three equal parts would be too short
		t.Errorf("%+v", r)
	}
	l.is(true)
}

// Without a condition, the object is checked after it was read completely,
// and before the last bytes are sent.
func TestUnconditional(t *testing.T) {
	for name, sizes := range sizes {
		l := newLab(t, localKey(t), sizes...)
		l.cfg.Abilities.PutIfMatch, l.cfg.Abilities.CompleteIfMatch = false, false
		if r := l.encrypt(); r.Outcome != walk.Failed || !errors.Is(r.Err, encrypt.ErrUnconditional) {
			t.Errorf("%s: %+v", name, r)
		}
		l.is(false)
		l.cfg.Unconditional = true

		overwritten := false
		l.cfg.Send = func(r *http.Request) (*http.Response, error) {
			if r.Header.Get("If-Match") != "" && (isBody(r) || r.Method == http.MethodPost) {
				t.Errorf("%s: a condition that the store does not honor", name)
			}

			resp, err := send(r)
			if err == nil && isPlain(r) && !overwritten {
				overwritten = true
				body := resp.Body
				text, _ := io.ReadAll(body)
				body.Close()
				resp.Body = io.NopCloser(bytes.NewReader(text))
				l.store(20_000)
			}

			return resp, err
		}

		if r := l.encrypt(); r.Outcome != walk.Done || !overwritten || r.Size != 20_000 {
			t.Errorf("%s: %+v", name, r)
		}
		l.is(true)
	}
}

func TestEqual(t *testing.T) {
	const gib = 1 << 30
	for _, row := range []struct {
		size   int64
		parts  int
		count  int
		length int64
	}{
		{0, 1, 1, 0},
		{10, 1, 1, 10},
		{20 * mib, 3, 3, 7 * mib},
		{15 * mib, 3, 3, 5 * mib},
		{10 * mib, 4, 2, 8 * mib},                     // four would be too short
		{5*10_000*mib + 1, 10_000, 10_000, 5_242_881}, // not a whole number of MiB
		{6 * gib, 0, 768, 8 * mib},
		{5 * 1024 * gib, 0, 9987, 525 * mib},
		{6 * gib, 1, 768, 8 * mib}, // one would be too long
	} {
		l := encrypt.Equal(row.size, row.parts)
		first, _ := l.At(0)
		last, ok := l.At(l.Parts() - 1)
		if l.Size() != row.size || l.Parts() != row.count || first.Size != row.length || !ok ||
			last.Size > first.Size ||
			!l.Contiguous() {
			t.Errorf("%d in %d: %v of %d bytes", row.size, row.parts, l, l.Size())
		}
	}
}
