//go:build !nodev

package main

import (
	"bytes"
	"context"
	"crypto/sha256"
	"fmt"
	"maps"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/service/s3"
	"github.com/aws/aws-sdk-go-v2/service/s3/types"

	"github.com/cmekproxy/cmekproxy/internal/crypt"
	"github.com/cmekproxy/cmekproxy/internal/stored"
)

// past runs f with m.put and m.upload storing plaintext, without the proxy.
func (m *move) past(f func()) {
	app := m.app
	m.app = m.direct
	defer func() { m.app = app }()
	f()
}

// plaintext stores objects of all kinds without the proxy.
func (m *move) plaintext() {
	const mib = 1 << 20
	m.past(func() {
		for i, size := range []int{0, 1, 55, 56, 57, 65_495, 65_496, 65_497, 131_033, 3*mib + 7} {
			m.put(fmt.Sprintf("plain/%02d", i), text(uint64(i), size), func(in *s3.PutObjectInput) {
				in.Metadata = map[string]string{"number": strconv.Itoa(i), "mixed-Case": "a  b = c", "empty": ""}
				in.Tagging = aws.String("team=a%2Bb%20c&empty=")
				in.ContentType, in.CacheControl, in.ContentEncoding = aws.String(
					"text/plain; charset=utf-8",
				), aws.String(
					"no-cache, max-age=0",
				), aws.String(
					"x-none",
				)

				in.Expires = aws.Time(time.Date(2030, 1, 2, 3, 4, 5, 0, time.UTC))
				in.ChecksumAlgorithm = types.ChecksumAlgorithm("").Values()[i%4]
			})
		}

		for i, key := range oddKeys {
			m.put("odd/"+strings.ReplaceAll(key, "//", "/"), text(uint64(i), 1000+i))
		}
		m.upload("parts/uniform", []int32{1, 2, 3}, 5*mib, 5*mib, 5*mib)
		m.upload("parts/short end", []int32{1, 2, 3}, 5*mib, 5*mib, 1000)
		m.upload("parts/odd", []int32{1, 2, 3}, 5*mib, 6*mib, 5*mib+1)
		m.upload("parts/gaps", []int32{2, 5, 9}, 5*mib, 5*mib+3, 5*mib)
		m.upload("parts/one", []int32{1}, 6*mib)

		m.upload("parts/tiny", []int32{1}, 10)
	})
}

// sizes returns the sizes that a client gets, in listings and from HEAD.
func (m *move) sizes(c *s3.Client) map[string]int64 {
	m.t.Helper()
	out := make(map[string]int64)
	pages := s3.NewListObjectsV2Paginator(c, &s3.ListObjectsV2Input{Bucket: &m.bucket})
	for pages.HasMorePages() {
		page, err := pages.NextPage(m.t.Context())
		if err != nil {
			m.t.Fatal(err)
		}

		for _, o := range page.Contents {
			head, err := c.HeadObject(m.t.Context(), &s3.HeadObjectInput{Bucket: &m.bucket, Key: o.Key})
			if err != nil {
				m.t.Fatalf("%q: %v", *o.Key, err)
			}
			if *head.ContentLength != *o.Size {
				m.t.Errorf("%q: %d bytes in the listing, and %d by HEAD", *o.Key, *o.Size, *head.ContentLength)
			}

			out[*o.Key] = *o.Size
		}
	}

	return out
}

// denying returns a configuration that denies plaintext.
func (m *move) denying() string {
	m.t.Helper()
	config := m.config("deny.yaml", m.store, "old", "old", "new")
	written, err := os.ReadFile(config)
	if err != nil {
		m.t.Fatal(err)
	}
	if err := os.WriteFile(
		config, bytes.Replace(written, []byte(", plaintext_objects: allow"), nil, 1), 0o600,
	); err != nil {
		m.t.Fatal(err)
	}
	return config
}

func TestEncrypt(t *testing.T) {
	m := newMove(t)
	m.plaintext()
	all := len(m.texts)
	for i := range 5 {
		m.put(fmt.Sprintf("sealed/%d", i), text(uint64(100+i), 1000*i))
	}
	m.upload("sealed/parts", []int32{1, 2}, 5<<20, 6<<20)

	shown, sizes := make(map[string]string), m.sizes(m.app)
	for key := range m.texts {
		shown[key] = m.shown(m.direct, key) // with its checksums, which the proxy does not return for plaintext
		if strings.HasPrefix(key, "sealed/") != strings.Contains(m.encryption(key), "aws:kms") {
			t.Fatalf("%s is encrypted: %q", key, m.encryption(key))
		}
	}

	before := m.state()

	out := m.command(0, "encrypt", "--config", m.both, "s3://bucket", "--dry-run")
	if want := fmt.Sprintf("to encrypt  %d objects", all); !strings.Contains(out, want) ||
		!strings.Contains(out, "6 of them multipart") ||
		!strings.Contains(out, "6 already encrypted") {
		t.Errorf("the dry run does not say %q:\n%s", want, out)
	}

	if !maps.Equal(before, m.state()) {
		t.Error("the dry run has changed the store")
	}

	out = m.command(0, "encrypt", "--config", m.both, "s3://bucket")
	if want := fmt.Sprintf("encrypted  %d objects", all); !strings.Contains(out, want) ||
		!strings.Contains(out, "6 of them multipart") ||
		!strings.Contains(out, "failed     0") ||
		strings.Contains(out, "WARNING") {
		t.Errorf("it does not say %q:\n%s", want, out)
	}

	again := m.state()
	for key, was := range before {
		if strings.HasPrefix(key, "sealed/") != (again[key] == was) {
			t.Errorf("%q: %s, and before %s", key, again[key], was)
		}
	}

	if out := m.command(0, "encrypt", "--config", m.both, "s3://bucket"); !strings.Contains(
		out,
		"encrypted  0 objects",
	) ||
		!maps.Equal(again, m.state()) {
		t.Errorf("a second time:\n%s", out)
	}

	if got := m.sizes(m.app); !maps.Equal(got, sizes) {
		t.Errorf("sizes are %v, and were %v", got, sizes)
	}
	m.readable(m.app) // the proxy that was running all the time
	reader, _ := m.serve(m.denying())
	m.readable(reader)

	for key := range m.texts {
		if strings.HasPrefix(key, "sealed/") {
			continue
		}
		if got := m.shown(reader, key); withoutPart(got) != withoutPart(shown[key]) {
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

// withoutPart removes the ETag, which counts an appended part, and a
// composite checksum, which is not kept.
func withoutPart(shown string) string {
	first, rest, _ := strings.Cut(shown, "\n")
	var kept []string
	for _, field := range strings.Fields(first)[1:] {
		if field != "COMPOSITE" && !strings.Contains(field, "==-") {
			kept = append(kept, field)
		}
	}
	return strings.Join(kept, " ") + "\n" + rest
}

// encryption returns the encryption headers that a client gets.
func (m *move) encryption(key string) string {
	m.t.Helper()
	head, err := m.app.HeadObject(m.t.Context(), &s3.HeadObjectInput{Bucket: &m.bucket, Key: &key})
	if err != nil {
		m.t.Fatalf("%s: %v", key, err)
	}
	return string(head.ServerSideEncryption)
}

// The stored object is compared with what was read, and broken objects are
// skipped.
func TestEncryptLeavesAloneWhatItCannotDo(t *testing.T) {
	m := newMove(t)
	m.past(func() { m.put("good", text(1, 1000)) })
	for key, metadata := range map[string]map[string]string{
		"half an envelope":  {"cmek-v": "1"},
		"a mark of nothing": {"cmek-v": "1", "cmek-suite": "1", "cmek-type": "other", "cmek-key": "x"},
	} {
		m.past(func() { m.put(key, text(2, 1000), func(in *s3.PutObjectInput) { in.Metadata = metadata }) })
		delete(m.texts, key)
	}

	before := m.state()
	out := m.command(1, "encrypt", "--config", m.both, "s3://bucket")
	if strings.Count(out, "FAILED") != 2 || !strings.Contains(out, "encrypted  1 objects") ||
		!strings.Contains(out, "malformed envelope") {
		t.Error(out)
	}

	after := m.state()
	for key := range before {
		if (key == "good") == (before[key] == after[key]) {
			t.Errorf("%s: %s, and before %s", key, after[key], before[key])
		}
	}
	m.readable(m.app)
}

// If the key is not available, nothing changes.
func TestEncryptWithoutAKey(t *testing.T) {
	m := newMove(t)
	m.plaintext()
	before := m.state()
	if err := os.Remove(m.keys["old"]); err != nil {
		t.Fatal(err)
	}

	out := m.command(1, "encrypt", "--config", m.both, "s3://bucket")
	if strings.Count(out, "FAILED") != len(m.texts) || !strings.Contains(out, "encrypted  0 objects") {
		t.Error(out)
	}
	if !maps.Equal(before, m.state()) {
		t.Error("the store has changed")
	}

	m.readable(m.direct)
}

// What a client stores right before the store receives the ciphertext, or
// completes the upload, is kept: through the proxy or without it.
func TestEncryptNeverRollsBack(t *testing.T) {
	m := newMove(t)
	m.past(func() {
		for i := range 10 {
			m.put(fmt.Sprintf("k%02d", i), text(uint64(i), 70_000))
		}
		m.upload("parts/a", []int32{1, 2}, 5<<20, 6<<20)
		m.upload("parts/b", []int32{1, 2}, 5<<20, 7)
	})

	overwritten := make(map[string]bool)
	var mu sync.Mutex
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
			if _, err := m.direct.DeleteObject(context.Background(), &s3.DeleteObjectInput{
				Bucket: &m.bucket, Key: &key,
			}); err != nil {
				t.Error(err)
			}
			return
		}

		client := m.app
		if len(overwritten)%2 == 0 {
			client = m.direct
		}
		fresh := text(uint64(777+len(overwritten)), 12_345)
		if _, err := client.PutObject(context.Background(), &s3.PutObjectInput{
			Bucket: &m.bucket, Key: &key, Body: bytes.NewReader(fresh),
		}); err != nil {
			t.Error(err)
		}

		m.texts[key] = sha256.Sum256(fresh)
	})

	out := m.command(
		0,
		"encrypt",
		"--config",
		m.config("hooked.yaml", hooked, "old", "old"),
		"s3://bucket",
		"--parallel",
		"1",
	)
	if len(overwritten) != 12 || !strings.Contains(out, "1 deleted during the run") ||
		!strings.Contains(out, "failed     0") {
		t.Errorf("%d overwritten:\n%s", len(overwritten), out)
	}

	delete(m.texts, "k07")
	if _, err := m.direct.HeadObject(t.Context(), &s3.HeadObjectInput{
		Bucket: &m.bucket, Key: aws.String("k07"),
	}); err == nil {
		t.Error("what was deleted is there again")
	}
	reader, _ := m.serve(m.denying())
	m.readable(reader)

	if uploads, err := m.direct.ListMultipartUploads(t.Context(), &s3.ListMultipartUploadsInput{
		Bucket: &m.bucket,
	}); err != nil ||
		len(uploads.Uploads) > 0 {
		t.Errorf("uploads are left over: %v, %v", uploads, err)
	}
}

// If a store ignores If-Match, nothing is written unless the operator allows
// it.
func TestEncryptWithAStoreWithoutConditions(t *testing.T) {
	m := newMove(t)
	m.past(func() {
		m.put("k", text(1, 70_000))
		m.upload("parts/a", []int32{1, 2}, 5<<20, 6<<20)
	})
	before := m.state()

	hooked := m.hook(func(r *http.Request) {
		if r.Method == http.MethodPut || r.Method == http.MethodPost {
			r.Header.Del("If-Match")
		}
	})

	config := m.config("hooked.yaml", hooked, "old", "old")
	out := m.command(1, "encrypt", "--config", config, "s3://bucket")
	if !strings.Contains(out, "does not honor If-Match in PutObject") || !maps.Equal(before, m.state()) {
		t.Errorf("it does not refuse:\n%s", out)
	}

	out = m.command(0, "encrypt", "--config", config, "s3://bucket", "--unconditional")
	if strings.Count(out, "WARNING") != 2 || !strings.Contains(out, "encrypted  2 objects") {
		t.Error(out)
	}

	m.readable(m.app)
}

func TestEncryptKilledAndResumed(t *testing.T) {
	m := newMove(t)
	m.past(func() {
		for i := range 120 {
			m.put(fmt.Sprintf("k%03d", i), text(uint64(i), 3000))
		}
		m.upload("parts/a", []int32{1, 2}, 5<<20, 6<<20)
	})

	sizes := m.sizes(m.app)
	file := filepath.Join(m.dir, "state")
	m.killed(70, "encrypt", "--state", file, "--parallel", "4", "--rate", "50")
	m.readable(m.app) // whatever state it was left in
	if got := m.sizes(m.app); !maps.Equal(got, sizes) {
		t.Errorf("half encrypted, sizes are %v, and were %v", got, sizes)
	}

	keys, _ := m.keysOf(m.both, 0)
	done := 0
	for _, kind := range keys {
		if kind == "single old" {
			done++
		}
	}

	if done < 40 || done > 119 {
		t.Errorf("%d are encrypted", done)
	}

	if out := m.command(1, "rewrap", "--config", m.both, "s3://bucket", "--state", file); !strings.Contains(
		out,
		"belongs to another run",
	) {
		t.Errorf("the state of another command:\n%s", out)
	}

	out := m.command(0, "encrypt", "--config", m.both, "s3://bucket", "--state", file)
	if want := fmt.Sprintf("encrypted  %d objects", 121-done); !strings.Contains(out, want) {
		t.Errorf("it does not say %q:\n%s", want, out)
	}
	if _, err := os.Stat(file); err == nil {
		t.Error("the state is still there")
	}

	m.readable(m.app)
	if got := m.sizes(m.app); !maps.Equal(got, sizes) {
		t.Errorf("sizes are %v, and were %v", got, sizes)
	}
}

// If the bucket keeps versions, the plaintext remains, and the command says
// so.
func TestEncryptTellsOfVersions(t *testing.T) {
	m := newVersioned(t)
	m.past(func() {
		for i := range 3 {
			m.put(fmt.Sprintf("k%d", i), text(uint64(i), 100))
		}
	})

	out := m.command(0, "encrypt", "--config", m.both, "s3://bucket")
	if !strings.Contains(out, "keeps old versions") || !strings.Contains(out, "versions   3 older versions in plaintext") {
		t.Error(out)
	}

	list, err := m.direct.ListObjectVersions(
		t.Context(),
		&s3.ListObjectVersionsInput{Bucket: &m.bucket, Prefix: aws.String("k")},
	)
	if err != nil || len(list.Versions) != 6 {
		t.Fatalf("%d versions, %v", len(list.Versions), err)
	}

	m.readable(m.app)
}

func TestSweepCommandLines(t *testing.T) {
	m := newMove(t)
	for _, command := range []string{"encrypt", "verify"} {
		for _, args := range [][]string{
			{},
			{"s3://bucket", "s3://other"},
			{"bucket"},
			{"s3://"},
			{"s3://bucket", "--rate", "-1"},
			{"s3://bucket", "--parallel", "0"},
			{"s3://bucket", "--parallel", "1001"},
			{"s3://bucket", "--nonsense"},
		} {
			m.command(2, append([]string{command, "--config", m.both}, args...)...)
		}

		m.command(2, command, "s3://bucket")
		if out := m.command(1, command, "--config", m.both, "s3://no-such-bucket"); !strings.Contains(
			out,
			"NoSuchBucket",
		) {
			t.Errorf("%s: %s", command, out)
		}
	}
}

// Plaintext where the rule denies it may have been planted, so it is not
// encrypted.
func TestEncryptRefusesWhereTheRuleDenies(t *testing.T) {
	m := newMove(t)
	m.past(func() {
		m.put("planted", text(1, 1000))
		m.upload("planted in parts", []int32{1, 2}, 5<<20, 100)
	})
	before := m.state()

	for _, args := range [][]string{{}, {"--dry-run"}} {
		out := m.command(1, append([]string{"encrypt", "--config", m.denying(), "s3://bucket"}, args...)...)
		if strings.Count(out, "FAILED") != 2 || !strings.Contains(out, "plaintext_objects") {
			t.Errorf("%q: %s", args, out)
		}
	}

	if !maps.Equal(before, m.state()) {
		t.Error("the store has changed")
	}
}

// With a list, only objects of the list are encrypted, and only if they have
// not changed.
func TestEncryptOnlyListed(t *testing.T) {
	for _, format := range []string{"csv", "json"} {
		t.Run(format, func(t *testing.T) {
			m := newMove(t)
			keys := []string{"a", "=b,\"c\"", "'=d", "-", "parts"}
			m.past(func() {
				for i, key := range keys[:4] {
					m.put(key, text(uint64(i), 1000))
				}
				m.upload("parts", []int32{1, 2}, 5<<20, 100)
				m.put("changed", text(10, 1000))
				m.put("same size", text(11, 1000))
			})

			m.put("sealed", text(12, 1000))
			list := filepath.Join(t.TempDir(), "list")
			inventory := m.command(0, "inventory", "--config", m.both, "s3://bucket", "--format", format)
			if format == "csv" { // the summary is printed too, but not to the file
				inventory = inventory[:strings.LastIndex(inventory, "\r\n")+2]
			}

			if err := os.WriteFile(list, []byte(inventory), 0o600); err != nil {
				t.Fatal(err)
			}

			m.past(func() {
				m.put("changed", text(20, 2000))
				m.put("same size", text(21, 1000))
				m.put("planted", text(22, 1000))
				m.put("sealed", text(23, 1000))
			})
			before := m.state()

			state := filepath.Join(t.TempDir(), "state")
			out := m.command(1, "encrypt", "--config", m.both, "s3://bucket", "--only-listed", list, "--state", state)
			if strings.Count(out, "FAILED") != 4 || strings.Count(out, "skipped because of --only-listed") != 4 ||
				!strings.Contains(out, "encrypted  5 objects") {
				t.Error(out)
			}

			after := m.state()
			for key := range before {
				if listed := slices.Contains(keys, key); listed == (before[key] == after[key]) {
					t.Errorf("%q: %s, and before %s", key, after[key], before[key])
				}
			}
			m.readable(m.app)

			if out := m.command(1, "encrypt", "--config", m.both, "s3://bucket", "--state", state); !strings.Contains(
				out,
				"belongs to another run",
			) {
				t.Errorf("the same state without the list: %s", out)
			}
		})
	}
}

// Lists from Amazon S3 Inventory, and invalid ones.
func TestObjectLists(t *testing.T) {
	read := func(text string) (*objectList, error) {
		path := filepath.Join(t.TempDir(), "list")
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		return readObjectList(path)
	}

	l, err := read("Bucket, Key, VersionId, IsLatest, IsDeleteMarker, Size, ETag\n" +
		`"b","a+b%2Fc%25","v1","true","false","10","d41d"` + "\n" +
		`"b","a+b%2Fc%25","v0","false","false","11","d41e"` + "\n" +
		`"b","gone","v2","true","true","",""` + "\n" + `"b","x","null","true","false","5","aa-2"` + "\n")

	want := map[string]listedObject{"a b/c%": {"d41d", "v1", 10}, "x": {"aa-2", "", 5}}
	if err != nil || !maps.Equal(l.objects, want) {
		t.Fatalf("%+v, %v", l, err)
	}

	for version, ok := range map[string]bool{"v1": true, "v2": false, "": false} {
		seen := &stored.Seen{ETag: `"d41d"`, Stored: 10, Header: http.Header{"X-Amz-Version-Id": {version}}}
		if err := l.check(crypt.Object{Bucket: "b", Key: "a b/c%"}, seen); (err == nil) != ok {
			t.Errorf("version %q: %v", version, err)
		}
	}

	for name, text := range map[string]string{
		"empty":                   "",
		"no columns":              "b,k,10,d41d\n",
		"nothing to know them by": "key,size\nk,10\n",
		"an object without":       "key,size,etag\nk,10,\n",
		"no size":                 "key,size,etag\nk,,d41d\n",
		"a negative size":         "key,size,etag\nk,-1,d41d\n",
		"a line that is cut":      "key,size,etag\nk,10\n",
		"twice":                   "key,size,etag\nk,10,d41d\nk,10,d41e\n",
		"a bad escape":            "Key,Size,ETag\n%zz,10,d41d\n",
		"half a document":         `{"type":"object","key":"k"`,
		"json without an ETag":    `{"type":"object","key":"k","kind":"plaintext","size":1}`,
	} {
		if l, err := read(text); err == nil {
			t.Errorf("%s: %+v", name, l.objects)
		}
	}
}
