package rewrap_test

import (
	"bytes"
	"context"
	"crypto/rand"
	"errors"
	"io"
	"maps"
	"math"
	"net/http"
	"net/url"
	"strconv"
	"strings"
	"sync"
	"testing"
	"testing/iotest"
	"time"

	"github.com/cmekproxy/cmekproxy/internal/capability"
	"github.com/cmekproxy/cmekproxy/internal/crypt"
	"github.com/cmekproxy/cmekproxy/internal/keyring"
	"github.com/cmekproxy/cmekproxy/internal/kms"
	"github.com/cmekproxy/cmekproxy/internal/maintain/inplace"
	"github.com/cmekproxy/cmekproxy/internal/maintain/rewrap"
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

// ring returns a keyring with the keys old and new. The rules name old.
func ring(t *testing.T, old, fresh kms.Wrapper) *keyring.Keyring {
	t.Helper()
	return proxytest.NewKeyring(t, ringConfig(old, fresh))
}

func ringConfig(old, fresh kms.Wrapper) keyring.Config {
	return keyring.Config{
		Keys:  []keyring.Key{{Name: "old", Wrapper: old}, {Name: "new", Wrapper: fresh}},
		Rules: []keyring.Rule{{Key: "old", AskedKeys: []string{"*"}}},
	}
}

func localKey(t *testing.T) kms.Wrapper {
	t.Helper()
	key, _ := proxytest.NewLocalKey(t)
	return key
}

// lab is a store with one object, and a Mover's configuration.
type lab struct {
	format keyring.Format // of the objects that the test writes
	*testing.T
	obj   crypt.Object
	text  []byte
	keys  *keyring.Keyring  // a keyring that has cached everything; the Mover has others
	added map[string]string // the client's encryption context
	cfg   rewrap.Config
	calls *calls

	old, fresh kms.Wrapper
}

// newLab stores an object under key old. fresh is key new.
func newLab(t *testing.T, fresh kms.Wrapper) *lab {
	t.Helper()
	return newLabOf(t, localKey(t), fresh)
}

// newLabOf is newLab with another key old.
func newLabOf(t *testing.T, oldKey, fresh kms.Wrapper) *lab {
	t.Helper()
	old := &counting{Wrapper: oldKey, calls: &calls{}}
	counted := &counting{Wrapper: fresh, calls: old.calls}

	l := &lab{
		T:     t,
		obj:   crypt.Object{Bucket: bucket, Key: "dir/" + t.Name()},
		text:  make([]byte, 100_000),
		calls: old.calls,
		old:   old,
		fresh: counted,
	}
	rand.Read(l.text)

	l.keys = ring(t, old, counted)
	again := ring(t, old, counted)
	l.cfg = rewrap.Config{To: "new", Method: rewrap.Put, Config: inplace.Config{
		Send: send, Keys: ring(t, old, counted), Random: rand.Reader,
		Abilities: inplace.Abilities{PutIfMatch: true, CompleteIfMatch: true},
		Check:     proxytest.Opening(again),
	}}
	l.put(nil)

	*l.calls = calls{}
	return l
}

// put stores the object with changes to its envelope.
func (l *lab) put(change func(map[string]string)) {
	l.Helper()
	sealed, err := l.keys.Create(l.Context(), l.obj, "", keyring.Choice{KeyID: "old", Context: l.added})
	if err != nil {
		l.Fatal(err)
	}
	defer sealed.Release()

	sealer, err := crypt.NewSealer(bytes.NewReader(l.text), int64(len(l.text)), sealed.DEK(), rand.Reader)
	if err != nil {
		l.Fatal(err)
	}

	body, err := io.ReadAll(sealer)
	if err != nil {
		l.Fatal(err)
	}

	e := crypt.Envelope{
		Version:    l.format.Version,
		KeyID:      sealed.KeyID,
		WrappedDEK: sealed.Wrapped,
		Header:     sealer.Header(),
		Size:       int64(len(l.text)),
	}
	if err := e.Sign(sealed.DEK(), l.obj); err != nil {
		l.Fatal(err)
	}

	metadata, err := e.Metadata()
	if err != nil {
		l.Fatal(err)
	}
	if change != nil {
		change(metadata)
	}

	header := http.Header{"X-Amz-Meta-Own": {"value"}}
	for name, value := range metadata {
		header.Set(stored.MetaPrefix+name, value)
	}
	if err := store.Ask(l.Context(), http.MethodPut, l.obj.Key, header, body); err != nil {
		l.Fatal(err)
	}
}

// putParts stores the object in two parts.
func (l *lab) putParts() {
	l.Helper()
	l.text = make([]byte, 5<<20+100)
	rand.Read(l.text)
	cfg := l.cfg.Config
	cfg.Keys = l.keys

	key, err := cfg.NewKey(l.Context(), l.obj, keyring.Choice{KeyID: "old", Context: l.added})
	if err != nil {
		l.Fatal(err)
	}
	defer key.Release()

	header := http.Header{"X-Amz-Meta-Own": {"value"}}
	up, err := cfg.Store().CreateSealed(l.Context(), l.obj, header, key, l.format, rand.Reader)
	if err != nil {
		l.Fatal(err)
	}

	text := bytes.NewReader(l.text)
	for i, size := range []int64{5 << 20, 100} {
		part := crypt.Part{Number: i + 1, Size: size, Final: crypt.IsFinal(i+1, size)}
		if err := up.Seal(l.Context(), part, io.LimitReader(text, size), key, rand.Reader, nil); err != nil {
			l.Fatal(err)
		}
	}

	if err := up.Complete(l.Context(), ""); err != nil {
		l.Fatal(err)
	}
}

// request returns a request for the whole object.
func (l *lab) request() stored.Request {
	return stored.Request{Object: l.obj, Plaintext: func(int64) error { return errors.New("plaintext") }}
}

// reader returns a reader that uses both keys.
func (l *lab) reader() *stored.Reader {
	return &stored.Reader{
		Send:  send,
		Cache: stored.NewCache(),
		Open: func(ctx context.Context, obj crypt.Object, keyID string, wrapped []byte) (stored.Lease, error) {
			return l.keys.Open(ctx, obj, keyID, wrapped)
		},
	}
}

// read reads the object with both keys, and returns the id of the key that
// encrypts it.
func (l *lab) read() string {
	l.Helper()
	o, err := l.reader().Get(l.Context(), l.request())
	if err != nil {
		l.Error(err)
		return ""
	}
	defer o.Close()
	got, err := io.ReadAll(o.Reader(l.Context()))
	if err != nil || !bytes.Equal(got, l.text) || o.Header.Get("X-Amz-Meta-Own") != "value" {
		l.Errorf("%d of %d bytes, metadata %q, %v", len(got), len(l.text), o.Header.Get("X-Amz-Meta-Own"), err)
	}
	return o.KeyID
}

// contexts returns the client's encryption context of the object, or of each
// part.
func (l *lab) contexts() (out []map[string]string) {
	l.Helper()
	take := func(wrapped []byte) {
		parsed, err := crypt.ParseWrappedKey(wrapped)
		if err != nil {
			l.Fatal(err)
		}
		out = append(out, parsed.Context)
	}

	seen, err := l.reader().Look(l.Context(), l.request())
	if err != nil {
		l.Fatal(err)
	}
	if seen.Envelope != nil {
		take(seen.Envelope.WrappedDEK)
		return out
	}

	for part, err := range l.reader().PartHeaders(l.Context(), l.request(), seen) {
		if err != nil {
			l.Fatal(err)
		}
		take(part.WrappedDEK)
	}
	return out
}

// forms returns the first byte of the wrapped data key of the object, or of
// each part.
func (l *lab) forms() (out []byte) {
	l.Helper()
	seen, err := l.reader().Look(l.Context(), l.request())
	if err != nil {
		l.Fatal(err)
	}
	if seen.Envelope != nil {
		return seen.Envelope.WrappedDEK[:1]
	}

	for part, err := range l.reader().PartHeaders(l.Context(), l.request(), seen) {
		if err != nil {
			l.Fatal(err)
		}
		out = append(out, part.WrappedDEK[0])
	}
	return out
}

func (l *lab) id(name string) string {
	l.Helper()
	id, err := l.keys.KeyID(l.Context(), l.obj, "", name)
	if err != nil {
		l.Fatal(err)
	}
	return id
}

// calls counts the requests to the KMS.
type calls struct {
	mu           sync.Mutex
	wrap, unwrap int
}

// counting counts the calls to a key.
type counting struct {
	kms.Wrapper
	calls *calls
}

func (c *counting) Wrap(ctx context.Context, dek []byte, ec kms.EncryptionContext) ([]byte, error) {
	c.calls.mu.Lock()
	c.calls.wrap++
	c.calls.mu.Unlock()
	return c.Wrapper.Wrap(ctx, dek, ec)
}

func (c *counting) Unwrap(ctx context.Context, wrapped []byte, ec kms.EncryptionContext) ([]byte, error) {
	c.calls.mu.Lock()
	c.calls.unwrap++
	c.calls.mu.Unlock()
	return c.Wrapper.Unwrap(ctx, wrapped, ec)
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

func TestThreeKMSCallsAnObject(t *testing.T) {
	l := newLab(t, localKey(t))
	if r := rewrap.New(l.cfg).Move(t.Context(), bucket, stored.Entry{Key: l.obj.Key}); r.Outcome != walk.Done ||
		r.Err != nil ||
		r.Size != int64(len(l.text)) {
		t.Fatalf("%+v", r)
	}
	if l.calls.wrap != 1 || l.calls.unwrap != 2 {
		t.Errorf("%d wraps and %d unwraps", l.calls.wrap, l.calls.unwrap)
	}

	if id := l.read(); id != l.id("new") {
		t.Errorf("under %s", id)
	}
	if r := rewrap.New(l.cfg).Move(t.Context(), bucket, stored.Entry{Key: l.obj.Key}); r.Outcome != walk.Current ||
		l.calls.wrap != 1 {
		t.Errorf("a second time: %+v, %d wraps", r, l.calls.wrap)
	}
}

// Without its envelope, the object is lost. It must not be replaced by one
// that cannot be opened.
func TestAKeyThatOnlyWrapsGetsNothing(t *testing.T) {
	for name, answer := range map[string]func() ([]byte, error){
		"denied": func() ([]byte, error) {
			return nil, &kms.Error{
				Kind: kms.Denied, Op: "unwrap", Err: errors.New("no"),
			}
		},
		"another data key": func() ([]byte, error) { return bytes.Repeat([]byte{7}, kms.DEKSize), nil },
		"a short answer":   func() ([]byte, error) { return []byte{1}, nil },
	} {
		l := newLab(t, oneWay{localKey(t), answer})
		for _, method := range []rewrap.Method{rewrap.Put, rewrap.Copy} {
			l.cfg.Method = method
			if r := rewrap.New(l.cfg).Move(t.Context(), bucket, stored.Entry{Key: l.obj.Key}); r.Outcome != walk.Failed ||
				r.Err == nil {
				t.Errorf("%s: %+v", name, r)
			}

			if id := l.read(); id != l.id("old") {
				t.Errorf("%s: under %s", name, id)
			}
		}
	}
}

func TestWhatDoesNotVerifyIsNotTouched(t *testing.T) {
	other := func(name, value string) func(map[string]string) {
		return func(m map[string]string) { m[name] = value }
	}
	for name, change := range map[string]func(map[string]string){
		"a MAC of zeros":   other("cmek-mac", "AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA="),
		"another size":     other("cmek-size", "99999"),
		"an unknown key":   other("cmek-key", "local:0000000000000000"),
		"an unknown entry": other("cmek-more", "x"),
		"no MAC":           func(m map[string]string) { delete(m, "cmek-mac") },
		"an unknown suite": other("cmek-suite", "9"),
		"a blob of nobody": other("cmek-dek", "AAAA"),
		"the mark of parts": func(m map[string]string) {
			clear(m)
			m["cmek-v"], m["cmek-suite"], m["cmek-type"], m["cmek-key"] = "1", "1", "multipart", "x"
		},
	} {
		l := newLab(t, localKey(t))
		l.put(change)
		writes := 0

		l.cfg.Send = func(r *http.Request) (*http.Response, error) {
			if r.Method != http.MethodGet && r.Method != http.MethodHead {
				writes++
			}
			return send(r)
		}

		if r := rewrap.New(l.cfg).Move(t.Context(), bucket, stored.Entry{Key: l.obj.Key}); r.Outcome != walk.Failed ||
			r.Err == nil ||
			writes > 0 {
			t.Errorf("%s: %+v, %d writes", name, r, writes)
		}
	}
}

// asCopy is a store whose CopyObject honors If-Match, like S3's. before runs
// once, after the store has checked the source and before it checks the
// object to overwrite. behind runs after the copy.
func asCopy(before, behind func()) func(*http.Request) (*http.Response, error) {
	once := func(f func()) {
		if f != nil {
			f()
		}
	}

	return func(r *http.Request) (*http.Response, error) {
		if r.Header.Get("X-Amz-Copy-Source") == "" {
			return send(r)
		}
		r.Header.Del("X-Amz-Copy-Source-If-Match") // it has checked the source already
		once(before)
		before = nil

		if etag := r.Header.Get("If-Match"); etag != "" {
			head := (&http.Request{Method: http.MethodHead, URL: r.URL, Header: make(http.Header)}).WithContext(
				r.Context(),
			)
			resp, err := send(head)
			if err != nil {
				return nil, err
			}

			resp.Body.Close()
			if resp.Header.Get("Etag") != etag {
				return nil, &inplace.StoreError{HTTPStatus: http.StatusPreconditionFailed, Code: "PreconditionFailed"}
			}
		}

		resp, err := send(r)
		once(behind)
		behind = nil
		return resp, err
	}
}

func TestCopyMovesNoBody(t *testing.T) {
	l := newLab(t, localKey(t))
	to := asCopy(nil, nil)
	sent := int64(0)

	l.cfg.Send = func(r *http.Request) (*http.Response, error) {
		sent += r.ContentLength
		if r.Method == http.MethodGet && r.Header.Get("Range") == "" {
			t.Error("the body is read")
		}
		return to(r)
	}

	l.cfg.Method, l.cfg.Abilities.CopyIfMatch = rewrap.Copy, true
	if r := rewrap.New(l.cfg).Move(t.Context(), bucket, stored.Entry{Key: l.obj.Key}); r.Outcome != walk.Done {
		t.Fatalf("%+v", r)
	}
	if id := l.read(); id != l.id("new") || sent != 0 {
		t.Errorf("under %s, %d bytes were sent", id, sent)
	}
}

func TestCopyOfWhatWasOverwritten(t *testing.T) {
	l := newLab(t, localKey(t))
	l.cfg.Send = asCopy(func() {
		rand.Read(l.text)
		l.put(nil)
	}, nil)
	l.cfg.Method, l.cfg.Abilities.CopyIfMatch = rewrap.Copy, true
	if r := rewrap.New(l.cfg).Move(t.Context(), bucket, stored.Entry{Key: l.obj.Key}); r.Outcome != walk.Done {
		t.Fatalf("%+v", r)
	}
	if id := l.read(); id != l.id("new") {
		t.Errorf("under %s", id)
	}
}

// A store that edits metadata in place can put the old object's envelope on
// a new body. This cannot be undone, so it must be reported.
func TestAnEnvelopeOnTheWrongBodyIsNoticed(t *testing.T) {
	l := newLab(t, localKey(t))
	l.cfg.Method = rewrap.Copy
	l.cfg.Send = asCopy(nil, func() {
		r := (&http.Request{
			Method: http.MethodHead, URL: &url.URL{Path: "/" + bucket + "/" + l.obj.Key}, Header: make(http.Header),
		}).WithContext(
			t.Context(),
		)
		resp, err := send(r)
		if err != nil {
			t.Fatal(err)
		}

		resp.Body.Close()
		header := make(http.Header)
		for name, values := range resp.Header {
			if strings.HasPrefix(name, stored.MetaPrefix) {
				header[name] = values
			}
		}

		body := make([]byte, resp.ContentLength)
		rand.Read(body)
		if err := store.Ask(
			r.Context(), http.MethodPut, strings.TrimPrefix(r.URL.Path, "/"+bucket+"/"), header, body,
		); err != nil {
			t.Fatal(err)
		}
	})

	if r := rewrap.New(l.cfg).Move(t.Context(), bucket, stored.Entry{Key: l.obj.Key}); r.Outcome != walk.Failed ||
		!errors.Is(r.Err, rewrap.ErrLost) {
		t.Errorf("%+v", r)
	}
}

// If the answer of a successful write is lost, the write is neither repeated
// nor undone.
func TestAnAnswerThatIsLost(t *testing.T) {
	l := newLab(t, localKey(t))
	lost := 0
	l.cfg.Send = func(r *http.Request) (*http.Response, error) {
		resp, err := send(r)
		if r.Method == http.MethodPut && err == nil && lost < 1 {
			lost++
			resp.Body.Close()
			return nil, io.ErrUnexpectedEOF
		}
		return resp, err
	}

	if r := rewrap.New(l.cfg).Move(t.Context(), bucket, stored.Entry{Key: l.obj.Key}); r.Outcome != walk.Current ||
		r.Err != nil ||
		lost != 1 {
		t.Errorf("%+v", r)
	}

	if id := l.read(); id != l.id("new") || l.calls.wrap != 1 {
		t.Errorf("under %s after %d wraps", id, l.calls.wrap)
	}
}

// A store that shows the size of one write and the metadata of another is
// asked again. If it goes on, the object is reported as altered.
func TestTwoWritesInOneAnswer(t *testing.T) {
	for name, row := range map[string]struct {
		answers int // that are mixed
		want    walk.Outcome
	}{"one answer": {1, walk.Done}, "all answers": {math.MaxInt, walk.Failed}} {
		t.Run(name, func(t *testing.T) {
			l := newLab(t, localKey(t))
			mixed := 0
			l.cfg.Send = func(r *http.Request) (*http.Response, error) {
				resp, err := send(r)
				if err == nil && r.Method == http.MethodHead && mixed < row.answers {
					mixed++
					resp.ContentLength++
					resp.Header.Set("Content-Length", strconv.FormatInt(resp.ContentLength, 10))
				}
				return resp, err
			}

			r := rewrap.New(l.cfg).Move(t.Context(), bucket, stored.Entry{Key: l.obj.Key})
			isAltered := errors.Is(r.Err, stored.ErrIntegrity) && !errors.Is(r.Err, inplace.ErrChanged)
			if r.Outcome != row.want || row.want == walk.Failed && !isAltered {
				t.Errorf("%+v", r)
			}
			if id := l.read(); (id == l.id("new")) != (row.want == walk.Done) {
				t.Errorf("under %s", id)
			}
		})
	}
}

// A body that is damaged when it is read does not replace the good one.
func TestADamagedBodyIsNotSentBack(t *testing.T) {
	for _, at := range []int64{0, 39, 40, 65_552, 100_000} {
		l := newLab(t, localKey(t))
		l.cfg.Send = func(r *http.Request) (*http.Response, error) {
			resp, err := send(r)
			if err == nil && r.Method == http.MethodGet && r.URL.RawQuery == "" {
				resp.Body = &flipped{resp.Body, at}
			}
			return resp, err
		}

		if r := rewrap.New(l.cfg).Move(t.Context(), bucket, stored.Entry{Key: l.obj.Key}); r.Outcome != walk.Failed ||
			!errors.Is(r.Err, crypt.ErrAuth) {
			t.Errorf("byte %d: %+v", at, r)
		}
		if id := l.read(); id != l.id("old") {
			t.Errorf("byte %d: under %s", at, id)
		}
	}
}

// A broken connection is not damage, and the object is tried again.
func TestABrokenConnection(t *testing.T) {
	l := newLab(t, localKey(t))
	broken := 0
	l.cfg.Send = func(r *http.Request) (*http.Response, error) {
		resp, err := send(r)
		if err == nil && r.Method == http.MethodGet && r.URL.RawQuery == "" && broken < 2 {
			broken++
			resp.Body = io.NopCloser(
				io.MultiReader(io.LimitReader(resp.Body, 50_000), iotest.ErrReader(io.ErrUnexpectedEOF)),
			)
		}

		return resp, err
	}

	if r := rewrap.New(l.cfg).Move(t.Context(), bucket, stored.Entry{Key: l.obj.Key}); r.Outcome != walk.Done ||
		broken != 2 {
		t.Errorf("%+v after %d breaks", r, broken)
	}
	if id := l.read(); id != l.id("new") {
		t.Errorf("under %s", id)
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

func TestSafest(t *testing.T) {
	for name, row := range map[string]struct {
		store capability.Set
		want  rewrap.Method
	}{
		"unknown":    {capability.Set{}, rewrap.NoMethod},
		"versitygw":  {capability.Set{capability.PutIfMatch: capability.Yes}, rewrap.Put},
		"only parts": {capability.Set{capability.CompleteIfMatch: capability.Yes}, rewrap.NoMethod},
		"S3": {
			capability.Set{capability.PutIfMatch: capability.Yes, capability.CopyIfMatch: capability.Yes},
			rewrap.Copy,
		},
		"Ceph 16": {
			capability.Set{capability.PutIfMatch: capability.No, capability.PutIfMatchBare: capability.Yes},
			rewrap.Put,
		},
	} {
		t.Run(name, func(t *testing.T) {
			if got := rewrap.Safest(inplace.AbilitiesOf(row.store)); got != row.want {
				t.Errorf("%v, want %v", got, row.want)
			}
		})
	}
}

// The metadata of an object is kept by all methods, without the headers of
// the transfer and the old envelope.
func TestCarriedHeaders(t *testing.T) {
	have := map[string]string{
		"X-Amz-Storage-Class": "STANDARD_IA", "X-Amz-Object-Lock-Mode": "COMPLIANCE",
		"X-Amz-Object-Lock-Retain-Until-Date": "2030-01-01T00:00:00Z",
		"X-Amz-Object-Lock-Legal-Hold":        "ON", "X-Amz-Website-Redirect-Location": "/there",
		"Cache-Control": "no-cache", "Expires": "Wed, 02 Jan 2030 03:04:05 GMT",
	}

	for _, method := range []rewrap.Method{rewrap.Put, rewrap.Copy} {
		l := newLab(t, localKey(t))
		l.cfg.Method = method
		var written http.Header

		l.cfg.Send = func(r *http.Request) (*http.Response, error) {
			if r.Method == http.MethodPut {
				written = r.Header.Clone()
				if r.Body != nil {
					r.Body.Close()
				}
				return nil, &inplace.StoreError{HTTPStatus: http.StatusForbidden, Code: "AccessDenied"}
			}

			resp, err := send(r)
			if err == nil && r.Method == http.MethodHead {
				for name, value := range have {
					resp.Header.Set(name, value)
				}
				resp.Header.Set("Content-Encoding", "aws-chunked, gzip")
				resp.Header.Set("X-Amz-Server-Side-Encryption", "AES256")
				resp.Header.Set("X-Amz-Checksum-Crc32", "AAAAAA==")
			}

			return resp, err
		}

		if r := rewrap.New(l.cfg).Move(t.Context(), bucket, stored.Entry{Key: l.obj.Key}); r.Outcome != walk.Failed ||
			written == nil {
			t.Fatalf("%v: %+v", method, r)
		}

		for name, value := range have {
			if written.Get(name) != value {
				t.Errorf("%v: %s is %q", method, name, written.Get(name))
			}
		}

		if written.Get("Content-Encoding") != "gzip" || written.Get("X-Amz-Meta-Own") != "value" ||
			written.Get("X-Amz-Meta-Cmek-Key") != l.id("new") {
			t.Errorf("%v: %v", method, written)
		}

		for name := range written {
			if strings.HasPrefix(name, "X-Amz-Server-Side-Encryption") || strings.HasPrefix(name, "X-Amz-Checksum") ||
				name == "Content-Md5" {
				t.Errorf("%v: %s is sent along", method, name)
			}
		}
	}
}

func TestMetadataThatIsNotShownIsNotLost(t *testing.T) {
	l := newLab(t, localKey(t))
	l.cfg.Send = func(r *http.Request) (*http.Response, error) {
		resp, err := send(r)
		if err == nil {
			resp.Header.Set("X-Amz-Missing-Meta", "1")
		}
		return resp, err
	}

	if r := rewrap.New(l.cfg).Move(t.Context(), bucket, stored.Entry{Key: l.obj.Key}); r.Outcome != walk.Failed ||
		r.Err == nil {
		t.Errorf("%+v", r)
	}
	if id := l.read(); id != l.id("old") {
		t.Errorf("under %s", id)
	}
}

// The client's encryption context is kept.
func TestEncryptionContextIsKept(t *testing.T) {
	for name, store := range map[string]func(*lab){"single": func(l *lab) { l.put(nil) }, "parts": (*lab).putParts} {
		for _, added := range []map[string]string{nil, {"tenant": "acme", "ä": ""}} {
			l := newLab(t, localKey(t))
			l.added = added
			store(l)
			before := l.contexts()
			l.move(walk.Done)

			after := l.contexts()
			if len(before) == 0 || len(after) != len(before) {
				t.Fatalf("%s: %v, and %v before", name, after, before)
			}
			for i := range after {
				if !maps.Equal(after[i], added) || !maps.Equal(before[i], added) {
					t.Errorf("%s: %v, and %v before, not %v", name, after, before, added)
				}
			}
		}
	}
}

// --all moves objects that are under the key, except those under its newest
// version.
func TestAllKnowsVersions(t *testing.T) {
	key, path := proxytest.NewLocalKey(t)
	l := newLab(t, key)
	l.cfg.All = true
	l.move(walk.Done)
	l.move(walk.Current)

	if err := kms.ChangeLocalKeyFile(
		path, func(f *kms.LocalKeyFile) error { _, err := f.Rotate(time.Now()); return err },
	); err != nil {
		t.Fatal(err)
	}
	l.move(walk.Done)
	l.move(walk.Current)
	l = newLab(t, opaque{localKey(t)})
	l.cfg.All = true

	l.move(walk.Done)
	l.move(walk.Done) // the version is not known
}

// move moves the object with a new Mover, and reads it.
func (l *lab) move(want walk.Outcome) {
	l.Helper()
	before := l.calls.wrap
	r := rewrap.New(l.cfg).Move(l.Context(), bucket, stored.Entry{Key: l.obj.Key})
	if r.Outcome != want || r.Err != nil || want == walk.Done && l.calls.wrap == before {
		l.Errorf("%+v, not %v", r, want)
	}
	if id := l.read(); id != l.id("new") {
		l.Errorf("under %s", id)
	}
}

// opaque is a key whose blobs have no version.
type opaque struct{ kms.Wrapper }

func (o opaque) Wrap(ctx context.Context, dek []byte, ec kms.EncryptionContext) ([]byte, error) {
	blob, err := o.Wrapper.Wrap(ctx, dek, ec)
	return append([]byte{0xff}, blob...), err
}

func (o opaque) Unwrap(ctx context.Context, wrapped []byte, ec kms.EncryptionContext) ([]byte, error) {
	return o.Wrapper.Unwrap(ctx, wrapped[1:], ec)
}

// Ceph answers a completion with an empty ETag.
func TestACompletionWithoutAnETag(t *testing.T) {
	l := newLab(t, localKey(t))
	l.putParts()
	completions := 0
	l.cfg.Send = func(r *http.Request) (*http.Response, error) {
		resp, err := send(r)
		if err == nil && r.Method == http.MethodPost && strings.HasPrefix(r.URL.RawQuery, "uploadId") {
			completions++
			resp.Body.Close()
			resp.Body = io.NopCloser(strings.NewReader(
				`<CompleteMultipartUploadResult xmlns="http://s3.amazonaws.com/doc/2006-03-01/"><ETag></ETag>` +
					`</CompleteMultipartUploadResult>`))
		}
		return resp, err
	}

	l.move(walk.Done)
	if id := l.read(); id != l.id("new") || completions != 1 {
		t.Errorf("under %s, after %d completions", id, completions)
	}
}
