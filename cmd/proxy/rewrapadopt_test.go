//go:build !nodev

package main

import (
	"bytes"
	"context"
	"crypto/md5"
	"crypto/sha256"
	"encoding/base64"
	"encoding/hex"
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

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/service/s3"
	"github.com/aws/aws-sdk-go-v2/service/s3/types"

	"github.com/cmekproxy/cmekproxy/internal/crypt"
	"github.com/cmekproxy/cmekproxy/internal/sigv4"
	"github.com/cmekproxy/cmekproxy/internal/stored"
)

const mib = 1 << 20

// withEachKMS runs a test with local keys, and with AWS KMS.
func withEachKMS(t *testing.T, run func(m *move)) {
	t.Helper()
	for name, start := range map[string]func(*testing.T) *move{"local": newMove, "aws-kms": newAWSMove} {
		t.Run(name, func(t *testing.T) { run(start(t)) })
	}
}

// some stores objects of each kind through the proxy.
func (m *move) some() {
	sizes := []int{1000, 0, 65_497, 300_000, 1, 131_032, 0}
	for i, key := range []string{"a b", "a+b", "ü/日本語/😀", "<&>\"'", "?query=1&x", "=1+1", "dir/"} {
		m.put(key, text(uint64(i), sizes[i]), func(in *s3.PutObjectInput) {
			in.Metadata, in.Tagging = map[string]string{"number": strconv.Itoa(i)}, aws.String("team=a%2Bb%20c")
			in.CacheControl = aws.String("no-cache")
		})
	}
	m.put("context", text(99, 100), func(in *s3.PutObjectInput) {
		in.ServerSideEncryption = types.ServerSideEncryptionAwsKms
		in.SSEKMSEncryptionContext = new(base64.StdEncoding.EncodeToString([]byte(`{"tenant":"acme"}`)))
	})
	m.upload("parts/appended", []int32{1, 2}, 5*mib, 6*mib)
	m.upload("parts/short end", []int32{1, 2, 3}, 5*mib, 5*mib, 1000)
	m.upload("parts/gaps", []int32{2, 5}, 5*mib, 5*mib+3)
}

// replicate copies all objects within the store to another bucket, below a
// prefix, and goes on with them. Multipart objects are copied in parts of
// cut bytes, or whole if cut is 0.
func (m *move) replicate(to, prefix string, cut int64) {
	m.t.Helper()
	ctx := m.t.Context()
	if _, err := m.direct.CreateBucket(ctx, &s3.CreateBucketInput{Bucket: &to}); err != nil {
		m.t.Fatal(err)
	}

	texts := make(map[string][sha256.Size]byte)
	for key, sum := range m.texts {
		target, source := prefix+key, sigv4.EscapePath("/"+m.bucket+"/"+key)
		texts[target] = sum
		switch {
		case strings.HasSuffix(key, "/"): // this store does not copy directory markers
			m.copyMarker(to, target, key)
			continue
		case cut == 0 || !strings.HasPrefix(key, "parts/"):
			_, err := m.direct.CopyObject(ctx, &s3.CopyObjectInput{Bucket: &to, Key: &target, CopySource: &source})
			if err != nil {
				m.t.Fatalf("%s: %v", key, err)
			}
			continue
		}
		m.copyInParts(to, target, key, source, cut)
	}
	m.bucket, m.texts = to, texts
}

func (m *move) copyMarker(to, target, key string) {
	m.t.Helper()
	head, err := m.direct.HeadObject(m.t.Context(), &s3.HeadObjectInput{Bucket: &m.bucket, Key: &key})
	if err != nil {
		m.t.Fatal(err)
	}
	if _, err := m.direct.PutObject(m.t.Context(), &s3.PutObjectInput{
		Bucket: &to, Key: &target, Metadata: head.Metadata, CacheControl: head.CacheControl,
		ContentType: head.ContentType, Tagging: aws.String("team=a%2Bb%20c"),
	}); err != nil {
		m.t.Fatal(err)
	}
}

// copyInParts copies an object as tools do that copy with their own part
// size.
func (m *move) copyInParts(to, target, key, source string, cut int64) {
	m.t.Helper()
	ctx := m.t.Context()
	head, err := m.direct.HeadObject(ctx, &s3.HeadObjectInput{Bucket: &m.bucket, Key: &key})
	if err != nil {
		m.t.Fatal(err)
	}
	up, err := m.direct.CreateMultipartUpload(ctx, &s3.CreateMultipartUploadInput{
		Bucket: &to, Key: &target, Metadata: head.Metadata, ContentType: head.ContentType,
		Tagging: aws.String("kind=parts&a%20b=c"),
	})
	if err != nil {
		m.t.Fatal(err)
	}

	var done []types.CompletedPart
	for at, size := int64(0), *head.ContentLength; at < size; at += cut {
		number := int32(len(done) + 1)
		out, err := m.direct.UploadPartCopy(ctx, &s3.UploadPartCopyInput{
			Bucket: &to, Key: &target, UploadId: up.UploadId, PartNumber: &number, CopySource: &source,
			CopySourceRange: aws.String(fmt.Sprintf("bytes=%d-%d", at, min(at+cut, size)-1)),
		})
		if err != nil {
			m.t.Fatal(err)
		}
		done = append(done, types.CompletedPart{PartNumber: &number, ETag: out.CopyPartResult.ETag})
	}

	if _, err := m.direct.CompleteMultipartUpload(ctx, &s3.CompleteMultipartUploadInput{
		Bucket: &to, Key: &target, UploadId: up.UploadId, MultipartUpload: &types.CompletedMultipartUpload{Parts: done},
	}); err != nil {
		m.t.Fatal(err)
	}
}

// unreadable checks that no object can be read.
func (m *move) unreadable() {
	m.t.Helper()
	for key := range m.texts {
		if out, err := m.app.GetObject(m.t.Context(), &s3.GetObjectInput{Bucket: &m.bucket, Key: &key}); err == nil {
			out.Body.Close()
			m.t.Errorf("%q can be read", key)
		}
	}
}

func TestAdopt(t *testing.T) {
	for _, cut := range []int64{0, 7 * mib} { // tools have their own part size
		t.Run(strconv.FormatInt(cut, 10), func(t *testing.T) {
			withEachKMS(t, func(m *move) {
				m.some()
				shown := make(map[string]string)
				for key := range m.texts {
					shown["p/"+key] = m.shown(m.app, key)
				}
				m.replicate("replica", "p/", cut)
				m.unreadable()

				args := []string{"rewrap", "--config", m.both, "s3://replica/p/", "--adopt", "s3://bucket"}
				before := m.state()
				if out := m.command(0, append(args, "--dry-run")...); !strings.Contains(
					out,
					"to adopt   11 objects",
				) || !maps.Equal(before, m.state()) {
					t.Errorf("the dry run:\n%s", out)
				}

				if out := m.command(0, args...); !strings.Contains(out, "adopted    11 objects") ||
					!strings.Contains(out, "; 3 of them multipart") {
					t.Errorf("adopt:\n%s", out)
				}
				m.readable(m.app)
				for key := range m.texts {
					if got := m.shown(m.app, key); got != shown[key] {
						t.Errorf("%q:\n%sbefore:\n%s", key, got, shown[key])
					}
				}

				before = m.state()
				if out := m.command(0, args...); !strings.Contains(out, "11 already bound to their names") ||
					!maps.Equal(before, m.state()) {
					t.Errorf("a second time:\n%s", out)
				}
				m.command(0, "verify", "--config", m.both, "s3://replica")
				m.command(0, "verify", "--config", m.both, "s3://bucket") // the original is untouched
			})
		})
	}
}

// A mapping that is not the right one adopts nothing, and neither do objects
// that the store has swapped.
func TestAdoptRefusesOtherNames(t *testing.T) {
	withEachKMS(t, func(m *move) {
		m.some()
		m.replicate("replica", "p/", 0)
		before := m.state()

		for _, from := range []string{"s3://other", "s3://bucket/p/", "s3://replica/p/"} {
			out := m.command(1, "rewrap", "--config", m.both, "s3://replica/p/", "--adopt", from)
			if strings.Count(out, "it was altered, or belongs to another name") != 11 ||
				!strings.Contains(out, "failed     11") || !maps.Equal(before, m.state()) {
				t.Errorf("from %s:\n%s", from, out)
			}
		}

		for _, pair := range [][2]string{{"a b", "a+b"}, {"parts/gaps", "parts/appended"}} {
			target, source := "p/"+pair[1], sigv4.EscapePath("/replica/p/"+pair[0])
			if _, err := m.direct.CopyObject(t.Context(), &s3.CopyObjectInput{
				Bucket: &m.bucket, Key: &target, CopySource: &source,
			}); err != nil {
				t.Fatal(err)
			}
			delete(m.texts, target)
		}
		out := m.command(1, "rewrap", "--config", m.both, "s3://replica/p/", "--adopt", "s3://bucket")
		if !strings.Contains(out, "adopted    9 objects") || !strings.Contains(out, "failed     2") ||
			!strings.Contains(out, "FAILED  p/a+b: it was altered, or belongs to another name") ||
			!strings.Contains(out, "FAILED  p/parts/appended: it was altered, or belongs to another name") {
			t.Errorf("swapped objects:\n%s", out)
		}
		m.readable(m.app)

		for _, key := range []string{"p/a+b", "p/parts/appended"} {
			if _, err := m.app.GetObject(t.Context(), &s3.GetObjectInput{Bucket: &m.bucket, Key: &key}); err == nil {
				t.Errorf("%s can be read", key)
			}
		}
	})
}

// Rules for the new bucket alone are enough if they name the key.
func TestAdoptByTheRulesOfTheNewName(t *testing.T) {
	m := newMove(t)
	m.put("k", text(1, 100))
	m.upload("parts/k", []int32{1}, 6*mib)
	m.replicate("replica", "", 0)

	configure := func(rule string) string {
		config := m.config("rules.yaml", m.store, "new", "old", "new")
		text, err := os.ReadFile(config)
		if err != nil {
			t.Fatal(err)
		}
		changed := strings.Replace(
			string(text), `rules: [{buckets: ["*"], key: new, plaintext_objects: allow, allowed_keys: ["*"]}]`, rule, 1)
		if changed == string(text) {
			t.Fatal("the rule is not changed")
		}
		if err := os.WriteFile(config, []byte(changed), 0o600); err != nil {
			t.Fatal(err)
		}
		return config
	}

	before := m.state()
	strict := configure(`rules: [{buckets: [replica], key: new}]`)
	for _, args := range [][]string{
		{"rewrap", "s3://replica", "--adopt", "s3://bucket"},
		{"decrypt", "s3://replica/k", "--as", "s3://bucket/k", "-o", "-"},
	} {
		if out := m.command(1, append(args, "--config", strict)...); !strings.Contains(out, "read_keys") ||
			!maps.Equal(before, m.state()) {
			t.Errorf("no rule names the key: %s", out)
		}
	}

	for _, rule := range []string{
		`rules: [{buckets: [replica], key: new, read_keys: [old]}]`,
		`rules: [{buckets: [replica], key: new}, {buckets: [bucket], key: old}]`,
	} {
		config := configure(rule)
		m.command(0, "decrypt", "--config", config, "s3://replica/k", "--as", "s3://bucket/k", "-o", "-")
		m.command(0, "rewrap", "--config", config, "s3://replica", "--adopt", "s3://bucket", "--dry-run")
	}
	m.command(0, "rewrap", "--config", configure(`rules: [{buckets: [replica], key: new}, {buckets: [bucket], key: old}]`),
		"s3://replica", "--adopt", "s3://bucket")

	reader, _ := m.serve(m.onlyNew) // the rules of the new name have chosen the key
	m.readable(reader)
}

// What a client writes to the new name during the run stays.
func TestAdoptNeverRollsBack(t *testing.T) {
	m := newMove(t)
	m.some()
	m.replicate("replica", "", 7*mib)
	fresh, overwritten := text(777, 12_345), make(map[string]bool)
	var mu sync.Mutex
	hooked := m.hook(func(r *http.Request) {
		key, ok := strings.CutPrefix(r.URL.Path, "/replica/")
		writes := r.Method == http.MethodPut && r.URL.RawQuery == "" ||
			r.Method == http.MethodPost && strings.Contains(r.URL.RawQuery, "uploadId")
		mu.Lock()
		defer mu.Unlock()
		if !ok || !writes || isProbe(r) || overwritten[key] || strings.HasSuffix(key, "/") {
			return
		}

		overwritten[key] = true
		if _, err := m.app.PutObject(context.Background(), &s3.PutObjectInput{
			Bucket: &m.bucket, Key: &key, Body: bytes.NewReader(fresh),
		}); err != nil {
			t.Error(err)
		}
		m.texts[key] = sha256.Sum256(fresh)
	})

	out := m.command(0, "rewrap", "--config", m.config("hooked.yaml", hooked, "old", "old", "new"),
		"s3://replica", "--adopt", "s3://bucket")
	if len(overwritten) != 10 || !strings.Contains(out, "10 already bound to their names") {
		t.Errorf("%d overwritten:\n%s", len(overwritten), out)
	}
	m.readable(m.app)
}

func TestAdoptKilledAndResumed(t *testing.T) {
	m := newMove(t)
	for i := range 100 {
		m.put(fmt.Sprintf("k%03d", i), text(uint64(i), 3000))
	}
	m.upload("parts/a", []int32{1, 2}, 5*mib, 6*mib)
	m.replicate("replica", "", 0)
	file := filepath.Join(m.dir, "state")
	m.killed(75, "rewrap", "--adopt", "s3://bucket", "--state", file, "--parallel", "4", "--rate", "50")
	if _, err := os.Stat(file); err != nil {
		t.Fatal("no state is left:", err)
	}

	for _, other := range [][]string{{"--adopt", "s3://other"}, {}, {"--adopt", "s3://bucket", "--to", "new"}} {
		args := append([]string{"rewrap", "--config", m.both, "s3://replica", "--state", file}, other...)
		if out := m.command(1, args...); !strings.Contains(out, "belongs to another run") {
			t.Errorf("%q continues it:\n%s", other, out)
		}
	}

	out := m.command(0, "rewrap", "--config", m.both, "s3://replica", "--state", file, "--adopt", "s3://bucket")
	if strings.Contains(out, "adopted    101") {
		t.Errorf("it begins again:\n%s", out)
	}
	if _, err := os.Stat(file); err == nil {
		t.Error("the state is still there")
	}
	m.readable(m.app)
}

func TestAdoptByNames(t *testing.T) {
	m := newMove(t)
	keys := []string{"a,b", "=1+1", "plain"}
	for i, key := range keys {
		m.put(key, text(uint64(i), 1000))
	}
	m.upload("parts/x", []int32{1}, 6*mib)
	m.replicate("replica", "", 0)

	moved := map[string]string{"a,b": "z \"1\"", "=1+1": "-y", "plain": "x", "parts/x": "other/parts"}
	for old, now := range moved {
		source := sigv4.EscapePath("/replica/" + old)
		if _, err := m.direct.CopyObject(t.Context(), &s3.CopyObjectInput{
			Bucket: &m.bucket, Key: &now, CopySource: &source,
		}); err != nil {
			t.Fatal(err)
		}
		m.texts[now] = m.texts[old]
		delete(m.texts, old)
	}

	names := filepath.Join(m.dir, "names.csv")
	adopt := func(code int, file string, args ...string) string {
		t.Helper()
		if err := os.WriteFile(names, []byte(file), 0o600); err != nil {
			t.Fatal(err)
		}
		return m.command(code, append([]string{
			"rewrap", "--config", m.both, "s3://replica", "--adopt", "s3://bucket", "--names", names,
		}, args...)...)
	}
	const good = "old_key,new_key\n\"a,b\",\"z \"\"1\"\"\"\n'=1+1,'-y\nplain,x\nparts/x,other/parts\n"
	before := m.state()

	for _, row := range []struct {
		name, file string
		code       int
		want       string
	}{
		{"the columns in the other order", "new_key,old_key\nx,plain\n", 1, "the first line must be old_key,new_key"},
		{"no first line", "plain,x\n", 1, "the first line must be old_key,new_key"},
		{"empty", "", 1, "the first line must be old_key,new_key"},
		{"a new key twice", "old_key,new_key\nplain,x\nparts/x,x\n", 1, `line 3: the new key "x" is there twice`},
		{"an empty key", "old_key,new_key\n,x\n", 1, "line 2: a key is empty"},
		{"three columns", "old_key,new_key\nplain,x,y\n", 1, "wrong number of fields"},
		{"not UTF-8", "old_key,new_key\n\xff,x\n", 1, "not UTF-8"},
		{"an object that is not there", "old_key,new_key\nplain,nothing\n", 1, "the bucket has no such object"},
		{"another object's old key", "old_key,new_key\n\"a,b\",x\n", 1, "belongs to another name"},
	} {
		t.Run(row.name, func(t *testing.T) {
			if out := adopt(row.code, row.file); !strings.Contains(out, row.want) || !maps.Equal(before, m.state()) {
				t.Errorf("it does not say %q:\n%s", row.want, out)
			}
		})
	}

	state := filepath.Join(m.dir, "state")
	adopt(1, "old_key,new_key\nplain,nothing\n", "--state", state)
	if out := adopt(1, good, "--state", state); !strings.Contains(out, "belongs to another run") {
		t.Errorf("the state of another file:\n%s", out)
	}

	if out := adopt(0, good); !strings.Contains(out, "adopted    4 objects") {
		t.Errorf("%s", out)
	}
	m.readable(m.app)
	for old := range moved { // objects that the file does not have are left alone
		if m.state()[old] != before[old] {
			t.Errorf("%q was written", old)
		}
	}
}

func TestAdoptUsage(t *testing.T) {
	config := writeConfig(t, "http://127.0.0.1:1", "127.0.0.1:0", "127.0.0.1:1")
	for _, row := range []struct {
		args []string
		want string
	}{
		{[]string{"s3://new", "--names", "f"}, "--names needs --adopt"},
		{[]string{"s3://new", "--adopt", "old"}, "--adopt: \"old\" is not of the form"},
		{[]string{"s3://new", "--adopt", "s3://old", "--all"}, "--all"},
		{[]string{"s3://new/p/", "--adopt", "s3://old/p"}, "end both with /"},
		{[]string{"s3://new/p", "--adopt", "s3://old"}, "end both with /"},
		{[]string{"s3://new/p", "--adopt", "s3://old/p", "--names", "f"}, "without a prefix"},
		{[]string{"s3://new", "--adopt", "s3://old", "--names", "nothing"}, "no such file"},
	} {
		t.Run(strings.Join(row.args, " "), func(t *testing.T) {
			var out output
			code := run(t.Context(), append([]string{"rewrap", "--config", config}, row.args...), &out, &out)
			if code == 0 || !strings.Contains(out.String(), row.want) {
				t.Errorf("exit code %d: %s", code, out.String())
			}
		})
	}
}

// decrypt --as reads an object that was moved, whole or from where it
// stopped, and nothing else.
func TestDecryptAs(t *testing.T) {
	withEachKMS(t, func(m *move) {
		m.some()
		key := bytes.Repeat([]byte{7}, 32)
		keyFile := filepath.Join(m.dir, "customer")
		if err := os.WriteFile(keyFile, key, 0o600); err != nil {
			t.Fatal(err)
		}
		m.put("customer", text(5, 80_000), func(in *s3.PutObjectInput) {
			sum := md5.Sum(key)
			in.SSECustomerAlgorithm = aws.String("AES256")
			in.SSECustomerKey = aws.String(base64.StdEncoding.EncodeToString(key))
			in.SSECustomerKeyMD5 = aws.String(base64.StdEncoding.EncodeToString(sum[:]))
		})
		m.replicate("replica", "p/", 7*mib)

		for target, sum := range m.texts {
			old := strings.TrimPrefix(target, "p/")
			args := []string{"decrypt", "--config", m.both, "s3://replica/" + target, "-o", filepath.Join(m.dir, "out")}
			if old == "customer" {
				args = append(args, "--sse-customer-key", keyFile)
			}
			as := func(name string) []string { return append(slices.Clone(args), "--as", name) }

			if old == "context" || strings.HasPrefix(old, "parts/") || old == "customer" {
				for _, wrong := range []string{"s3://bucket/" + old + "x", "s3://other/" + old, "s3://replica/" + target} {
					m.command(1, as(wrong)...)
				}
				m.command(1, args...)
			}

			m.command(0, as("s3://bucket/"+old)...)
			whole := m.written(target, sum)
			for _, done := range []int{1, len(whole) * 2 / 3} {
				if done == 0 || len(whole) == 0 || old == "customer" {
					continue
				}
				part := m.partial(target, old)
				if err := os.WriteFile(part, whole[:done], 0o600); err != nil {
					t.Fatal(err)
				}
				if out := m.command(0, as("s3://bucket/"+old)...); done < len(whole) && !strings.Contains(out, "continuing at byte") {
					t.Errorf("%q: %s", target, out)
				}
				m.written(target, sum)
			}
		}
	})
}

// written returns what decrypt has written, after comparing it.
func (m *move) written(key string, want [sha256.Size]byte) []byte {
	m.t.Helper()
	out := filepath.Join(m.dir, "out")
	got, err := os.ReadFile(out)
	if err != nil || sha256.Sum256(got) != want {
		m.t.Errorf("%q: other bytes than were stored, %v", key, err)
	}
	if err := os.Remove(out); err != nil {
		m.t.Error(err)
	}
	return got
}

// partial returns the name of the file of an unfinished decryption.
func (m *move) partial(target, old string) string {
	m.t.Helper()
	head, err := m.direct.HeadObject(m.t.Context(), &s3.HeadObjectInput{Bucket: &m.bucket, Key: &target})
	if err != nil {
		m.t.Fatal(err)
	}
	r := decryptRun{request: stored.Request{
		Object: crypt.Object{Bucket: "bucket", Key: old}, At: crypt.Object{Bucket: m.bucket, Key: target},
	}}
	present := r
	present.request.Object = r.request.At
	if r.names() == present.names() {
		m.t.Error("a decryption under one name goes on under another one")
	}
	sum := sha256.Sum256([]byte(r.names() + "\n" + *head.ETag))
	return filepath.Join(m.dir, "out."+hex.EncodeToString(sum[:4])+".part")
}
