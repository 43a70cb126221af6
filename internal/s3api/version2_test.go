package s3api_test

import (
	"bytes"
	"io"
	"net/http"
	"strconv"
	"strings"
	"testing"

	"github.com/aws/aws-sdk-go-v2/service/s3"
	"github.com/aws/aws-sdk-go-v2/service/s3/types"

	"github.com/cmekproxy/cmekproxy/internal/capability"
	"github.com/cmekproxy/cmekproxy/internal/crypt"
	"github.com/cmekproxy/cmekproxy/internal/keyring"
	"github.com/cmekproxy/cmekproxy/internal/kms"
	"github.com/cmekproxy/cmekproxy/internal/s3api"
)

// version1 writes version 1 of the format.
func version1(_ *proxy, _ *s3api.Config, cfg *keyring.Config) { cfg.FormatVersion = crypt.V1 }

// keepPart keeps what is sent to the store as part 2.
func (p *proxy) keepPart(into *[]byte) {
	p.origin.set(func(r *http.Request) (*http.Response, error) {
		if r.Method == http.MethodPut && r.URL.Query().Get("partNumber") == "2" {
			b, err := io.ReadAll(r.Body)
			if err != nil {
				return nil, err
			}
			*into = b
			r.Body = io.NopCloser(bytes.NewReader(b))
		}
		return nil, nil //nolint:nilnil // not answered here
	}, nil)
}

// A store that returns an earlier attempt at a part, of the same upload,
// number and length, is noticed by the tags in the record. Another replica
// gets the tags from the ETags that the client lists.
func TestEarlierAttemptAtAPart(t *testing.T) {
	for _, row := range []struct {
		name    string
		options []option
		other   bool // another replica completes the upload
		listed  bool // with the ETags of ListParts
		refused bool
	}{
		{name: "one replica", refused: true},
		{name: "one replica, listed ETags", listed: true, refused: true},
		{name: "another replica", other: true, refused: true},
		{name: "another replica, listed ETags", other: true, listed: true},
		{name: "version 1", options: []option{version1}},
	} {
		t.Run(row.name, func(t *testing.T) {
			p := newProxy(t, row.options...)
			var first, second []byte
			m := p.create("k")
			m.send(1, randomText(5*mib))
			p.keepPart(&first)
			m.send(2, randomText(5*mib))
			p.keepPart(&second)
			m.send(2, randomText(5*mib))
			p.origin.set(nil, nil)
			m.parts = m.parts[:2]

			if row.other {
				m.p = p.replica(row.options...)
			}
			if row.listed {
				listed := must(m.p.client.ListParts(t.Context(), &s3.ListPartsInput{
					Bucket: &p.bucket, Key: &m.key, UploadId: &m.id,
				}))
				m.parts = nil
				for _, part := range listed.Parts {
					m.parts = append(m.parts, types.CompletedPart{PartNumber: part.PartNumber, ETag: part.ETag})
				}
			}
			m.mustComplete()
			if got := p.mustGet("k"); !bytes.Equal(got, m.text()) {
				t.Fatal("another text")
			}

			p.rewriteFile("k", func(b []byte) []byte { return bytes.Replace(b, second, first, 1) })
			fresh := p.replica(row.options...) // without what this one has cached
			_, _, err := fresh.get("k")
			if row.refused == (err == nil) {
				t.Errorf("the whole object: %v", err)
			}
			_, _, err = p.replica(row.options...).getRange("k", "bytes=5242880-5242890")
			if row.refused == (err == nil) {
				t.Errorf("a range of the part: %v", err)
			}
			if _, _, err = fresh.getRange("k", "bytes=0-10"); err != nil {
				t.Errorf("a range of another part: %v", err)
			}
		})
	}
}

// Two uploads of a key to which the store gives one id, each at a replica that
// knows only one of them: their parts cannot be mixed.
func TestPartsOfTwoUploadsWithOneID(t *testing.T) {
	for _, row := range []struct {
		name    string
		options []option
		refused bool
	}{{"version 2", nil, true}, {"version 1", []option{version1}, false}} {
		t.Run(row.name, func(t *testing.T) {
			a := newProxy(t, row.options...)
			b := a.replica(row.options...)
			one := a.create("k")
			id, _, _ := strings.Cut(one.id, ".cmek.")
			b.origin.set(nil, func(r *http.Response) {
				if r.Request.URL.Query().Has("uploads") {
					r.Body = io.NopCloser(strings.NewReader("<InitiateMultipartUploadResult><UploadId>" + id +
						"</UploadId></InitiateMultipartUploadResult>"))
					r.ContentLength = -1
				}
			})
			two := b.create("k")
			b.origin.set(nil, nil)

			one.send(1, randomText(5*mib))
			two.send(2, randomText(100)) // the store has it as a part of the same upload
			one.keep(two.parts[0], two.text())
			if _, err := one.complete(); err != nil {
				t.Fatal(err)
			}
			if _, _, err := a.replica(row.options...).get("k"); row.refused == (err == nil) {
				t.Errorf("%v", err)
			}
		})
	}
}

// A client that takes the id of its upload from a listing goes on with the
// store's id, as container registries do. Parts under both ids are one object.
func TestUploadResumedWithAListedID(t *testing.T) {
	a := newProxy(t)
	b := a.replica()
	m := a.create("k")
	m.send(1, randomText(5*mib))

	uploads := must(a.client.ListMultipartUploads(t.Context(), &s3.ListMultipartUploadsInput{Bucket: &a.bucket}))
	if got := *uploads.Uploads[0].UploadId; got != m.id {
		t.Errorf("the replica that created the upload shows %s, not %s", got, m.id)
	}
	uploads = must(b.client.ListMultipartUploads(t.Context(), &s3.ListMultipartUploadsInput{Bucket: &a.bucket}))
	m.p, m.id = b, *uploads.Uploads[0].UploadId
	if strings.Contains(m.id, ".cmek.") {
		t.Errorf("another replica shows %s", m.id)
	}

	m.send(2, randomText(5*mib))
	m.send(3, randomText(10))
	m.mustComplete()
	if got := a.mustGet("k"); !bytes.Equal(got, m.text()) {
		t.Error("another text")
	}
	if got, _, err := b.getRange("k", "bytes=5242870-5242890"); err != nil || !bytes.Equal(got, m.text()[5242870:5242891]) {
		t.Errorf("a range: %v", err)
	}
}

// What one version of the proxy is configured to write, the other reads.
func TestVersionsSideBySide(t *testing.T) {
	old := newProxy(t, version1)
	fresh := old.replica()
	for _, p := range []*proxy{old, fresh} {
		p.put("single", []byte("text"))
		m := p.upload("parts", []int{5 * mib, 10})
		for _, reader := range []*proxy{old, fresh} {
			if got := reader.mustGet("single"); string(got) != "text" {
				t.Errorf("%q", got)
			}
			if got := reader.mustGet("parts"); !bytes.Equal(got, m.text()) {
				t.Error("another text")
			}
		}
	}

	for _, row := range []struct {
		p    *proxy
		want string
	}{{old, "1"}, {fresh, "2"}} {
		row.p.put("k", []byte("text"))
		row.p.upload("m", []int{10})
		for _, key := range []string{"k", "m"} {
			if _, header := row.p.stored(key); header.Get("X-Amz-Meta-Cmek-V") != row.want {
				t.Errorf("%s has version %s, not %s", key, header.Get("X-Amz-Meta-Cmek-V"), row.want)
			}
		}
	}

	// An upload that one has created and the other one goes on with.
	for _, both := range [][2]*proxy{{old, fresh}, {fresh, old}} {
		m := both[0].create("across")
		m.send(1, randomText(5*mib))
		m.p = both[1]
		m.send(2, randomText(5*mib))
		m.mustComplete()
		if got := both[0].mustGet("across"); !bytes.Equal(got, m.text()) {
			t.Error("another text")
		}
	}
}

// sealing seals the metadata of new objects below sealed/.
func sealing(_ *proxy, _ *s3api.Config, cfg *keyring.Config) {
	cfg.Rules = append([]keyring.Rule{{
		Prefixes: []string{"sealed/"}, Key: "main", SealMetadata: true, AskedKeys: []string{"*"},
	}}, cfg.Rules...)
}

// described sets the metadata of an object.
func described(in *s3.PutObjectInput) {
	in.Metadata = map[string]string{"patient": "Miller", "empty": ""}
	in.ContentType, in.CacheControl = new("text/secret"), new("max-age=7")
	in.ContentDisposition = new(`attachment; filename="Miller.pdf"`)
	in.ContentEncoding, in.ContentLanguage = new("br"), new("de")
}

func createDescribed(in *s3.CreateMultipartUploadInput) {
	var o s3.PutObjectInput
	described(&o)
	in.Metadata, in.ContentType, in.CacheControl = o.Metadata, o.ContentType, o.CacheControl
	in.ContentDisposition, in.ContentEncoding, in.ContentLanguage = o.ContentDisposition, o.ContentEncoding, o.ContentLanguage
}

// checkDescribed checks the metadata in the answer to a GET or a HEAD.
func checkDescribed(t *testing.T, header http.Header) {
	t.Helper()
	for name, want := range map[string]string{
		"X-Amz-Meta-Patient": "Miller", "X-Amz-Meta-Empty": "", "Content-Type": "text/secret",
		"Cache-Control": "max-age=7", "Content-Disposition": `attachment; filename="Miller.pdf"`,
		"Content-Encoding": "br", "Content-Language": "de",
	} {
		if values, ok := header[name]; !ok || values[0] != want {
			t.Errorf("%s is %q, not %q", name, values, want)
		}
	}
	for name := range header {
		if strings.HasPrefix(name, "X-Amz-Meta-Cmek") {
			t.Errorf("%s is shown", name)
		}
	}
}

// header returns the headers of an object as a client sees them.
func (p *proxy) header(method, key, query, spec string) (int, http.Header) {
	p.t.Helper()
	r := request{method: method, path: "/" + p.bucket + "/" + key + query}
	if spec != "" {
		r.header = http.Header{"Range": {spec}}
	}
	got := p.send(r)
	return got.StatusCode, got.Header
}

func TestSealedMetadata(t *testing.T) {
	p := newProxy(t, sealing)
	p.put("sealed/single", randomText(200_000), described)
	m := p.create("sealed/parts", createDescribed)
	m.send(1, randomText(5*mib))
	m.send(2, randomText(5*mib))
	m.mustComplete()

	for _, key := range []string{"sealed/single", "sealed/parts"} {
		t.Run(key, func(t *testing.T) {
			resp, _ := p.storeDo(http.MethodHead, key, nil, nil)
			stored := resp.Header
			for name, values := range stored {
				if text := name + strings.Join(values, " "); strings.Contains(strings.ToLower(text), "patient") ||
					strings.Contains(text, "Miller") || strings.Contains(text, "secret") || strings.Contains(text, "max-age") {
					t.Errorf("the store has %s: %q", name, values)
				}
			}
			if got := stored.Get("Content-Type"); got != "application/octet-stream" {
				t.Errorf("the store has the type %s", got)
			}

			for _, row := range []struct{ method, query, spec string }{
				{http.MethodGet, "", ""},
				{http.MethodHead, "", ""},
				{http.MethodGet, "", "bytes=100-200"},
				{http.MethodHead, "", "bytes=100-200"},
				{http.MethodGet, "", "bytes=-10"},
				{http.MethodGet, "?partNumber=1", ""},
				{http.MethodHead, "?partNumber=1", ""},
			} {
				t.Run(row.method+row.query+row.spec, func(t *testing.T) {
					status, header := p.header(row.method, key, row.query, row.spec)
					if status >= 300 {
						t.Fatal(status)
					}
					checkDescribed(t, header)
				})
			}

			_, header := p.header(http.MethodGet, key, "?response-content-type=text%2Fother&response-cache-control=no-store", "")
			if header.Get("Content-Type") != "text/other" || header.Get("Cache-Control") != "no-store" ||
				header.Get("Content-Language") != "de" {
				t.Errorf("with overrides: %v", header)
			}
		})
	}

	p.put("sealed/nothing", []byte("text"))
	if _, header := p.header(http.MethodHead, "sealed/nothing", "", ""); header.Get("Content-Type") != "binary/octet-stream" &&
		header.Get("Content-Type") != "application/octet-stream" {
		t.Errorf("without a type: %v", header)
	}
}

// Sealed metadata needs the key, also for HEAD.
func TestSealedMetadataNeedsTheKey(t *testing.T) {
	var key *switchedKey
	p := newProxy(t, sealing, func(_ *proxy, _ *s3api.Config, cfg *keyring.Config) {
		key = &switchedKey{Wrapper: cfg.Keys[0].Wrapper}
		cfg.Keys[0].Wrapper = key
	})
	p.put("sealed/k", []byte("text"), described)
	p.upload("sealed/m", []int{10})
	p.put("open", []byte("text"), described)
	key.off = &kms.Error{Kind: kms.Disabled, KeyID: key.KeyID()}
	p.cache.PurgeAll()

	for key, want := range map[string]int{"sealed/k": 400, "sealed/m": 400, "open": 200} {
		status, header := p.header(http.MethodHead, key, "", "")
		if status != want || want != 200 && header.Get("X-Amz-Meta-Patient") != "" {
			t.Errorf("%s: %d, %v", key, status, header)
		}
	}
}

// Copies have the metadata of their source, sealed if the rules of their new
// name say so.
func TestSealedMetadataIsCopied(t *testing.T) {
	p := newProxy(t, sealing)
	p.put("sealed/a", randomText(1000), described)
	p.put("open/a", randomText(1000), described)
	m := p.create("sealed/m", createDescribed)
	m.send(1, randomText(1000))
	m.mustComplete()

	for _, from := range []string{"sealed/a", "open/a", "sealed/m"} {
		for _, to := range []string{"sealed/copy", "open/copy"} {
			t.Run(from+" to "+to, func(t *testing.T) {
				must(p.client.CopyObject(t.Context(), &s3.CopyObjectInput{
					Bucket: &p.bucket, Key: &to, CopySource: new(p.bucket + "/" + from),
				}))
				_, header := p.header(http.MethodHead, to, "", "")
				checkDescribed(t, header)
				if !bytes.Equal(p.mustGet(to), p.mustGet(from)) {
					t.Error("another text")
				}
				_, stored := p.stored(to)
				if sealed := stored.Get("X-Amz-Meta-Cmek-Meta") != ""; sealed != strings.HasPrefix(to, "sealed/") ||
					sealed == (stored.Get("X-Amz-Meta-Patient") != "") {
					t.Errorf("in the store: %v", stored)
				}

				must(p.client.CopyObject(t.Context(), &s3.CopyObjectInput{
					Bucket: &p.bucket, Key: &to, CopySource: new(p.bucket + "/" + from),
					MetadataDirective: types.MetadataDirectiveReplace, ContentType: new("text/new"),
					Metadata: map[string]string{"b": "c"},
				}))
				_, header = p.header(http.MethodHead, to, "", "")
				if header.Get("Content-Type") != "text/new" || header.Get("X-Amz-Meta-B") != "c" ||
					header.Get("X-Amz-Meta-Patient") != "" || header.Get("Content-Language") != "" {
					t.Errorf("replaced: %v", header)
				}
			})
		}
	}
}

// What a store can do to sealed metadata is refused when the object is read.
func TestSealedMetadataIsBound(t *testing.T) {
	p := newProxy(t, sealing)
	p.put("sealed/k", []byte("text"), described)
	body, own := p.stored("sealed/k")
	p.put("sealed/k", []byte("text"))
	_, other := p.stored("sealed/k")

	change := func(name string, value []string) http.Header {
		h := own.Clone()
		if h["Content-Length"] = nil; value == nil {
			h.Del(name)
		} else {
			h[name] = value
		}
		return h
	}
	const meta = "X-Amz-Meta-Cmek-Meta"
	altered := []byte(own.Get(meta))
	altered[40] ^= 1
	for name, row := range map[string]struct {
		header http.Header
		head   int
	}{
		"removed":                 {change(meta, nil), 200}, // nothing says that it was there
		"altered":                 {change(meta, []string{string(altered)}), 422},
		"that of another version": {change(meta, other[meta]), 422},
		"another size":            {change("X-Amz-Meta-Cmek-Size", []string{"5"}), 422},
	} {
		t.Run(name, func(t *testing.T) {
			p.store("sealed/k", body, row.header)
			q := p.replica(sealing)
			if status, header := q.header(http.MethodHead, "sealed/k", "", ""); status != row.head ||
				header.Get("X-Amz-Meta-Patient") != "" {
				t.Errorf("HEAD: %d, %v", status, header)
			}
			if status, header := q.header(http.MethodGet, "sealed/k", "", ""); status != 422 ||
				header.Get("X-Amz-Meta-Patient") != "" {
				t.Errorf("GET: %d, %v", status, header)
			}
		})
	}

	// A visible header next to the sealed ones is not the object's.
	p.store("sealed/k", body, change("X-Amz-Meta-Planted", []string{"x"}))
	_, header := p.header(http.MethodGet, "sealed/k", "", "")
	checkDescribed(t, header)
	if header.Get("X-Amz-Meta-Planted") != "" {
		t.Error("what the store has added is shown")
	}
}

// The parts of a multipart object say that its metadata is sealed, and by
// which upload.
func TestSealedMetadataOfPartsIsBound(t *testing.T) {
	p := newProxy(t, sealing)
	one := p.create("sealed/k", createDescribed)
	one.send(1, []byte("text"))
	one.mustComplete()
	body, own := p.stored("sealed/k")
	two := p.create("sealed/k")
	two.send(1, []byte("text"))
	two.mustComplete()
	_, other := p.stored("sealed/k")

	for name, from := range map[string]http.Header{"removed": nil, "of another upload": other, "its own": own} {
		t.Run(name, func(t *testing.T) {
			header := own.Clone()
			for _, entry := range []string{"Meta", "Dek", "Upload", "Mac"} {
				header.Del("X-Amz-Meta-Cmek-" + entry)
				if value := from.Get("X-Amz-Meta-Cmek-" + entry); value != "" {
					header.Set("X-Amz-Meta-Cmek-"+entry, value)
				}
			}
			header.Del("Content-Length")
			p.store("sealed/k", body, header)
			status, got := p.replica(sealing, noPartCount).header(http.MethodGet, "sealed/k", "", "")
			if ok := name == "its own"; ok != (status == 200) || !ok && got.Get("X-Amz-Meta-Patient") != "" {
				t.Errorf("%d, %v", status, got)
			}
		})
	}
}

// noPartCount is for a store whose ETags do not have the number of parts.
func noPartCount(_ *proxy, cfg *s3api.Config, _ *keyring.Config) {
	cfg.Capabilities = capability.Always(capability.Set{capability.PartCount: capability.No})
}

// S3 allows 2 KB of metadata. What fits when it is sealed, the error says.
func TestSealedMetadataTooLarge(t *testing.T) {
	p := newProxy(t, sealing)
	put := func(n int) answer {
		return p.send(request{
			method: "PUT", path: "/" + p.bucket + "/sealed/k", body: []byte("x"),
			header: http.Header{"X-Amz-Meta-A": {strings.Repeat("a", n)}},
		})
	}

	got := put(1900)
	if got.StatusCode != 400 || !strings.Contains(string(got.body), "<Code>MetadataTooLarge</Code>") {
		t.Fatalf("%d %s", got.StatusCode, got.body)
	}
	number := func(name string) int {
		_, rest, _ := strings.Cut(string(got.body), "<"+name+">")
		text, _, _ := strings.Cut(rest, "<")
		return must(strconv.Atoi(text))
	}
	limit := number("MaxSizeAllowed")
	if size := number("Size"); size != 1900+len("x-amz-meta-a")+4 {
		t.Errorf("the size is %d", size)
	}

	fits := limit - len("x-amz-meta-a") - 4
	if got := put(fits); got.StatusCode != 200 {
		t.Errorf("%d bytes: %d %s", fits, got.StatusCode, got.body)
	}
	if got := put(fits + 1); got.StatusCode != 400 {
		t.Errorf("%d bytes: %d", fits+1, got.StatusCode)
	}
}
