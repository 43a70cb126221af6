package stored_test

import (
	"bytes"
	"context"
	"crypto/rand"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"maps"
	"net/http"
	"net/http/httptest"
	"net/url"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/cmekproxy/cmekproxy/internal/crypt"
	"github.com/cmekproxy/cmekproxy/internal/dekcache"
	"github.com/cmekproxy/cmekproxy/internal/keyring"
	"github.com/cmekproxy/cmekproxy/internal/kms"
	"github.com/cmekproxy/cmekproxy/internal/stored"
)

// memoryStore is an S3 store on loopback that keeps objects in memory. It
// supports GET and HEAD, ranges and conditions.
type memoryStore struct {
	url *url.URL

	mu       sync.Mutex
	objects  map[string]memoryObject // by path
	requests int
	before   func(request int) // called before each request is answered, with its number from 1
}

// memoryObject is never changed, only replaced.
type memoryObject struct {
	header http.Header
	body   []byte
}

func newMemoryStore(t testing.TB) *memoryStore {
	t.Helper()
	s := &memoryStore{objects: make(map[string]memoryObject)}
	server := httptest.NewServer(s)
	t.Cleanup(server.Close)
	var err error
	if s.url, err = url.Parse(server.URL); err != nil {
		t.Fatal(err)
	}
	return s
}

func (s *memoryStore) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	s.mu.Lock()
	s.requests++
	request, before := s.requests, s.before
	s.mu.Unlock()
	if before != nil {
		before(request)
	}

	s.mu.Lock()
	o, ok := s.objects[r.URL.Path]
	s.mu.Unlock()
	if !ok {
		http.NotFound(w, r)
		return
	}

	maps.Copy(w.Header(), o.header)
	http.ServeContent(w, r, "", time.Time{}, bytes.NewReader(o.body))
}

// put stores an object, with a new ETag. parts is 0 for a single-PUT object.
func (s *memoryStore) put(obj crypt.Object, metadata map[string]string, body []byte, parts int) {
	header := http.Header{"Content-Type": {"application/octet-stream"}}
	for name, value := range metadata {
		header.Set(stored.MetaPrefix+name, value)
	}
	var id [16]byte
	rand.Read(id[:])
	etag := hex.EncodeToString(id[:])
	if parts > 0 {
		etag += fmt.Sprintf("-%d", parts)
	}
	header.Set("Etag", `"`+etag+`"`)
	s.set(obj, memoryObject{header, body})
}

// set stores a complete object.
func (s *memoryStore) set(obj crypt.Object, o memoryObject) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.objects["/"+obj.Bucket+"/"+obj.Key] = o
}

func (s *memoryStore) get(obj crypt.Object) memoryObject {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.objects["/"+obj.Bucket+"/"+obj.Key]
}

// beforeEach makes the store call f before each request from now on,
// numbered from 1.
func (s *memoryStore) beforeEach(f func(request int)) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.requests, s.before = 0, f
}

// statusError is an error response of the store.
type statusError int

func (e statusError) Error() string { return "the store answered " + http.StatusText(int(e)) }
func (e statusError) Status() int   { return int(e) }

func (s *memoryStore) send(r *http.Request) (*http.Response, error) {
	r = r.Clone(r.Context())
	r.URL.Scheme, r.URL.Host = s.url.Scheme, s.url.Host
	resp, err := http.DefaultTransport.RoundTrip(r)
	if err != nil {
		return nil, err
	}
	if resp.StatusCode >= 300 && resp.StatusCode != http.StatusNotModified {
		_ = resp.Body.Close()
		return nil, statusError(resp.StatusCode)
	}
	return resp, nil
}

// bench is a store with the keys of its objects.
type bench struct {
	*memoryStore
	keys    *keyring.Keyring
	keyFile string
}

func newBench(t testing.TB) *bench {
	t.Helper()
	path := filepath.Join(t.TempDir(), "kek")
	if err := kms.CreateLocalKeyFile(path); err != nil {
		t.Fatal(err)
	}

	kek, err := kms.NewLocal(path)
	if err != nil {
		t.Fatal(err)
	}
	cache := dekcache.New(dekcache.Config{})
	t.Cleanup(cache.Close)

	keys, err := keyring.New(keyring.Config{
		Keys: []keyring.Key{{Name: "k", Wrapper: kek}}, Rules: []keyring.Rule{{Key: "k"}}, Cache: cache,
	})
	if err != nil {
		t.Fatal(err)
	}
	return &bench{newMemoryStore(t), keys, path}
}

// reader returns a Reader with an empty cache.
func (b *bench) reader() *stored.Reader {
	return &stored.Reader{
		Send: b.send,
		Open: func(ctx context.Context, obj crypt.Object, keyID string, wrapped []byte) (stored.Lease, error) {
			lease, err := b.keys.Open(ctx, obj, keyID, wrapped)
			if err != nil {
				return nil, err // not a nil *keyring.Lease
			}
			return lease, nil
		},
		Cache: stored.NewCache(),
	}
}

func (b *bench) newKey(t testing.TB, obj crypt.Object) *keyring.DataKey {
	t.Helper()
	key, err := b.keys.Create(t.Context(), obj, "", keyring.Choice{})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(key.Release)
	return key
}

// putSingle stores a single-PUT object.
func (b *bench) putSingle(t testing.TB, obj crypt.Object, plaintext []byte, f form) {
	t.Helper()
	key := b.newKey(t, obj)
	sealer, err := crypt.NewSealer(bytes.NewReader(plaintext), int64(len(plaintext)), key.DEK(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	defer sealer.Close()

	envelope := crypt.Envelope{
		Version: f.version(), Meta: f.metadata(t, key.DEK()),
		KeyID: key.KeyID, WrappedDEK: key.Wrapped, Header: sealer.Header(), Size: int64(len(plaintext)),
	}
	if err := envelope.Sign(key.DEK(), obj); err != nil {
		t.Fatal(err)
	}

	metadata, err := envelope.Metadata()
	if err != nil {
		t.Fatal(err)
	}
	b.put(obj, metadata, readAll(t, sealer), 0)
}

// part is a part of a multipart object: its number, and the size of its
// plaintext.
type part struct{ number, size int }

// putParts stores a multipart object whose parts contain the plaintext in
// order. If the numbers have gaps, it appends a record, as the proxy does.
func (b *bench) putParts(t testing.TB, obj crypt.Object, plaintext []byte, f form, parts ...part) {
	t.Helper()
	key := b.newKey(t, obj)
	id := rand.Text()
	var random crypt.UploadRandom
	if f != version1 {
		rand.Read(random[:])
	}
	var tags []crypt.Tag

	seal := func(p crypt.Part, text []byte) []byte {
		p.Upload, p.KeyID, p.WrappedDEK = crypt.UploadOf(random, id), key.KeyID, key.Wrapped
		p.SealedMeta = f == sealed
		sealer, err := crypt.NewPartSealer(bytes.NewReader(text), &p, obj, key.DEK(), rand.Reader)
		if err != nil {
			t.Fatal(err)
		}
		defer sealer.Close()
		tags = append(tags, p.Tag())
		return readAll(t, sealer)
	}

	var layout crypt.Layout
	for _, p := range parts {
		layout = layout.Add(p.number, int64(p.size))
	}

	var body []byte
	for i, p := range parts {
		final := i == len(parts)-1 && layout.Contiguous()
		body = append(
			body,
			seal(crypt.Part{Number: p.number, Size: int64(p.size), Final: final}, plaintext[:p.size])...)
		plaintext = plaintext[p.size:]
	}

	count := len(parts)
	if !layout.Contiguous() {
		record := crypt.NewRecord(f.version(), layout, crypt.NoChecksum, nil, tags)
		body = append(body, seal(crypt.Part{Number: parts[count-1].number + 1, Final: true, Record: record}, nil)...)
		count++
	}

	mark := crypt.Mark{Version: f.version(), KeyID: key.KeyID}
	if f == sealed {
		mark.WrappedDEK, mark.Random, mark.Meta = key.Wrapped, random, f.metadata(t, key.DEK())
		if err := mark.Sign(key.DEK(), obj); err != nil {
			t.Fatal(err)
		}
	}
	metadata, err := mark.Metadata()
	if err != nil {
		t.Fatal(err)
	}
	b.put(obj, metadata, body, count)
}

// form is a way to write an object.
type form string

const (
	version1 form = ""
	version2 form = ", version 2"
	sealed   form = ", version 2, with sealed metadata"
)

func (f form) version() crypt.Version {
	if f == version1 {
		return crypt.V1
	}
	return crypt.V2
}

// metadata returns sealed metadata, if the form has it.
func (f form) metadata(t testing.TB, dek []byte) []byte {
	t.Helper()
	if f != sealed {
		return nil
	}
	meta, err := crypt.SealMetadata(map[string]string{
		"content-type": "text/sealed", "x-amz-meta-own": "sealed",
	}, dek, rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	return meta
}

// object is a stored object of some kind, with its plaintext.
type object struct {
	name      string
	plaintext []byte
	parts     []part // nil for a single-PUT object
	form      form
}

// objects has one object of each kind that is read differently, in each form.
var objects = inEachForm([]object{
	{"empty", nil, nil, ""},
	{"one byte", text(1, 1), nil, ""},
	{"one segment", text(crypt.SegmentSize-crypt.HeaderSize, 2), nil, ""},
	{"five segments", text(300_000, 3), nil, ""},
	{"one part", text(70_000, 4), []part{{1, 70_000}}, ""},
	{"equal parts", text(400_000, 5), []part{{1, 150_000}, {2, 150_000}, {3, 100_000}}, ""},
	{"parts of several sizes", text(300_000, 6), []part{{1, 100}, {2, 150_000}, {3, 149_900}}, ""},
	{"an empty last part", text(200_000, 7), []part{{1, 100_000}, {2, 100_000}, {3, 0}}, ""},
	{"gaps in the part numbers", text(300_000, 8), []part{{2, 100_000}, {5, 100_000}, {9, 100_000}}, ""},
})

func inEachForm(objects []object) (all []object) {
	for _, f := range []form{version1, version2, sealed} {
		for _, o := range objects {
			o.name, o.form = o.name+string(f), f
			all = append(all, o)
		}
	}
	return all
}

func (b *bench) putObject(t testing.TB, obj crypt.Object, o object) {
	t.Helper()
	if o.parts == nil {
		b.putSingle(t, obj, o.plaintext, o.form)
		return
	}
	b.putParts(t, obj, o.plaintext, o.form, o.parts...)
}

// text returns n bytes without a period, which differ for each seed.
func text(n int, seed uint32) []byte {
	out := make([]byte, n)
	x := seed
	for i := range out {
		x = x*1664525 + 1013904223
		out[i] = byte(x >> 24)
	}
	return out
}

func readAll(t testing.TB, r io.Reader) []byte {
	t.Helper()
	out, err := io.ReadAll(r)
	if err != nil {
		t.Fatal(err)
	}
	return out
}

// errPlaintext refuses plaintext objects.
var errPlaintext = errors.New("plaintext is refused")

func requestFor(obj crypt.Object) stored.Request {
	return stored.Request{Object: obj, Plaintext: func(int64) error { return errPlaintext }}
}

// read reads an object, or the part that q selects, to the end. It returns
// the bytes before an error with the error.
func read(t testing.TB, r *stored.Reader, q stored.Request) (*stored.Object, []byte, error) {
	t.Helper()
	o, err := r.Get(t.Context(), q)
	if err != nil {
		return nil, nil, err
	}
	defer o.Close()
	data, err := io.ReadAll(o.Reader(t.Context()))
	return o, data, err
}

// objectNamed returns the entry of objects with this name.
func objectNamed(t testing.TB, name string) object {
	t.Helper()
	i := slices.IndexFunc(objects, func(o object) bool { return o.name == name })
	if i < 0 {
		t.Fatal("no object is called " + name)
	}
	return objects[i]
}

// keyOf converts the name of an object for a URL.
func keyOf(name string) string { return strings.ReplaceAll(name, " ", "-") }
