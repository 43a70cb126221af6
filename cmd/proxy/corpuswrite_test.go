//go:build !nodev

package main

import (
	"bytes"
	"crypto/rand"
	"crypto/sha256"
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"flag"
	"fmt"
	"maps"
	"net/http"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/cmekproxy/cmekproxy/internal/checksum"
	"github.com/cmekproxy/cmekproxy/internal/crypt"
)

var writeCorpus = flag.String("write-corpus", "", "write a new folder of testdata/corpus with this name")

// corpusConfig is the configuration of a new folder. Folders that exist have
// their own.
const corpusConfig = `listen: ${CORPUS_LISTEN}
admin_listen: ${CORPUS_ADMIN}
origin:
  endpoint: ${CORPUS_STORE}
  region: us-east-1
  access_key: storekey
  secret_key: storesecretstoresecret
  checksum_trailer: true
  etag_part_count: true
clients:
  - name: app
    access_key: appkey
    secret_key: appsecretappsecret
    allow: [{buckets: ["*"], actions: [read, write]}]
tls: {ends_on_this_machine: true}
keys:
  - {name: main, provider: local, key_file: "${CORPUS_KEYS}/main.key"}
  - {name: older, provider: local, key_file: "${CORPUS_KEYS}/older.key"}
  - {name: rotated, provider: local, key_file: "${CORPUS_KEYS}/rotated.key"}
  - {name: first, provider: local, key_file: "${CORPUS_KEYS}/first.key"}
  - {name: second, provider: local, key_file: "${CORPUS_KEYS}/second.key"}
  - {name: tenants, provider: local, key_file: "${CORPUS_KEYS}/tenant-${prefix.2}.key"}
  - name: recoverable
    provider: local
    key_file: "${CORPUS_KEYS}/recoverable.key"
    recovery_public_key: "RECOVERY"
  - {name: any, provider: any-of, members: [first, second]}
  - {name: all, provider: all-of, members: [first, second]}
  - name: all-recoverable
    provider: all-of
    members: [first, second]
    recovery_public_key: "RECOVERY"
encryption:
  customer_keys: allow
  rules:
    - {buckets: [corpus], prefixes: [shared/], key: main, dek_reuse: {max_age: 1h}}
    - {buckets: [corpus], prefixes: [shared-recovery/], key: recoverable, dek_reuse: {max_age: 1h}}
    - {buckets: [corpus], prefixes: [shared-all/], key: all, dek_reuse: {max_age: 1h}}
    - {buckets: [corpus], prefixes: [older/], key: older}
    - {buckets: [corpus], prefixes: [rotated/], key: rotated}
    - {buckets: [corpus], prefixes: [tenants/], key: tenants}
    - {buckets: [corpus], prefixes: [recovery/], key: recoverable}
    - {buckets: [corpus], prefixes: [any/], key: any}
    - {buckets: [corpus], prefixes: [all/], key: all}
    - {buckets: [corpus], prefixes: [all-recovery/], key: all-recoverable}
    - {buckets: [corpus], prefixes: [sealed/], key: main, seal_metadata: true}
    - {buckets: [corpus], prefixes: [sealed-shared/], key: main, seal_metadata: true, dek_reuse: {max_age: 1h}}
    - {buckets: [corpus], prefixes: [sealed-recovery/], key: all-recoverable, seal_metadata: true}
    - {buckets: ["*"], key: main}
`

const corpusBucket = "corpus"

// corpusInput is an object to write.
type corpusInput struct {
	key    string
	header map[string]string
	sizes  []int64 // of the plaintext, or of each part
	// numbers are those of the parts; nil for a single-PUT object.
	numbers []int
	// algorithm and kind are the checksum of a multipart object, if any.
	algorithm, kind string
	// listed are the numbers of parts that are sent with the id of the upload
	// from a listing, and 0 for the completion.
	listed []int

	customer, recovery bool // under the customer key; with a recovery key
}

func (in *corpusInput) size() (n int64) {
	for _, size := range in.sizes {
		n += size
	}
	return n
}

func corpusInputs() []corpusInput {
	const minimum = crypt.MinPartSize
	encryptionContext := map[string]string{
		"X-Amz-Server-Side-Encryption":         "aws:kms",
		"X-Amz-Server-Side-Encryption-Context": base64.StdEncoding.EncodeToString([]byte(`{"purpose":"corpus","tenant":"acme"}`)),
	}
	headers := map[string]string{
		"Cache-Control":       "max-age=3600, no-transform",
		"Content-Disposition": `attachment; filename="corpus.txt"`,
		"Content-Encoding":    "gzip",
		"Content-Language":    "de, en",
		"Content-Type":        "text/plain; charset=utf-8",
		"Expires":             "Wed, 21 Oct 2026 07:28:00 GMT",
		"X-Amz-Meta-Author":   "corpus",
		"X-Amz-Meta-Words":    "=?UTF-8?B?w7xiZXI=?=",
	}
	inputs := []corpusInput{
		{key: "single/0", sizes: []int64{0}},
		{key: "single/1", sizes: []int64{1}},
		{key: "single/65496", sizes: []int64{65_496}},
		{key: "single/65497", sizes: []int64{65_497}},
		{key: "single/200000", sizes: []int64{200_000}},
		{key: "directory/", sizes: []int64{0}},
		{key: "names/a b+ü&=%~.txt", sizes: []int64{100}},
		{key: "headers", sizes: []int64{100}, header: headers},
		{key: "older/single", sizes: []int64{100}},
		{key: "older/parts", sizes: []int64{100}, numbers: []int{1}},
		{key: "rotated/version-1", sizes: []int64{100}},
		{key: "rotated/version-1-parts", sizes: []int64{100}, numbers: []int{1}},
		{key: "customer/single", sizes: []int64{100}, customer: true},
		{key: "customer/parts", sizes: []int64{minimum, 100}, numbers: []int{1, 2}, customer: true},
		{key: "context/single", sizes: []int64{100}, header: encryptionContext},
		{key: "context/parts", sizes: []int64{100}, numbers: []int{1}, header: encryptionContext},
		{key: "shared/context", sizes: []int64{100}, header: encryptionContext},
		{key: "parts/short", sizes: []int64{1000}, numbers: []int{1}, header: map[string]string{
			"Content-Type": "application/x-corpus", "X-Amz-Meta-Author": "corpus",
		}},
		{key: "parts/empty", sizes: []int64{0}, numbers: []int{1}},
		{key: "parts/two", sizes: []int64{minimum, 100}, numbers: []int{1, 2}},
		{key: "parts/full-object", sizes: []int64{minimum}, numbers: []int{1}, algorithm: "CRC32", kind: "FULL_OBJECT"},
		{key: "parts/composite", sizes: []int64{minimum}, numbers: []int{1}, algorithm: "SHA256", kind: "COMPOSITE"},
		{key: "parts/gaps", sizes: []int64{minimum, minimum}, numbers: []int{2, 5}},
		{key: "listed/last", sizes: []int64{minimum, 100}, numbers: []int{1, 2}, listed: []int{2}},
		{key: "listed/first", sizes: []int64{minimum, 100}, numbers: []int{1, 2}, listed: []int{1}},
		{key: "listed/part-with-record", sizes: []int64{minimum}, numbers: []int{1}, listed: []int{1}},
		{key: "listed/record", sizes: []int64{minimum}, numbers: []int{1}, listed: []int{0}},
		{key: "sealed/none", sizes: []int64{0}},
		{key: "sealed/headers", sizes: []int64{100}, header: headers},
		{key: "sealed/directory/", sizes: []int64{0}, header: headers},
		{key: "sealed/customer", sizes: []int64{100}, header: headers, customer: true},
		{key: "sealed/context", sizes: []int64{100}, header: encryptionContext},
		{key: "sealed/parts", sizes: []int64{100}, numbers: []int{1}, header: headers},
		{key: "sealed/parts-none", sizes: []int64{100}, numbers: []int{1}},
		{key: "sealed/parts-context", sizes: []int64{100}, numbers: []int{1}, header: encryptionContext},
		{key: "sealed/parts-customer", sizes: []int64{100}, numbers: []int{1}, header: headers, customer: true},
		{key: "sealed/parts-two", sizes: []int64{minimum, 100}, numbers: []int{1, 2}, header: headers},
		{key: "sealed/parts-record", sizes: []int64{minimum}, numbers: []int{1}, header: headers},
		{key: "sealed/listed", sizes: []int64{100}, numbers: []int{1}, header: headers, listed: []int{1}},
	}
	for _, a := range checksum.All {
		inputs = append(inputs, corpusInput{key: "checksum/" + a.Name, sizes: []int64{100}, header: map[string]string{
			"X-Amz-Sdk-Checksum-Algorithm": a.Name,
		}})
	}
	for _, prefix := range []string{
		"shared/", "shared-recovery/", "shared-all/", "tenants/acme/", "recovery/", "any/", "all/", "all-recovery/",
		"sealed-shared/", "sealed-recovery/",
	} {
		recovery := strings.Contains(prefix, "recovery")
		inputs = append(inputs,
			corpusInput{key: prefix + "single", sizes: []int64{100}, recovery: recovery},
			corpusInput{key: prefix + "parts", sizes: []int64{100}, numbers: []int{1}, recovery: recovery})
	}
	return inputs
}

// TestWriteCorpus writes a folder with today's proxy and reads it, a new one
// of testdata/corpus if -write-corpus names it.
func TestWriteCorpus(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "today")
	if *writeCorpus != "" {
		dir = filepath.Join(corpusDir, *writeCorpus)
	}
	if err := os.Mkdir(dir, 0o755); err != nil {
		t.Fatal("a folder of the corpus never changes:", err)
	}
	t.Run("write", func(t *testing.T) { newCorpus(t, dir) })
	if t.Failed() {
		return
	}
	t.Run("read", func(t *testing.T) {
		s, _ := readCorpus(t, dir)
		s.stop()
	})
	if *writeCorpus != "" {
		t.Logf("add to corpusFolders: %q: %q", *writeCorpus, corpusHash(t, dir))
	}
}

// newCorpus writes a folder.
func newCorpus(t *testing.T, dir string) {
	newCorpusKeys(t, dir)
	s := startCorpusStack(t, dir, corpusBucket)
	doc := corpusDocument{Bucket: corpusBucket}
	if err := os.Mkdir(filepath.Join(dir, "stored"), 0o755); err != nil {
		t.Fatal(err)
	}

	for _, in := range corpusInputs() {
		s.write(t, &in)
		doc.Objects = append(doc.Objects, s.record(t, &in))
	}
	s.stop()

	// From now on, another version of a key encrypts.
	rotated := filepath.Join(s.keys, "rotated.key")
	corpusCommand(t, "keys", "rotate", rotated)
	text, err := os.ReadFile(rotated)
	if err != nil {
		t.Fatal(err)
	}
	writeFile(t, filepath.Join(dir, "keys", "rotated.key"), text)
	s.serve()
	newer := corpusInput{key: "rotated/version-2", sizes: []int64{100}}
	s.write(t, &newer)
	doc.Objects = append(doc.Objects, s.record(t, &newer))
	s.stop()

	rows := s.inventoryRows(t)
	for i := range doc.Objects {
		doc.Objects[i].KMSKeys = kmsKeyIDs(rows[doc.Objects[i].Key])
	}
	var out bytes.Buffer
	e := json.NewEncoder(&out)
	e.SetEscapeHTML(false)
	e.SetIndent("", " ")
	if err := e.Encode(doc); err != nil {
		t.Fatal(err)
	}
	writeFile(t, filepath.Join(dir, "objects.json"), out.Bytes())
}

func writeFile(t *testing.T, path string, text []byte) {
	t.Helper()
	if err := os.WriteFile(path, text, 0o644); err != nil {
		t.Fatal(err)
	}
}

// corpusCommand runs a command that succeeds, and returns what it prints.
func corpusCommand(t *testing.T, args ...string) string {
	t.Helper()
	var out output
	if code := run(t.Context(), args, &out, &out); code != 0 {
		t.Fatalf("%v: exit code %d: %s", args, code, out.String())
	}
	return out.String()
}

// newCorpusKeys writes the keys and the configuration.
func newCorpusKeys(t *testing.T, dir string) {
	t.Helper()
	keys := filepath.Join(dir, "keys")
	if err := os.Mkdir(keys, 0o755); err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{"main", "recoverable", "rotated", "first", "second", "tenant-acme"} {
		corpusCommand(t, "keys", "new", filepath.Join(keys, name+".key"))
	}

	secret := make([]byte, 32)
	rand.Read(secret)
	older := "cmekproxy-local-key-v1:" + base64.StdEncoding.EncodeToString(secret) + "\n"
	writeFile(t, filepath.Join(keys, "older.key"), []byte(older))
	rand.Read(secret)
	writeFile(t, filepath.Join(keys, "customer.key"), secret)

	printed := corpusCommand(t, "recovery", "keygen", "-o", filepath.Join(keys, "recovery.key"))
	public := regexp.MustCompile(`(?m)^recovery_public_key: (\S+)$`).FindStringSubmatch(printed)[1]
	config := strings.ReplaceAll(corpusConfig, "RECOVERY", public)
	writeFile(t, filepath.Join(dir, "config.yaml"), []byte(config))
}

// write stores an object through the proxy.
func (s *corpusStack) write(t *testing.T, in *corpusInput) {
	t.Helper()
	text := corpusText(in.key, in.size())
	header := maps.Clone(in.header)
	customer := make(map[string]string)
	if in.customer {
		customer = customerHeaders(s.file("keys/customer.key"))
	}
	if header == nil {
		header = make(map[string]string)
	}
	maps.Copy(header, customer)

	if in.numbers == nil {
		if a := checksum.Named(header["X-Amz-Sdk-Checksum-Algorithm"]); a != nil {
			header[a.Header()] = corpusSum(a, text)
		}
		s.app.must(t, request{method: http.MethodPut, bucket: s.bucket, key: in.key, header: header, body: text})
		return
	}

	end := maps.Clone(customer)
	a := checksum.Named(in.algorithm)
	if a != nil {
		header["X-Amz-Checksum-Algorithm"], header["X-Amz-Checksum-Type"] = a.Name, in.kind
		end["X-Amz-Checksum-Type"] = in.kind
	}
	var parts []wirePart
	for i, size := range in.sizes {
		p := wirePart{number: in.numbers[i], header: maps.Clone(customer), listed: slices.Contains(in.listed, in.numbers[i])}
		p.body, text = text[:size], text[size:]
		if a != nil {
			sum := corpusSum(a, p.body)
			p.header[a.Header()] = sum
			p.checksum = fmt.Sprintf("<Checksum%s>%s</Checksum%s>", a.Name, sum, a.Name)
		}
		parts = append(parts, p)
	}
	s.app.upload(t, wireUpload{
		bucket: s.bucket, key: in.key, header: header, end: end, parts: parts,
		listed: func() string { return s.store.uploadID(t, s.bucket) }, endListed: slices.Contains(in.listed, 0),
	})
}

func corpusSum(a *checksum.Algorithm, text []byte) string {
	h := a.New()
	h.Write(text)
	return base64.StdEncoding.EncodeToString(h.Sum(nil))
}

// record describes an object as the store has it, and writes its bytes to a
// file.
func (s *corpusStack) record(t *testing.T, in *corpusInput) corpusObject {
	t.Helper()
	text := corpusText(in.key, in.size())
	sum := sha256.Sum256(text)
	o := corpusObject{Key: in.key, Size: in.size(), SHA256: hex.EncodeToString(sum[:]), Parts: len(in.numbers)}
	if in.customer {
		o.CustomerKey = "keys/customer.key"
	}
	if in.recovery {
		o.RecoveryKey = "keys/recovery.key"
	}

	head, _ := s.app.must(t, request{
		method: http.MethodHead, bucket: s.bucket, key: in.key,
		header: s.headers(&o, "X-Amz-Checksum-Mode", "ENABLED"),
	})
	o.Headers = corpusHeaders(head.Header)
	for name, value := range in.header {
		if !strings.HasPrefix(name, "X-Amz-S") && o.Headers[name] != value {
			t.Errorf("%s: %s is %q, not %q", in.key, name, o.Headers[name], value)
		}
	}

	resp, body := s.store.must(t, request{method: http.MethodGet, bucket: s.bucket, key: in.key})
	o.StoredHeaders = corpusHeaders(resp.Header)
	s.divide(t, &o, in, body)
	return o
}

// divide divides what is stored into parts and writes what is kept of them.
func (s *corpusStack) divide(t *testing.T, o *corpusObject, in *corpusInput, body []byte) {
	t.Helper()
	if in.numbers == nil {
		o.StoredParts = []corpusPart{{Size: int64(len(body))}}
	}
	for i, size := range in.sizes[:len(in.numbers)] {
		o.StoredParts = append(o.StoredParts, corpusPart{Number: in.numbers[i], Size: size + crypt.PartOverhead})
	}
	if rest := int64(len(body)) - in.size() - int64(len(in.numbers))*crypt.PartOverhead; len(in.numbers) > 0 && rest > 0 {
		last := in.numbers[len(in.numbers)-1]
		o.StoredParts = append(o.StoredParts, corpusPart{Number: last + 1, Size: rest})
	}

	var kept []byte
	start := int64(0) // of the part's plaintext
	for i := range o.StoredParts {
		p := &o.StoredParts[i]
		var part []byte
		part, body = body[:p.Size], body[p.Size:]
		if p.Size >= crypt.MinPartSize {
			o.keepSome(p, start)
		} else if trimmed := bytes.TrimRight(part, "\x00"); len(trimmed) > 0 {
			p.Kept = []corpusInterval{{0, int64(len(trimmed)) - 1}}
			if last := start + p.Size - crypt.PartOverhead; o.Missing != nil && last > start {
				o.Ranges = append(o.Ranges, corpusInterval{start, last - 1})
			}
		}
		for _, interval := range p.Kept {
			kept = append(kept, part[interval[0]:interval[1]+1]...)
		}
		start += p.Size - crypt.PartOverhead
	}

	if len(kept) > 0 {
		o.StoredFile = "stored/" + regexp.MustCompile(`[^A-Za-z0-9-]+`).ReplaceAllString(o.Key, "_")
		writeFile(t, filepath.Join(s.dir, filepath.FromSlash(o.StoredFile)), kept)
	}
}

// keepSome keeps the header and the last segment of a part of 5 MiB, and the
// first segment of some objects: each takes 64 KiB.
func (o *corpusObject) keepSome(p *corpusPart, start int64) {
	const (
		segment     = 65_552                  // stored
		first       = segment - 40 - 16       // plaintext bytes of the first segment
		last        = 80                      // number of the last segment
		lastSegment = 984 + segment*last      // stored offset
		lastText    = first + 65_536*(last-1) // plaintext offset
	)
	size := p.Size - crypt.PartOverhead
	end := lastSegment + size - lastText + 16 - 1

	header := corpusInterval{0, 984 + 40 - 1}
	if start == 0 && (strings.HasPrefix(o.Key, "parts/") || o.Key == "customer/parts") {
		header[1] = 984 + segment - 1
		o.Ranges = append(o.Ranges, corpusInterval{0, first - 1})
	}
	p.Kept = []corpusInterval{header, {lastSegment, end}}
	o.Ranges = append(o.Ranges, corpusInterval{start + lastText, start + size - 1})
	if o.Missing == nil {
		o.Missing = &corpusInterval{start + 1_000_000, start + 1_000_999}
	}
}
