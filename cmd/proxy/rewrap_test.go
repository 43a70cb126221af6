//go:build !nodev

package main

import (
	"bytes"
	"context"
	"crypto/md5"
	"crypto/sha256"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"math/rand/v2"
	"net/http"
	"net/http/httptest"
	"net/http/httputil"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/credentials"
	"github.com/aws/aws-sdk-go-v2/service/s3"
	"github.com/aws/aws-sdk-go-v2/service/s3/types"

	"github.com/cmekproxy/cmekproxy/internal/kms"
	"github.com/cmekproxy/cmekproxy/internal/kms/kmstest"
	"github.com/cmekproxy/cmekproxy/internal/maintain/inventory"
	"github.com/cmekproxy/cmekproxy/internal/maintain/walk"
	"github.com/cmekproxy/cmekproxy/internal/origin"
	"github.com/cmekproxy/cmekproxy/internal/proxytest"
)

// commandEnv has the arguments for TestMainCommand, one per line. The test
// binary is then the program.
const commandEnv = "CMEKPROXY_TEST_COMMAND"

func TestMainCommand(t *testing.T) {
	args := os.Getenv(commandEnv)
	if args == "" {
		t.Skip("for processes that other tests start and kill")
	}
	ctx, _ := begin() // as in main
	os.Exit(run(ctx, strings.Split(args, "\n"), os.Stdout, os.Stderr))
}

// move is a store with objects under key old, which are to be moved to key
// new.
type move struct {
	t         *testing.T
	store     string // URL
	dir       string
	keys      map[string]string // files, or ARNs, by key name
	kms       *kmstest.Server   // nil for local keys
	app       *s3.Client        // uses a proxy whose rules name old
	direct    *s3.Client
	bucket    string
	texts     map[string][sha256.Size]byte
	plain     map[string]bool
	both      string // path of a configuration with both keys
	onlyNew   string // the same without the old key
	stopProxy func()
}

func newMove(t *testing.T) *move {
	t.Helper()
	m := &move{t: t, dir: t.TempDir(), keys: make(map[string]string)}
	for _, name := range []string{"old", "new"} {
		m.keys[name] = filepath.Join(m.dir, name+".key")
		if err := kms.CreateLocalKeyFile(m.keys[name]); err != nil {
			t.Fatal(err)
		}
	}
	m.start()
	return m
}

// newAWSMove is newMove with keys in AWS KMS, which has an encryption
// context.
func newAWSMove(t *testing.T) *move {
	t.Helper()
	t.Setenv("AWS_ACCESS_KEY_ID", kmstest.AccessKeyID)
	t.Setenv("AWS_SECRET_ACCESS_KEY", "example")
	m := &move{t: t, dir: t.TempDir(), keys: make(map[string]string), kms: kmstest.StartTest(t)}
	for _, name := range []string{"old", "new"} {
		m.keys[name] = m.kms.NewKey(t, nil).KeyID()
	}
	m.start()
	return m
}

// start starts the store and a proxy.
func (m *move) start() {
	t := m.t
	t.Helper()
	m.store, m.bucket = proxytest.ServeStore(t), "bucket"
	m.texts, m.plain = make(map[string][sha256.Size]byte), make(map[string]bool)

	m.both = m.config("both.yaml", m.store, "old", "old", "new")
	m.onlyNew = m.config("new.yaml", m.store, "new", "new")
	m.app, m.stopProxy = m.serve(m.both)
	m.direct = client(strings.TrimPrefix(m.store, "http://"), proxytest.AccessKey, proxytest.SecretKey)
	if _, err := m.direct.CreateBucket(t.Context(), &s3.CreateBucketInput{Bucket: &m.bucket}); err != nil {
		t.Fatal(err)
	}
}

// provider returns the settings of a key.
func (m *move) provider(key string) string {
	if m.kms != nil {
		return fmt.Sprintf("provider: aws-kms, key_id: %q, endpoint: %q", m.keys[key], m.kms.URL())
	}
	return "provider: local, key_file: " + m.keys[key]
}

// config writes a configuration with free addresses.
func (m *move) config(name, store, rule string, keys ...string) string {
	m.t.Helper()
	var list strings.Builder
	for _, key := range keys {
		fmt.Fprintf(&list, "  - {name: %s, %s}\n", key, m.provider(key))
	}

	text := fmt.Sprintf(`listen: %s
admin_listen: %s
origin: {endpoint: "%s", region: us-east-1, access_key: storekey, secret_key: storesecretstoresecret}
clients:
  - {name: app, access_key: appkey, secret_key: appsecretappsecret, allow: [{buckets: ["*"], actions: [read, write, delete, list]}]}
keys:
%stls: {ends_on_this_machine: true}
encryption: {customer_keys: allow, rules: [{buckets: ["*"], key: %s, plaintext_objects: allow, allowed_keys: ["*"]}]}
`, freePort(m.t), freePort(m.t), store, list.String(), rule)

	path := filepath.Join(m.dir, name)
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		m.t.Fatal(err)
	}
	return path
}

// serve runs a proxy in this process.
func (m *move) serve(config string) (*s3.Client, func()) {
	m.t.Helper()
	text, err := os.ReadFile(config)
	if err != nil {
		m.t.Fatal(err)
	}
	lines := strings.Split(string(text), "\n")
	s := start(m.t, "serve", "--config", config)
	waitStatus(m.t, "http://"+strings.TrimPrefix(lines[1], "admin_listen: ")+"/readyz", http.StatusOK)
	return client(strings.TrimPrefix(lines[0], "listen: "), "appkey", "appsecretappsecret"), func() { s.end(m.t) }
}

// text returns n bytes, the same for the same seed.
func text(seed uint64, n int) []byte {
	b := make([]byte, n)
	source := rand.NewChaCha8([32]byte{byte(seed), byte(seed >> 8), byte(seed >> 16)})
	source.Read(b)
	return b
}

func (m *move) put(key string, body []byte, more ...func(*s3.PutObjectInput)) {
	m.t.Helper()
	in := &s3.PutObjectInput{Bucket: &m.bucket, Key: &key, Body: bytes.NewReader(body)}
	for _, f := range more {
		f(in)
	}
	if _, err := m.app.PutObject(m.t.Context(), in); err != nil {
		m.t.Fatalf("%s: %v", key, err)
	}
	m.texts[key] = sha256.Sum256(body)
}

// upload stores a multipart object with these part numbers.
func (m *move) upload(key string, numbers []int32, sizes ...int) {
	m.t.Helper()
	in := &s3.CreateMultipartUploadInput{
		Bucket: &m.bucket, Key: &key, Metadata: map[string]string{"parts": strconv.Itoa(len(sizes))},
		ContentType: aws.String(
			"application/x-parts",
		), Tagging: aws.String("kind=parts&a%20b=c"), ChecksumAlgorithm: types.ChecksumAlgorithmCrc32c,
	}

	up, err := m.app.CreateMultipartUpload(m.t.Context(), in)
	if err != nil {
		m.t.Fatal(err)
	}
	var done []types.CompletedPart
	whole := sha256.New()

	for i, size := range sizes {
		body := text(uint64(len(key)*100+i), size)
		whole.Write(body)
		out, err := m.app.UploadPart(m.t.Context(), &s3.UploadPartInput{
			Bucket: &m.bucket, Key: &key, UploadId: up.UploadId, PartNumber: &numbers[i], Body: bytes.NewReader(body),
			ChecksumAlgorithm: types.ChecksumAlgorithmCrc32c,
		})
		if err != nil {
			m.t.Fatal(err)
		}

		done = append(
			done,
			types.CompletedPart{PartNumber: &numbers[i], ETag: out.ETag, ChecksumCRC32C: out.ChecksumCRC32C},
		)
	}

	if _, err := m.app.CompleteMultipartUpload(m.t.Context(), &s3.CompleteMultipartUploadInput{
		Bucket: &m.bucket, Key: &key, UploadId: up.UploadId, MultipartUpload: &types.CompletedMultipartUpload{Parts: done},
	}); err != nil {
		m.t.Fatalf("%s: %v", key, err)
	}
	m.texts[key] = [sha256.Size]byte(whole.Sum(nil))
}

// command runs a command to its end and returns what it printed.
func (m *move) command(code int, args ...string) string {
	m.t.Helper()
	var out output
	if got := run(m.t.Context(), args, &out, &out); got != code {
		m.t.Fatalf("%q: exit code %d, not %d:\n%s", args, got, code, out.String())
	}
	return out.String()
}

// state returns everything that the store reports about the objects, except
// what differs between answers.
func (m *move) state() map[string]string {
	m.t.Helper()
	out := make(map[string]string)
	pages := s3.NewListObjectsV2Paginator(m.direct, &s3.ListObjectsV2Input{Bucket: &m.bucket})
	for pages.HasMorePages() {
		page, err := pages.NextPage(m.t.Context())
		if err != nil {
			m.t.Fatal(err)
		}

		for _, o := range page.Contents {
			head, err := m.direct.HeadObject(m.t.Context(), &s3.HeadObjectInput{Bucket: &m.bucket, Key: o.Key})
			if err != nil {
				m.t.Fatal(err)
			}

			metadata, err := json.Marshal(head.Metadata) // with sorted names
			if err != nil {
				m.t.Fatal(err)
			}
			out[*o.Key] = fmt.Sprintf("%s %d %s %s", *head.ETag, *head.ContentLength, head.LastModified, metadata)
		}
	}

	return out
}

// shown returns what a client gets for an object, except what rewrapping
// changes.
func (m *move) shown(c *s3.Client, key string) string {
	m.t.Helper()
	head, err := c.HeadObject(
		m.t.Context(),
		&s3.HeadObjectInput{Bucket: &m.bucket, Key: &key, ChecksumMode: types.ChecksumModeEnabled},
	)
	if err != nil {
		m.t.Fatalf("%s: %v", key, err)
	}

	tags, err := m.direct.GetObjectTagging(m.t.Context(), &s3.GetObjectTaggingInput{Bucket: &m.bucket, Key: &key})
	if err != nil {
		m.t.Fatalf("%s: %v", key, err)
	}

	var tagged []string
	for _, tag := range tags.TagSet {
		tagged = append(tagged, *tag.Key+"="+*tag.Value)
	}
	slices.Sort(tagged)

	metadata, err := json.Marshal(head.Metadata)
	if err != nil {
		m.t.Fatal(err)
	}

	etag := *head.ETag
	if _, count, ok := strings.Cut(etag, "-"); ok && count != `0"` {
		etag = count // for multipart objects
	}

	s := fmt.Sprintln(
		etag,
		*head.ContentLength,
		aws.ToString(head.ContentType),
		aws.ToString(head.ContentEncoding),
		aws.ToString(head.CacheControl),
		aws.ToString(
			head.ContentDisposition,
		),
		aws.ToString(head.ContentLanguage),
		aws.ToString(head.ExpiresString),
		string(metadata),
		tagged,
		aws.ToString(head.ChecksumCRC32C),
		aws.ToString(head.ChecksumCRC32),
		head.ChecksumType,
	)

	for part := int32(1); etag != *head.ETag; part++ {
		head, err := c.HeadObject(m.t.Context(), &s3.HeadObjectInput{Bucket: &m.bucket, Key: &key, PartNumber: &part})
		if err != nil {
			break
		}
		s += fmt.Sprintln("part", part, *head.ContentLength)
	}

	return s
}

// readable reads every object and compares it.
func (m *move) readable(c *s3.Client) {
	m.t.Helper()
	for key, want := range m.texts {
		out, err := c.GetObject(m.t.Context(), &s3.GetObjectInput{Bucket: &m.bucket, Key: &key})
		if err != nil {
			m.t.Errorf("%q: %v", key, err)
			continue
		}
		sum := sha256.New()
		_, err = io.Copy(sum, out.Body)

		out.Body.Close()
		if err != nil || [sha256.Size]byte(sum.Sum(nil)) != want {
			m.t.Errorf("%q: other bytes than were stored, %v", key, err)
		}
	}
}

// keysOf returns the inventory: the key names of each object, and the
// totals.
func (m *move) keysOf(config string, code int, args ...string) (map[string]string, map[string]int64) {
	m.t.Helper()
	out := m.command(
		code,
		append([]string{"inventory", "--config", config, "s3://bucket", "--format", "json"}, args...)...)
	keys, totals := make(map[string]string), make(map[string]int64)

	for line := range strings.Lines(out) {
		var row struct {
			Type, Key, Kind, Name string
			Keys                  []inventory.Key `json:"kms_keys"`
			Objects               int64
		}
		if err := json.Unmarshal([]byte(line), &row); err != nil {
			if code != 0 {
				continue // the program's own line about its exit code
			}
			m.t.Fatalf("%v: %s", err, line)
		}

		if row.Type == "summary" {
			totals[row.Name] += row.Objects
			continue
		}
		if row.Type == "total" {
			continue
		}
		keys[row.Key] = row.Kind

		for _, k := range row.Keys {
			keys[row.Key] += " " + k.Name
		}
	}

	return keys, totals
}

// oddKeys are difficult for paths, queries, XML and listings.
var oddKeys = []string{
	"a b", "a+b", "a%20b", "a%2Fb", "ü/日本語/😀", "<&>\"'", "dir/with//no", "?query=1&x", "#fragment", "semi;colon,comma",
	"back\\slash", "star*", "=1+1", "~tilde", "trailing ", "[1]{2}",
}

// seed stores 300 objects of all kinds.
func (m *move) seed() {
	for i, key := range oddKeys {
		if strings.Contains(key, "//") {
			key = strings.ReplaceAll(key, "//", "/")
		}
		m.put(key, text(uint64(i), 1000+i))
	}

	sizes := []int{0, 1, 16, 65_495, 65_496, 65_497, 131_032, 300_000, 1<<20 + 3}
	for i := range 264 {
		size := sizes[i%len(sizes)]
		if i > 40 {
			size = min(size, 65_497)
		}

		m.put(fmt.Sprintf("data/%03d", i), text(uint64(1000+i), size), func(in *s3.PutObjectInput) {
			switch i % 4 {
			case 0:
				in.Metadata = map[string]string{
					"number":     strconv.Itoa(i),
					"mixed-Case": "a  b = c, d: Größe",
					"empty":      "",
				}
				in.Tagging = aws.String("team=a%2Bb%20c&empty=")
			case 1:
				in.ContentType, in.CacheControl, in.ContentDisposition = aws.String(
					"text/plain; charset=utf-8",
				), aws.String(
					"no-cache, max-age=0",
				), aws.String(
					`attachment; filename="a b.txt"`,
				)

				in.ContentLanguage, in.ContentEncoding = aws.String("de, en"), aws.String("x-none")
				in.Expires = aws.Time(time.Date(2030, 1, 2, 3, 4, 5, 0, time.UTC))
			case 2:
				in.ChecksumAlgorithm = types.ChecksumAlgorithmCrc32c
			}
		})
	}

	const mib = 1 << 20
	m.upload("parts/uniform", []int32{1, 2, 3}, 5*mib, 5*mib, 5*mib)  // with an appended part
	m.upload("parts/short end", []int32{1, 2, 3}, 5*mib, 5*mib, 1000) // without an appended part
	m.upload("parts/empty end", []int32{1, 2}, 5*mib, 0)
	m.upload("parts/odd", []int32{1, 2, 3}, 5*mib, 6*mib, 5*mib+1)
	m.upload("parts/odd short", []int32{1, 2, 3}, 6*mib, 5*mib, 7)
	m.upload("parts/gaps", []int32{2, 5, 9}, 5*mib, 5*mib+3, 5*mib)
	m.upload("parts/one", []int32{1}, 6*mib)

	m.upload("parts/tiny", []int32{1}, 10)
	for i := range 12 {
		key, body := fmt.Sprintf("plain/%d", i), text(uint64(5000+i), i*100)
		if _, err := m.direct.PutObject(m.t.Context(), &s3.PutObjectInput{
			Bucket: &m.bucket, Key: &key, Body: bytes.NewReader(body),
		}); err != nil {
			m.t.Fatal(err)
		}
		m.texts[key], m.plain[key] = sha256.Sum256(body), true
	}

	if len(m.texts) != 300 {
		m.t.Fatalf("%d objects", len(m.texts))
	}
}

// under checks that the inventory has all objects under one key.
func (m *move) under(name string) {
	m.t.Helper()
	keys, totals := m.keysOf(m.both, 0)
	for key := range m.texts {
		want := "single " + name
		if strings.HasPrefix(key, "parts/") {
			want = "multipart " + name
		}
		if m.plain[key] {
			want = "plaintext"
		}

		if keys[key] != want {
			m.t.Errorf("%q: %q, not %q", key, keys[key], want)
		}
	}

	if len(keys) != len(m.texts) || totals[name] != int64(len(m.texts)-len(m.plain)) ||
		totals["-"] != int64(len(m.plain)) ||
		len(totals) > 2 {
		m.t.Errorf("%d objects in the inventory, totals %v", len(keys), totals)
	}
}

func TestRewrap(t *testing.T) {
	m := newMove(t)
	m.seed()
	m.under("old")
	before, shown := m.state(), make(map[string]string)
	for key := range m.texts {
		shown[key] = m.shown(m.app, key)
	}

	all := len(m.texts) - len(m.plain)

	dry := m.command(0, "rewrap", "--config", m.both, "s3://bucket", "--to", "new", "--dry-run")
	if want := fmt.Sprintf("to rewrap  %d objects", all); !strings.Contains(dry, want) ||
		!strings.Contains(dry, "8 of them multipart") {
		t.Errorf("the dry run does not say %q:\n%s", want, dry)
	}

	if after := m.state(); !maps.Equal(before, after) {
		t.Error("the dry run has changed the store")
	}

	part := m.command(0, "rewrap", "--config", m.both, "s3://bucket/data/00", "--to", "new")
	if !strings.Contains(part, "rewrapped  10 objects") {
		t.Errorf("a prefix:\n%s", part)
	}

	out := m.command(0, "rewrap", "--config", m.both, "s3://bucket", "--to", "new")
	if want := fmt.Sprintf(
		"rewrapped  %d objects", all-10,
	); !strings.Contains(out, want) || !strings.Contains(out, "10 already under the right key, 12 plaintext, 0 deleted") ||
		!strings.Contains(out, "8 of them multipart") ||
		!strings.Contains(out, "method put, with If-Match") ||
		strings.Contains(out, "WARNING") {
		t.Errorf("it does not say %q:\n%s", want, out)
	}

	m.under("new")
	again := m.state()
	if out := m.command(0, "rewrap", "--config", m.both, "s3://bucket", "--to", "new"); !strings.Contains(
		out,
		"rewrapped  0 objects",
	) {
		t.Errorf("a second time:\n%s", out)
	}

	if !maps.Equal(again, m.state()) {
		t.Error("the second run has changed the store")
	}
	m.readable(m.app) // the proxy that was running all the time has both keys

	m.stopProxy()
	if err := os.Remove(m.keys["old"]); err != nil {
		t.Fatal(err)
	}
	reader, _ := m.serve(m.onlyNew)
	m.readable(reader)

	for key := range m.texts {
		if got := m.shown(reader, key); got != shown[key] {
			t.Errorf("%q:\n%sbefore:\n%s", key, got, shown[key])
		}
	}

	if uploads, err := m.direct.ListMultipartUploads(t.Context(), &s3.ListMultipartUploadsInput{
		Bucket: &m.bucket,
	}); err != nil ||
		len(uploads.Uploads) > 0 {
		t.Errorf("uploads are left over: %v, %v", uploads, err)
	}
}

// Back to the key of the rules, without --to; and to the key that is already
// in use, with --all. Directory markers have no body in the store.
func TestCommandsOnDirectoryMarkers(t *testing.T) {
	m := newMove(t)
	m.put("dir/", nil)
	m.put("dir/file", []byte("text"))
	key := "plain/"
	if _, err := m.direct.PutObject(t.Context(), &s3.PutObjectInput{Bucket: &m.bucket, Key: &key}); err != nil {
		t.Fatal(err)
	}

	if out := m.command(0, "encrypt", "--config", m.both, "s3://bucket"); !strings.Contains(
		out,
		"encrypted  1 objects",
	) {
		t.Errorf("encrypt: %s", out)
	}

	if out := m.command(0, "rewrap", "--config", m.both, "--to", "new", "s3://bucket"); !strings.Contains(
		out,
		"rewrapped  3 objects",
	) {
		t.Errorf("rewrap: %s", out)
	}

	if out := m.command(0, "verify", "--config", m.onlyNew, "s3://bucket"); !strings.Contains(
		out,
		"verified   3 objects",
	) {
		t.Errorf("verify: %s", out)
	}
}

// Objects under customer keys cannot be moved or verified, which is not an
// error.
func TestCommandsPassCustomerKeysBy(t *testing.T) {
	m := newMove(t)
	m.put("kms", []byte("text"))
	key := bytes.Repeat([]byte{7}, 32)
	sum := md5.Sum(key)

	m.put("customer", []byte("text"), func(in *s3.PutObjectInput) {
		in.SSECustomerAlgorithm, in.SSECustomerKey, in.SSECustomerKeyMD5 = new(
			"AES256",
		), new(
			base64.StdEncoding.EncodeToString(key),
		), new(
			base64.StdEncoding.EncodeToString(sum[:]),
		)
	})

	if out := m.command(0, "rewrap", "--config", m.both, "--to", "new", "s3://bucket"); !strings.Contains(
		out,
		"rewrapped  1 objects",
	) ||
		!strings.Contains(out, "1 under customer keys") {
		t.Errorf("rewrap: %s", out)
	}

	if out := m.command(0, "verify", "--config", m.both, "s3://bucket"); !strings.Contains(
		out,
		"verified   1 objects",
	) ||
		!strings.Contains(out, "1 under customer keys") {
		t.Errorf("verify: %s", out)
	}
}

func TestRewrapToTheKeyOfTheRules(t *testing.T) {
	m := newMove(t)
	for i := range 5 {
		m.put(fmt.Sprintf("k%d", i), text(uint64(i), 100))
	}
	m.command(0, "rewrap", "--config", m.both, "s3://bucket/", "--to", "new")
	m.under("new")
	m.command(0, "rewrap", "--config", m.both, "s3://bucket/")

	m.under("old")
	before := m.state()
	// A local key with one version is at its newest version, so nothing is
	// done.
	if out := m.command(0, "rewrap", "--config", m.both, "s3://bucket", "--all"); !strings.Contains(
		out,
		"rewrapped  0 objects",
	) ||
		!maps.Equal(before, m.state()) {
		t.Errorf("--all without a newer version:\n%s", out)
	}

	m.readable(m.app)
}

// If the target key cannot be used, nothing changes.
func TestRewrapToAKeyThatIsGone(t *testing.T) {
	m := newMove(t)
	for i := range 20 {
		m.put(fmt.Sprintf("k%d", i), text(uint64(i), 100))
	}
	m.upload("parts/a", []int32{1}, 6<<20)
	before := m.state()
	ruled := m.config("ruled.yaml", m.store, "new", "old", "new")

	if err := os.Remove(m.keys["new"]); err != nil {
		t.Fatal(err)
	}
	out := m.command(1, "rewrap", "--config", m.both, "s3://bucket", "--to", "new")
	if !strings.Contains(out, "key new") {
		t.Errorf("it does not name the key:\n%s", out)
	}

	out = m.command(1, "rewrap", "--config", ruled, "s3://bucket")
	if !strings.Contains(out, "failed     21") || strings.Count(out, "FAILED") != 21 {
		t.Errorf("by the rules:\n%s", out)
	}

	out = m.command(1, "rewrap", "--config", m.both, "s3://bucket", "--to", "nobody")
	if !strings.Contains(out, `unknown key "nobody"`) {
		t.Errorf("an unknown key:\n%s", out)
	}
	if !maps.Equal(before, m.state()) {
		t.Error("the store has changed")
	}

	m.readable(m.app)
}

// hook returns the URL of a proxy to the store that changes some requests
// and signs them again.
func (m *move) hook(before func(*http.Request)) string {
	target, err := url.Parse(m.store)
	if err != nil {
		m.t.Fatal(err)
	}

	server := httptest.NewServer(&httputil.ReverseProxy{
		Rewrite: func(r *httputil.ProxyRequest) {
			before(r.Out)
			r.Out.Header.Del("Authorization")
		},
		Transport: origin.New(origin.Config{
			Endpoint: target, Region: "us-east-1", PathStyle: true, Now: time.Now,
			Uploads:     origin.Always(origin.Uploads{Trailer: true, PartChecksums: true}),
			Transport:   http.DefaultTransport,
			Credentials: credentials.NewStaticCredentialsProvider(proxytest.AccessKey, proxytest.SecretKey, ""),
		}),
	})

	m.t.Cleanup(server.Close)
	return server.URL
}

// What a client stores right before the store receives the new envelope, or
// completes the upload, is kept.
func TestRewrapNeverRollsBack(t *testing.T) {
	m := newMove(t)
	for i := range 20 {
		m.put(fmt.Sprintf("k%02d", i), text(uint64(i), 70_000))
	}
	m.upload("parts/a", []int32{1, 2}, 5<<20, 6<<20)
	m.upload("parts/b", []int32{1, 2}, 5<<20, 7)
	fresh, overwritten := text(777, 12_345), make(map[string]bool)

	var mu sync.Mutex
	var deletedOnce bool
	hooked := m.hook(func(r *http.Request) {
		key, ok := strings.CutPrefix(r.URL.Path, "/bucket/")
		writes := r.Method == http.MethodPut && r.URL.RawQuery == "" ||
			r.Method == http.MethodPost && strings.Contains(r.URL.RawQuery, "uploadId")
		mu.Lock()
		defer mu.Unlock()

		if !ok || !writes || isProbe(r) || overwritten[key] {
			return
		}
		overwritten[key] = true

		if key == "k07" {
			deletedOnce = true
			if _, err := m.app.DeleteObject(context.Background(), &s3.DeleteObjectInput{
				Bucket: &m.bucket, Key: &key,
			}); err != nil {
				t.Error(err)
			}
			return
		}

		if _, err := m.app.PutObject(context.Background(), &s3.PutObjectInput{
			Bucket: &m.bucket, Key: &key, Body: bytes.NewReader(fresh),
		}); err != nil {
			t.Error(err)
		}
		m.texts[key] = sha256.Sum256(fresh)
	})

	out := m.command(
		0,
		"rewrap",
		"--config",
		m.config("hooked.yaml", hooked, "old", "old", "new"),
		"s3://bucket",
		"--to",
		"new",
	)
	if len(overwritten) != 22 || !deletedOnce || !strings.Contains(out, "rewrapped  21 objects") ||
		!strings.Contains(out, "1 deleted during the run") {
		t.Errorf("%d overwritten:\n%s", len(overwritten), out)
	}

	delete(m.texts, "k07")
	if _, err := m.direct.HeadObject(t.Context(), &s3.HeadObjectInput{
		Bucket: &m.bucket, Key: aws.String("k07"),
	}); err == nil {
		t.Error("what was deleted is there again")
	}
	m.readable(m.app)
	keys, _ := m.keysOf(m.both, 0)

	for key := range m.texts {
		if keys[key] != "single new" {
			t.Errorf("%s: %s", key, keys[key])
		}
	}

	if uploads, err := m.direct.ListMultipartUploads(t.Context(), &s3.ListMultipartUploadsInput{
		Bucket: &m.bucket,
	}); err != nil ||
		len(uploads.Uploads) > 0 {
		t.Errorf("uploads are left over: %v, %v", uploads, err)
	}
}

// Clients write all the time. In the end, every write that was acknowledged
// is there.
func TestRewrapWhileClientsWrite(t *testing.T) {
	m := newMove(t)
	const writers, keys = 4, 10
	for i := range writers * keys {
		m.put(fmt.Sprintf("k%02d", i), text(uint64(i), 20_000))
	}
	ctx, stop := context.WithCancel(t.Context())
	var wg sync.WaitGroup

	var mu sync.Mutex
	var written atomic.Int64
	for w := range writers {
		wg.Go(func() {
			for n := uint64(0); ctx.Err() == nil; n++ {
				key, body := fmt.Sprintf("k%02d", w*keys+int(n%keys)), text(n*31+uint64(w), int(n*997%70_000))
				if _, err := m.app.PutObject(t.Context(), &s3.PutObjectInput{
					Bucket: &m.bucket, Key: &key, Body: bytes.NewReader(body),
				}); err != nil {
					t.Error(err)
					return
				}
				written.Add(1)
				mu.Lock()

				m.texts[key] = sha256.Sum256(body)
				mu.Unlock()
			}
		})
	}

	for i := range 3 {
		var out output
		to := []string{"new", "old"}[i%2]

		// An object that is overwritten during every attempt fails, as it
		// should. So do the temporary files of running writes (sgwtmp),
		// which this store lists sometimes.
		code := run(t.Context(), []string{"rewrap", "--config", m.both, "s3://bucket", "--to", to}, &out, &out)

		expected := func(word string) bool { return strings.Contains(out.String(), word) }
		if code != 0 && !slices.ContainsFunc([]string{"changed", "412", ".sgwtmp."}, expected) {
			t.Errorf("exit code %d:\n%s", code, out.String())
		}
	}

	stop()
	wg.Wait()
	if written.Load() < 30 {
		t.Errorf("only %d writes", written.Load())
	}
	m.readable(m.app)
	m.command(0, "rewrap", "--config", m.both, "s3://bucket", "--to", "new")

	m.under("new")
	m.readable(m.app)
}

// If a store ignores If-Match, nothing is written unless the operator allows
// it.
func TestRewrapWithAStoreWithoutConditions(t *testing.T) {
	m := newMove(t)
	for i := range 4 {
		m.put(fmt.Sprintf("k%d", i), text(uint64(i), 70_000))
	}
	m.upload("parts/a", []int32{1, 2}, 5<<20, 6<<20)
	before := m.state()

	hooked := m.hook(func(r *http.Request) {
		if r.Method == http.MethodPut || r.Method == http.MethodPost {
			r.Header.Del("If-Match")
		}
	})
	config := m.config("hooked.yaml", hooked, "old", "old", "new")

	out := m.command(1, "rewrap", "--config", config, "s3://bucket", "--to", "new")
	if !strings.Contains(out, "honors If-Match neither") || !maps.Equal(before, m.state()) {
		t.Errorf("it does not refuse:\n%s", out)
	}

	for _, method := range []string{"put", "copy"} {
		to := map[string]string{"put": "new", "copy": "old"}[method]
		out := m.command(0, "rewrap", "--config", config, "s3://bucket", "--to", to, "--method", method)
		if strings.Count(out, "WARNING") != 2 || !strings.Contains(out, "rewrapped  5 objects") {
			t.Errorf("%s:\n%s", method, out)
		}
		m.under(to)
		m.readable(m.app)
	}
}

// isProbe reports whether a request is for an object with which a command
// finds out what the store can do.
func isProbe(r *http.Request) bool { return strings.Contains(r.URL.Path, "cmekproxy-check") }

// killed starts the command as a process, and kills it after it has written
// some objects.
func (m *move) killed(after int64, command string, args ...string) {
	m.t.Helper()
	var writes atomic.Int64
	hooked := m.hook(func(r *http.Request) {
		if r.Method == http.MethodPut && r.URL.RawQuery == "" && !isProbe(r) {
			writes.Add(1)
		}
	})

	config := m.config("killed.yaml", hooked, "old", "old", "new")
	cmd := exec.Command(os.Args[0], "-test.run=^TestMainCommand$")
	cmd.Env = append(
		os.Environ(),
		commandEnv+"="+strings.Join(append([]string{command, "--config", config, "s3://" + m.bucket}, args...), "\n"),
	)
	var out output

	cmd.Stdout, cmd.Stderr = &out, &out
	if err := cmd.Start(); err != nil {
		m.t.Fatal(err)
	}
	ended := make(chan error, 1)
	go func() { ended <- cmd.Wait() }()

	for writes.Load() < after {
		select {
		case err := <-ended:
			m.t.Fatalf("it ended before it was killed, %v:\n%s", err, out.String())
		case <-time.After(5 * time.Millisecond):
		}
	}

	if err := cmd.Process.Kill(); err != nil {
		m.t.Fatal(err)
	}
	if exit := (*exec.ExitError)(nil); !errors.As(<-ended, &exit) {
		m.t.Fatalf("it was not killed:\n%s", out.String())
	}
}

func TestRewrapKilledAndResumed(t *testing.T) {
	m := newMove(t)
	for i := range 150 {
		m.put(fmt.Sprintf("k%03d", i), text(uint64(i), 3000))
	}
	m.upload("parts/a", []int32{1, 2}, 5<<20, 6<<20)
	file := filepath.Join(m.dir, "state")
	m.killed(90, "rewrap", "--to", "new", "--state", file, "--parallel", "4", "--rate", "50")

	m.readable(m.app) // whatever state it was left in
	written, err := os.ReadFile(file)
	if err != nil {
		t.Fatal("no state is left:", err)
	}

	var state walk.State
	if err := json.Unmarshal(written, &state); err != nil || state.After < "k010" || state.After >= "k149" {
		t.Errorf("%v: %s", err, written)
	}

	keys, _ := m.keysOf(m.both, 0)
	for key, kind := range keys {
		if key <= state.After && kind != "single new" {
			t.Errorf("%s is called done, and is %s", key, kind)
		}
	}

	var heads atomic.Int64
	hooked := m.hook(func(r *http.Request) {
		if r.Method == http.MethodHead && !isProbe(r) {
			heads.Add(1)
		}
	})

	config := m.config("resumed.yaml", hooked, "old", "old", "new")
	if out := m.command(
		1, "rewrap", "--config", config, "s3://bucket/k", "--to", "new", "--state", file,
	); !strings.Contains(
		out,
		"belongs to another run",
	) {
		t.Errorf("the state of another run:\n%s", out)
	}

	m.command(0, "rewrap", "--config", config, "s3://bucket", "--to", "new", "--state", file)
	left := int64(0)
	for key := range keys {
		if key > state.After {
			left++
		}
	}

	if n := heads.Load(); n < left || n > left+10 { // the multipart object needs more than one request
		t.Errorf("the run that goes on asks %d times for the %d objects that are left", n, left)
	}
	if _, err := os.Stat(file); err == nil {
		t.Error("the state is still there")
	}
	m.under("new")

	m.readable(m.app)
}

// Failed objects are retried first, and stay in the state until then.
func TestRewrapRetriesWhatFailed(t *testing.T) {
	m := newMove(t)
	for i := range 10 {
		m.put(fmt.Sprintf("k%d", i), text(uint64(i), 100))
	}

	key := "k3"
	head, err := m.direct.HeadObject(t.Context(), &s3.HeadObjectInput{Bucket: &m.bucket, Key: &key})
	if err != nil {
		t.Fatal(err)
	}

	body, err := m.direct.GetObject(t.Context(), &s3.GetObjectInput{Bucket: &m.bucket, Key: &key})
	if err != nil {
		t.Fatal(err)
	}

	good, err := io.ReadAll(body.Body)
	if err != nil {
		t.Fatal(err)
	}

	store := func(metadata map[string]string, body []byte) {
		t.Helper()
		if _, err := m.direct.PutObject(t.Context(), &s3.PutObjectInput{
			Bucket: &m.bucket, Key: &key, Metadata: metadata, Body: bytes.NewReader(body),
		}); err != nil {
			t.Fatal(err)
		}
	}

	forged := maps.Clone(head.Metadata)
	forged["cmek-size"] = "101"
	file := filepath.Join(m.dir, "state")
	for name, broken := range map[string]func(){
		"another size in the envelope": func() { store(forged, good) },
		"a body that was altered": func() {
			store(
				head.Metadata, append(bytes.Clone(good[:len(good)-1]), good[len(good)-1]^1),
			)
		},
		"half an envelope": func() { store(map[string]string{"cmek-v": "1"}, good) },
	} {
		broken()
		before := m.state()[key]
		out := m.command(1, "rewrap", "--config", m.both, "s3://bucket", "--to", "new", "--state", file)
		if strings.Count(out, "FAILED  k3") != 1 || !strings.Contains(out, "failed     1") {
			t.Errorf("%s:\n%s", name, out)
		}

		if m.state()[key] != before {
			t.Errorf("%s: the object was written", name)
		}
		if written, err := os.ReadFile(file); err != nil ||
			!strings.Contains(string(written), `"after":"k9","failed":["k3"]`) {
			t.Errorf("%s: %v: %s", name, err, written)
		}
	}

	store(head.Metadata, good)
	if out := m.command(0, "rewrap", "--config", m.both, "s3://bucket", "--to", "new", "--state", file); !strings.Contains(
		out,
		"rewrapped  1 objects",
	) {
		t.Errorf("it does not try again:\n%s", out)
	}

	m.under("new")
	m.readable(m.app)
}

// Ten thousand small objects, killed and resumed: REWRAP_LONG=1.
func TestRewrapLong(t *testing.T) {
	if os.Getenv("REWRAP_LONG") == "" {
		t.Skip("REWRAP_LONG is not set")
	}
	const n = 10_000
	m := newMove(t)
	var wg sync.WaitGroup
	began := time.Now()

	for w := range 8 {
		wg.Go(func() {
			for i := w; i < n; i += 8 {
				key := fmt.Sprintf("k%05d", i)
				if _, err := m.app.PutObject(t.Context(), &s3.PutObjectInput{
					Bucket: &m.bucket, Key: &key, Body: bytes.NewReader(text(uint64(i), 1000)),
				}); err != nil {
					t.Error(err)
					return
				}
			}
		})
	}

	wg.Wait()
	for i := range n {
		m.texts[fmt.Sprintf("k%05d", i)] = sha256.Sum256(text(uint64(i), 1000))
	}
	t.Logf("stored in %v", time.Since(began))
	file := filepath.Join(m.dir, "state")
	began = time.Now()

	m.killed(n/2, "rewrap", "--to", "new", "--state", file)
	t.Logf("killed after %v", time.Since(began))
	began = time.Now()
	t.Log(m.command(0, "rewrap", "--config", m.both, "s3://bucket", "--to", "new", "--state", file))
	t.Logf("the rest in %v", time.Since(began))
	began = time.Now()
	m.under("new")

	t.Logf("inventory in %v", time.Since(began))
	m.readable(m.app)
}

// An object under a key that the rules do not name may have been planted, so
// it is not moved: under the right key, it would look genuine.
func TestRewrapReadsUnderNamedKeysOnly(t *testing.T) {
	m := newMove(t)
	m.put("k", text(1, 100)) // under the old key
	text, err := os.ReadFile(m.both)
	if err != nil {
		t.Fatal(err)
	}

	changed := strings.Replace(string(text), "key: old, plaintext_objects: allow, allowed_keys: [\"*\"]", "key: new", 1)
	if changed == string(text) {
		t.Fatal("the rule is not changed")
	}

	strict := filepath.Join(m.dir, "strict.yaml")
	if err := os.WriteFile(strict, []byte(changed), 0o600); err != nil {
		t.Fatal(err)
	}

	for _, args := range [][]string{
		{"rewrap", "--config", strict, "s3://bucket"},
		{"rewrap", "--config", strict, "s3://bucket", "--to", "new"},
		{"verify", "--config", strict, "s3://bucket"},
		{"decrypt", "--config", strict, "s3://bucket/k", "-o", filepath.Join(m.dir, "out")},
	} {
		if out := m.command(1, args...); !strings.Contains(out, "read_keys") {
			t.Errorf("%s does not say read_keys:\n%s", args[0], out)
		}
	}

	m.command(0, "decrypt", "--any-key", "--config", strict, "s3://bucket/k", "-o", filepath.Join(m.dir, "out"))
	check := m.command(0, "check", "--config", strict)
	if !strings.Contains(check, "note  key old: no rule names it") {
		t.Errorf("check:\n%s", check)
	}

	named := filepath.Join(m.dir, "named.yaml")
	if err := os.WriteFile(
		named, []byte(strings.Replace(changed, "key: new}", "key: new, read_keys: [old]}", 1)), 0o600,
	); err != nil {
		t.Fatal(err)
	}
	m.command(0, "rewrap", "--config", named, "s3://bucket")
	m.command(0, "verify", "--config", strict, "s3://bucket")
}
