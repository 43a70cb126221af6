package e2e

import (
	"bytes"
	"crypto/md5"
	"crypto/sha1"
	"crypto/sha256"
	"encoding/base64"
	"errors"
	"fmt"
	"hash"
	"hash/crc32"
	"io"
	"maps"
	"net/http"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/minio/crc64nvme"
)

// session is one client at one endpoint, with its own bucket.
type session struct {
	*fixture
	client   client
	endpoint endpoint
	judge    *goSDK // reads what the client cannot
	bucket   string
	proxied  bool
	column   string // of the report
}

// checks run in this order: later ones build on earlier ones. The first
// checks prepare a bucket, one after the other. The rest run at the same
// time, each with keys of its own: a command line takes a second to start.
var checks = []struct {
	name string
	run  func(*testing.T, *session)
}{
	{"bucket", checkBucket},
	{"round trip", checkRoundTrip},
	{"multipart", checkMultipart},
	{"sizes", checkSizes},
	{"ranges", checkRanges},
	{"listing", checkListing},
	{"sync", checkSync},
	{"odd keys", checkOddKeys},
	{"presigned", checkPresigned},
	{"metadata", checkMetadata},
	{"checksums", checkChecksums},
	{"content-md5", checkContentMD5},
	{"conditions", checkConditions},
	{"copy", checkCopy},
	{"tags", checkTags},
	{"delete", checkDelete},
	{"credentials", checkCredentials},
}

// preparing is the number of checks that prepare the bucket.
const preparing = 3

func runChecks(t *testing.T, s *session) {
	t.Helper()
	for i, check := range checks {
		table.run(t, s.column, check.name, func(t *testing.T) {
			if i >= preparing {
				t.Parallel()
			}
			check.run(t, s)
		})
	}
}

func checkBucket(t *testing.T, s *session) {
	if err := s.client.createBucket(s.bucket); err != nil {
		t.Fatal(err)
	}
	sizes, err := s.client.list(s.bucket, "")
	if err != nil || len(sizes) != 0 {
		t.Errorf("the new bucket: %v, %v", sizes, err)
	}
	if _, err := s.client.list(s.bucket+"-none", ""); err == nil {
		t.Error("a bucket that is not there was listed")
	} else if e := (*apiError)(nil); errors.As(err, &e) && !refusedAs(err, 404, "NoSuchBucket") {
		t.Errorf("listing a bucket that is not there: %v", err)
	}
}

// bulk is a client that starts slowly and copies whole directories.
type bulk interface {
	putAll(dir, bucket, prefix string) error
	getAll(bucket, prefix, dir string) error
}

func checkRoundTrip(t *testing.T, s *session) {
	if b, ok := s.client.(bulk); ok {
		back := t.TempDir()
		if err := b.putAll(s.Dir, s.bucket, "bodies/"); err != nil {
			t.Fatal(err)
		}
		if err := b.getAll(s.bucket, "bodies/", back); err != nil {
			t.Fatal(err)
		}
		for _, body := range s.Bodies {
			got, err := os.ReadFile(filepath.Join(back, body.Name))
			same(t, body.Name, got, err, body.data)
		}
		return
	}

	for _, body := range s.Bodies {
		if err := s.client.put(s.bucket, "bodies/"+body.Name, body.data); err != nil {
			t.Errorf("storing %s: %v", body.Name, err)
			continue
		}
		got, err := s.client.get(s.bucket, "bodies/"+body.Name)
		same(t, body.Name, got, err, body.data)
	}
}

// same compares two bodies without printing megabytes.
func same(t *testing.T, what string, got []byte, err error, want []byte) {
	t.Helper()
	switch {
	case err != nil:
		t.Errorf("%s: %v", what, err)
	case len(got) != len(want):
		t.Errorf("%s: %d bytes, not %d", what, len(got), len(want))
	case !bytes.Equal(got, want):
		t.Errorf("%s: %d bytes, but others", what, len(got))
	}
}

func checkSizes(t *testing.T, s *session) {
	want := make(map[string]int64)
	for _, body := range s.Bodies {
		want["bodies/"+body.Name] = int64(body.Size)
		if h, ok := s.client.(header); ok {
			if a, err := h.head(s.bucket, "bodies/"+body.Name); err != nil || a.size != int64(body.Size) {
				t.Errorf("HEAD of %s: %d bytes, %v", body.Name, a.size, err)
			}
		}
	}
	got, err := s.client.list(s.bucket, "bodies/")
	if err != nil || !maps.Equal(got, want) {
		t.Errorf("listed: %v, %v\nwant: %v", got, err, want)
	}
}

func checkRanges(t *testing.T, s *session) {
	body := s.body(t, "random-1048576")
	key := "bodies/" + body.Name
	if resumer, ok := s.client.(interface {
		resume(bucket, key string, have []byte) ([]byte, error)
	}); ok {
		for _, have := range []int{1, 65496, 65536, 1048575} {
			got, err := resumer.resume(s.bucket, key, body.data[:have])
			same(t, fmt.Sprintf("resumed after %d bytes", have), got, err, body.data)
		}
		return
	}

	r, ok := s.client.(ranger)
	if !ok {
		notApplicable(t)
	}

	for spec, want := range map[string][]byte{
		"0-0":             body.data[:1],
		"0-99":            body.data[:100],
		"65495-65496":     body.data[65495:65497],
		"65400-131100":    body.data[65400:131101],
		"131032-131032":   body.data[131032:131033],
		"1048575-1048575": body.data[1048575:],
		"1048000-":        body.data[1048000:],
		"0-1048575":       body.data,
		"-1":              body.data[1048575:],
		"-70000":          body.data[1048576-70000:],
	} {
		got, err := r.getRange(s.bucket, key, spec)
		same(t, spec, got, err, want)
	}

	if _, ok := s.client.(*rclone); ok {
		return // it knows the size and asks for no more
	}
	for spec, want := range map[string][]byte{"1048000-9999999": body.data[1048000:], "-9999999": body.data} {
		got, err := r.getRange(s.bucket, key, spec)
		same(t, spec, got, err, want)
	}

	for _, spec := range []string{"1048576-", "2000000-3000000"} {
		if got, err := r.getRange(s.bucket, key, spec); !refusedAs(err, http.StatusRequestedRangeNotSatisfiable, "InvalidRange") {
			t.Errorf("%s, beyond the end: %d bytes, %v", spec, len(got), err)
		}
	}
}

func checkListing(t *testing.T, s *session) {
	p, ok := s.client.(pager)
	if !ok {
		notApplicable(t)
	}

	all, top := make(map[string]int64), make(map[string]int64)
	var prefixes []string
	for i := range 23 {
		key := fmt.Sprintf("list/file-%02d", i)
		if i%3 != 0 {
			prefix := fmt.Sprintf("list/dir-%02d/", i)
			prefixes = append(prefixes, prefix)
			key = prefix + "file"
		} else {
			top[key] = int64(i)
		}
		all[key] = int64(i)
		if err := s.judge.put(s.bucket, key, []byte(smallText[:i])); err != nil {
			t.Fatal(err)
		}
	}

	sizes, gotPrefixes, err := p.page(s.bucket, "list/", "", 7)
	if err != nil || len(gotPrefixes) != 0 || !maps.Equal(sizes, all) {
		t.Errorf("in pages of 7: %v, %v, %v\nwant: %v", sizes, gotPrefixes, err, all)
	}

	sizes, gotPrefixes, err = p.page(s.bucket, "list/", "/", 7)
	slices.Sort(gotPrefixes)
	if err != nil || !slices.Equal(gotPrefixes, prefixes) || !maps.Equal(sizes, top) {
		t.Errorf("with a delimiter: %v, %v, %v\nwant: %v, %v", sizes, gotPrefixes, err, top, prefixes)
	}
}

// checkSync checks that a second run finds nothing to copy, because sizes,
// times and ETags match.
func checkSync(t *testing.T, s *session) {
	c, ok := s.client.(syncer)
	if !ok {
		notApplicable(t)
	}

	dir, back := t.TempDir(), t.TempDir()
	if err := os.CopyFS(dir, os.DirFS(s.Dir)); err != nil {
		t.Fatal(err)
	}

	// Modification times of objects are in whole seconds. A client may copy
	// a file again if it is as new as its copy.
	for _, body := range s.Bodies {
		if err := os.Chtimes(filepath.Join(dir, body.Name), time.Time{}, time.Now().Add(-time.Hour)); err != nil {
			t.Fatal(err)
		}
	}

	count := func(what string, copied int, err error, want int) {
		t.Helper()
		if err != nil || copied != want {
			t.Errorf("%s copied %d files, not %d: %v", what, copied, want, err)
		}
	}

	copied, err := c.sync(dir, s.bucket, "sync/")
	count("the first sync up", copied, err, len(s.Bodies))
	copied, err = c.sync(dir, s.bucket, "sync/")
	count("the second sync up", copied, err, 0)
	copied, err = c.syncBack(s.bucket, "sync/", back)
	count("the first sync down", copied, err, len(s.Bodies))
	copied, err = c.syncBack(s.bucket, "sync/", back)
	count("the second sync down", copied, err, 0)
	for _, body := range s.Bodies {
		got, err := os.ReadFile(filepath.Join(back, body.Name))
		same(t, "synced "+body.Name, got, err, body.data)
	}
	if err := os.WriteFile(filepath.Join(dir, "random-1"), []byte("now more than one byte"), 0o600); err != nil {
		t.Fatal(err)
	}

	copied, err = c.sync(dir, s.bucket, "sync/")
	count("a sync after a change", copied, err, 1)
	if r, ok := s.client.(*rclone); ok {
		copied, err = r.transfers("sync", "--size-only", dir, "e2e:"+s.bucket+"/sync/")
		count("a sync by size only", copied, err, 0)
		for _, how := range []string{"--size-only", "--download"} {
			if err := r.compare(dir, s.bucket, "sync/", how); err != nil {
				t.Error(err)
			}
		}
	}
}

func checkOddKeys(t *testing.T, s *session) {
	keys := slices.DeleteFunc(slices.Clone(s.Keys), func(key string) bool {
		switch s.client.(type) {
		case *rclone: // it cleans keys like paths
			return path.Clean(key) != key
		case *mc, *s3cmd, *awsCLI: // they take a key that ends in "/" for a directory
			return strings.HasSuffix(key, "/")
		default:
			return false
		}
	})

	single := keys
	if b, ok := s.client.(bulk); ok {
		dir, back := t.TempDir(), t.TempDir()
		single = nil
		for _, key := range keys {
			if strings.Contains(key, "//") || strings.Contains(key, "/./") || strings.Contains(key, "/../") || strings.HasSuffix(key, "/") {
				single = append(single, key)
				continue
			}
			if err := errors.Join(os.MkdirAll(filepath.Dir(filepath.Join(dir, key)), 0o700),
				os.WriteFile(filepath.Join(dir, key), []byte(smallText+key), 0o600)); err != nil {
				t.Fatal(err)
			}
		}
		if err := errors.Join(b.putAll(dir, s.bucket, ""), b.getAll(s.bucket, "odd/", filepath.Join(back, "odd"))); err != nil {
			t.Error(err)
		}
		for _, key := range keys {
			if !slices.Contains(single, key) {
				got, err := os.ReadFile(filepath.Join(back, key))
				same(t, key, got, err, []byte(smallText+key))
			}
		}
	}

	for _, key := range single {
		if err := s.client.put(s.bucket, key, []byte(smallText+key)); err != nil {
			t.Errorf("storing %q: %v", key, err)
			continue
		}
		got, err := s.client.get(s.bucket, key)
		same(t, fmt.Sprintf("%q", key), got, err, []byte(smallText+key))
	}

	sizes, err := s.client.list(s.bucket, "odd/")
	if err != nil {
		t.Fatal(err)
	}

	for _, key := range keys {
		if sizes[key] != int64(len(smallText+key)) {
			t.Errorf("%q is listed with %d bytes, not %d", key, sizes[key], len(smallText+key))
		}
		if got, err := s.judge.get(s.bucket, key); err != nil || string(got) != smallText+key {
			t.Errorf("%q has not been stored under this key: %v", key, err)
		}
	}

	if len(sizes) != len(keys) {
		t.Errorf("%d keys are listed, not %d: %q", len(sizes), len(keys), slices.Sorted(maps.Keys(sizes)))
	}
}

func checkPresigned(t *testing.T, s *session) {
	p, ok := s.client.(presigner)
	if !ok {
		notApplicable(t)
	}

	body := s.body(t, "random-65497")
	const hour = time.Hour
	plain := &http.Client{Transport: &http.Transport{TLSClientConfig: trust(s.endpoint)}}
	defer plain.CloseIdleConnections()

	get := presigned(t, p, http.MethodGet, s.bucket, "bodies/"+body.Name, hour)
	fetch(t, plain, http.MethodGet, get, nil, http.StatusOK, body.data)
	fetch(t, plain, http.MethodGet, tampered(t, get, "signature"), nil, http.StatusForbidden, nil)
	fetch(t, plain, http.MethodGet, tampered(t, get, "path"), nil, http.StatusForbidden, nil)
	fetch(t, plain, http.MethodGet, tampered(t, get, "expiry"), nil, http.StatusForbidden, nil)
	fetch(t, plain, http.MethodDelete, get, nil, http.StatusForbidden, nil)
	brief := presigned(t, p, http.MethodGet, s.bucket, "bodies/"+body.Name, time.Second)
	time.Sleep(2500 * time.Millisecond)
	fetch(t, plain, http.MethodGet, brief, nil, http.StatusForbidden, nil)

	if _, err := p.presign(http.MethodPut, s.bucket, "x", hour); errors.Is(err, errNoPresign) {
		return
	}
	head := presigned(t, p, http.MethodHead, s.bucket, "bodies/"+body.Name, hour)
	fetch(t, plain, http.MethodHead, head, nil, http.StatusOK, nil)
	put := presigned(t, p, http.MethodPut, s.bucket, "presigned", hour)
	fetch(t, plain, http.MethodPut, tampered(t, put, "signature"), body.data, http.StatusForbidden, nil)
	if _, err := s.judge.head(s.bucket, "presigned"); !refusedAs(err, http.StatusNotFound, "NotFound") {
		t.Errorf("after a PUT that was refused: %v", err)
	}

	fetch(t, plain, http.MethodPut, put, body.data, http.StatusOK, nil)
	got, err := s.client.get(s.bucket, "presigned")
	same(t, "stored by a presigned PUT", got, err, body.data)
}

func presigned(t *testing.T, p presigner, method, bucket, key string, valid time.Duration) string {
	t.Helper()
	url, err := p.presign(method, bucket, key, valid)
	if err != nil {
		t.Fatalf("presigning %s: %v", method, err)
	}
	return url
}

// tampered changes one thing in a presigned URL.
func tampered(t *testing.T, url, what string) string {
	t.Helper()
	changed := url
	switch what {
	case "signature":
		at := strings.Index(url, "X-Amz-Signature=") + len("X-Amz-Signature=")
		digit := "0"
		if url[at:at+1] == digit {
			digit = "1"
		}
		changed = url[:at] + digit + url[at+1:]
	case "path":
		changed = strings.Replace(url, "-65497", "-65496", 1)
	case "expiry":
		changed = strings.Replace(url, "X-Amz-Expires=3600", "X-Amz-Expires=7200", 1)
	}

	if changed == url {
		t.Fatalf("no %s to change in the presigned URL", what)
	}
	return changed
}

// fetch sends a request to a URL as a program without an SDK does. If want
// is nil, any body is accepted.
func fetch(t *testing.T, c *http.Client, method, url string, body []byte, status int, want []byte) {
	t.Helper()
	request, err := http.NewRequestWithContext(t.Context(), method, url, bytes.NewReader(body))
	if err != nil {
		t.Fatal(err)
	}

	response, err := c.Do(request)
	if err != nil {
		t.Error(err)
		return
	}
	defer response.Body.Close()
	got, err := io.ReadAll(response.Body)
	if response.StatusCode != status || err != nil {
		t.Errorf("%s: status %d, not %d: %.400s %v", method, response.StatusCode, status, got, err)
	} else if want != nil {
		same(t, method+" by URL", got, err, want)
	}
}

func checkMetadata(t *testing.T, s *session) {
	c, ok := s.client.(metadataPutter)
	if !ok {
		notApplicable(t)
	}

	want := attributes{
		contentType: "text/x-e2e", cacheControl: "max-age=60, private", disposition: `attachment; filename="a b.txt"`,
		contentEncoding: "gzip", contentLanguage: "de-AT", metadata: map[string]string{"color": "dark blue", "shape-of-it": "a=b;c"},
	}
	if err := c.putWith(s.bucket, "metadata", []byte(smallText), want); err != nil {
		t.Fatal(err)
	}

	h, ok := s.client.(header)
	if !ok {
		h = s.judge
	}

	got, err := h.head(s.bucket, "metadata")
	if err != nil {
		t.Fatal(err)
	}

	for name, value := range got.metadata {
		if strings.Contains(name, "cmek") {
			t.Errorf("the proxy's own metadata is shown: %s", name)
		}
		if _, ok := want.metadata[name]; !ok && name != "mtime" && name != "s3cmd-attrs" {
			t.Errorf("metadata that was not set: %s: %s", name, value)
		}
	}

	for name, value := range want.metadata {
		if got.metadata[name] != value {
			t.Errorf("metadata %s is %q, not %q", name, got.metadata[name], value)
		}
	}

	for name, pair := range map[string][2]string{
		"Content-Type":        {got.contentType, want.contentType},
		"Cache-Control":       {got.cacheControl, want.cacheControl},
		"Content-Disposition": {got.disposition, want.disposition},
		"Content-Encoding":    {got.contentEncoding, want.contentEncoding},
		"Content-Language":    {got.contentLanguage, want.contentLanguage},
	} {
		switch {
		case pair[0] == pair[1]:
		case !s.proxied && strings.Contains(pair[0], "aws-chunked"):
			table.note("the store itself shows aws-chunked as a Content-Encoding")
		default:
			t.Errorf("%s is %q, not %q", name, pair[0], pair[1])
		}
	}

	if got.size != int64(len(smallText)) {
		t.Errorf("%d bytes", got.size)
	}
}

func checkChecksums(t *testing.T, s *session) {
	c, ok := s.client.(checksummer)
	if !ok {
		notApplicable(t)
	}

	for _, name := range []string{"random-0", "random-65497", "random-1048576"} {
		body := s.body(t, name)
		got, _, err := c.getVerified(s.bucket, "bodies/"+name)
		same(t, name+" as stored by default", got, err, body.data)
		for _, algorithm := range c.algorithms() {
			key := "checksums/" + algorithm + "-" + name
			err := c.putChecksum(s.bucket, key, body.data, algorithm, "")
			if !s.proxied && strings.HasPrefix(s.column, "minio-go") && refusedAs(err, http.StatusBadRequest, "BadDigest") {
				table.note("the store itself takes no checksum in the trailer of a signed stream, as %s sends it", s.column)
				return
			}
			if err != nil {
				t.Errorf("%s of %s: %v", algorithm, name, err)
				continue
			}
			got, sums, err := c.getVerified(s.bucket, key)
			same(t, algorithm+" of "+name, got, err, body.data)
			// Not every client sends a checksum for an empty body.
			if want := checksum(t, algorithm, body.data); sums[algorithm] != want && body.Size > 0 {
				t.Errorf("%s of %s is given as %q, not %q; all: %v", algorithm, name, sums[algorithm], want, sums)
			}
		}
	}

	for _, algorithm := range c.algorithms() {
		key := "checksums/wrong-" + algorithm
		wrong := checksum(t, algorithm, []byte("something else"))
		if err := c.putChecksum(s.bucket, key, []byte(smallText), algorithm, wrong); !refusedAs(err, http.StatusBadRequest, "BadDigest") {
			t.Errorf("a wrong %s: %v", algorithm, err)
		}
		if _, err := s.judge.head(s.bucket, key); !refusedAs(err, http.StatusNotFound, "NotFound") {
			t.Errorf("after a wrong %s: %v", algorithm, err)
		}
	}
}

// checksum returns a checksum in base64, as S3 writes it.
func checksum(t *testing.T, algorithm string, data []byte) string {
	t.Helper()
	hashes := map[string]func() hash.Hash{
		"CRC32":     func() hash.Hash { return crc32.NewIEEE() },
		"CRC32C":    func() hash.Hash { return crc32.New(crc32.MakeTable(crc32.Castagnoli)) },
		"CRC64NVME": func() hash.Hash { return crc64nvme.New() },
		"SHA1":      sha1.New,
		"SHA256":    sha256.New,
		"MD5":       md5.New,
	}
	h := hashes[algorithm]()
	_, _ = h.Write(data)
	return base64.StdEncoding.EncodeToString(h.Sum(nil))
}

func checkContentMD5(t *testing.T, s *session) {
	c, ok := s.client.(checksummer)
	if !ok {
		notApplicable(t)
	}

	body := s.body(t, "random-65497")
	if err := c.putMD5(s.bucket, "md5", body.data, checksum(t, "MD5", body.data)); err != nil {
		t.Fatal(err)
	}

	wrong := checksum(t, "MD5", []byte("something else"))
	for _, key := range []string{"md5", "md5-new"} {
		if err := c.putMD5(s.bucket, key, []byte(smallText), wrong); !refusedAs(err, http.StatusBadRequest, "BadDigest") {
			t.Errorf("a wrong Content-MD5: %v", err)
		}
	}

	got, err := s.client.get(s.bucket, "md5")
	same(t, "what a refused PUT would have replaced", got, err, body.data)
	if _, err := s.judge.head(s.bucket, "md5-new"); !refusedAs(err, http.StatusNotFound, "NotFound") {
		t.Errorf("after a wrong Content-MD5: %v", err)
	}
}

func checkConditions(t *testing.T, s *session) {
	c, ok := s.client.(conditioner)
	if !ok {
		notApplicable(t)
	}

	const key = "conditions"
	if err := s.client.put(s.bucket, key, []byte(smallText)); err != nil {
		t.Fatal(err)
	}

	a, err := s.client.(header).head(s.bucket, key)
	if err != nil {
		t.Fatal(err)
	}

	other := `"0123456789abcdef0123456789abcdef"`
	got, err := c.getIf(s.bucket, key, condition{ifMatch: a.etag})
	same(t, "If-Match the ETag that is shown", got, err, []byte(smallText))
	got, err = c.getIf(s.bucket, key, condition{ifNoneMatch: other})
	same(t, "If-None-Match another ETag", got, err, []byte(smallText))
	if _, err := c.getIf(s.bucket, key, condition{ifNoneMatch: a.etag}); !refusedAs(err, http.StatusNotModified, "NotModified") {
		t.Errorf("If-None-Match the ETag that is shown: %v", err)
	}

	if _, err := c.getIf(s.bucket, key, condition{ifMatch: other}); !refusedAs(err, http.StatusPreconditionFailed, "PreconditionFailed") {
		t.Errorf("If-Match another ETag: %v", err)
	}
	if err := c.putIf(s.bucket, key, []byte("replaced"), condition{ifNoneMatch: "*"}); errors.Is(err, errUnknownOption) {
		table.note("this version of %s has no conditions for writes", s.column)
		return
	} else if !refusedAs(err, http.StatusPreconditionFailed, "PreconditionFailed") && !s.hungUp(err) {
		t.Errorf("a PUT with If-None-Match *, of an object that is there: %v", err)
	}
	if err := c.putIf(s.bucket, key+"-new", []byte(smallText), condition{ifNoneMatch: "*"}); err != nil {
		t.Errorf("a PUT with If-None-Match *, of a new object: %v", err)
	}
	if err := c.putIf(s.bucket, key, []byte("replaced"), condition{ifMatch: other}); errors.Is(err, errUnknownOption) {
		table.note("this version of %s has no If-Match for writes", s.column)
		return
	} else if !refusedAs(err, http.StatusPreconditionFailed, "PreconditionFailed") && !s.hungUp(err) {
		t.Errorf("a PUT with If-Match another ETag: %v", err)
	}

	got, err = s.client.get(s.bucket, key)
	same(t, "after refused PUTs", got, err, []byte(smallText))
	if !s.PutIfMatch {
		return
	}
	if err := c.putIf(s.bucket, key, []byte("replaced"), condition{ifMatch: a.etag}); err != nil {
		t.Errorf("a PUT with If-Match the ETag that is shown: %v", err)
	}
	got, err = s.client.get(s.bucket, key)
	same(t, "after a PUT with If-Match", got, err, []byte("replaced"))
}

// hungUp reports whether the store itself closed a TLS connection on a
// rejected PUT, without a response.
func (s *session) hungUp(err error) bool {
	if s.proxied || err == nil || !strings.Contains(err.Error(), "EOF occurred in violation of protocol") {
		return false
	}
	table.note("over TLS, the store itself may close the connection on a PUT that it refuses, without an answer")
	return true
}

func checkDelete(t *testing.T, s *session) {
	var keys []string
	for i := range 5 {
		keys = append(keys, fmt.Sprintf("delete/%d+ü", i))
		if err := s.judge.put(s.bucket, keys[i], []byte(smallText)); err != nil {
			t.Fatal(err)
		}
	}
	if err := s.client.remove(s.bucket, keys[0]); err != nil {
		t.Error(err)
	}

	if _, err := s.client.get(s.bucket, keys[0]); err == nil {
		t.Error("a deleted object was read")
	} else if e := (*apiError)(nil); errors.As(err, &e) && !refusedAs(err, http.StatusNotFound, "NoSuchKey", "NotFound") {
		t.Errorf("reading a deleted object: %v", err)
	}

	if sizes, err := s.judge.list(s.bucket, "delete/"); err != nil || len(sizes) != 4 {
		t.Errorf("after deleting one of five: %v, %v", sizes, err)
	}
	if many, ok := s.client.(manyRemover); ok {
		if err := many.removeMany(s.bucket, keys[1:]); err != nil {
			t.Error(err)
		}
		if sizes, err := s.judge.list(s.bucket, "delete/"); err != nil || len(sizes) != 0 {
			t.Errorf("after deleting all: %v, %v", sizes, err)
		}
	}

	if b, ok := s.client.(bucketRemover); ok {
		if err := b.removeBucket(s.bucket); err == nil {
			t.Error("a bucket that is not empty was deleted")
		} else if e := (*apiError)(nil); errors.As(err, &e) && !refusedAs(err, http.StatusConflict, "BucketNotEmpty") {
			t.Errorf("deleting a bucket that is not empty: %v", err)
		}
		if err := errors.Join(s.client.createBucket(s.bucket+"-gone"), b.removeBucket(s.bucket+"-gone")); err != nil {
			t.Error(err)
		}
	}
}

func checkCredentials(t *testing.T, s *session) {
	for name, tt := range map[string]struct {
		credentials credentials
		code        string
	}{
		"wrong secret": {credentials{s.endpoint.accessKey, newCredentials().secret}, "SignatureDoesNotMatch"},
		"unknown key":  {credentials{newCredentials().accessKey, s.endpoint.secret}, "InvalidAccessKeyId"},
	} {
		stranger := s.client.as(tt.credentials)
		switch _, err := stranger.list(s.bucket, ""); {
		case refusedAs(err, http.StatusForbidden, tt.code) && code(err) == tt.code:
		case err != nil && !s.proxied && tt.code == "InvalidAccessKeyId":
			table.note("the store itself answers 404 XAdminUserNotFound to an unknown access key")
		default:
			t.Errorf("%s, list: %v", name, err)
		}
		if err := stranger.put(s.bucket, "stranger", []byte(smallText)); err == nil {
			t.Errorf("%s: stored", name)
		}
		if _, err := stranger.get(s.bucket, "bodies/random-1"); err == nil {
			t.Errorf("%s: read", name)
		}
	}

	if _, err := s.judge.head(s.bucket, "stranger"); !refusedAs(err, http.StatusNotFound, "NotFound") {
		t.Errorf("what a stranger stored: %v", err)
	}
}
