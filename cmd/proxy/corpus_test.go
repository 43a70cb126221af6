//go:build !nodev

package main

import (
	"bytes"
	"crypto/md5"
	"crypto/sha256"
	"encoding/base64"
	"encoding/binary"
	"encoding/hex"
	"encoding/json"
	"encoding/xml"
	"fmt"
	"io"
	"maps"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	v4 "github.com/aws/aws-sdk-go-v2/aws/signer/v4"
	"github.com/aws/smithy-go/encoding/httpbinding"

	"github.com/cmekproxy/cmekproxy/internal/checksum"
	"github.com/cmekproxy/cmekproxy/internal/crypt"
	"github.com/cmekproxy/cmekproxy/internal/maintain/inventory"
	"github.com/cmekproxy/cmekproxy/internal/maintain/verify"
	"github.com/cmekproxy/cmekproxy/internal/proxytest"
)

// corpusFolders pins the folders of the corpus. What a release wrote never
// changes.
var corpusFolders = map[string]string{
	"v1": "e3cbed24ecc3baf83cb452a07894029c47a2259b6ed3fe886e6c96c8978d9704",
	"v2": "c8bf5c5a66fe34eda9c017225e013623782c445b71c1501998a9c0aceb5feb36",
}

const corpusDir = "testdata/corpus"

// corpusDocument is objects.json of a folder.
type corpusDocument struct {
	Bucket  string         `json:"bucket"`
	Objects []corpusObject `json:"objects"`
}

// corpusObject is an object as it was in the store, and what clients get for
// it.
type corpusObject struct {
	Key string `json:"key"`

	// StoredHeaders are its headers in the store, and StoredFile has its bytes
	// that were kept, in order. Others read as zeros. An object with one part
	// number 0 is a single-PUT object.
	StoredHeaders map[string]string `json:"stored_headers"`
	StoredFile    string            `json:"stored_file,omitempty"`
	StoredParts   []corpusPart      `json:"stored_parts"`

	// CustomerKey and RecoveryKey are files with the key that the client sends
	// (SSE-C), and with a recovery private key that opens the object.
	CustomerKey string `json:"customer_key,omitempty"`
	RecoveryKey string `json:"recovery_key,omitempty"`

	// Size and SHA256 are those of the plaintext, which is corpusText of the
	// key. Ranges are what can be read if not all stored bytes were kept, and
	// Missing is within the others.
	Size    int64            `json:"size"`
	SHA256  string           `json:"sha256"`
	Ranges  []corpusInterval `json:"ranges,omitempty"`
	Missing *corpusInterval  `json:"missing,omitempty"`

	// Headers are what clients get: user metadata, content headers, checksum.
	Headers map[string]string `json:"headers"`
	Parts   int               `json:"parts,omitempty"` // that clients sent, of a multipart object
	KMSKeys []string          `json:"kms_keys"`        // ids, as the inventory shows them

	plaintext []byte
}

func (o *corpusObject) text() []byte {
	if int64(len(o.plaintext)) < o.Size {
		o.plaintext = corpusText(o.Key, o.Size)
	}
	return o.plaintext
}

type corpusPart struct {
	Number int              `json:"number"`
	Size   int64            `json:"size"`
	Kept   []corpusInterval `json:"kept,omitempty"`
}

// corpusInterval is the first and the last byte.
type corpusInterval [2]int64

func (i corpusInterval) String() string { return fmt.Sprintf("bytes=%d-%d", i[0], i[1]) }

// MarshalText implements encoding.TextMarshaler.
func (i corpusInterval) MarshalText() ([]byte, error) {
	return fmt.Appendf(nil, "%d-%d", i[0], i[1]), nil
}

// UnmarshalText implements encoding.TextUnmarshaler.
func (i *corpusInterval) UnmarshalText(text []byte) error {
	_, err := fmt.Sscanf(string(text), "%d-%d", &i[0], &i[1])
	return err
}

// corpusText returns the plaintext of an object: the SHA-256 of its key, a
// zero byte and 0, 1, 2, … in 8 bytes.
func corpusText(key string, size int64) []byte {
	out := make([]byte, 0, size+sha256.Size)
	seed := append([]byte(key), 0)
	for i := uint64(0); int64(len(out)) < size; i++ {
		sum := sha256.Sum256(binary.BigEndian.AppendUint64(seed, i))
		out = append(out, sum[:]...)
	}
	return out[:size]
}

// corpusHash returns the hash of all files of a folder, with their names.
func corpusHash(t *testing.T, dir string) string {
	t.Helper()
	h := sha256.New()
	err := filepath.WalkDir(dir, func(path string, entry os.DirEntry, err error) error {
		if err != nil || entry.IsDir() {
			return err
		}
		name, err := filepath.Rel(dir, path)
		if err != nil {
			return err
		}
		text, err := os.ReadFile(path)
		if err != nil {
			return err
		}
		fmt.Fprintf(h, "%s %x\n", filepath.ToSlash(name), sha256.Sum256(text))
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return hex.EncodeToString(h.Sum(nil))
}

// wire is an S3 client that sends headers as they are.
type wire struct{ endpoint, accessKey, secretKey string }

// request is what a wire sends.
type request struct {
	method, bucket, key string
	query               url.Values
	header              map[string]string
	body                []byte
}

// send returns the answer. err is that of the connection, which may have ended
// in the middle of the body.
func (w wire) send(t *testing.T, q request) (resp *http.Response, body []byte, err error) {
	t.Helper()
	target := w.endpoint + "/" + q.bucket
	if q.key != "" {
		target += "/" + httpbinding.EscapePath(q.key, false)
	}
	r, err := http.NewRequestWithContext(t.Context(), q.method, target, bytes.NewReader(q.body))
	if err != nil {
		t.Fatal(err)
	}
	r.URL.RawQuery = q.query.Encode()
	for name, value := range q.header {
		r.Header.Set(name, value)
	}

	const hash = "UNSIGNED-PAYLOAD"
	r.Header.Set("X-Amz-Content-Sha256", hash)
	r.Header.Set("Accept-Encoding", "identity")
	signer := v4.NewSigner(func(o *v4.SignerOptions) { o.DisableURIPathEscaping = true })
	who := aws.Credentials{AccessKeyID: w.accessKey, SecretAccessKey: w.secretKey}
	if err := signer.SignHTTP(t.Context(), who, r, hash, "s3", proxytest.Region, time.Now()); err != nil {
		t.Fatal(err)
	}

	if resp, err = http.DefaultClient.Do(r); err != nil {
		return nil, nil, err
	}
	defer resp.Body.Close()
	body, err = io.ReadAll(resp.Body)
	return resp, body, err
}

// must is send for requests that succeed.
func (w wire) must(t *testing.T, q request) (*http.Response, []byte) {
	t.Helper()
	resp, body, err := w.send(t, q)
	if err != nil {
		t.Fatal(err)
	}
	if resp.StatusCode >= 300 {
		t.Fatalf("%s %s %v: %s: %.500s", q.method, q.key, q.query, resp.Status, body)
	}
	return resp, body
}

// wireUpload is a multipart object to store.
type wireUpload struct {
	bucket, key string
	header, end map[string]string // of the creation and of the completion
	parts       []wirePart
	// listed returns the id of the upload that a listing of the store shows,
	// for the parts and the completion that use it.
	listed    func() string
	endListed bool
}

type wirePart struct {
	number   int
	body     []byte
	header   map[string]string
	checksum string // elements in the list of the completion
	listed   bool
}

// upload stores a multipart object.
func (w wire) upload(t *testing.T, u wireUpload) {
	t.Helper()
	_, created := w.must(t, request{
		method: http.MethodPost, bucket: u.bucket, key: u.key, query: url.Values{"uploads": {""}}, header: u.header,
	})
	var doc struct{ UploadId string }
	if err := xml.Unmarshal(created, &doc); err != nil {
		t.Fatal(err)
	}
	id := func(listed bool) string {
		if listed {
			return u.listed()
		}
		return doc.UploadId
	}

	var list strings.Builder
	for _, p := range u.parts {
		resp, _ := w.must(t, request{
			method: http.MethodPut, bucket: u.bucket, key: u.key, header: p.header, body: p.body,
			query: url.Values{"uploadId": {id(p.listed)}, "partNumber": {strconv.Itoa(p.number)}},
		})
		fmt.Fprintf(&list, "<Part><PartNumber>%d</PartNumber><ETag>%s</ETag>%s</Part>",
			p.number, strings.Trim(resp.Header.Get("Etag"), `"`), p.checksum)
	}
	_, body := w.must(t, request{
		method: http.MethodPost, bucket: u.bucket, key: u.key, header: u.end, query: url.Values{"uploadId": {id(u.endListed)}},
		body: []byte("<CompleteMultipartUpload>" + list.String() + "</CompleteMultipartUpload>"),
	})
	if !bytes.Contains(body, []byte("<CompleteMultipartUploadResult")) {
		t.Fatalf("%s: %s", u.key, body)
	}
}

// uploadID returns the id of the only upload of a bucket.
func (w wire) uploadID(t *testing.T, bucket string) string {
	t.Helper()
	_, body := w.must(t, request{method: http.MethodGet, bucket: bucket, query: url.Values{"uploads": {""}}})
	var doc struct{ Upload []struct{ UploadId string } }
	if err := xml.Unmarshal(body, &doc); err != nil || len(doc.Upload) != 1 {
		t.Fatalf("%v: %s", err, body)
	}
	return doc.Upload[0].UploadId
}

// customerHeaders are the headers of SSE-C.
func customerHeaders(key []byte) map[string]string {
	sum := md5.Sum(key)
	const prefix = "X-Amz-Server-Side-Encryption-Customer-"
	return map[string]string{
		prefix + "Algorithm": "AES256",
		prefix + "Key":       base64.StdEncoding.EncodeToString(key),
		prefix + "Key-Md5":   base64.StdEncoding.EncodeToString(sum[:]),
	}
}

// corpusStack is a store and a proxy with the configuration and the keys of a
// folder.
type corpusStack struct {
	t      *testing.T
	dir    string // the folder
	keys   string // a copy of its keys, which are readable by the owner alone
	config string
	store  wire
	app    wire
	bucket string
	stop   func()
}

func startCorpusStack(t *testing.T, dir, bucket string) *corpusStack {
	t.Helper()
	s := &corpusStack{t: t, dir: dir, keys: t.TempDir(), config: filepath.Join(dir, "config.yaml"), bucket: bucket}
	files, err := filepath.Glob(filepath.Join(dir, "keys", "*"))
	if err != nil || len(files) == 0 {
		t.Fatalf("%s has no keys: %v", dir, err)
	}
	for _, file := range files {
		text, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(filepath.Join(s.keys, filepath.Base(file)), text, 0o600); err != nil {
			t.Fatal(err)
		}
	}

	s.store = wire{proxytest.ServeStore(t), proxytest.AccessKey, proxytest.SecretKey}
	s.store.must(t, request{method: http.MethodPut, bucket: bucket})
	s.serve()
	return s
}

// serve starts the proxy, again after stop.
func (s *corpusStack) serve() {
	t := s.t
	t.Helper()
	listen, admin := freePort(t), freePort(t)
	for name, value := range map[string]string{
		"CORPUS_STORE": s.store.endpoint, "CORPUS_KEYS": s.keys, "CORPUS_LISTEN": listen, "CORPUS_ADMIN": admin,
	} {
		t.Setenv(name, value)
	}
	proxy := start(t, "serve", "--config", s.config)
	waitStatus(t, "http://"+admin+"/readyz", http.StatusOK)
	s.app = wire{"http://" + listen, "appkey", "appsecretappsecret"}
	s.stop = func() { proxy.end(t) }
}

func (s *corpusStack) file(name string) []byte {
	s.t.Helper()
	text, err := os.ReadFile(filepath.Join(s.dir, filepath.FromSlash(name)))
	if err != nil {
		s.t.Fatal(err)
	}
	return text
}

// headers returns the headers of a request to read an object, with more.
func (s *corpusStack) headers(o *corpusObject, more ...string) map[string]string {
	s.t.Helper()
	out := make(map[string]string)
	if o.CustomerKey != "" {
		out = customerHeaders(s.file(o.CustomerKey))
	}
	for i := 0; i < len(more); i += 2 {
		out[more[i]] = more[i+1]
	}
	return out
}

// stored returns the bytes of each part of an object.
func (s *corpusStack) stored(t *testing.T, o *corpusObject) (parts [][]byte) {
	t.Helper()
	var kept []byte
	if o.StoredFile != "" {
		kept = s.file(o.StoredFile)
	}
	for _, p := range o.StoredParts {
		part := make([]byte, p.Size)
		for _, interval := range p.Kept {
			kept = kept[copy(part[interval[0]:interval[1]+1], kept):]
		}
		parts = append(parts, part)
	}
	if len(kept) > 0 {
		t.Fatalf("%s has %d bytes too many", o.StoredFile, len(kept))
	}
	return parts
}

// put stores an object as it was.
func (s *corpusStack) put(t *testing.T, o *corpusObject, headers map[string]string, parts [][]byte) {
	t.Helper()
	if len(parts) == 1 && o.StoredParts[0].Number == 0 {
		s.store.must(t, request{method: http.MethodPut, bucket: s.bucket, key: o.Key, header: headers, body: parts[0]})
		return
	}
	list := make([]wirePart, len(parts))
	for i, part := range parts {
		list[i] = wirePart{number: o.StoredParts[i].Number, body: part}
	}
	s.store.upload(t, wireUpload{bucket: s.bucket, key: o.Key, header: headers, parts: list})
}

// TestCorpus reads what every release wrote. testdata/corpus/README.md
// describes it.
func TestCorpus(t *testing.T) {
	entries, err := os.ReadDir(corpusDir)
	if err != nil {
		t.Fatal(err)
	}
	for _, entry := range entries {
		if entry.IsDir() && corpusFolders[entry.Name()] == "" {
			t.Errorf("corpusFolders does not have %s", entry.Name())
		}
	}

	for name, want := range corpusFolders {
		dir := filepath.Join(corpusDir, name)
		if got := corpusHash(t, dir); got != want {
			t.Errorf("the folder %s has changed: its hash is %s, not %s", name, got, want)
		}
		t.Run(name, func(t *testing.T) {
			s, objects := readCorpus(t, dir)
			for i := range objects {
				t.Run("modified "+objects[i].Key, func(t *testing.T) { s.modified(t, &objects[i]) })
			}
			s.stop()
		})
	}
}

// TestCorpusRewrapped moves what every release wrote to today's format. Objects
// of which bytes are missing cannot be moved.
func TestCorpusRewrapped(t *testing.T) {
	for name := range corpusFolders {
		t.Run(name, func(t *testing.T) {
			s, objects := startCorpus(t, filepath.Join(corpusDir, name))
			objects = slices.DeleteFunc(objects, func(o corpusObject) bool { return o.Missing != nil })
			for i := range objects {
				s.put(t, &objects[i], objects[i].StoredHeaders, s.stored(t, &objects[i]))
			}

			corpusCommand(t, "rewrap", "--config", s.config, "s3://"+s.bucket)
			version := s.versionToday(t)
			for i := range objects {
				o := &objects[i]
				t.Run(o.Key, func(t *testing.T) {
					resp, _ := s.store.must(t, request{method: http.MethodHead, bucket: s.bucket, key: o.Key})
					if got := resp.Header.Get("X-Amz-Meta-Cmek-V"); got != version && o.CustomerKey == "" {
						t.Errorf("version %s, not %s", got, version)
					}
					s.check(t, o)
				})
			}
			if out := corpusCommand(t, "rewrap", "--config", s.config, "s3://"+s.bucket); !strings.Contains(
				out, "rewrapped  0 objects",
			) {
				t.Errorf("a second time: %s", out)
			}
			s.stop()
		})
	}
}

// versionToday returns the version of the format that the proxy writes.
func (s *corpusStack) versionToday(t *testing.T) string {
	t.Helper()
	s.app.must(t, request{method: http.MethodPut, bucket: s.bucket, key: "today"})
	resp, _ := s.store.must(t, request{method: http.MethodHead, bucket: s.bucket, key: "today"})
	return resp.Header.Get("X-Amz-Meta-Cmek-V")
}

// readCorpus reads the objects of a folder in each way.
func readCorpus(t *testing.T, dir string) (*corpusStack, []corpusObject) {
	t.Helper()
	s, objects := startCorpus(t, dir)
	for i := range objects {
		o := &objects[i]
		t.Run(o.Key, func(t *testing.T) {
			s.put(t, o, o.StoredHeaders, s.stored(t, o))
			s.check(t, o)
		})
	}
	t.Run("inventory", func(t *testing.T) { s.inventory(t, objects) })
	t.Run("verify", func(t *testing.T) { s.verify(t, objects) })
	return s, objects
}

// startCorpus starts a stack for a folder, and returns its objects.
func startCorpus(t *testing.T, dir string) (*corpusStack, []corpusObject) {
	t.Helper()
	text, err := os.ReadFile(filepath.Join(dir, "objects.json"))
	if err != nil {
		t.Fatal(err)
	}
	var doc corpusDocument
	if err := json.Unmarshal(text, &doc); err != nil {
		t.Fatal(err)
	}
	return startCorpusStack(t, dir, doc.Bucket), doc.Objects
}

// check reads an object in each way.
func (s *corpusStack) check(t *testing.T, o *corpusObject) {
	t.Helper()
	s.head(t, o)
	s.attributes(t, o)
	s.get(t, o)
	s.ranges(t, o)
	s.decrypt(t, o)
}

// corpusHeaders returns the headers of an answer that the corpus has.
func corpusHeaders(h http.Header) map[string]string {
	out := make(map[string]string)
	for name := range h {
		switch name {
		case "Cache-Control", "Content-Disposition", "Content-Encoding", "Content-Language", "Content-Type", "Expires":
			out[name] = h.Get(name)
		default:
			if strings.HasPrefix(name, "X-Amz-Meta-") || strings.HasPrefix(name, checksum.Prefix) {
				out[name] = h.Get(name)
			}
		}
	}
	return out
}

func expectHeaders(t *testing.T, got, want map[string]string) {
	t.Helper()
	if !maps.Equal(got, want) {
		t.Errorf("headers %v, not %v", got, want)
	}
}

func (s *corpusStack) head(t *testing.T, o *corpusObject) {
	t.Helper()
	resp, _ := s.app.must(t, request{
		method: http.MethodHead, bucket: s.bucket, key: o.Key,
		header: s.headers(o, "X-Amz-Checksum-Mode", "ENABLED"),
	})
	if resp.ContentLength != o.Size {
		t.Errorf("HEAD: %d bytes, not %d", resp.ContentLength, o.Size)
	}
	expectHeaders(t, corpusHeaders(resp.Header), o.Headers)
}

func (s *corpusStack) attributes(t *testing.T, o *corpusObject) {
	t.Helper()
	_, body := s.app.must(t, request{
		method: http.MethodGet, bucket: s.bucket, key: o.Key, query: url.Values{"attributes": {""}},
		header: s.headers(o, "X-Amz-Object-Attributes", "ObjectSize,Checksum,ObjectParts"),
	})
	type element struct {
		XMLName xml.Name
		Text    string `xml:",chardata"`
	}
	var doc struct {
		ObjectSize  int64
		ObjectParts struct{ PartsCount int }
		Checksum    struct {
			Values []element `xml:",any"`
		}
	}
	if err := xml.Unmarshal(body, &doc); err != nil {
		t.Fatal(err)
	}

	sums := make(map[string]string)
	for _, e := range doc.Checksum.Values {
		name := strings.TrimPrefix(e.XMLName.Local, "Checksum")
		sums[http.CanonicalHeaderKey(checksum.Prefix+name)] = e.Text
	}
	want := maps.Clone(o.Headers)
	maps.DeleteFunc(want, func(name, _ string) bool { return !strings.HasPrefix(name, checksum.Prefix) })
	if doc.ObjectSize != o.Size || doc.ObjectParts.PartsCount != o.Parts || !maps.Equal(sums, want) {
		t.Errorf("attributes %s, not %d bytes, %d parts and %v", body, o.Size, o.Parts, want)
	}
}

// read reads an object or a range of it. If it is refused, got is what came
// before.
func (s *corpusStack) read(t *testing.T, o *corpusObject, header map[string]string) (got []byte, refused error) {
	t.Helper()
	resp, body, err := s.app.send(t, request{method: http.MethodGet, bucket: s.bucket, key: o.Key, header: header})
	switch {
	case err != nil:
		return body, err
	case resp.StatusCode >= 300:
		return nil, fmt.Errorf("%s: %s", resp.Status, body)
	}
	if header["Range"] == "" {
		want := maps.Clone(o.Headers)
		if header["X-Amz-Checksum-Mode"] == "" {
			maps.DeleteFunc(want, func(name, _ string) bool { return strings.HasPrefix(name, checksum.Prefix) })
		}
		expectHeaders(t, corpusHeaders(resp.Header), want)
	}
	return body, nil
}

// get reads the whole object. Where stored bytes are missing, it ends early.
func (s *corpusStack) get(t *testing.T, o *corpusObject) {
	t.Helper()
	want := o.text()
	if sum := sha256.Sum256(want); hex.EncodeToString(sum[:]) != o.SHA256 {
		t.Fatalf("the plaintext has the hash %x, not %s", sum, o.SHA256)
	}

	got, err := s.read(t, o, s.headers(o, "X-Amz-Checksum-Mode", "ENABLED"))
	switch {
	case o.Missing == nil && (err != nil || !bytes.Equal(got, want)):
		t.Errorf("GET: other bytes, or %v", err)
	case o.Missing != nil && err == nil:
		t.Error("GET: an object is read whose stored bytes are missing")
	case !bytes.HasPrefix(want, got):
		t.Error("GET: bytes that are not those of the object")
	}

	if o.CustomerKey == "" {
		return
	}
	for what, key := range map[string]map[string]string{
		"without a key": nil, "with another key": customerHeaders(bytes.Repeat([]byte{7}, 32)),
	} {
		if _, err := s.read(t, o, key); err == nil {
			t.Errorf("GET %s is not refused", what)
		}
	}
}

// readable returns the ranges that can be read.
func (o *corpusObject) readable() (out []corpusInterval) {
	if o.Missing != nil || o.Size == 0 {
		return o.Ranges
	}
	add := func(first, last int64) {
		if first >= 0 && first <= last && last < o.Size {
			out = append(out, corpusInterval{first, last})
		}
	}
	add(0, 0)
	add(o.Size-1, o.Size-1)
	add(o.Size/3, o.Size/2)
	add(65_495, 65_496) // two segments
	add(1, o.Size-1)
	return out
}

func (s *corpusStack) ranges(t *testing.T, o *corpusObject) {
	t.Helper()
	text := o.text()
	for _, r := range o.readable() {
		got, err := s.read(t, o, s.headers(o, "Range", r.String()))
		if err != nil || !bytes.Equal(got, text[r[0]:r[1]+1]) {
			t.Errorf("%s: %d bytes, %v", r, len(got), err)
		}
		if r[1] == o.Size-1 {
			suffix := fmt.Sprintf("bytes=-%d", r[1]-r[0]+1)
			if got, err := s.read(t, o, s.headers(o, "Range", suffix)); err != nil || !bytes.Equal(got, text[r[0]:]) {
				t.Errorf("%s: %d bytes, %v", suffix, len(got), err)
			}
		}
	}

	if o.Missing != nil {
		if got, err := s.read(t, o, s.headers(o, "Range", o.Missing.String())); err == nil || len(got) > 0 {
			t.Errorf("%s, which is missing: %d bytes, %v", o.Missing, len(got), err)
		}
	}
	if _, err := s.read(t, o, s.headers(o, "Range", fmt.Sprintf("bytes=%d-", o.Size))); err == nil ||
		!strings.HasPrefix(err.Error(), "416") {
		t.Errorf("a range behind the end: %v", err)
	}
}

// decrypt runs the command of this name.
func (s *corpusStack) decrypt(t *testing.T, o *corpusObject) {
	t.Helper()
	ways := [][]string{nil}
	if o.RecoveryKey != "" {
		ways = append(ways, []string{"--recovery-key", filepath.Join(s.keys, filepath.Base(o.RecoveryKey))})
	}
	for _, way := range ways {
		if o.CustomerKey != "" {
			way = append(way, "--sse-customer-key", filepath.Join(s.keys, filepath.Base(o.CustomerKey)))
		}
		file := filepath.Join(t.TempDir(), "out")
		var out bytes.Buffer
		code := run(t.Context(), append([]string{
			"decrypt", "--config", s.config, "s3://" + s.bucket + "/" + o.Key, "-o", file,
		}, way...), &out, &out)

		got, err := os.ReadFile(file)
		if o.Missing != nil && (code != 1 || err == nil) {
			t.Errorf("decrypt %v of an object with missing bytes: exit code %d, %v", way, code, err)
		}
		if o.Missing == nil && (code != 0 || err != nil || !bytes.Equal(got, o.text())) {
			t.Errorf("decrypt %v: exit code %d, %v: %s", way, code, err, out.String())
		}
	}
}

// corpusLines runs a command and decodes the lines of type object.
func corpusLines[T any](t *testing.T, code int, args ...string) (out []T) {
	t.Helper()
	var printed output
	if got := run(t.Context(), args, &printed, new(output)); got != code {
		t.Fatalf("%v: exit code %d, not %d:\n%s", args, got, code, printed.String())
	}
	for line := range strings.Lines(printed.String()) {
		var kind struct{ Type string }
		if err := json.Unmarshal([]byte(line), &kind); err != nil {
			t.Fatalf("%v: %s: %v", args, line, err)
		}
		if kind.Type != "object" {
			continue
		}
		var row T
		if err := json.Unmarshal([]byte(line), &row); err != nil {
			t.Fatal(err)
		}
		out = append(out, row)
	}
	return out
}

func (s *corpusStack) inventoryRows(t *testing.T) map[string]inventory.Object {
	t.Helper()
	rows := make(map[string]inventory.Object)
	for _, row := range corpusLines[inventory.Object](
		t, 0, "inventory", "--config", s.config, "s3://"+s.bucket, "--format", "json",
	) {
		rows[row.Key] = row
	}
	return rows
}

func kmsKeyIDs(row inventory.Object) (ids []string) {
	for _, key := range row.Keys {
		ids = append(ids, key.ID)
	}
	return ids
}

func (s *corpusStack) inventory(t *testing.T, objects []corpusObject) {
	rows := s.inventoryRows(t)
	if len(rows) != len(objects) {
		t.Errorf("%d objects, not %d", len(rows), len(objects))
	}
	for i := range objects {
		o := &objects[i]
		row, kind := rows[o.Key], inventory.Single
		if o.Parts > 0 {
			kind = inventory.Multipart
		}
		if row.Kind != kind || row.Size != o.Size || !slices.Equal(kmsKeyIDs(row), o.KMSKeys) {
			t.Errorf("%s: %+v", o.Key, row)
		}
		if o.RecoveryKey != "" && slices.ContainsFunc(row.Keys, func(k inventory.Key) bool { return len(k.Recovery) < 16 }) {
			t.Errorf("%s: no recovery key: %+v", o.Key, row)
		}
	}
}

func (s *corpusStack) verify(t *testing.T, objects []corpusObject) {
	want, code := make(map[string]verify.Fault), 0
	for _, o := range objects {
		if o.Missing != nil && o.CustomerKey == "" {
			want[o.Key], code = verify.Integrity, 1
		}
	}
	got := make(map[string]verify.Fault)
	for _, row := range corpusLines[faulty](
		t, code, "verify", "--config", s.config, "s3://"+s.bucket, "--format", "json",
	) {
		got[row.Key] = row.Fault
	}
	if !maps.Equal(got, want) {
		t.Errorf("faults %v, not %v", got, want)
	}
}

// modified flips a bit in each entry of the envelope, and in several places of
// the body, and the object must be refused.
func (s *corpusStack) modified(t *testing.T, o *corpusObject) {
	if s.refused(t, o) {
		t.Fatal("the object is refused before it is modified")
	}

	for name, value := range o.StoredHeaders {
		if !o.protects(name) {
			continue
		}
		changed := []byte(value)
		changed[len(changed)/2] ^= 1
		headers := maps.Clone(o.StoredHeaders)
		headers[name] = string(changed)
		s.put(t, o, headers, s.stored(t, o))
		if _, err := s.read(t, o, s.headers(o)); err == nil {
			t.Errorf("%s: %s is read", name, changed)
		}
		if o.sealed() {
			resp, _, err := s.app.send(t, request{
				method: http.MethodHead, bucket: s.bucket, key: o.Key, header: s.headers(o),
			})
			if err != nil || resp.StatusCode < 300 {
				t.Errorf("%s: HEAD of %s: %v, %v", name, changed, resp, err)
			}
		}
	}

	for i, p := range o.StoredParts {
		for _, at := range o.flips(p) {
			parts := s.stored(t, o)
			parts[i][at] ^= 1
			s.put(t, o, o.StoredHeaders, parts)
			if !s.refused(t, o) {
				t.Errorf("part %d: byte %d is changed, and all is read", p.Number, at)
			}
		}
	}
}

// sealed reports whether the metadata is sealed.
func (o *corpusObject) sealed() bool { return o.StoredHeaders["X-Amz-Meta-Cmek-Meta"] != "" }

// protects reports whether a change of this header must be refused. The key id
// of a multipart object is for display only, except with sealed metadata. Of
// large objects one entry is enough: they have the metadata of the others.
func (o *corpusObject) protects(name string) bool {
	const prefix = "X-Amz-Meta-Cmek-"
	switch {
	case o.Missing != nil:
		return name == prefix+"V"
	case o.Parts > 0 && !o.sealed():
		return strings.HasPrefix(name, prefix) && name != prefix+"Key"
	default:
		return strings.HasPrefix(name, prefix)
	}
}

// flips returns where to flip a bit of a part: in the middle of what was kept,
// and at the end of a single-PUT object, in the MAC and the fill of a short
// part.
func (o *corpusObject) flips(p corpusPart) (at []int64) {
	for _, interval := range p.Kept {
		at = append(at, (interval[0]+interval[1])/2)
	}
	if len(at) == 0 || p.Size >= crypt.MinPartSize {
		return at
	}
	if p.Number > 0 {
		const mac = 64
		at = append(at, mac)
	}
	if o.Missing == nil { // ranges do not read the fill
		at = append(at, p.Size-1)
	}
	return at
}

// refused reports whether any of what can be read is refused.
func (s *corpusStack) refused(t *testing.T, o *corpusObject) bool {
	t.Helper()
	if o.Missing == nil {
		_, err := s.read(t, o, s.headers(o))
		return err != nil
	}
	text := o.text()
	for _, r := range o.Ranges {
		got, err := s.read(t, o, s.headers(o, "Range", r.String()))
		if !bytes.HasPrefix(text[r[0]:r[1]+1], got) {
			t.Errorf("%s: bytes that are not those of the object", r)
		}
		if err != nil {
			return true
		}
	}
	return false
}
