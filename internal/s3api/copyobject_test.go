package s3api_test

import (
	"bytes"
	"errors"
	"fmt"
	"net/http"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/service/s3"
	"github.com/aws/aws-sdk-go-v2/service/s3/types"

	"github.com/cmekproxy/cmekproxy/internal/keyring"
	"github.com/cmekproxy/cmekproxy/internal/s3api"
)

// copy copies an object within the proxy's bucket.
func (p *proxy) copy(from, to string, more ...func(*s3.CopyObjectInput)) (*s3.CopyObjectOutput, error) {
	p.t.Helper()
	in := &s3.CopyObjectInput{Bucket: &p.bucket, Key: &to, CopySource: aws.String(p.bucket + "/" + from)}
	for _, m := range more {
		m(in)
	}
	return p.client.CopyObject(p.t.Context(), in)
}

func (p *proxy) mustCopy(from, to string, more ...func(*s3.CopyObjectInput)) *s3.CopyObjectOutput {
	p.t.Helper()
	out, err := p.copy(from, to, more...)
	if err != nil {
		p.t.Fatalf("copying %s to %s: %v", from, to, err)
	}
	return out
}

// withSecondKey puts the objects below other/ under another KMS key.
func withSecondKey(t *testing.T) (option, string) {
	second := secondKey(t)
	return func(_ *proxy, _ *s3api.Config, cfg *keyring.Config) {
		cfg.Keys = append(cfg.Keys, second)
		cfg.Rules = append([]keyring.Rule{{Prefixes: []string{"other/"}, Key: "second"}}, cfg.Rules...)
	}, second.Wrapper.KeyID()
}

func TestCopyObject(t *testing.T) {
	secondRule, second := withSecondKey(t)
	p := newProxy(t, secondRule)
	text := randomText(200_000)

	put := p.put("source", text, func(in *s3.PutObjectInput) {
		in.ContentType, in.CacheControl, in.Metadata, in.Tagging = aws.String(
			"text/x-test",
		), aws.String(
			"no-store",
		), map[string]string{
			"mine": "1",
		}, aws.String(
			"a=b&c=d",
		)

		in.ChecksumAlgorithm, in.StorageClass = types.ChecksumAlgorithmCrc32c, types.StorageClassStandard
	})

	p.origin.take()
	for _, to := range []string{"copy", "other/copy", "dir/\u00e4 +%2F copy"} {
		t.Run(to, func(t *testing.T) {
			out := p.mustCopy("source", to)
			if sent := p.origin.take(); len(sent) != 5 { // HEAD, the first segment, the last, the copy, and a look at it
				t.Errorf("%q, and the store was to copy by itself", sent)
			}

			got, answer, err := p.get(to)
			if err != nil || !bytes.Equal(got, text) {
				t.Fatalf("%d bytes, %v", len(got), err)
			}
			if *answer.ETag != *out.CopyObjectResult.ETag || !strings.HasSuffix(*answer.ETag, `-0"`) ||
				out.CopyObjectResult.LastModified.Before(time.Now().Add(-time.Hour)) {
				t.Errorf("ETag %s, and %+v", *answer.ETag, out.CopyObjectResult)
			}

			if *answer.ContentType != "text/x-test" || *answer.CacheControl != "no-store" ||
				answer.Metadata["mine"] != "1" ||
				len(answer.Metadata) != 1 {
				t.Errorf("%+v", answer)
			}

			want := p.ringKeys[0].Wrapper.KeyID()
			if strings.HasPrefix(to, "other/") {
				want = second
			}
			if *out.SSEKMSKeyId != want || *answer.SSEKMSKeyId != want {
				t.Errorf("under %s and %s, want %s", *out.SSEKMSKeyId, *answer.SSEKMSKeyId, want)
			}

			if sum := out.CopyObjectResult.ChecksumCRC32C; sum == nil || *sum != *put.ChecksumCRC32C {
				t.Errorf("answered %+v", out.CopyObjectResult)
			}

			tags, err := p.client.GetObject(
				t.Context(),
				&s3.GetObjectInput{Bucket: &p.bucket, Key: &to, ChecksumMode: types.ChecksumModeEnabled},
			)
			if err != nil || tags.ChecksumCRC32C == nil || *tags.ChecksumCRC32C != *put.ChecksumCRC32C {
				t.Errorf("the checksum: %+v, %v", tags, err)
			}

			p.origin.take()
		})
	}

	// A copy has its own envelope: the source's wrapped data key does not
	// open it.
	_, from := p.stored("source")
	body, _ := p.stored("copy")
	p.store("copy", body, from)

	if a := p.send(request{method: "GET", path: "/" + p.bucket + "/copy"}); a.Code != "ObjectIntegrityError" {
		t.Errorf("the source's envelope on the copy: %d %s", a.StatusCode, a.Code)
	}
}

func TestCopyObjectReplaces(t *testing.T) {
	p := newProxy(t)
	p.put("source", []byte("text"), func(in *s3.PutObjectInput) {
		in.ContentType, in.Metadata = aws.String("text/x-test"), map[string]string{"mine": "1"}
	})

	replace := func(in *s3.CopyObjectInput) {
		in.MetadataDirective, in.ContentType, in.Metadata = types.MetadataDirectiveReplace, aws.String(
			"image/png",
		), map[string]string{
			"new": "2",
		}
	}

	for _, to := range []string{"copy", "source"} {
		t.Run(to, func(t *testing.T) { // a copy onto itself only changes the metadata
			p.mustCopy("source", to, replace)
			got, answer, err := p.get(to)
			if err != nil || string(got) != "text" || *answer.ContentType != "image/png" || len(answer.Metadata) != 1 ||
				answer.Metadata["new"] != "2" {
				t.Errorf("%q, %+v, %v", got, answer, err)
			}
		})
	}

	if _, err := p.copy("source", "source"); code(err) != "InvalidRequest" {
		t.Errorf("a copy onto itself that changes nothing: %v", err)
	}

	p.mustCopy(
		"source",
		"source",
		func(in *s3.CopyObjectInput) { in.ServerSideEncryption = types.ServerSideEncryptionAwsKms },
	)

	if got := p.mustGet("source"); string(got) != "text" {
		t.Errorf("%q", got)
	}

	for name, in := range map[string]func(*s3.CopyObjectInput){
		"the envelope's names": func(in *s3.CopyObjectInput) {
			in.MetadataDirective, in.Metadata = types.MetadataDirectiveReplace, map[string]string{"cmek-v": "1"}
		},
		"an unknown directive": func(in *s3.CopyObjectInput) { in.MetadataDirective = "MERGE" },
		"a range":              func(in *s3.CopyObjectInput) { in.CopySource = aws.String("?") },
	} {
		t.Run(name, func(t *testing.T) {
			if _, err := p.copy("source", "bad", in); code(err) != "InvalidArgument" || p.isStored("bad") {
				t.Errorf("%v", err)
			}
		})
	}

	big := map[string]string{"big": strings.Repeat("x", 1900)}
	if _, err := p.copy("source", "bad", func(in *s3.CopyObjectInput) {
		in.MetadataDirective, in.Metadata = types.MetadataDirectiveReplace, big
	}); code(err) != "MetadataTooLarge" {
		t.Errorf("1,900 bytes of metadata: %v", err)
	}
}

func TestCopyObjectConditions(t *testing.T) {
	p := newProxy(t)
	etag := p.put("source", []byte("text")).ETag
	before, after := time.Now().Add(-time.Hour), time.Now().Add(time.Hour)
	for name, row := range map[string]struct {
		in   func(*s3.CopyObjectInput)
		want string
	}{
		"if-match": {func(in *s3.CopyObjectInput) { in.CopySourceIfMatch = etag }, ""},
		"if-match another": {
			func(in *s3.CopyObjectInput) { in.CopySourceIfMatch = aws.String(`"abc-0"`) }, "PreconditionFailed",
		},
		"if-none-match":         {func(in *s3.CopyObjectInput) { in.CopySourceIfNoneMatch = etag }, "PreconditionFailed"},
		"if-none-match another": {func(in *s3.CopyObjectInput) { in.CopySourceIfNoneMatch = aws.String(`"abc-0"`) }, ""},
		"if-modified-since":     {func(in *s3.CopyObjectInput) { in.CopySourceIfModifiedSince = &before }, ""},
		"if-unmodified-since":   {func(in *s3.CopyObjectInput) { in.CopySourceIfUnmodifiedSince = &after }, ""},
		"if-unmodified-since, past": {
			func(in *s3.CopyObjectInput) { in.CopySourceIfUnmodifiedSince = &before }, "PreconditionFailed",
		},
		"no such key":    {func(in *s3.CopyObjectInput) { in.CopySource = aws.String(p.bucket + "/nothing") }, "NoSuchKey"},
		"no such bucket": {func(in *s3.CopyObjectInput) { in.CopySource = aws.String("test-nothing/k") }, "NoSuchBucket"},
	} {
		t.Run(name, func(t *testing.T) {
			_, err := p.copy("source", "copy", row.in)
			if err == nil && row.want != "" || err != nil && code(err) != row.want {
				t.Errorf("%v, want %q", err, row.want)
			}
			if row.want != "" && p.isStored("copy") {
				t.Errorf("copied all the same")
			}

			p.storeDo(http.MethodDelete, "copy", nil, nil)
		})
	}

	reader := p.as(readerAccess, readerSecret)
	if _, err := reader.CopyObject(t.Context(), &s3.CopyObjectInput{
		Bucket: &p.bucket, Key: aws.String("x"), CopySource: aws.String(p.bucket + "/source"),
	}); code(err) != "AccessDenied" {
		t.Errorf("by a client without a grant: %v", err)
	}
}

// Ciphertext of parts cannot be copied, and plaintext must be encrypted:
// both are read and sealed again.
func TestCopyObjectStreams(t *testing.T) {
	p := newProxy(t)
	m := p.upload("parts", []int{5 << 20, 5<<20 + 7, 100})
	p.mustCopy("parts", "copy")
	got, out, err := p.get("copy")
	if err != nil || !bytes.Equal(got, m.text()) || !strings.HasSuffix(*out.ETag, `-0"`) {
		t.Fatalf("%d bytes, %v", len(got), err)
	}

	if size := p.listed("copy"); size != int64(len(got)) {
		t.Errorf("listed with %d bytes", size)
	}

	// If the source was altered, nothing is stored.
	p.rewriteFile("parts", func(b []byte) []byte { b[len(b)-20_000] ^= 1; return b })
	if _, err := p.copy("parts", "broken"); err == nil || p.isStored("broken") {
		t.Errorf("of an altered source: %v", err)
	}
	plain := p.newBucket("plain-")
	p.storeTo(plain, "k", []byte("never encrypted"))

	from := func(in *s3.CopyObjectInput) { in.CopySource = aws.String(plain + "/k") }
	p.mustCopy("", "sealed", from)
	body, _ := p.stored("sealed")
	if got := p.mustGet("sealed"); string(got) != "never encrypted" || bytes.Contains(body, []byte("never")) {
		t.Errorf("%q, stored as %q", got, body)
	}
	p.store("past", []byte("stored past the proxy"), nil)

	if _, err := p.copy("past", "bad"); code(err) != "PlaintextObject" || p.isStored("bad") {
		t.Errorf("of an object without an envelope: %v", err)
	}
}

// A copy signs a new envelope. It must not sign one that the store has
// altered.
func TestCopyObjectOfAnAlteredEnvelope(t *testing.T) {
	p := newProxy(t)
	p.put("source", []byte("text"))
	p.put("other", []byte("another text"))
	body, good := p.stored("source")
	_, other := p.stored("other")

	for _, name := range []string{"Size", "Header", "Mac", "Dek"} {
		t.Run(name, func(t *testing.T) {
			bad := good.Clone()
			bad.Set("X-Amz-Meta-Cmek-"+name, other.Get("X-Amz-Meta-Cmek-"+name))
			p.store("source", body, bad)
			if _, err := p.copy("source", "copy"); code(err) != "ObjectIntegrityError" || p.isStored("copy") {
				t.Errorf("with another %s: %v", name, err)
			}
		})
	}

	p.store("source", body, good)
	p.mustCopy("source", "copy")
}

// If an object is overwritten between the HEAD and the copy, the new object
// is copied, with its own envelope.
func TestCopyObjectOverwrittenMeanwhile(t *testing.T) {
	p := newProxy(t)
	p.put("source", []byte("old"))
	p.origin.set(func(r *http.Request) (*http.Response, error) {
		if r.Method == http.MethodPut && r.Header.Get("X-Amz-Copy-Source") != "" {
			p.origin.set(nil, nil)
			p.put("source", []byte("new"))
		}
		return nil, nil
	}, nil)
	p.mustCopy("source", "copy")
	if got := string(p.mustGet("copy")); got != "new" {
		t.Errorf("%q", got)
	}
}

func TestCopyObjectWithCustomerKeys(t *testing.T) {
	p := newProxy(t)
	mine, other := newCustomer(1), newCustomer(2)
	source := func(k customer) func(*s3.CopyObjectInput) {
		return func(in *s3.CopyObjectInput) {
			in.CopySourceSSECustomerAlgorithm, in.CopySourceSSECustomerKey, in.CopySourceSSECustomerKeyMD5 = k.algorithm, k.key, k.md5
		}
	}

	target := func(k customer) func(*s3.CopyObjectInput) {
		return func(in *s3.CopyObjectInput) {
			in.SSECustomerAlgorithm, in.SSECustomerKey, in.SSECustomerKeyMD5 = k.algorithm, k.key, k.md5
		}
	}
	p.put("mine", []byte("text"), mine.put)
	p.put("kms", []byte("text"))

	if out := p.mustCopy("mine", "other", source(mine), target(other)); *out.SSECustomerKeyMD5 != *other.md5 ||
		out.SSEKMSKeyId != nil {
		t.Errorf("%+v", out)
	}
	p.mustCopy("mine", "to-kms", source(mine))
	p.mustCopy("kms", "to-mine", target(mine))

	for key, k := range map[string]*customer{"other": &other, "to-kms": nil, "to-mine": &mine} {
		var with []func(*s3.GetObjectInput)
		if k != nil {
			with = append(with, k.get)
		}
		if got, _, err := p.get(key, with...); err != nil || string(got) != "text" {
			t.Errorf("%s: %q, %v", key, got, err)
		}
	}

	for name, row := range map[string]struct {
		from string
		in   []func(*s3.CopyObjectInput)
		want string
	}{
		"no key":                 {"mine", nil, "InvalidRequest"},
		"the target's key alone": {"mine", []func(*s3.CopyObjectInput){target(mine)}, "InvalidRequest"},
		"another key":            {"mine", []func(*s3.CopyObjectInput){source(other)}, "AccessDenied"},
		"a key for KMS":          {"kms", []func(*s3.CopyObjectInput){source(mine)}, "InvalidRequest"},
	} {
		t.Run(name, func(t *testing.T) {
			if _, err := p.copy(row.from, "bad", row.in...); code(err) != row.want || p.isStored("bad") {
				t.Errorf("%v, want %s", err, row.want)
			}
		})
	}

	m := p.create("parts")
	if _, err := p.client.UploadPartCopy(t.Context(), &s3.UploadPartCopyInput{
		Bucket: &p.bucket, Key: aws.String("parts"), UploadId: &m.id, PartNumber: aws.Int32(1),
		CopySource:                     aws.String(p.bucket + "/mine"),
		CopySourceSSECustomerAlgorithm: mine.algorithm, CopySourceSSECustomerKey: mine.key,
		CopySourceSSECustomerKeyMD5: mine.md5,
	}); err != nil {
		t.Errorf("as a part: %v", err)
	}
}

// A slow copy sends white space. The final answer is the same, or the
// connection breaks.
func TestCopyObjectKeepsAlive(t *testing.T) {
	p := newProxy(t, func(_ *proxy, cfg *s3api.Config, _ *keyring.Config) { cfg.KeepAlive = 20 * time.Millisecond })
	p.put("source", []byte("text"))
	takesLong := func(slow func(*http.Request) bool, end error) {
		p.origin.set(func(r *http.Request) (*http.Response, error) {
			if !slow(r) {
				return nil, nil
			}
			time.Sleep(600 * time.Millisecond) // 30 intervals
			return nil, end
		}, nil)
	}

	gone := errors.New("the store is gone")
	copies := func(r *http.Request) bool { return r.Header.Get("X-Amz-Copy-Source") != "" }
	takesLong(copies, nil)

	copied := request{
		method: "PUT",
		path:   "/" + p.bucket + "/copy",
		header: http.Header{"X-Amz-Copy-Source": {p.bucket + "/source"}},
	}

	a := p.send(copied)
	if a.StatusCode != 200 || !bytes.HasPrefix(a.body, []byte("<?xml")) ||
		!bytes.Contains(a.body, []byte("  <CopyObjectResult")) ||
		a.Header.Get("X-Amz-Server-Side-Encryption") != "aws:kms" {
		t.Errorf("%d %v %s", a.StatusCode, a.Header, a.body)
	}

	if _, err := p.copy("source", "copy"); err != nil {
		t.Errorf("the SDK: %v", err)
	}
	takesLong(copies, gone)
	if _, err := p.copy("source", "copy"); err == nil {
		t.Error("a failure passed for a copy")
	}

	// So does reading the source to compute a missing checksum.
	reads := func(r *http.Request) bool { return r.Method == http.MethodGet }
	takesLong(reads, nil)
	copied.header.Set("X-Amz-Checksum-Algorithm", "SHA256")

	if a := p.send(copied); a.StatusCode != 200 || !bytes.Contains(a.body, []byte("  <CopyObjectResult")) ||
		!bytes.Contains(a.body, []byte(sumOf("SHA256", []byte("text")))) {
		t.Errorf("with a checksum: %d %s", a.StatusCode, a.body)
	}
	takesLong(reads, gone)

	if _, err := p.copy(
		"source", "copy", func(in *s3.CopyObjectInput) { in.ChecksumAlgorithm = types.ChecksumAlgorithmSha256 },
	); err == nil {
		t.Error("a source that could not be read passed for a copy")
	}
}

// A copy has only the requested checksum, of the plaintext; without a
// request, the source's.
func TestChecksumsOfCopies(t *testing.T) {
	p := newProxy(t)
	plain := p.newBucket("plain-")
	text := randomText(300_000)
	p.put("whole", text, func(in *s3.PutObjectInput) { in.ChecksumAlgorithm = types.ChecksumAlgorithmCrc32 })
	p.put("empty", nil)
	p.storeTo(plain, "bare", text)

	parts := p.upload("parts", []int{5 * mib, 77}).text()
	for source, want := range map[string][]byte{
		p.bucket + "/whole": text, p.bucket + "/empty": nil, plain + "/bare": text, p.bucket + "/parts": parts,
	} {
		t.Run(source, func(t *testing.T) {
			from := func(in *s3.CopyObjectInput) {
				in.CopySource, in.ChecksumAlgorithm = &source, types.ChecksumAlgorithmSha256
			}

			out := p.mustCopy("", "copy", from).CopyObjectResult
			sum := sumOf("SHA256", want)
			if out.ChecksumSHA256 == nil || *out.ChecksumSHA256 != sum || out.ChecksumCRC32 != nil ||
				out.ChecksumType != types.ChecksumTypeFullObject {
				t.Errorf("%+v", out)
			}

			head, err := p.client.HeadObject(
				t.Context(),
				&s3.HeadObjectInput{Bucket: &p.bucket, Key: new("copy"), ChecksumMode: types.ChecksumModeEnabled},
			)
			if err != nil || head.ChecksumSHA256 == nil || *head.ChecksumSHA256 != sum || head.ChecksumCRC32 != nil {
				t.Errorf("HEAD: %+v, %v", head, err)
			}

			if got := p.mustGet("copy"); !bytes.Equal(got, want) { // the SDK verifies the checksum
				t.Errorf("another text")
			}
			if _, header := p.stored("copy"); strings.Contains(fmt.Sprint(header), sum) {
				t.Errorf("the store can read the checksum: %v", header)
			}
		})
	}

	// A stored checksum does not need another read.
	p.origin.take()
	p.mustCopy("whole", "copy", func(in *s3.CopyObjectInput) { in.ChecksumAlgorithm = types.ChecksumAlgorithmCrc32 })
	if sent := p.origin.take(); len(sent) != 5 { // HEAD, the first segment, the last, the copy, and a look at it
		t.Errorf("for a checksum that is kept: %q", sent)
	}

	if out := p.mustCopy("copy", "copy 2").CopyObjectResult; out.ChecksumCRC32 == nil ||
		*out.ChecksumCRC32 != sumOf("CRC32", text) {
		t.Errorf("a copy of the copy: %+v", out)
	}
}

// Nothing is copied if the source cannot be read to its end, or if the
// checksum algorithm is unknown.
func TestChecksumsOfCopiesFail(t *testing.T) {
	p := newProxy(t)
	p.put("source", randomText(300_000))
	sha := func(in *s3.CopyObjectInput) { in.ChecksumAlgorithm = types.ChecksumAlgorithmSha256 }
	if _, err := p.copy(
		"source", "copy", func(in *s3.CopyObjectInput) { in.ChecksumAlgorithm = "SHA3" },
	); code(err) != "InvalidRequest" ||
		!strings.Contains(err.Error(), "[CRC32, CRC32C, CRC64NVME, MD5, SHA1, ") {
		t.Errorf("an unknown algorithm: %v", err)
	}

	body, header := p.stored("source")
	body[len(body)-1] ^= 1
	p.store("source", body, header)
	if _, err := p.copy("source", "copy", sha); code(err) != "ObjectIntegrityError" || p.isStored("copy") {
		t.Errorf("a source that was altered: %v", err)
	}

	path := "/" + p.bucket + "/copy"
	if a := p.send(request{
		method: "PUT", path: path,
		header: http.Header{"X-Amz-Copy-Source": {p.bucket + "/source"}, "X-Amz-Copy-Source-Range": {"bytes=0-9"}},
	}); a.Code != "NotImplemented" ||
		p.isStored("copy") {
		t.Errorf("a range of the source: %d %s", a.StatusCode, a.body)
	}
}

// If a source is overwritten between reading it for its checksum and copying
// it, it is not copied with that checksum.
func TestChecksumOfASourceThatIsOverwritten(t *testing.T) {
	p := newProxy(t)
	other := p.replica()
	for at := 1; ; at++ {
		p.upload("source", []int{5 * mib, 100})
		var mu sync.Mutex
		count, overwritten := 0, false

		p.origin.set(func(r *http.Request) (*http.Response, error) {
			mu.Lock()
			defer mu.Unlock()
			if r.Method == http.MethodGet {
				if count++; count == at {
					overwritten = true
					other.put("source", randomText(5*mib+100))
				}
			}

			return nil, nil
		}, nil)

		_, err := p.copy(
			"source",
			"copy",
			func(in *s3.CopyObjectInput) { in.ChecksumAlgorithm = types.ChecksumAlgorithmSha256 },
		)
		p.origin.set(nil, nil)

		if p.isStored("copy") {
			text, out, err := p.get("copy", func(in *s3.GetObjectInput) { in.ChecksumMode = types.ChecksumModeEnabled })
			if err != nil || out.ChecksumSHA256 == nil || *out.ChecksumSHA256 != sumOf("SHA256", text) {
				t.Fatalf("overwritten at read %d: the copy has another checksum than its text: %v", at, err)
			}
			p.storeDo(http.MethodDelete, "copy", nil, nil)
		} else if err == nil {
			t.Errorf("overwritten at read %d: nothing is stored, and no error", at)
		}

		if !overwritten {
			break // these were all reads
		}
	}
}

func TestCopySources(t *testing.T) {
	p := newProxy(t)
	p.put("a//b", []byte("text"))
	for source, want := range map[string]string{
		"bucket/%ZZ": "Invalid copy source encoding", "%": "Invalid copy source encoding",
		"100%/a":        "Invalid copy source encoding",
		"192.168.1.1/a": "Invalid copy source bucket name", "bucket!/a": "Invalid copy source bucket name",
		"bucket": "Invalid copy source object key", "bucket/": "Invalid copy source object key",
		"bucket/.":  "Invalid copy source object key",
		"bucket/..": "Invalid copy source object key", "bucket/a/../../b": "Invalid copy source object key",
		"bucket/%2e%2E/b": "Invalid copy source object key",
		"bucket/a?acl":    "Copy Source must mention", "bucket/a?versionId=1&acl=2": "Copy Source must mention",
	} {
		t.Run(source, func(t *testing.T) {
			header := http.Header{"X-Amz-Copy-Source": {source}}
			for _, query := range []string{"", "?partNumber=1&uploadId=none"} {
				a := p.send(request{method: "PUT", path: "/" + p.bucket + "/copy" + query, header: header})
				if a.Code != "InvalidArgument" || !bytes.Contains(a.body, []byte(want)) ||
					!bytes.Contains(a.body, []byte("<ArgumentName>x-amz-copy-source<")) {
					t.Errorf("%d %s", a.StatusCode, a.body)
				}
				if a := p.send(request{
					method: "PUT", path: "/nosuchbucket/copy" + query, header: header,
				}); a.Code != "NoSuchBucket" {
					t.Errorf("to no bucket: %d %s", a.StatusCode, a.body)
				}
			}
		})
	}

	if a := p.send(request{
		method: "PUT", path: "/" + p.bucket + "/copy",
		header: http.Header{"X-Amz-Copy-Source": {p.bucket + "/a/./%2F../b"}},
	}); a.Code == "InvalidArgument" {
		t.Errorf("a key that does not lead out: %s", a.body)
	}
}

// A + in x-amz-copy-source is a space, as at S3, and never the key with a +.
func TestAPlusInACopySourceIsASpace(t *testing.T) {
	p := newProxy(t)
	p.put("a b", []byte("space"))
	p.put("a+b", []byte("plus"))
	p.put("only+plus", []byte("plus"))
	m := p.create("target")

	for _, row := range []struct{ source, want string }{
		{"a+b", "space"},
		{"a%20b", "space"},
		{"a b", "space"},
		{"a%2Bb", "plus"},
		{"a%2bb", "plus"},
		{"only+plus", ""}, // no such key
		{"only%2Bplus", "plus"},
	} {
		t.Run(row.source, func(t *testing.T) {
			header := http.Header{"X-Amz-Copy-Source": {p.bucket + "/" + row.source}}
			copied := p.send(request{method: http.MethodPut, path: "/" + p.bucket + "/copy", header: header})
			part := p.send(request{
				method: http.MethodPut, path: "/" + p.bucket + "/target?partNumber=1&uploadId=" + m.id, header: header,
			})
			if row.want == "" {
				if copied.Code != "NoSuchKey" || part.Code != "NoSuchKey" {
					t.Errorf("%s\n%s", copied.body, part.body)
				}
				return
			}
			if copied.StatusCode != http.StatusOK || part.StatusCode != http.StatusOK {
				t.Fatalf("%s\n%s", copied.body, part.body)
			}
			if got := string(p.mustGet("copy")); got != row.want {
				t.Errorf("%q, want %q", got, row.want)
			}
		})
	}
}
