package s3api_test

import (
	"bytes"
	"cmp"
	"encoding/xml"
	"errors"
	"fmt"
	"io"
	"maps"
	"math/rand/v2"
	"net/http"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"

	"github.com/aws/aws-sdk-go-v2/service/s3"
	"github.com/aws/aws-sdk-go-v2/service/s3/types"

	"github.com/cmekproxy/cmekproxy/internal/crypt"
	"github.com/cmekproxy/cmekproxy/internal/keyring"
	"github.com/cmekproxy/cmekproxy/internal/s3api"
)

// liar is a proxy between the proxy and its store that falsifies the store's
// answers. A script selects the changes, three bytes for each.
type liar struct {
	next http.RoundTripper

	mu     sync.Mutex
	script []byte
	others []*http.Request // requests whose answers it can use instead
	past   []*told
}

// lieWith starts with a new script.
func (l *liar) lieWith(script []byte) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.script, l.past = script, nil
}

// take returns the changes for the next answer.
func (l *liar) take() (script []byte) {
	l.mu.Lock()
	defer l.mu.Unlock()
	for len(l.script) >= 3 {
		script = append(script, l.script[:3]...)
		goesOn := l.script[0]&more != 0
		l.script = l.script[3:]
		if !goesOn {
			break
		}
	}
	return script
}

func (l *liar) remember(t *told) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.past = append(l.past, t)
}

// earlier returns an earlier answer.
func (l *liar) earlier(n byte) *told {
	l.mu.Lock()
	defer l.mu.Unlock()
	if len(l.past) == 0 {
		return &told{status: http.StatusOK, header: http.Header{}}
	}
	return l.past[int(n)%len(l.past)].clone()
}

// told is an answer of the store in memory.
type told struct {
	status int
	header http.Header
	length int64
	body   []byte
	end    error // instead of io.EOF
	slow   bool
}

// more, as a bit of a change's first byte, applies the next change to the
// same answer.
const more = 0x80

func (l *liar) RoundTrip(r *http.Request) (*http.Response, error) {
	if r.Method != http.MethodGet && r.Method != http.MethodHead {
		return l.next.RoundTrip(r)
	}
	script := l.take()
	if len(script) == 0 {
		return l.next.RoundTrip(r)
	}

	truth, err := l.ask(r)
	if err != nil {
		return nil, err
	}
	l.remember(truth)

	out := truth.clone()
	for ; len(script) >= 3; script = script[3:] {
		lie := lies[int(script[0]&^more)%len(lies)]
		if err := lie.tell(l, r, out, script[1], script[2]); err != nil {
			return nil, err
		}
	}

	return out.response(r), nil
}

func (l *liar) ask(r *http.Request) (*told, error) {
	resp, err := l.next.RoundTrip(r)
	if err != nil {
		return nil, err
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(resp.Body)
	if err != nil {
		return nil, err
	}
	return &told{status: resp.StatusCode, header: resp.Header, length: resp.ContentLength, body: body}, nil
}

// other returns the store's answer to the same request for another object,
// or for another version.
func (l *liar) other(r *http.Request, n byte) *told {
	l.mu.Lock()
	instead := l.others[int(n)%len(l.others)].Clone(r.Context())
	l.mu.Unlock()
	instead.Method, instead.Header = r.Method, r.Header.Clone()
	for _, name := range []string{"If-Match", "If-None-Match", "If-Range"} {
		instead.Header.Del(name)
	}
	answer, err := l.ask(instead)
	if err != nil {
		return &told{status: http.StatusBadGateway, header: http.Header{}}
	}
	return answer
}

func (t *told) clone() *told {
	c := *t
	c.header, c.body = t.header.Clone(), bytes.Clone(t.body)
	return &c
}

func (t *told) response(r *http.Request) *http.Response {
	var body io.Reader = bytes.NewReader(t.body)
	if t.end != nil {
		body = io.MultiReader(body, ends{t.end})
	}
	if t.slow {
		body = &sip{body}
	}
	return &http.Response{
		Status: http.StatusText(t.status), StatusCode: t.status, Proto: "HTTP/1.1", ProtoMajor: 1, ProtoMinor: 1,
		Header: t.header, ContentLength: t.length, Body: io.NopCloser(body), Request: r,
	}
}

type ends struct{ err error }

func (e ends) Read([]byte) (int, error) { return 0, e.err }

// sip returns at most seven bytes at a time, and sometimes none.
type sip struct{ io.Reader }

func (s *sip) Read(p []byte) (int, error) { return s.Reader.Read(p[:min(len(p), 7)]) }

// boundary returns an offset in n bytes where something begins or ends.
func boundary(n int, choice byte) int {
	const segment = crypt.StoredSegmentSize
	places := []int{
		0, crypt.HeaderSize, crypt.PartHeaderSize, crypt.PartPrefixSize, segment, crypt.HeaderSize + segment,
		crypt.PartHeaderSize + segment,
		crypt.PartPrefixSize + segment, n / 2, n - segment, n - crypt.PartOverhead, n - crypt.PartPrefixSize,
		n - crypt.TagSize, n,
	}
	at := places[int(choice)%len(places)] + int(choice)/len(places)%3 - 1
	return max(0, min(n, at))
}

// headerNames returns the headers of an answer that are worth changing.
func headerNames(h http.Header) []string {
	names := []string{"Etag", "Content-Range", "Last-Modified", "X-Amz-Version-Id", "Content-Encoding", "Content-Type"}
	for _, name := range slices.Sorted(maps.Keys(h)) {
		if strings.HasPrefix(name, "X-Amz-Meta-") {
			names = append(names, name)
		}
	}
	return names
}

func pick(h http.Header, a byte) string {
	names := headerNames(h)
	return names[int(a)%len(names)]
}

// near changes a number by a little, by a lot, or to a number with a
// meaning.
func near(n int64, b byte) int64 {
	steps := []int64{
		1,
		-1,
		16,
		-16,
		crypt.SegmentSize,
		-crypt.SegmentSize,
		crypt.PartOverhead,
		-crypt.PartOverhead,
		5 * mib,
		-n,
		1 << 40,
		-n - 1,
	}

	return n + steps[int(b)%len(steps)]
}

var lies = []struct {
	name string
	tell func(l *liar, r *http.Request, t *told, a, b byte) error
}{
	{"nothing", func(*liar, *http.Request, *told, byte, byte) error { return nil }},
	{
		"drop a header",
		func(_ *liar, _ *http.Request, t *told, a, _ byte) error { t.header.Del(pick(t.header, a)); return nil },
	},
	{"alter a header", func(_ *liar, _ *http.Request, t *told, a, b byte) error {
		alter(t.header, pick(t.header, a), b)
		return nil
	}},
	{"header of another", func(l *liar, r *http.Request, t *told, a, b byte) error {
		name := pick(t.header, a)
		t.header[name] = l.other(r, b).header[name]
		return nil
	}},
	{"double a header", func(l *liar, r *http.Request, t *told, a, b byte) error {
		name := pick(t.header, a)
		t.header[name] = append(t.header[name], l.other(r, b).header[name]...)
		return nil
	}},
	{"double a header in front", func(l *liar, r *http.Request, t *told, a, b byte) error {
		name := pick(t.header, a)
		t.header[name] = append(slices.Clone(l.other(r, b).header[name]), t.header[name]...)
		return nil
	}},
	{"break off", func(_ *liar, _ *http.Request, t *told, a, _ byte) error {
		t.body, t.end = t.body[:boundary(len(t.body), a)], io.ErrUnexpectedEOF
		return nil
	}},
	{"cut", func(_ *liar, _ *http.Request, t *told, a, _ byte) error {
		t.body = t.body[:boundary(len(t.body), a)]
		t.length = int64(len(t.body))
		return nil
	}},
	{"cut, not saying so", func(_ *liar, _ *http.Request, t *told, a, _ byte) error {
		t.body = t.body[:boundary(len(t.body), a)]
		return nil
	}},
	{"flip a bit", func(_ *liar, _ *http.Request, t *told, a, b byte) error {
		if at := boundary(len(t.body), a); at < len(t.body) {
			t.body[at] ^= 1 << (b % 8)
		}
		return nil
	}},
	{"extend", func(_ *liar, _ *http.Request, t *told, a, b byte) error {
		t.body = append(t.body, bytes.Repeat([]byte{b}, boundary(200_000, a)+1)...)
		t.length = int64(len(t.body))
		return nil
	}},
	{"extend, not saying so", func(_ *liar, _ *http.Request, t *told, a, b byte) error {
		t.body = append(t.body, bytes.Repeat([]byte{b}, int(a)+1)...)
		return nil
	}},
	{"body of another", func(l *liar, r *http.Request, t *told, _, b byte) error {
		o := l.other(r, b)
		t.body, t.length = bytes.Clone(o.body), o.length
		return nil
	}},
	{"another", func(l *liar, r *http.Request, t *told, _, b byte) error { *t = *l.other(r, b).clone(); return nil }},
	{"another, under this ETag", func(l *liar, r *http.Request, t *told, _, b byte) error {
		etag := t.header["Etag"]
		*t = *l.other(r, b).clone()
		t.header["Etag"] = etag
		return nil
	}},
	{"an earlier answer", func(l *liar, _ *http.Request, t *told, _, b byte) error {
		*t = *l.earlier(b)
		return nil
	}},
	{"the body of an earlier answer", func(l *liar, _ *http.Request, t *told, _, b byte) error {
		earlier := l.earlier(b)
		t.body, t.length = bytes.Clone(earlier.body), earlier.length
		return nil
	}},
	{"another range", func(l *liar, r *http.Request, t *told, a, b byte) error { return l.shift(r, t, a, b) }},
	{"Content-Range", func(_ *liar, _ *http.Request, t *told, a, b byte) error { contentRange(t, a, b); return nil }},
	{"status", func(_ *liar, _ *http.Request, t *told, a, _ byte) error {
		all := []int{200, 204, 206, 301, 304, 400, 403, 404, 412, 416, 500, 503}
		t.status = all[int(a)%len(all)]
		return nil
	}},
	{"number of parts", func(_ *liar, _ *http.Request, t *told, a, _ byte) error {
		etag, _, _ := strings.Cut(strings.Trim(t.header.Get("Etag"), `"`), "-")
		t.header.Set("Etag", fmt.Sprintf(`"%s-%d"`, etag, a%5))
		if a%5 == 0 {
			t.header.Set("Etag", `"`+etag+`"`)
		}
		return nil
	}},
	{"segments in another order", func(_ *liar, _ *http.Request, t *told, a, b byte) error {
		const n = crypt.StoredSegmentSize
		i, j := int(a)*n, int(b)*n
		if max(i, j)+n <= len(t.body) {
			first := bytes.Clone(t.body[i : i+n])
			copy(t.body[i:i+n], t.body[j:j+n])
			copy(t.body[j:j+n], first)
		}
		return nil
	}},
	{"a piece twice", func(_ *liar, _ *http.Request, t *told, a, b byte) error {
		i, j := boundary(len(t.body), a), boundary(len(t.body), b)
		piece := bytes.Clone(t.body[min(i, j):max(i, j)])
		t.body = append(t.body[:max(i, j)], append(piece, t.body[max(i, j):]...)...)
		t.length = int64(len(t.body))
		return nil
	}},
	{"no answer", func(*liar, *http.Request, *told, byte, byte) error {
		return errors.New("connection reset by the store")
	}},
	{"nothing there", func(_ *liar, _ *http.Request, t *told, _, _ byte) error {
		t.header.Del("Content-Range")
		t.status, t.body, t.length = http.StatusOK, nil, 0
		return nil
	}},
	{"size in the envelope", func(_ *liar, _ *http.Request, t *told, _, b byte) error {
		n, _ := strconv.ParseInt(t.header.Get("X-Amz-Meta-Cmek-Size"), 10, 64)
		t.header.Set("X-Amz-Meta-Cmek-Size", strconv.FormatInt(near(n, b), 10))
		return nil
	}},
	{
		"an empty object",
		func(_ *liar, _ *http.Request, t *told, a, _ byte) error { resize(t, 0, a%2 == 0); return nil },
	},
	{"another size in all places", func(_ *liar, _ *http.Request, t *told, a, b byte) error {
		n, _ := strconv.ParseInt(t.header.Get("X-Amz-Meta-Cmek-Size"), 10, 64)
		resize(t, max(0, near(n, b)), a%2 == 0)
		return nil
	}},
	{"without an envelope", func(_ *liar, _ *http.Request, t *told, _, _ byte) error {
		maps.DeleteFunc(
			t.header,
			func(name string, _ []string) bool { return strings.HasPrefix(name, "X-Amz-Meta-Cmek-") },
		)
		return nil
	}},
	{"length", func(_ *liar, _ *http.Request, t *told, _, b byte) error { t.length = near(t.length, b); return nil }},
	{"slowly", func(_ *liar, _ *http.Request, t *told, _, _ byte) error { t.slow = len(t.body) < 1<<18; return nil }},
}

// resize makes an answer describe an object of another size, in all headers.
func resize(t *told, size int64, whole bool) {
	stored := min(crypt.StoredSize(size), 1<<30)
	if size == 0 && whole {
		stored = 0 // the stored size may be 0 too
	}
	t.header.Set("X-Amz-Meta-Cmek-Size", strconv.FormatInt(size, 10))

	if t.status == http.StatusPartialContent && !whole {
		var from, to, total int64
		fmt.Sscanf(t.header.Get("Content-Range"), "bytes %d-%d/%d", &from, &to, &total)
		to = min(to, stored-1)
		t.header.Set("Content-Range", fmt.Sprintf("bytes %d-%d/%d", from, to, stored))
		t.body = t.body[:max(0, min(int64(len(t.body)), to-from+1))]
		t.length = int64(len(t.body))
		return
	}

	t.header.Del("Content-Range")
	t.status, t.length = http.StatusOK, stored
	t.body = t.body[:min(int64(len(t.body)), stored)]
}

func alter(h http.Header, name string, b byte) {
	value := []byte(h.Get(name))
	if len(value) == 0 {
		h.Set(name, "x")
		return
	}

	i := int(b) % len(value)
	switch c := value[i]; {
	case c >= '0' && c < '9', c >= 'a' && c < 'z', c >= 'A' && c < 'Z':
		value[i]++
	case c == '9':
		value[i] = '0'
	default:
		value[i] = 'a'
	}

	h.Set(name, string(value))
}

// shift answers with another range, but claims that it is the requested one.
func (l *liar) shift(r *http.Request, t *told, a, b byte) error {
	var from, to int64
	if n, _ := fmt.Sscanf(r.Header.Get("Range"), "bytes=%d-%d", &from, &to); n != 2 {
		return nil
	}
	moved := r.Clone(r.Context())
	by := near(0, b)
	moved.Header.Set("Range", fmt.Sprintf("bytes=%d-%d", max(0, from+by), max(0, to+by)))

	answer, err := l.ask(moved)
	if err != nil || answer.status != http.StatusPartialContent {
		return err
	}
	said := t.header["Content-Range"]
	*t = *answer

	if a%2 == 0 {
		t.header["Content-Range"] = said
	}
	return nil
}

func contentRange(t *told, a, b byte) {
	var from, to, total int64
	fmt.Sscanf(t.header.Get("Content-Range"), "bytes %d-%d/%d", &from, &to, &total)
	numbers := []*int64{&from, &to, &total}
	n := numbers[int(a)%3]
	*n = near(*n, b)
	t.header.Set("Content-Range", fmt.Sprintf("bytes %d-%d/%d", from, to, total))
}

// victim is an object whose answers are falsified.
type victim struct {
	name     string
	bucket   string
	texts    [][]byte    // all versions
	parts    [][][]byte  // the parts of each version; nil for a single-PUT object
	versions []string    // ids
	etag     string      // of the last version, as clients see it
	header   http.Header // for reading the object
	customer http.Header // for copying the object
	plain    bool        // it is plaintext, so nothing is guaranteed
}

// trial is a proxy in front of a store that lies.
type trial struct {
	*proxy
	liar    *liar
	victims []*victim
}

func newTrial(t testing.TB) *trial {
	tr := &trial{liar: &liar{}}
	tr.proxy = newProxy(t, func(_ *proxy, cfg *s3api.Config, ring *keyring.Config) {
		tr.liar.next, cfg.Origin, cfg.Settings.VerifyHead = cfg.Origin, tr.liar, true
		reuse := keyring.Rule{
			Buckets: []string{"reuse-*"},
			Key:     "main",
			Reuse:   &keyring.Reuse{MaxObjects: 1 << 30, MaxAge: 1 << 50, MaxBytes: 1 << 50},
		}
		ring.Rules = append([]keyring.Rule{reuse}, ring.Rules...)
	})

	versioned := func(bucket string) string {
		if _, err := tr.client.PutBucketVersioning(t.Context(), &s3.PutBucketVersioningInput{
			Bucket:                  &bucket,
			VersioningConfiguration: &types.VersioningConfiguration{Status: types.BucketVersioningStatusEnabled},
		}); err != nil {
			t.Fatal(err)
		}
		return bucket
	}

	main := versioned(tr.bucket)
	reuse, plain := versioned(tr.newBucket("reuse-")), versioned(tr.newBucket("plain-"))
	const segments = 2*crypt.SegmentSize + 100
	mine := newCustomer(1)

	tr.single(main, "single", nil, randomText(segments), randomText(70_000))
	tr.single(main, "alike", nil, randomText(segments), randomText(segments))
	tr.single(main, "tiny", nil, randomText(10), randomText(11))
	tr.single(main, "empty", nil, randomText(100), nil)
	tr.single(main, "customer", &mine, randomText(segments), randomText(segments))
	tr.single(reuse, "shared", nil, randomText(segments), randomText(segments))
	tr.single(plain, "sealed", nil, randomText(segments), randomText(1000)).plain = true

	tr.multi(main, "one-part", []int{segments}, []int{100})
	tr.multi(main, "no-bytes", []int{0}, []int{0})
	tr.multi(main, "uniform", []int{5 * mib, 1234}, []int{5 * mib, 1234})
	tr.multi(main, "odd", []int{5*mib + 17, 5 * mib}, []int{5 * mib, 5 * mib})
	return tr
}

func (tr *trial) single(bucket, name string, key *customer, texts ...[]byte) *victim {
	tr.t.Helper()
	v := &victim{name: name, bucket: bucket, texts: texts, header: http.Header{}, customer: http.Header{}}
	for _, text := range texts {
		in := &s3.PutObjectInput{Bucket: &bucket, Key: &name, Body: bytes.NewReader(text)}
		if key != nil {
			key.put(in)
			v.header, v.customer = key.headers(customerHeader), key.headers(sourceHeader)
		}

		out, err := tr.client.PutObject(tr.t.Context(), in)
		if err != nil {
			tr.t.Fatal(err)
		}
		v.versions, v.etag = append(v.versions, *out.VersionId), *out.ETag
		v.parts = append(v.parts, nil)
	}

	tr.victims = append(tr.victims, v)
	return v
}

func (tr *trial) multi(bucket, name string, layouts ...[]int) {
	tr.t.Helper()
	v := &victim{name: name, bucket: bucket, header: http.Header{}, customer: http.Header{}}
	for _, sizes := range layouts {
		m := tr.create(name)
		var parts [][]byte
		for i, size := range sizes {
			parts = append(parts, randomText(size))
			m.send(int32(i+1), parts[i])
		}

		out := m.mustComplete()
		v.versions, v.etag = append(v.versions, *out.VersionId), *out.ETag
		v.texts, v.parts = append(v.texts, m.text()), append(v.parts, parts)
	}

	tr.victims = append(tr.victims, v)
}

// readForm is a way to read an object.
type readForm struct {
	name  string
	query string
	spec  string // Range
	part  int
	head  http.Header
	copy  bool
	size  bool // HEAD
}

func (v *victim) forms() []readForm {
	size := len(v.texts[len(v.texts)-1])
	forms := []readForm{
		{name: "whole"},
		{name: "range", spec: "bytes=0-9"},
		{name: "middle", spec: fmt.Sprintf("bytes=%d-%d", size/2, size/2+70_000)},
		{name: "end", spec: fmt.Sprintf("bytes=%d-", max(0, size-1))},
		{name: "suffix", spec: "bytes=-20"},
		{name: "outside", spec: "bytes=99999999-"},
		{name: "part", query: "?partNumber=1", part: 1},
		{name: "part 2", query: "?partNumber=2", part: 2},
		{name: "version", query: "?versionId=" + url.QueryEscape(v.versions[0])},
		{name: "range of a version", query: "?versionId=" + url.QueryEscape(v.versions[0]), spec: "bytes=50-60"},
		{name: "if match", head: http.Header{"If-Match": {v.etag}}},
		{name: "if none match", head: http.Header{"If-None-Match": {v.etag}}},
		{name: "if range", spec: "bytes=1-5", head: http.Header{"If-Range": {v.etag}}},
		{name: "if modified since", head: http.Header{"If-Modified-Since": {"Mon, 02 Jan 2006 15:04:05 GMT"}}},
		{
			name:  "attributes",
			query: "?attributes",
			head:  http.Header{"X-Amz-Object-Attributes": {"ObjectSize,ObjectParts,Checksum"}},
		},
		{name: "head", size: true},
		{name: "copy", copy: true},
		{name: "part copy", copy: true, part: 1},
		{name: "part copy of a range", copy: true, part: 1, spec: "bytes=2-8"},
	}

	return forms
}

// run reads once while the store lies, and returns an error if the result is
// wrong.
func (tr *trial) run(v *victim, form readForm, script []byte, warm bool) error {
	tr.liar.lieWith(nil)
	var others []*http.Request
	for _, o := range tr.victims {
		if o.bucket != v.bucket || o.name == "odd" && v.parts[0] == nil {
			continue
		}

		for i := range o.versions {
			u := &url.URL{Path: "/" + o.bucket + "/" + o.name, RawQuery: "versionId=" + url.QueryEscape(o.versions[i])}
			others = append(
				others,
				&http.Request{URL: u, Header: http.Header{}, Proto: "HTTP/1.1", ProtoMajor: 1, ProtoMinor: 1},
			)
		}
	}

	tr.liar.mu.Lock()
	tr.liar.others = others
	tr.liar.mu.Unlock()
	tr.log.reset()
	tr.server.Config.Handler.(*s3api.Server).Forget()

	if warm {
		if form.copy || form.query == "?attributes" {
			form := readForm{spec: "bytes=0-0"}
			tr.read(v, form)
		} else {
			tr.read(v, form)
		}
	} else {
		tr.keys.PurgeAll()
	}

	var err error
	if form.copy {
		err = tr.copyOf(v, form, script)
	} else {
		tr.liar.lieWith(script)
		err = tr.check(v, form, tr.read(v, form))
	}

	if log := tr.log.String(); strings.Contains(log, "panic") {
		return fmt.Errorf("a panic: %s", log)
	}
	return err
}

// got is what a client has received.
type got struct {
	*http.Response
	body []byte
	cut  error
}

func (tr *trial) read(v *victim, form readForm) got {
	tr.t.Helper()
	header := merge(v.header, form.head)
	if form.spec != "" {
		header.Set("Range", form.spec)
	}
	r := request{method: "GET", path: "/" + v.bucket + "/" + v.name + form.query, header: header}
	if form.size {
		r.method = "HEAD"
	}
	return tr.do(r)
}

func (tr *trial) do(r request) got {
	tr.t.Helper()
	resp, err := tr.server.Client().Do(tr.sign(r))
	if err != nil {
		return got{cut: err, Response: &http.Response{Header: http.Header{}}}
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(resp.Body)
	return got{resp, body, err}
}

// check compares a response with all versions of the object.
func (tr *trial) check(v *victim, form readForm, g got) error {
	if size, ok := strings.CutPrefix(g.Header.Get("Content-Range"), "bytes */"); ok && !v.plain {
		if !v.hasSize(size) {
			return fmt.Errorf("%d with a size of %s, which no version has", g.StatusCode, size)
		}
	}

	if g.StatusCode < 200 || g.StatusCode > 299 || v.plain {
		return nil
	}
	if form.query == "?attributes" {
		return v.checkAttributes(g)
	}

	if form.size {
		if size := strconv.FormatInt(g.ContentLength, 10); !v.hasSize(size) {
			return fmt.Errorf("a HEAD with a size of %s, which no version has", size)
		}
		return nil
	}

	for i, text := range v.texts {
		offset, length := int64(0), int64(len(text))
		if g.StatusCode == http.StatusPartialContent {
			var ok bool
			if offset, length, ok = v.stretch(i, form); !ok {
				continue
			}
			if g.Header.Get("Content-Range") != fmt.Sprintf("bytes %d-%d/%d", offset, offset+length-1, len(text)) {
				continue
			}
		} else if form.part > 0 {
			if _, n, ok := v.stretch(i, form); !ok || n != 0 || len(g.body) != 0 {
				continue
			}
			length = 0
		}

		want := text[offset : offset+length]
		if g.cut != nil && bytes.HasPrefix(want, g.body) || g.cut == nil && bytes.Equal(want, g.body) {
			return nil
		}
	}

	return fmt.Errorf(
		"%d, Content-Range %q, %d bytes (%s): no version has that",
		g.StatusCode,
		g.Header.Get("Content-Range"),
		len(g.body),
		fmt.Sprint(g.cut),
	)
}

func (v *victim) hasSize(size string) bool {
	return slices.ContainsFunc(v.texts, func(text []byte) bool { return strconv.Itoa(len(text)) == size })
}

// stretch returns the range of a version that a form asks for.
func (v *victim) stretch(version int, form readForm) (offset, length int64, ok bool) {
	text := v.texts[version]
	if form.part == 0 {
		return place(form.spec, int64(len(text)))
	}

	parts := v.parts[version]
	if parts == nil {
		return 0, int64(len(text)), form.part == 1
	}

	for i, part := range parts {
		if i+1 == form.part {
			return offset, int64(len(part)), true
		}
		offset += int64(len(part))
	}
	return 0, 0, false
}

// place resolves a Range for an object of the given size.
func place(spec string, size int64) (offset, length int64, ok bool) {
	from, to, _ := strings.Cut(strings.TrimPrefix(spec, "bytes="), "-")
	a, errA := strconv.ParseInt(from, 10, 64)
	b, errB := strconv.ParseInt(to, 10, 64)
	switch {
	case errA != nil:
		a, b = max(0, size-b), size-1
	case errB != nil:
		b = size - 1
	}
	b = min(b, size-1)
	return a, b - a + 1, a <= b
}

func (v *victim) checkAttributes(g got) error {
	var doc struct {
		ObjectSize  string
		ObjectParts *struct {
			PartsCount int
			Part       []struct{ Size int }
		}
	}
	if err := xml.Unmarshal(g.body, &doc); err != nil {
		return cmp.Or(g.cut, err)
	}

	for i, text := range v.texts {
		if doc.ObjectSize != strconv.Itoa(len(text)) || (doc.ObjectParts == nil) != (v.parts[i] == nil) {
			continue
		}
		if doc.ObjectParts == nil {
			return nil
		}

		if slices.EqualFunc(
			doc.ObjectParts.Part,
			v.parts[i],
			func(said struct{ Size int }, part []byte) bool { return said.Size == len(part) },
		) {
			return nil
		}
	}

	return fmt.Errorf("attributes that no version has: %s", g.body)
}

// copyOf copies while the store lies, and then reads the copy while it does
// not.
func (tr *trial) copyOf(v *victim, form readForm, script []byte) error {
	header := merge(v.customer, http.Header{"X-Amz-Copy-Source": {"/" + v.bucket + "/" + v.name}})
	if form.spec != "" {
		header.Set("X-Amz-Copy-Source-Range", form.spec)
	}
	path := "/" + v.bucket + "/copied"
	r := request{method: "PUT", path: path, header: header}
	var m *s3.CreateMultipartUploadOutput

	if form.part > 0 {
		var err error
		if m, err = tr.client.CreateMultipartUpload(tr.t.Context(), &s3.CreateMultipartUploadInput{
			Bucket: &v.bucket, Key: new("copied"),
		}); err != nil {
			return err
		}
		r.path += "?partNumber=1&uploadId=" + url.QueryEscape(*m.UploadId)
	}

	tr.liar.lieWith(script)
	g := tr.do(r)
	tr.liar.lieWith(nil)
	if g.StatusCode != http.StatusOK || bytes.Contains(g.body, []byte("<Error>")) {
		return nil
	}

	if m != nil {
		var part struct{ ETag string }
		if err := xml.Unmarshal(g.body, &part); err != nil {
			return err
		}
		tr.do(request{method: "POST", path: path + "?uploadId=" + url.QueryEscape(*m.UploadId), body: []byte(
			`<CompleteMultipartUpload><Part><PartNumber>1</PartNumber><ETag>` + part.ETag + `</ETag></Part></CompleteMultipartUpload>`,
		)})
	}

	g = tr.do(request{method: "GET", path: path})
	if g.StatusCode > 299 || g.cut != nil || v.plain {
		return nil //nolint:nilerr // an error is a correct result
	}

	for _, text := range v.texts {
		offset, length := int64(0), int64(len(text))
		if form.spec != "" {
			offset, length, _ = place(form.spec, length)
		}
		if bytes.Equal(g.body, text[offset:offset+length]) {
			return nil
		}
	}

	return fmt.Errorf("the copy has %d bytes that no version has", len(g.body))
}

func (b *logBuffer) reset() {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.buf.Reset()
}

// Whatever the store says, a client gets the stored object, or an earlier
// object of that name, or an error.
func TestLyingStore(t *testing.T) {
	tr := newTrial(t)
	for _, v := range tr.victims {
		for _, form := range v.forms() {
			for _, warm := range []bool{false, true} {
				if err := tr.run(v, form, nil, warm); err != nil {
					t.Fatalf("%s, %s, warm %t, no lie: %v", v.name, form.name, warm, err)
				}
			}
		}
	}

	if t.Failed() {
		return
	}

	// Each kind of lie about each answer: all of them for small objects,
	// some for large ones.
	random := rand.New(rand.NewPCG(1, 2))
	few := testing.Short() || raceDetector // CI also runs them without the race detector
	tried := 0

	for _, v := range tr.victims {
		large := len(v.texts[0]) > mib
		for _, form := range v.forms() {
			for kind := range lies {
				for _, place := range []int{0, 1, 2} {
					if random.IntN(5) > 0 || large && random.IntN(3) > 0 || few && random.IntN(4) > 0 {
						continue
					}
					script := append(make([]byte, 3*place), byte(kind), byte(random.Uint32()), byte(random.Uint32()))
					tried++

					if err := tr.run(v, form, script, random.IntN(2) == 0); err != nil {
						t.Errorf("%s, %s, %s (%v): %v", v.name, form.name, lies[kind].name, script, err)
					}
				}
			}
		}
	}

	t.Logf("%d lies", tried)
}

// FuzzLyingStore tells many lies at once. The first byte chooses the object,
// the second how it is read, the third whether it is cached; the rest are
// the lies.
func FuzzLyingStore(f *testing.F) {
	tr := newTrial(f)
	for kind := range lies {
		f.Add([]byte{byte(kind), byte(kind), byte(kind & 1), byte(kind), byte(kind), byte(7 * kind)})
	}

	f.Fuzz(func(t *testing.T, plan []byte) {
		if len(plan) < 3 || len(plan) > 3+3*16 {
			return
		}
		tr.t = t
		v := tr.victims[int(plan[0])%len(tr.victims)]
		forms := v.forms()

		form := forms[int(plan[1])%len(forms)]
		if err := tr.run(v, form, plan[3:], plan[2]&1 == 1); err != nil {
			t.Errorf("%s, %s: %v", v.name, form.name, err)
			for script := plan[3:]; len(script) >= 3; script = script[3:] {
				t.Log(lies[int(script[0]&^more)%len(lies)].name, script[:3])
			}
		}
	})
}
