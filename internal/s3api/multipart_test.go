package s3api_test

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/base64"
	"errors"
	"fmt"
	"hash"
	"hash/crc32"
	"io"
	"io/fs"
	"math/rand/v2"
	"net/http"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/aws/aws-sdk-go-v2/credentials"
	"github.com/aws/aws-sdk-go-v2/service/s3"
	"github.com/aws/aws-sdk-go-v2/service/s3/types"
	"github.com/minio/crc64nvme"

	"github.com/cmekproxy/cmekproxy/internal/capability"
	"github.com/cmekproxy/cmekproxy/internal/crypt"
	"github.com/cmekproxy/cmekproxy/internal/keyring"
	"github.com/cmekproxy/cmekproxy/internal/s3api"
)

const mib = 1 << 20

// multipart is an upload in progress.
type multipart struct {
	p     *proxy
	key   string
	id    string
	parts []types.CompletedPart
	texts map[int32][]byte

	mu sync.Mutex
}

func (p *proxy) create(key string, more ...func(*s3.CreateMultipartUploadInput)) *multipart {
	p.t.Helper()
	in := &s3.CreateMultipartUploadInput{Bucket: &p.bucket, Key: &key}
	for _, m := range more {
		m(in)
	}
	out, err := p.client.CreateMultipartUpload(p.t.Context(), in)
	if err != nil {
		p.t.Fatal(err)
	}
	return &multipart{p: p, key: key, id: *out.UploadId, texts: make(map[int32][]byte)}
}

// send uploads a part. The last part with a number counts.
func (m *multipart) send(number int32, text []byte, more ...func(*s3.UploadPartInput)) *s3.UploadPartOutput {
	m.p.t.Helper()
	in := &s3.UploadPartInput{
		Bucket:     &m.p.bucket,
		Key:        &m.key,
		UploadId:   &m.id,
		PartNumber: &number,
		Body:       bytes.NewReader(text),
	}

	for _, f := range more {
		f(in)
	}

	out, err := m.p.client.UploadPart(m.p.t.Context(), in)
	if err != nil {
		m.p.t.Error(err)
		return nil
	}

	m.keep(types.CompletedPart{
		PartNumber: &number, ETag: out.ETag, ChecksumCRC32: out.ChecksumCRC32, ChecksumCRC32C: out.ChecksumCRC32C,
		ChecksumCRC64NVME: out.ChecksumCRC64NVME, ChecksumSHA1: out.ChecksumSHA1, ChecksumSHA256: out.ChecksumSHA256,
	}, text)
	return out
}

func (m *multipart) keep(part types.CompletedPart, text []byte) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.texts[*part.PartNumber] = text

	for i, other := range m.parts {
		if *other.PartNumber == *part.PartNumber {
			m.parts[i] = part
			return
		}

		if *other.PartNumber > *part.PartNumber {
			m.parts = append(m.parts[:i], append([]types.CompletedPart{part}, m.parts[i:]...)...)
			return
		}
	}

	m.parts = append(m.parts, part)
}

func (m *multipart) complete(
	more ...func(*s3.CompleteMultipartUploadInput),
) (*s3.CompleteMultipartUploadOutput, error) {
	in := &s3.CompleteMultipartUploadInput{
		Bucket:          &m.p.bucket,
		Key:             &m.key,
		UploadId:        &m.id,
		MultipartUpload: &types.CompletedMultipartUpload{Parts: m.parts},
	}
	for _, f := range more {
		f(in)
	}
	return m.p.client.CompleteMultipartUpload(m.p.t.Context(), in)
}

func (m *multipart) mustComplete(more ...func(*s3.CompleteMultipartUploadInput)) *s3.CompleteMultipartUploadOutput {
	m.p.t.Helper()
	out, err := m.complete(more...)
	if err != nil {
		m.p.t.Fatal(err)
	}
	return out
}

func partOf(number int, etag *string) types.CompletedPart {
	return types.CompletedPart{PartNumber: new(int32(number)), ETag: etag}
}

// document returns the body of CompleteMultipartUpload, without checksums.
func (m *multipart) document() []byte {
	doc := "<CompleteMultipartUpload>"
	for _, p := range m.parts {
		doc += fmt.Sprintf("<Part><PartNumber>%d</PartNumber><ETag>%s</ETag></Part>", *p.PartNumber, *p.ETag)
	}
	return []byte(doc + "</CompleteMultipartUpload>")
}

// text returns the plaintext of the listed parts.
func (m *multipart) text() []byte {
	var out []byte
	for _, p := range m.parts {
		out = append(out, m.texts[*p.PartNumber]...)
	}
	return out
}

// upload creates an object from parts of these sizes, with these numbers or
// 1, 2, 3 and so on.
func (p *proxy) upload(key string, sizes []int, numbers ...int32) *multipart {
	p.t.Helper()
	m := p.create(key)
	var wg sync.WaitGroup
	for i, size := range sizes {
		number := int32(i + 1)
		if len(numbers) > 0 {
			number = numbers[i]
		}
		wg.Go(func() { m.send(number, randomText(size)) })
	}
	wg.Wait()
	m.mustComplete()
	return m
}

func (p *proxy) listed(key string) int64 {
	p.t.Helper()
	out, err := p.client.ListObjectsV2(p.t.Context(), &s3.ListObjectsV2Input{Bucket: &p.bucket, Prefix: &key})
	if err != nil || len(out.Contents) == 0 {
		p.t.Fatalf("%s is not listed: %v", key, err)
	}
	return *out.Contents[0].Size
}

func (p *proxy) getRange(key, spec string) ([]byte, *s3.GetObjectOutput, error) {
	return p.get(key, func(in *s3.GetObjectInput) { in.Range = &spec })
}

var layouts = map[string]struct {
	sizes   []int
	numbers []int32
}{
	"one small part":      {[]int{100}, nil},
	"one empty part":      {[]int{0}, nil},
	"one large part":      {[]int{5 * mib}, nil},
	"uniform, small last": {[]int{5 * mib, 5 * mib, 5 * mib, 1234}, nil},
	"uniform, appended":   {[]int{5 * mib, 5 * mib, 5 * mib}, nil},
	"empty last part":     {[]int{5 * mib, 5 * mib, 0}, nil},
	"odd, small last":     {[]int{6 * mib, 5*mib + 17, 7*mib - 3, 99}, nil},
	"odd, looks uniform":  {[]int{6 * mib, 5 * mib, 7 * mib, mib}, nil},
	"odd, appended":       {[]int{5*mib + 1, 6 * mib, 5 * mib}, nil},
	"gaps":                {[]int{5 * mib, 5 * mib, 5*mib + 5}, []int32{2, 5, 9000}},
	"larger segments":     {[]int{33*mib + 11, 5 * mib}, nil},
}

func TestMultipart(t *testing.T) {
	t.Parallel() // it takes long
	p := newProxy(t)
	random := rand.New(rand.NewPCG(1, 2))

	for name, row := range layouts {
		t.Run(name, func(t *testing.T) {
			key := "m/" + name
			m := p.upload(key, row.sizes, row.numbers...)
			text := m.text()
			got, out, err := p.get(key)
			if err != nil || !bytes.Equal(got, text) {
				t.Fatalf("GET: %d of %d bytes, %v", len(got), len(text), err)
			}

			if string(out.ServerSideEncryption) != "aws:kms" || out.SSEKMSKeyId == nil {
				t.Errorf("no word of encryption")
			}
			head, err := p.client.HeadObject(t.Context(), &s3.HeadObjectInput{Bucket: &p.bucket, Key: &key})
			if err != nil || *head.ContentLength != int64(len(text)) || *head.ETag != *out.ETag {
				t.Errorf("HEAD: %v, %v", head, err)
			}

			if n := p.listed(key); n != int64(len(text)) {
				t.Errorf("listed with %d bytes, has %d", n, len(text))
			}
			checkParts(t, p, m)
			checkAttributes(t, p, m)

			for range 5 {
				checkRandomRange(t, p, key, text, random)
			}
		})
	}
}

// A replica must not use a cached layout after the object was overwritten.
func TestRangeAfterAnOverwrite(t *testing.T) {
	p := newProxy(t)
	r := p.replica()
	random := rand.New(rand.NewPCG(9, 9))

	for _, sizes := range [][]int{
		{5 * mib, 100}, {5 * mib, 5 * mib, 5 * mib}, {100}, {6 * mib, 6 * mib}, nil, {5 * mib, 7},
	} {
		t.Run(fmt.Sprint(sizes), func(t *testing.T) {
			var text []byte
			if sizes == nil {
				text = randomText(7 * mib)
				p.put("k", text)
			} else {
				text = p.upload("k", sizes).text()
			}

			for _, spec := range []string{
				"bytes=-1", fmt.Sprintf("bytes=%d-", len(text)-1), fmt.Sprintf("bytes=%d-", len(text)), "bytes=0-0",
			} {
				status, want, _ := reference(text, spec)
				got, _, err := r.getRange("k", spec)
				if status == http.StatusPartialContent && (err != nil || !bytes.Equal(got, want)) ||
					status != http.StatusPartialContent && code(err) != "InvalidRange" {
					t.Errorf("%v, %s: %d bytes, %v", sizes, spec, len(got), err)
				}
			}

			checkRandomRange(t, r, "k", text, random)
		})
	}
}

func checkParts(t *testing.T, p *proxy, m *multipart) {
	t.Helper()
	for i, part := range m.parts {
		want, number := m.texts[*part.PartNumber], new(int32(i+1)) // the part may have been uploaded with another number
		got, out, err := p.get(m.key, func(in *s3.GetObjectInput) { in.PartNumber = number })
		if err != nil || !bytes.Equal(got, want) || len(want) > 0 && *out.PartsCount != int32(len(m.parts)) {
			t.Errorf("%s: part %d: %d of %d bytes, %v", m.key, *part.PartNumber, len(got), len(want), err)
		}

		head, err := p.client.HeadObject(
			t.Context(),
			&s3.HeadObjectInput{Bucket: &p.bucket, Key: &m.key, PartNumber: number},
		)
		if err != nil || *head.ContentLength != int64(len(want)) || *head.PartsCount != int32(len(m.parts)) {
			t.Errorf("%s: HEAD of part %d: %v", m.key, *part.PartNumber, err)
		}
	}

	if _, _, err := p.get(
		m.key, func(in *s3.GetObjectInput) { in.PartNumber = new(int32(9999)) },
	); code(err) != "InvalidPartNumber" {
		t.Errorf("%s: a part that is not there: %v", m.key, err)
	}
}

func checkAttributes(t *testing.T, p *proxy, m *multipart) {
	t.Helper()
	out, err := p.client.GetObjectAttributes(t.Context(), &s3.GetObjectAttributesInput{
		Bucket: &p.bucket, Key: &m.key, MaxParts: new(int32(2)),
		ObjectAttributes: []types.ObjectAttributes{
			types.ObjectAttributesObjectSize,
			types.ObjectAttributesObjectParts,
			types.ObjectAttributesEtag,
			types.ObjectAttributesStorageClass,
		},
	})
	if err != nil {
		t.Fatalf("%s: %v", m.key, err)
	}

	if *out.ObjectSize != int64(len(m.text())) || *out.ObjectParts.TotalPartsCount != int32(len(m.parts)) ||
		*out.ETag == "" ||
		out.StorageClass == "" {
		t.Errorf("%s: attributes %+v", m.key, out)
	}

	if truncated := len(m.parts) > 2; *out.ObjectParts.IsTruncated != truncated {
		t.Errorf("%s: IsTruncated is %t", m.key, *out.ObjectParts.IsTruncated)
	}

	for i, part := range out.ObjectParts.Parts {
		if *part.PartNumber != int32(i+1) || *part.Size != int64(len(m.texts[*m.parts[i].PartNumber])) {
			t.Errorf("%s: part %d is %d of %d bytes", m.key, i, *part.PartNumber, *part.Size)
		}
	}
}

func checkRandomRange(t *testing.T, p *proxy, key string, text []byte, random *rand.Rand) {
	t.Helper()
	size := len(text)
	from := random.IntN(size + 10)
	spec := fmt.Sprintf("bytes=%d-%d", from, from+random.IntN(1+min(size, 1<<random.IntN(24))))

	switch random.IntN(4) {
	case 0:
		spec = fmt.Sprintf("bytes=-%d", random.IntN(size+10))
	case 1:
		spec = fmt.Sprintf("bytes=%d-", from)
	}

	status, want, contentRange := reference(text, spec)
	got, out, err := p.getRange(key, spec)
	switch {
	case status == http.StatusRequestedRangeNotSatisfiable:
		if code(err) != "InvalidRange" {
			t.Errorf("%s: %s of %d: %v", key, spec, size, err)
		}
	case err != nil || !bytes.Equal(got, want):
		t.Fatalf("%s: %s of %d: %d of %d bytes, %v", key, spec, size, len(got), len(want), err)
	case status == http.StatusPartialContent && *out.ContentRange != contentRange:
		t.Errorf("%s: %s of %d: Content-Range %s, want %s", key, spec, size, *out.ContentRange, contentRange)
	}
}

// Reading a range takes one request if the layout and the part are cached,
// and at most four if not.
func TestRequestsOfARange(t *testing.T) {
	t.Parallel() // it takes long
	p := newProxy(t)
	uploads := make(map[string]*multipart)

	for name, row := range map[string]struct {
		sizes []int
		spec  string
		cold  int
	}{
		"middle":                 {[]int{5 * mib, 5 * mib, 5 * mib, 100}, "bytes=7000000-7000100", 4},
		"middle, appended":       {[]int{5 * mib, 5 * mib, 5 * mib}, "bytes=7000000-7000100", 4},
		"start":                  {[]int{5 * mib, 5 * mib, 5 * mib, 100}, "bytes=0-100", 2},
		"first part":             {[]int{5 * mib, 5 * mib, 5 * mib, 100}, "bytes=300000-300100", 3},
		"last bytes":             {[]int{5 * mib, 5 * mib, 5 * mib, 100}, "bytes=-10", 2},
		"last bytes, appended":   {[]int{5 * mib, 5 * mib, 5 * mib}, "bytes=-10", 3},
		"last bytes, large last": {[]int{5 * mib, 5 * mib, 4 * mib}, "bytes=-10", 3},
	} {
		t.Run(name, func(t *testing.T) {
			key := fmt.Sprint(row.sizes)
			m, ok := uploads[key]
			if !ok {
				m = p.upload(key, row.sizes)
				uploads[key] = m
			}

			fresh := p.replica() // with an empty cache
			fresh.origin.take()
			_, want, _ := reference(m.text(), row.spec)
			for i, most := range []int{row.cold, 1} {
				got, _, err := fresh.getRange(key, row.spec)
				if err != nil || !bytes.Equal(got, want) {
					t.Fatalf("%d bytes, %v", len(got), err)
				}
				if requests := fresh.origin.take(); len(requests) != most {
					t.Errorf("read %d: %d requests, want %d: %v", i+1, len(requests), most, requests)
				}
			}

			if got, err := io.ReadAll(must(fresh.client.GetObject(t.Context(), &s3.GetObjectInput{
				Bucket: &p.bucket, Key: &key,
			})).Body); err != nil ||
				!bytes.Equal(got, m.text()) {
				t.Fatal(err)
			}
			if requests := fresh.origin.take(); len(requests) != 1 {
				t.Errorf("a whole GET makes %d requests", len(requests))
			}
		})
	}
}

func must[T any](v T, err error) T {
	if err != nil {
		panic(err)
	}
	return v
}

// replica starts another proxy in front of the same store, with the same key
// and nothing else in common.
func (p *proxy) replica(options ...option) *proxy {
	p.t.Helper()
	r := newProxy(p.t, append(options, func(r *proxy, _ *s3api.Config, cfg *keyring.Config) {
		r.keyFile = p.keyFile
		cfg.Keys = p.ringKeys
	})...)
	r.bucket = p.bucket
	return r
}

func TestUploadAcrossReplicas(t *testing.T) {
	a := newProxy(t)
	b := a.replica()
	m := a.create("k")
	m.send(1, randomText(5*mib))
	m.p = b
	m.send(2, randomText(5*mib))
	m.p = a

	m.send(3, randomText(5*mib))
	m.p = b
	m.send(4, randomText(100))
	m.p = a
	m.mustComplete()

	for _, p := range []*proxy{a, b} {
		if got := p.mustGet("k"); !bytes.Equal(got, m.text()) {
			t.Error("another text")
		}
	}
}

// Parts may be sent in any order, sent again, and left out of the list.
// partETagForm is the form of a part's ETag: no client takes it for an MD5.
var partETagForm = regexp.MustCompile(`^"[0-9a-f]{32}-[0-9a-f]{24}"$`)

func TestPartsSentAgain(t *testing.T) {
	p := newProxy(t)
	m := p.create("k")
	m.send(3, randomText(100))
	m.send(2, randomText(6*mib))
	m.send(1, randomText(5*mib))
	m.send(2, randomText(5*mib)) // other bytes, another size
	m.send(3, m.texts[3])        // the same bytes
	m.send(7, randomText(5*mib)) // never listed

	m.parts = m.parts[:3]
	list, err := p.client.ListParts(t.Context(), &s3.ListPartsInput{Bucket: &p.bucket, Key: &m.key, UploadId: &m.id})
	if err != nil || len(list.Parts) != 4 {
		t.Fatal(list, err)
	}

	for _, part := range list.Parts {
		if *part.Size != int64(len(m.texts[*part.PartNumber])) {
			t.Errorf("part %d is listed with %d bytes", *part.PartNumber, *part.Size)
		}
	}

	if *list.Parts[0].ETag != *m.parts[0].ETag || !partETagForm.MatchString(*list.Parts[0].ETag) {
		t.Errorf("ETags %s and %s", *list.Parts[0].ETag, *m.parts[0].ETag)
	}

	uploads, err := p.client.ListMultipartUploads(t.Context(), &s3.ListMultipartUploadsInput{Bucket: &p.bucket})
	if err != nil || len(uploads.Uploads) != 1 || *uploads.Uploads[0].UploadId != m.id ||
		*uploads.Uploads[0].Key != "k" {
		t.Errorf("%+v, %v", uploads, err)
	}
	m.mustComplete()

	if got := p.mustGet("k"); !bytes.Equal(got, m.text()) {
		t.Error("another text")
	}
}

// CompleteMultipartUpload reads all pages of the list of parts, however
// short they are.
func TestCompleteReadsAllPages(t *testing.T) {
	t.Parallel() // it takes long
	p := newProxy(t)
	m := p.create("k")
	for number := range 5 {
		m.send(int32(number+1), randomText(5*mib))
	}

	pages := 0
	p.origin.condition = func(r *http.Request) {
		if query := r.URL.Query(); query.Has("part-number-marker") {
			pages++
			query.Set("max-parts", "2")
			r.URL.RawQuery = query.Encode()
		}
	}

	m.mustComplete()
	if pages != 3 {
		t.Errorf("%d pages were asked for", pages)
	}
	if got := p.mustGet("k"); !bytes.Equal(got, m.text()) {
		t.Error("another text")
	}
}

// A failed CompleteMultipartUpload leaves its appended part behind. Clients
// do not see it, and the next CompleteMultipartUpload replaces it.
func TestCompleteAfterAFailure(t *testing.T) {
	p := newProxy(t)
	m := p.create("k")
	m.send(1, randomText(5*mib))
	m.send(2, randomText(5*mib))

	p.origin.set(func(r *http.Request) (*http.Response, error) {
		if r.Method == http.MethodPost && strings.Contains(r.URL.RawQuery, "uploadId") {
			return nil, errors.New("cut")
		}
		return nil, nil
	}, nil)

	if _, err := m.complete(); code(err) != "ServiceUnavailable" {
		t.Fatal(err)
	}
	p.origin.set(nil, nil)
	if p.isStored("k") {
		t.Error("an object came of a failed Complete")
	}

	list, err := p.client.ListParts(t.Context(), &s3.ListPartsInput{Bucket: &p.bucket, Key: &m.key, UploadId: &m.id})
	if err != nil || len(list.Parts) != 2 {
		t.Errorf("%d parts are listed, %v", len(list.Parts), err)
	}
	m.send(3, randomText(5*mib)) // with the number of the appended part
	first := m.mustComplete()

	if got := p.mustGet("k"); !bytes.Equal(got, m.text()) {
		t.Error("another text")
	}
	again, err := m.complete() // the answer was lost
	if err != nil || *again.ETag != *first.ETag {
		t.Errorf("Complete sent twice: %v", err)
	}

	if r := p.replica(); r != nil {
		m.p = r
		if again, err := m.complete(); err != nil || *again.ETag != *first.ETag {
			t.Errorf("Complete sent to another replica: %v", err)
		}
	}
	m.id += "x"

	if _, err := m.complete(); code(err) != "NoSuchUpload" {
		t.Errorf("Complete of another upload: %v", err)
	}
}

func TestCompleteErrors(t *testing.T) {
	p := newProxy(t)
	m := p.create("k")
	m.send(1, randomText(5*mib))
	m.send(2, randomText(5*mib-1)) // its stored size is more than 5 MiB
	m.send(3, randomText(5*mib))
	good := m.parts
	with := func(parts ...types.CompletedPart) []types.CompletedPart { return parts }

	fake := good[0]
	fake.ETag = new(`"00000000000000000000000000000000-0"`)
	absent := types.CompletedPart{PartNumber: new(int32(9)), ETag: good[0].ETag}

	zero := types.CompletedPart{PartNumber: new(int32(0)), ETag: good[0].ETag}
	for name, row := range map[string]struct {
		parts []types.CompletedPart
		want  string
	}{
		"too small":   {good, "EntityTooSmall"},
		"wrong order": {with(good[2], good[0]), "InvalidPartOrder"},
		"twice":       {with(good[0], good[0]), "InvalidPartOrder"},
		"wrong ETag":  {with(fake, good[2]), "InvalidPart"},
		"absent":      {with(good[0], absent), "InvalidPart"},
		"none":        {nil, "MalformedXML"},
		"number 0":    {with(zero), "InvalidArgument"},
		"gap before a small one": {
			with(types.CompletedPart{PartNumber: good[1].PartNumber, ETag: good[1].ETag}), "InvalidRequest",
		},
	} {
		t.Run(name, func(t *testing.T) {
			m.parts = row.parts
			if _, err := m.complete(); code(err) != row.want {
				t.Errorf("%v, want %s", err, row.want)
			}
		})
	}

	if p.isStored("k") {
		t.Error("an object came of it")
	}
	m.parts = with(good[0], good[2])
	m.mustComplete()

	if !bytes.Equal(p.mustGet("k"), append(bytes.Clone(m.texts[1]), m.texts[3]...)) {
		t.Error("another text")
	}
	n := p.create("k")
	n.send(1, []byte("x"))

	if _, err := n.complete(
		func(in *s3.CompleteMultipartUploadInput) { in.IfNoneMatch = new("*") },
	); code(err) != "PreconditionFailed" {
		t.Errorf("If-None-Match: %v", err)
	}
	if _, err := n.complete(
		func(in *s3.CompleteMultipartUploadInput) { in.MpuObjectSize = new(int64(2)) },
	); code(err) != "InvalidRequest" {
		t.Errorf("x-amz-mp-object-size: %v", err)
	}

	if _, err := p.client.AbortMultipartUpload(t.Context(), &s3.AbortMultipartUploadInput{
		Bucket: &p.bucket, Key: &n.key, UploadId: &n.id,
	}); err != nil {
		t.Error(err)
	}

	for _, number := range []int32{0, 10_001} {
		t.Run(fmt.Sprint(number), func(t *testing.T) {
			_, err := p.client.UploadPart(
				t.Context(),
				&s3.UploadPartInput{
					Bucket:     &p.bucket,
					Key:        &n.key,
					UploadId:   &n.id,
					PartNumber: &number,
					Body:       strings.NewReader("x"),
				},
			)
			if code(err) != "InvalidArgument" {
				t.Errorf("part number %d: %v", number, err)
			}
		})
	}

	_, err := p.client.UploadPart(
		t.Context(),
		&s3.UploadPartInput{
			Bucket:     &p.bucket,
			Key:        &n.key,
			UploadId:   &n.id,
			PartNumber: new(int32(1)),
			Body:       strings.NewReader("x"),
		},
	)
	if code(err) != "NoSuchUpload" {
		t.Errorf("a part of an upload that was aborted: %v", err)
	}

	if _, err := n.complete(); code(err) != "NoSuchUpload" {
		t.Errorf("Complete after Abort: %v", err)
	}
}

// S3 begins to answer CompleteMultipartUpload before it is done, so the
// answer may contain an error.
func TestCompleteFailsWithStatus200(t *testing.T) {
	p := newProxy(t)
	m := p.create("k")
	m.send(1, []byte("x"))

	for body, want := range map[string]string{
		"<?xml version=\"1.0\"?>\n   <Error><Code>InternalError</Code><Message>failed</Message></Error>": "InternalError",
		"   <Error><Code>SlowDown</Code><Message>slow</Message></Error>":                                 "SlowDown",
		"   ": "ServiceUnavailable",
	} {
		t.Run(body, func(t *testing.T) {
			p.origin.set(func(r *http.Request) (*http.Response, error) {
				if r.Method != http.MethodPost || !strings.Contains(r.URL.RawQuery, "uploadId") {
					return nil, nil
				}

				return &http.Response{
					StatusCode: 200,
					Header:     http.Header{},
					Body:       io.NopCloser(strings.NewReader(body)),
				}, nil
			}, nil)

			a := p.send(request{method: "POST", path: "/" + p.bucket + "/k?uploadId=" + m.id, body: m.document()})
			if a.Code != want || a.StatusCode < 500 {
				t.Errorf("is answered with %d %s", a.StatusCode, a.Code)
			}
		})
	}

	p.origin.set(nil, nil)
	m.mustComplete()
}

// If any request of an upload fails in the store, the client gets an error,
// and no object is created.
func TestUploadFaults(t *testing.T) {
	p := newProxy(t)
	for at := range 6 { // CreateMultipartUpload, two UploadParts, ListParts, the appended part, CompleteMultipartUpload
		count := 0
		p.origin.set(func(r *http.Request) (*http.Response, error) {
			if count++; count != at+1 {
				return nil, nil
			}
			if at%2 == 0 {
				return nil, errors.New("cut")
			}

			if r.Body != nil {
				_, _ = io.CopyN(io.Discard, r.Body, 2*mib)
			}

			return &http.Response{
				StatusCode: 503,
				Header:     http.Header{},
				Body:       io.NopCloser(strings.NewReader("<Error><Code>SlowDown</Code></Error>")),
			}, nil
		}, nil)

		key := fmt.Sprint("k", at)
		created, err := p.client.CreateMultipartUpload(
			t.Context(),
			&s3.CreateMultipartUploadInput{Bucket: &p.bucket, Key: &key},
		)

		failed := err != nil
		if !failed {
			m := &multipart{p: p, key: key, id: *created.UploadId, texts: make(map[int32][]byte)}
			for number := int32(1); number <= 2 && !failed; number++ {
				text := randomText(5 * mib)
				out, err := p.client.UploadPart(
					t.Context(),
					&s3.UploadPartInput{
						Bucket:     &p.bucket,
						Key:        &key,
						UploadId:   &m.id,
						PartNumber: &number,
						Body:       bytes.NewReader(text),
					},
				)
				if failed = err != nil; !failed {
					m.keep(partOf(int(number), out.ETag), text)
				}
			}

			if !failed {
				_, err := m.complete()
				failed = err != nil
			}
		}

		p.origin.set(nil, nil)
		if !failed || p.isStored(key) {
			t.Errorf(
				"request %d fails: the client hears of it: %t; an object is there: %t",
				at+1,
				failed,
				p.isStored(key),
			)
		}
	}
}

// While a bucket is being migrated, plaintext and encrypted objects are
// listed with the right sizes.
func TestListingOfABucketInMigration(t *testing.T) {
	p := newProxy(t)
	p.bucket = p.newBucket("plain-")
	direct := &proxy{t: t, bucket: p.bucket} // the same test helper, without the proxy

	direct.client = s3.New(s3.Options{
		BaseEndpoint: new(
			"http://store",
		), Region: region, UsePathStyle: true, HTTPClient: &http.Client{Transport: store.transport},
		Credentials: credentials.NewStaticCredentialsProvider(storeAccess, storeSecret, ""),
	})
	want := map[string]int64{"encrypted": 1000, "parts": 5*mib + 7, "plain": 1000, "plain parts": 5*mib + 9, "empty": 0}

	p.put("encrypted", randomText(1000))
	p.put("empty", nil)
	p.upload("parts", []int{5 * mib, 7})
	direct.put("plain", randomText(1000))
	direct.upload("plain parts", []int{5 * mib, 9})

	for range 2 {
		out, err := p.client.ListObjectsV2(t.Context(), &s3.ListObjectsV2Input{Bucket: &p.bucket})
		if err != nil || len(out.Contents) != len(want) {
			t.Fatal(out, err)
		}
		for _, o := range out.Contents {
			if *o.Size != want[*o.Key] {
				t.Errorf("%s is listed with %d bytes, has %d", *o.Key, *o.Size, want[*o.Key])
			}
		}
	}
}

func TestPart10000(t *testing.T) {
	p := newProxy(t)
	m := p.create("k")
	m.send(10_000, randomText(5*mib))
	m.send(1, randomText(5*mib))
	if _, err := m.complete(); code(err) != "InvalidRequest" { // no part can follow that records the others
		t.Errorf("gaps before part 10000: %v", err)
	}
	m.send(9_999, randomText(5*mib))
	m.parts = m.parts[:2]
	m.mustComplete()
	if got := p.mustGet("k"); !bytes.Equal(got, append(bytes.Clone(m.texts[1]), m.texts[9999]...)) {
		t.Error("another text")
	}
}

// A part with a wrong body, signature or checksum is not stored.
func TestBadParts(t *testing.T) {
	p := newProxy(t)
	m := p.create("k")
	path := "/" + p.bucket + "/k?partNumber=1&uploadId=" + m.id
	text := randomText(300_000)

	for name, header := range map[string]http.Header{
		"checksum":    {"X-Amz-Checksum-Crc32": {"AAAAAA=="}},
		"Content-MD5": {"Content-Md5": {"AAAAAAAAAAAAAAAAAAAAAA=="}},
	} {
		t.Run(name, func(t *testing.T) {
			if a := p.send(request{method: "PUT", path: path, header: header, body: text}); a.Code != "BadDigest" {
				t.Errorf("%d %s", a.StatusCode, a.Code)
			}
		})
	}

	if a := p.send(request{
		method: "PUT", path: path, body: text, hash: strings.Repeat("0", 64),
	}); a.Code != "XAmzContentSHA256Mismatch" {
		t.Errorf("hash: %s", a.Code)
	}
	if a := p.send(request{
		method: "PUT", path: path + "&x-amz-unknown=1", body: text,
	}); a.StatusCode != http.StatusNotImplemented {
		t.Errorf("unknown parameter: %d", a.StatusCode)
	}

	list, err := p.client.ListParts(t.Context(), &s3.ListPartsInput{Bucket: &p.bucket, Key: &m.key, UploadId: &m.id})
	if err != nil || len(list.Parts) != 0 {
		t.Errorf("%d parts came of it, %v", len(list.Parts), err)
	}
}

func TestMultipartChecksums(t *testing.T) {
	t.Parallel() // it takes long
	p := newProxy(t)
	hashes := map[types.ChecksumAlgorithm]func() hash.Hash{
		types.ChecksumAlgorithmCrc32:     func() hash.Hash { return crc32.NewIEEE() },
		types.ChecksumAlgorithmCrc32c:    func() hash.Hash { return crc32.New(crc32.MakeTable(crc32.Castagnoli)) },
		types.ChecksumAlgorithmCrc64nvme: func() hash.Hash { return crc64nvme.New() },
		types.ChecksumAlgorithmSha256:    sha256.New,
	}

	said := func(out *s3.CompleteMultipartUploadOutput) *string {
		for _, v := range []*string{out.ChecksumCRC32, out.ChecksumCRC32C, out.ChecksumCRC64NVME, out.ChecksumSHA256} {
			if v != nil {
				return v
			}
		}
		return new("")
	}

	for algorithm, newHash := range hashes {
		t.Run(string(algorithm), func(t *testing.T) {
			for _, kind := range []types.ChecksumType{types.ChecksumTypeComposite, types.ChecksumTypeFullObject} {
				if kind == types.ChecksumTypeFullObject && algorithm == types.ChecksumAlgorithmSha256 ||
					kind == types.ChecksumTypeComposite && algorithm == types.ChecksumAlgorithmCrc64nvme {
					continue
				}

				name := string(algorithm) + string(kind)
				m := p.create(
					name,
					func(in *s3.CreateMultipartUploadInput) { in.ChecksumAlgorithm, in.ChecksumType = algorithm, kind },
				)

				var digests []byte
				for i, size := range []int{5 * mib, 6*mib + 1, 5 * mib} {
					text := randomText(size)
					m.send(int32(i+1), text, func(in *s3.UploadPartInput) { in.ChecksumAlgorithm = algorithm })
					h := newHash()
					h.Write(text)
					digests = h.Sum(digests)
				}

				h := newHash()
				var want string
				if kind == types.ChecksumTypeComposite {
					h.Write(digests)
					want = base64.StdEncoding.EncodeToString(h.Sum(nil)) + "-3"
				} else {
					h.Write(m.text())
					want = base64.StdEncoding.EncodeToString(h.Sum(nil))
				}

				out := m.mustComplete(func(in *s3.CompleteMultipartUploadInput) { in.ChecksumType = kind })
				if *said(out) != want || out.ChecksumType != kind {
					t.Errorf("%s: %s %s, want %s", name, *said(out), out.ChecksumType, want)
				}

				head, err := p.client.HeadObject(
					t.Context(),
					&s3.HeadObjectInput{Bucket: &p.bucket, Key: &name, ChecksumMode: types.ChecksumModeEnabled},
				)
				if err != nil || head.ChecksumType != kind {
					t.Errorf("%s: HEAD: %+v, %v", name, head, err)
				}

				if got := p.mustGet(name); !bytes.Equal(got, m.text()) { // the SDK verifies a checksum of the full object
					t.Errorf("%s: another text", name)
				}

				attributes, err := p.client.GetObjectAttributes(t.Context(), &s3.GetObjectAttributesInput{
					Bucket: &p.bucket, Key: &name, ObjectAttributes: []types.ObjectAttributes{types.ObjectAttributesChecksum},
				})
				if err != nil || attributes.Checksum == nil || attributes.Checksum.ChecksumType != kind {
					t.Errorf("%s: attributes %+v, %v", name, attributes, err)
				}
			}
		})
	}

	checkPartChecksums(t, p)
	m := p.create("bad", func(in *s3.CreateMultipartUploadInput) {
		in.ChecksumAlgorithm, in.ChecksumType = types.ChecksumAlgorithmCrc32, types.ChecksumTypeFullObject
	})
	m.send(1, randomText(100), func(in *s3.UploadPartInput) { in.ChecksumAlgorithm = types.ChecksumAlgorithmCrc32 })

	if _, err := m.complete(func(in *s3.CompleteMultipartUploadInput) {
		in.ChecksumType, in.ChecksumCRC32 = types.ChecksumTypeFullObject, new("AAAAAA==")
	}); code(err) != "BadDigest" {
		t.Errorf("a wrong checksum of the object: %v", err)
	}
	m.parts[0].ChecksumCRC32 = nil

	for who, want := range map[*proxy]string{p: "BadDigest", p.replica(): "InvalidRequest"} { // cannot verify it
		m.p = who
		if _, err := m.complete(func(in *s3.CompleteMultipartUploadInput) {
			in.ChecksumType, in.ChecksumCRC32 = types.ChecksumTypeFullObject, new("AAAAAA==")
		}); code(err) != want {
			t.Errorf("a wrong checksum of the object, and none of its part: %v, want %s", err, want)
		}
	}
}

// The replica that created an upload knows which checksums its parts need.
func checkPartChecksums(t *testing.T, p *proxy) {
	t.Helper()
	m := p.create(
		"composite",
		func(in *s3.CreateMultipartUploadInput) { in.ChecksumAlgorithm = types.ChecksumAlgorithmSha256 },
	)
	path := "/" + p.bucket + "/composite?partNumber=1&uploadId=" + m.id

	for name, header := range map[string]http.Header{"none": nil, "another": {"X-Amz-Checksum-Crc32": {"NSRBwg=="}}} {
		if a := p.send(request{method: "PUT", path: path, header: header, body: []byte("abc")}); a.Code != "InvalidRequest" ||
			!bytes.Contains(a.body, []byte("expected checksum Type: SHA256")) {
			t.Errorf("a part with the checksum %s: %d %s", name, a.StatusCode, a.body)
		}
	}
	m.send(1, randomText(100), func(in *s3.UploadPartInput) { in.ChecksumAlgorithm = types.ChecksumAlgorithmSha256 })

	if _, err := m.complete(
		func(in *s3.CompleteMultipartUploadInput) { in.ChecksumType = types.ChecksumTypeFullObject },
	); code(err) != "InvalidRequest" {
		t.Errorf("another type than it was created with: %v", err)
	}

	full := p.create("full", func(in *s3.CreateMultipartUploadInput) {
		in.ChecksumAlgorithm, in.ChecksumType = types.ChecksumAlgorithmCrc32, types.ChecksumTypeFullObject
	})
	if a := p.send(request{
		method: "PUT", path: "/" + p.bucket + "/full?partNumber=1&uploadId=" + full.id, body: []byte("abc"),
	}); a.StatusCode != 200 {
		t.Errorf("a part without a checksum, of an object with one: %d %s", a.StatusCode, a.body)
	}
}

func TestUploadPartCopy(t *testing.T) {
	p := newProxy(t)
	single := randomText(6 * mib)
	p.put("single +%", single)
	source := p.upload("multi", []int{5 * mib, 5 * mib, 77})
	plain := p.newBucket("plain-")
	bare := randomText(5*mib + 3)
	p.storeTo(plain, "bare", bare)

	m := p.create("copy")
	n := int32(0)
	copyPart := func(source, spec string, want []byte) {
		t.Helper()
		n++
		number := n

		in := &s3.UploadPartCopyInput{
			Bucket:     &p.bucket,
			Key:        &m.key,
			UploadId:   &m.id,
			PartNumber: &number,
			CopySource: &source,
		}

		if spec != "" {
			in.CopySourceRange = &spec
		}
		out, err := p.client.UploadPartCopy(t.Context(), in)
		if err != nil {
			t.Fatalf("%s %s: %v", source, spec, err)
		}

		m.keep(types.CompletedPart{PartNumber: &number, ETag: out.CopyPartResult.ETag}, want)
	}

	copyPart(p.bucket+"/single%20%2B%25", "", single)
	copyPart("/"+p.bucket+"/multi", "", source.text())
	copyPart(plain+"/bare", "", bare)
	copyPart(p.bucket+"/multi", "bytes=100-5242999", source.text()[100:5_243_000])
	copyPart(plain+"/bare", "bytes=1-5242880", bare[1:5_242_881])
	copyPart(p.bucket+"/single%20%2B%25", "bytes=1048576-1048600", single[mib:mib+25])
	m.mustComplete()

	if got := p.mustGet("copy"); !bytes.Equal(got, m.text()) {
		t.Error("another text")
	}

	for name, row := range map[string]struct{ source, spec, match, want string }{
		"no such key":   {p.bucket + "/nothing", "", "", "NoSuchKey"},
		"no key":        {p.bucket, "", "", "InvalidArgument"},
		"past the end":  {p.bucket + "/multi", "bytes=0-99999999", "", "InvalidArgument"},
		"open range":    {p.bucket + "/multi", "bytes=5-", "", "InvalidArgument"},
		"another ETag":  {p.bucket + "/multi", "", `"x"`, "PreconditionFailed"},
		"bad parameter": {p.bucket + "/multi?acl", "", "", "InvalidArgument"},
	} {
		t.Run(name, func(t *testing.T) {
			in := &s3.UploadPartCopyInput{
				Bucket:     &p.bucket,
				Key:        &m.key,
				UploadId:   new("u"),
				PartNumber: new(int32(1)),
				CopySource: &row.source,
			}

			if row.spec != "" {
				in.CopySourceRange = &row.spec
			}
			if row.match != "" {
				in.CopySourceIfMatch = &row.match
			}

			if _, err := p.client.UploadPartCopy(t.Context(), in); code(err) != row.want {
				t.Errorf("%v, want %s", err, row.want)
			}
		})
	}

	reader := p.as(readerAccess, readerSecret)
	if _, err := reader.UploadPartCopy(t.Context(), &s3.UploadPartCopyInput{
		Bucket: &p.bucket, Key: &m.key, UploadId: &m.id, PartNumber: new(int32(1)), CopySource: new(p.bucket + "/multi"),
	}); code(err) != "AccessDenied" {
		t.Errorf("a client without a grant: %v", err)
	}
}

// storeTo stores plaintext without the proxy.
func (p *proxy) storeTo(bucket, key string, text []byte) {
	p.t.Helper()
	old := p.bucket
	p.bucket = bucket
	p.store(key, text, nil)
	p.bucket = old
}

func filesBelow(t *testing.T, dir string) []string {
	t.Helper()
	var out []string
	err := filepath.WalkDir(dir, func(path string, entry fs.DirEntry, err error) error {
		if err == nil && entry.Type().IsRegular() {
			out = append(out, path)
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return out
}

// file returns the path at which the store keeps an object.
func (p *proxy) file(key string) string { return filepath.Join(store.Dir, p.bucket, key) }

func (p *proxy) rewriteFile(key string, change func([]byte) []byte) {
	p.t.Helper()
	path := p.file(key)
	b, err := os.ReadFile(path)
	if err != nil {
		p.t.Fatal(err)
	}

	f, err := os.OpenFile(path, os.O_WRONLY|os.O_TRUNC, 0) // the file's attributes stay
	if err != nil {
		p.t.Fatal(err)
	}
	defer f.Close()

	if _, err := f.Write(change(b)); err != nil {
		p.t.Fatal(err)
	}
}

// Promise P2 for multipart objects: if a store removes, swaps or alters
// parts, whole reads and ranges detect it.
func TestMultipartTampering(t *testing.T) {
	t.Parallel() // it takes long
	p := newProxy(t)
	const stored = 5*mib + crypt.PartOverhead
	m := p.upload("k", []int{5 * mib, 5 * mib, 1000})
	other := p.upload("other", []int{5 * mib, 5 * mib, 1000})
	end := p.upload("end", []int{5 * mib, 5 * mib})

	theirs, err := os.ReadFile(p.file("other"))
	if err != nil {
		t.Fatal(err)
	}

	part := func(b []byte, i int) []byte { return b[i*stored : min((i+1)*stored, len(b))] }
	for _, row := range []struct {
		name   string
		m      *multipart
		change func([]byte) []byte
	}{
		{
			"parts swapped", m,
			func(b []byte) []byte { return bytes.Join([][]byte{part(b, 1), part(b, 0), b[2*stored:]}, nil) },
		},
		{
			"middle part replaced by another's", m,
			func(b []byte) []byte { return bytes.Join([][]byte{part(b, 0), part(theirs, 1), b[2*stored:]}, nil) },
		},
		{"object replaced by another", m, func([]byte) []byte { return theirs }},
		{"middle part removed", m, func(b []byte) []byte { return append(bytes.Clone(part(b, 0)), b[2*stored:]...) }},
		{"last part removed", m, func(b []byte) []byte { return b[:2*stored] }},
		{"appended part removed", end, func(b []byte) []byte { return b[:2*stored] }},
		{"last byte cut", m, func(b []byte) []byte { return b[:len(b)-1] }},
		{"byte added", m, func(b []byte) []byte { return append(bytes.Clone(b), 0) }},
		{"bit in a header", m, func(b []byte) []byte { b[stored+13] ^= 1; return b }},
		{"bit in a fill", m, func(b []byte) []byte { b[2*stored-1] ^= 1; return b }},
		{"bit in a segment", m, func(b []byte) []byte { b[stored+2*mib] ^= 1; return b }},
		{"bit in the first segment", m, func(b []byte) []byte { b[5000] ^= 1; return b }},
		{"bit in the record", end, func(b []byte) []byte { b[2*stored+1045] ^= 1; return b }},
	} {
		t.Run(row.name, func(t *testing.T) {
			before, err := os.ReadFile(p.file(row.m.key))
			if err != nil {
				t.Fatal(err)
			}
			p.rewriteFile(row.m.key, row.change)
			mustRefuse(t, p, row.name, row.m.key, row.m.text())
			fresh := p.replica()

			for _, spec := range []string{
				"bytes=0-", "bytes=-10000000", fmt.Sprintf("bytes=%d-%d", 2*mib, 7*mib), "bytes=5242800-",
			} {
				_, want, _ := reference(row.m.text(), spec)
				got, _, err := fresh.getRange(row.m.key, spec)
				if err == nil && !bytes.Equal(got, want) || err != nil && !bytes.HasPrefix(want, got) {
					t.Errorf("%s yields bytes that were never there (%v)", spec, err)
				}
			}

			p.rewriteFile(row.m.key, func([]byte) []byte { return before })
			if got := p.mustGet(row.m.key); !bytes.Equal(got, row.m.text()) {
				t.Fatalf("the untouched object cannot be read any more")
			}
		})
	}

	moved := p.file("moved")
	if err := os.Rename(p.file("k"), moved); err != nil {
		t.Fatal(err)
	}
	mustRefuse(t, p, "moved", "moved", m.text())
	_ = other
}

// Parts of 6, 5, 7 and 1 MiB have boundaries that fit parts of equal length.
// The wrong guess is noticed in the middle of the read, which continues
// correctly.
func TestRangeThatBeginsWithAWrongGuess(t *testing.T) {
	p := newProxy(t)
	m := p.upload("k", []int{6 * mib, 5 * mib, 7 * mib, mib})
	for _, spec := range []string{
		"bytes=1000-17000000", "bytes=5-", "bytes=6291455-6291456", "bytes=11534335-11534337", "bytes=12000000-13000000",
		"bytes=18000000-18874370",
	} {
		t.Run(spec, func(t *testing.T) {
			fresh := p.replica()
			_, want, _ := reference(m.text(), spec)
			for read := range 2 {
				got, _, err := fresh.getRange("k", spec)
				if err != nil || !bytes.Equal(got, want) {
					t.Errorf("read %d: %d of %d bytes, %v", read+1, len(got), len(want), err)
				}
			}
		})
	}

	p.rewriteFile("k", func(b []byte) []byte { b[8*mib] ^= 1; return b }) // altered as well
	fresh := p.replica()
	got, _, err := fresh.getRange("k", "bytes=1000-17000000")
	if err == nil || !bytes.HasPrefix(m.text()[1000:], got) {
		t.Errorf("altered: %d bytes, %v", len(got), err)
	}
}

// A range in the middle of an object fails if the end of the object was
// replaced, even if the store makes the size and the part count fit.
func TestRangeOfAnObjectWithoutItsEnd(t *testing.T) {
	t.Parallel() // it takes long
	p := newProxy(t)
	const stored = 5*mib + crypt.PartOverhead
	p.upload("k", []int{5 * mib, 5 * mib, 5 * mib, 1000})

	old, err := os.ReadFile(p.file("k"))
	if err != nil {
		t.Fatal(err)
	}
	m := p.upload("k", []int{5 * mib, 5 * mib, 5 * mib, 1000})

	refuses := func(name string, r *proxy) {
		t.Helper()
		for _, spec := range []string{"bytes=6000000-6000100", "bytes=100-200", "bytes=-10"} {
			if got, _, err := r.getRange("k", spec); code(err) != integrity {
				t.Errorf("%s: %s: %d bytes, %v", name, spec, len(got), err)
			}
		}
	}

	p.rewriteFile("k", func(b []byte) []byte { return append(b[:3*stored:3*stored], old[3*stored:]...) })
	refuses("the last part of an earlier upload of the key", p.replica())
	mustRefuse(t, p, "the last part of an earlier upload of the key", "k", m.text())

	end := p.upload("k", []int{5 * mib, 5 * mib, 5 * mib})
	p.rewriteFile("k", func(b []byte) []byte { return b[:3*stored] })
	fooled := func() *proxy { // fooled by a store that reports three parts
		r := p.replica()
		r.origin.set(nil, func(resp *http.Response) {
			resp.Header.Set("Etag", strings.Replace(resp.Header.Get("Etag"), "-4", "-3", 1))
		})
		r.origin.condition = func(r *http.Request) { r.Header.Del("If-Match") }
		return r
	}

	refuses("without its appended part", fooled())
	mustRefuse(t, fooled(), "without its appended part", "k", end.text())
	p.rewriteFile("k", func(b []byte) []byte { b[2*stored+10] = 1; return b })
	refuses("with a forged final mark", fooled())
	mustRefuse(t, fooled(), "with a forged final mark", "k", end.text())
}

// If an object is overwritten between two requests of one read, the client
// gets the old or the new object, or an error, but no mix.
func TestOverwrittenWhileRead(t *testing.T) {
	t.Parallel() // it takes long
	p := newProxy(t)
	for _, next := range [][]int{{5 * mib, 5 * mib, 9}, {6 * mib, 3}, {100}} {
		t.Run(fmt.Sprint(next), func(t *testing.T) {
			for at := 1; at <= 4; at++ {
				a := p.upload("k", []int{5 * mib, 5 * mib, 9})
				fresh := p.replica()
				count := 0
				var b *multipart
				var mu sync.Mutex

				fresh.origin.set(func(*http.Request) (*http.Response, error) {
					mu.Lock()
					defer mu.Unlock()
					if count++; count == at {
						b = p.upload("k", next)
					}
					return nil, nil
				}, nil)

				spec := "bytes=4000000-6000000"
				got, _, err := fresh.getRange("k", spec)
				if b == nil {
					continue
				}

				_, old, _ := reference(a.text(), spec)
				status, now, _ := reference(b.text(), spec)
				if err == nil && !bytes.Equal(got, old) && !bytes.Equal(got, now) ||
					err != nil && status == http.StatusPartialContent && code(err) != "ServiceUnavailable" {
					t.Errorf("%v, overwritten at request %d: %d bytes, %v", next, at, len(got), err)
				}
			}
		})
	}
}

// Readers through two replicas during multipart overwrites get the old or
// the new object, never a mix.
func TestConcurrentMultipartOverwrites(t *testing.T) {
	t.Parallel() // it takes long
	p := newProxy(t)
	replicas := []*proxy{p, p.replica()}
	texts := [][]byte{p.upload("k", []int{5 * mib, 5 * mib, 100}).text()}
	var mu sync.Mutex

	one := func(got []byte, spec string) bool {
		mu.Lock()
		defer mu.Unlock()
		for _, text := range texts {
			if _, want, _ := reference(text, spec); bytes.Equal(got, want) {
				return true
			}
		}

		return false
	}

	writing := make(chan struct{})
	var wg sync.WaitGroup
	wg.Go(func() {
		defer close(writing)
		for i, sizes := range [][]int{{6 * mib, 5 * mib}, {11*mib + 1}, {5 * mib, 5 * mib, 100}, {6 * mib, 6 * mib, 3}} {
			m := replicas[i%2].create("k")
			for n, size := range sizes {
				m.send(int32(n+1), randomText(size))
			}
			mu.Lock()
			texts = append(texts, m.text())
			mu.Unlock()

			m.mustComplete()
		}
	})

	for i := range 3 {
		wg.Go(func() {
			for read := 0; ; read++ {
				spec := []string{"bytes=0-", "bytes=4000000-7000000", "bytes=-1000"}[(i+read)%3]
				got, _, err := replicas[read%2].getRange("k", spec)
				if err == nil && !one(got, spec) {
					t.Errorf("%s: %d bytes that are a mix of two objects", spec, len(got))
				}

				select {
				case <-writing:
					return
				default:
				}
			}
		})
	}

	wg.Wait()
}

// A store that requires equal parts accepts no part after a shorter one. Its
// objects can be read only with the setting uniform_parts.
func TestUniformParts(t *testing.T) {
	strict := newProxy(t)
	uniform := strict.replica(func(_ *proxy, cfg *s3api.Config, _ *keyring.Config) { cfg.UniformParts = true })
	for name, row := range map[string]struct {
		sizes []int
		open  bool
	}{
		"shorter last": {[]int{6 * mib, 6 * mib, 5 * mib}, true},
		"equal":        {[]int{5 * mib, 5 * mib}, false},
		"small last":   {[]int{5 * mib, 5 * mib, 7}, false},
	} {
		t.Run(name, func(t *testing.T) {
			uniform.origin.take()
			m := uniform.upload(name, row.sizes)
			puts := 0

			for _, r := range uniform.origin.take() {
				if strings.HasPrefix(r, "PUT") {
					puts++
				}
			}

			if appended := puts > len(row.sizes); appended != (name == "equal") {
				t.Errorf("%d parts were sent for %d", puts, len(row.sizes))
			}
			if got := uniform.mustGet(name); !bytes.Equal(got, m.text()) {
				t.Errorf("another text")
			}

			got, _, err := uniform.getRange(name, "bytes=6000000-6000100")
			if err != nil || !bytes.Equal(got, m.text()[6_000_000:6_000_101]) {
				t.Errorf("a range: %v", err)
			}

			got, _, err = strict.get(name)
			if row.open != (err != nil) || !bytes.HasPrefix(m.text(), got) {
				t.Errorf("a proxy without the setting: %d bytes, %v", len(got), err)
			}
			if _, _, err := strict.getRange(name, "bytes=6000000-6000100"); row.open != (err != nil) {
				t.Errorf("a range at a proxy without the setting: %v", err)
			}
		})
	}
}

// With a store whose multipart ETags do not have the number of parts, sizes
// come from the parts.
func TestETagsWithoutPartCount(t *testing.T) {
	t.Parallel() // it takes long
	p := newProxy(t)
	for _, name := range []string{"one small part", "one empty part", "uniform, small last", "odd, appended", "gaps"} {
		t.Run(name, func(t *testing.T) {
			m := p.upload(name, layouts[name].sizes, layouts[name].numbers...)
			r := p.replica(func(_ *proxy, cfg *s3api.Config, _ *keyring.Config) {
				cfg.Capabilities = capability.Always(capability.Set{capability.PartCount: capability.No})
			})
			r.origin.set(nil, func(resp *http.Response) {
				if resp.Header.Get("Content-Type") == "application/xml" {
					body, _ := io.ReadAll(resp.Body)
					body = regexp.MustCompile(`-\d+(&#34;|&quot;|")?</ETag>`).ReplaceAll(body, []byte("$1</ETag>"))
					resp.Body, resp.ContentLength = io.NopCloser(bytes.NewReader(body)), int64(len(body))
				}

				if etag := resp.Header.Get("Etag"); strings.Contains(etag, "-") {
					resp.Header.Set("Etag", `"`+strings.Trim(etag[:strings.Index(etag, "-")], `"`)+`"`)
				}
			})

			// A real store would know its own ETags.
			r.origin.condition = func(r *http.Request) { r.Header.Del("If-Match") }
			head, err := r.client.HeadObject(t.Context(), &s3.HeadObjectInput{Bucket: &p.bucket, Key: &name})
			if err != nil || *head.ContentLength != int64(len(m.text())) {
				t.Fatalf("HEAD: %v", err)
			}

			if got := r.mustGet(name); !bytes.Equal(got, m.text()) {
				t.Errorf("another text")
			}
			for range 3 {
				checkRandomRange(t, r, name, m.text(), rand.New(rand.NewPCG(5, 6)))
			}

			if n := r.listed(name); n != int64(len(m.text())) {
				t.Errorf("listed with %d bytes, has %d", n, len(m.text()))
			}
			r.origin.take()
			if r.listed(name); len(r.origin.take()) != 1 {
				t.Errorf("a listing asks again for what is known")
			}
		})
	}
}

// Property: any mix of layouts, repeated parts, copies, overwrites, ranges
// and listings behaves like a map in memory, through several replicas.
// MODEL_TIME=10m makes it run that long (make model).
func TestMultipartModel(t *testing.T) {
	long, _ := time.ParseDuration(os.Getenv("MODEL_TIME")) // 0 if it is not set
	start := time.Now()
	p := newProxy(t)
	replicas := []*proxy{p, p.replica(), p.replica()}
	r := rand.New(rand.NewPCG(11, rand.Uint64()))
	model := make(map[string][]byte)

	for step := 0; step < 25 || time.Since(start) < long; step++ {
		if step%1000 == 999 {
			t.Logf("%d steps in %v", step+1, time.Since(start).Round(time.Second))
		}
		at := replicas[r.IntN(len(replicas))]
		key := fmt.Sprintf("dir%d/key %d", r.IntN(2), r.IntN(4))
		text, exists := model[key]

		switch op := r.IntN(10); {
		case op < 4:
			model[key] = randomUpload(t, replicas, key, model, r)
		case op == 4:
			model[key] = randomText(r.IntN(300_000))
			at.put(key, model[key])
		case op == 5:
			if _, err := at.client.DeleteObject(t.Context(), &s3.DeleteObjectInput{Bucket: &p.bucket, Key: &key}); err != nil {
				t.Fatal(err)
			}
			delete(model, key)
		case op == 6:
			checkListing(t, at, model)
		case op == 7:
			got, _, err := at.get(key)
			if exists && (err != nil || !bytes.Equal(got, text)) || !exists && code(err) != "NoSuchKey" {
				t.Fatalf(
					"step %d: GET %s: %d bytes, %v; want %d, exists %v",
					step,
					key,
					len(got),
					err,
					len(text),
					exists,
				)
			}
		case exists:
			for range 5 {
				checkRandomRange(t, at, key, text, r)
			}
		}

		if t.Failed() {
			t.Fatalf("step %d", step)
		}
	}

	checkListing(t, p, model)
}

// randomUpload creates a multipart object through all replicas, from new
// bytes and from copies, and returns its text.
func randomUpload(t *testing.T, replicas []*proxy, key string, model map[string][]byte, r *rand.Rand) []byte {
	t.Helper()
	m := replicas[0].create(key)
	count, number := 1+r.IntN(4), int32(0)
	uniform, gaps := r.IntN(2) == 0, r.IntN(4) == 0

	for i := range count {
		m.p = replicas[r.IntN(len(replicas))]
		number++
		if gaps {
			number += int32(r.IntN(3))
		}

		size := 5 * mib
		if !uniform {
			size += r.IntN(2 * mib)
		}
		if i == count-1 && !gaps && r.IntN(3) > 0 {
			size = r.IntN(5 * mib)
		}

		if r.IntN(4) == 0 { // to send the part again
			m.send(number, randomText(r.IntN(6*mib)))
		}
		if !m.copied(t, model, number, size, r) {
			m.send(number, randomText(size))
		}
	}

	m.p = replicas[r.IntN(len(replicas))]
	m.mustComplete()
	return m.text()
}

// copied may make the part a copy of a range of another object, if one is
// long enough.
func (m *multipart) copied(t *testing.T, model map[string][]byte, number int32, size int, r *rand.Rand) bool {
	t.Helper()
	if r.IntN(3) > 0 || size == 0 {
		return false
	}

	for key, text := range model {
		if len(text) < size {
			continue
		}
		from := r.IntN(len(text) - size + 1)
		source := m.p.bucket + "/" + strings.ReplaceAll(key, " ", "%20")

		out, err := m.p.client.UploadPartCopy(context.WithoutCancel(t.Context()), &s3.UploadPartCopyInput{
			Bucket: &m.p.bucket, Key: &m.key, UploadId: &m.id, PartNumber: &number, CopySource: &source,
			CopySourceRange: new(fmt.Sprintf("bytes=%d-%d", from, from+size-1)),
		})
		if err != nil {
			t.Fatal(err)
		}
		m.keep(types.CompletedPart{PartNumber: &number, ETag: out.CopyPartResult.ETag}, text[from:from+size])

		return true
	}

	return false
}
