package s3api_test

import (
	"bytes"
	"net/http"
	"net/url"
	"os"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/service/s3"
	"github.com/aws/aws-sdk-go-v2/service/s3/types"

	"github.com/cmekproxy/cmekproxy/internal/access"
	"github.com/cmekproxy/cmekproxy/internal/capability"
	"github.com/cmekproxy/cmekproxy/internal/keyring"
	"github.com/cmekproxy/cmekproxy/internal/s3api"
)

func (p *proxy) rename(from, to string, more ...func(*s3.RenameObjectInput)) error {
	p.t.Helper()
	in := &s3.RenameObjectInput{Bucket: &p.bucket, Key: &to, RenameSource: aws.String(url.PathEscape(from))}
	for _, m := range more {
		m(in)
	}
	_, err := p.client.RenameObject(p.t.Context(), in)
	return err
}

func TestRenameObject(t *testing.T) {
	withSecond, second := withAskedKey(t)
	p := newProxy(t, withSecond)
	for name, row := range map[string]struct {
		from, to string
		text     []byte
		raw      string // the header, if it is not the escaped key
	}{
		"empty":                    {from: "from", to: "to"},
		"small":                    {from: "from", to: "to", text: randomText(10)},
		"many segments":            {from: "from", to: "other/to", text: randomText(300_000)},
		"odd characters":           {from: "a b+c%20ä?", to: "ä +%", text: randomText(10)},
		"a plus is no space":       {from: "a+b", to: "to", text: randomText(10), raw: "a+b"},
		"with the bucket":          {from: "from", to: "to", text: randomText(10), raw: "/BUCKET/from"},
		"a folder and the same":    {from: "old/x", to: "new/x", text: randomText(10)},
		"with the bucket, escaped": {from: "a b", to: "to", text: randomText(10), raw: "/BUCKET/a%20b"},
	} {
		t.Run(name, func(t *testing.T) {
			p.put(row.from, row.text, func(in *s3.PutObjectInput) {
				in.ContentType, in.Metadata, in.Tagging = aws.String("text/x-test"), map[string]string{"mine": "1"}, aws.String("a=b")
				in.ChecksumAlgorithm = types.ChecksumAlgorithmSha256
				in.ServerSideEncryption, in.SSEKMSKeyId = types.ServerSideEncryptionAwsKms, &second
			})
			p.put(row.to, []byte("before"))
			body, _ := p.stored(row.from)

			err := p.rename(row.from, row.to, func(in *s3.RenameObjectInput) {
				if row.raw != "" {
					in.RenameSource = aws.String(strings.Replace(row.raw, "BUCKET", p.bucket, 1))
				}
			})
			if err != nil {
				t.Fatal(err)
			}
			if p.isStored(row.from) {
				t.Error("the source is still there")
			}

			p.cache.PurgeAll()
			text, out, err := p.get(row.to, func(in *s3.GetObjectInput) { in.ChecksumMode = types.ChecksumModeEnabled })
			if err != nil || !bytes.Equal(text, row.text) {
				t.Fatalf("%d bytes, %v", len(text), err)
			}
			if *out.ContentType != "text/x-test" || out.Metadata["mine"] != "1" || p.tags(row.to) != "a=b" ||
				aws.ToString(out.ChecksumSHA256) == "" || *out.SSEKMSKeyId != second {
				t.Errorf("something was lost: %+v, tags %s", out, p.tags(row.to))
			}
			if now, _ := p.stored(row.to); !bytes.Equal(now, body) {
				t.Error("the stored body has changed")
			}
		})
	}
}

func TestRenameObjectConditions(t *testing.T) {
	past, future := time.Now().Add(-2*time.Hour), time.Now().Add(time.Hour)
	p := newProxy(t, honoring(versitygw))
	hour := time.Now().Add(-time.Hour).Truncate(time.Second) // when the objects were modified
	for name, row := range map[string]struct {
		fresh bool // there is nothing at the destination
		ask   func(in *s3.RenameObjectInput, source, target *string)
		ok    bool
	}{
		"none, and one is there":    {ask: func(in *s3.RenameObjectInput, _, _ *string) { in.DestinationIfNoneMatch = aws.String("*") }},
		"none, and none is there":   {fresh: true, ok: true, ask: func(in *s3.RenameObjectInput, _, _ *string) { in.DestinationIfNoneMatch = aws.String("*") }},
		"the target":                {ok: true, ask: func(in *s3.RenameObjectInput, _, e *string) { in.DestinationIfMatch = e }},
		"another target":            {ask: func(in *s3.RenameObjectInput, _, _ *string) { in.DestinationIfMatch = aws.String(otherETag) }},
		"target modified since":     {ok: true, ask: func(in *s3.RenameObjectInput, _, _ *string) { in.DestinationIfModifiedSince = &past }},
		"target not modified since": {ask: func(in *s3.RenameObjectInput, _, _ *string) { in.DestinationIfModifiedSince = &hour }},
		"no target modified since": {
			fresh: true, ask: func(in *s3.RenameObjectInput, _, _ *string) { in.DestinationIfModifiedSince = &past },
		},
		"target unmodified since": {ok: true, ask: func(in *s3.RenameObjectInput, _, _ *string) { in.DestinationIfUnmodifiedSince = &future }},
		"target not unmodified since": {
			ask: func(in *s3.RenameObjectInput, _, _ *string) { in.DestinationIfUnmodifiedSince = &past },
		},
		"no target unmodified since": {
			fresh: true, ok: true, ask: func(in *s3.RenameObjectInput, _, _ *string) { in.DestinationIfUnmodifiedSince = &past },
		},
		"another target unmodified since": {
			ask: func(in *s3.RenameObjectInput, _, _ *string) {
				in.DestinationIfMatch, in.DestinationIfUnmodifiedSince = aws.String(otherETag), &future
			},
		},
		"the source":                  {ok: true, ask: func(in *s3.RenameObjectInput, e, _ *string) { in.SourceIfMatch = e }},
		"another source":              {ask: func(in *s3.RenameObjectInput, _, _ *string) { in.SourceIfMatch = aws.String(otherETag) }},
		"not the source":              {ask: func(in *s3.RenameObjectInput, e, _ *string) { in.SourceIfNoneMatch = e }},
		"not any source":              {ask: func(in *s3.RenameObjectInput, _, _ *string) { in.SourceIfNoneMatch = aws.String("*") }},
		"source modified since":       {ok: true, ask: func(in *s3.RenameObjectInput, _, _ *string) { in.SourceIfModifiedSince = &past }},
		"source not modified since":   {ask: func(in *s3.RenameObjectInput, _, _ *string) { in.SourceIfModifiedSince = &hour }},
		"source not unmodified since": {ask: func(in *s3.RenameObjectInput, _, _ *string) { in.SourceIfUnmodifiedSince = &past }},
	} {
		t.Run(name, func(t *testing.T) {
			p.storeDo(http.MethodDelete, "to", nil, nil)
			source, target := p.put("from", []byte("text")).ETag, (*string)(nil)
			if !row.fresh {
				target = p.put("to", []byte("before")).ETag
			}
			for _, key := range []string{"from", "to"} {
				if err := os.Chtimes(p.file(key), hour, hour); err != nil && (!row.fresh || key == "from") {
					t.Fatal(err)
				}
			}
			err := p.rename("from", "to", func(in *s3.RenameObjectInput) { row.ask(in, source, target) })
			if row.ok != (err == nil) || err != nil && code(err) != "PreconditionFailed" {
				t.Errorf("%v", err)
			}
			switch {
			case p.isStored("from") == row.ok:
				t.Errorf("the source is there: %v", !row.ok)
			case row.ok && string(p.mustGet("to")) != "text":
				t.Error("the destination is not the source")
			case !row.ok && row.fresh && p.isStored("to"):
				t.Error("the copy was made")
			case !row.ok && !row.fresh && string(p.mustGet("to")) != "before":
				t.Error("the destination was overwritten")
			}
		})
	}
}

func TestRenameObjectIsRefused(t *testing.T) {
	p := newProxy(t, honoring(versitygw), withClients(own(access.Write, access.Read)))
	p.put("k", []byte("text"))
	p.put("folder/", nil)
	p.put("customer", []byte("text"), newCustomer(1).put)
	p.upload("parts", []int{5 << 20})
	p.store("plain", []byte("text"), nil)

	for name, row := range map[string]struct {
		to, from string // from is the header
		code     string
		who      string
		body     string
	}{
		"no source":                     {to: "to", from: "", code: "InvalidArgument"},
		"a missing source":              {to: "to", from: "none", code: "NoSuchKey"},
		"the same":                      {to: "k", from: "k", code: "InvalidRequest"},
		"the same with the bucket":      {to: "k", from: "/BUCKET/k", code: "InvalidRequest"},
		"another bucket":                {to: "to", from: "/other-bucket/k", code: "InvalidArgument"},
		"a key or a bucket":             {to: "to", from: "BUCKET/k", code: "InvalidArgument"},
		"bad encoding":                  {to: "to", from: "k%zz", code: "InvalidArgument"},
		"a path":                        {to: "to", from: "../other/k", code: "InvalidArgument"},
		"a folder":                      {to: "to", from: "folder/", code: "InvalidRequest"},
		"to a folder":                   {to: "other/", from: "k", code: "InvalidRequest"},
		"parts":                         {to: "to", from: "parts", code: "NotImplemented"},
		"plaintext":                     {to: "to", from: "plain", code: "PlaintextObject"},
		"under a customer's key":        {to: "to", from: "customer", code: "InvalidRequest"},
		"no grant to delete the source": {to: "to", from: "k", code: "AccessDenied", who: readerAccess},
		"a body":                        {to: "to", from: "k", code: "MaxMessageLengthExceeded", body: "text"},
	} {
		t.Run(name, func(t *testing.T) {
			r := request{
				method: "PUT", path: "/" + p.bucket + "/" + row.to + "?renameObject",
				header: http.Header{"X-Amz-Rename-Source": {strings.Replace(row.from, "BUCKET", p.bucket, 1)}},
			}
			if row.body != "" {
				r.body = []byte(row.body)
			}
			if row.who != "" {
				r.accessKey, r.secret = readerAccess, readerSecret
			}
			taken := p.record()
			if a := p.send(r); a.Code != row.code {
				t.Errorf("%d %s, want %s", a.StatusCode, a.body, row.code)
			}
			for _, sent := range taken() {
				if sent.Method != http.MethodGet && sent.Method != http.MethodHead {
					t.Errorf("%s %s was sent", sent.Method, sent.URL)
				}
			}
		})
	}
	if err := p.rename("k", "to"); err != nil {
		t.Errorf("the same, complete: %v", err)
	}
}

// A client without a grant to read the source cannot get it by a rename.
func TestRenameObjectNeedsRead(t *testing.T) {
	p := newProxy(t, honoring(versitygw), withClients(own(access.Write, access.Delete)))
	p.put("k", []byte("text"))
	a := p.send(request{
		method: "PUT", path: "/" + p.bucket + "/to?renameObject", header: http.Header{"X-Amz-Rename-Source": {"k"}},
		accessKey: readerAccess, secret: readerSecret,
	})
	if a.Code != "AccessDenied" || p.isStored("to") {
		t.Errorf("%d %s", a.StatusCode, a.body)
	}
}

// The source is deleted only if the copy is good, and the source is still what
// was copied. breaks is called before each request.
func TestRenameObjectNeverLosesTheSource(t *testing.T) {
	isDelete := func(r *http.Request) bool { return r.Method == http.MethodDelete }
	isCopy := func(r *http.Request) bool { return r.Header.Get("X-Amz-Copy-Source") != "" }
	isPeek := func(r *http.Request) bool {
		return r.Method == http.MethodGet && strings.HasSuffix(r.URL.Path, "/to")
	}
	fault := func(*http.Request) (*http.Response, error) {
		return pageOf(500, "application/xml", "<Error><Code>InternalError</Code></Error>")(nil)
	}

	for name, row := range map[string]struct {
		able   capability.Answer // of If-Match of DeleteObject
		when   func(*http.Request) bool
		do     func(other *proxy)
		fail   bool // the request is answered with an error
		source string
		target string // "" for none
	}{
		"conditions of DELETE are ignored":   {able: capability.No, source: "text"},
		"conditions of DELETE are not known": {able: capability.Unknown, source: "text"},
		"the copy fails":                     {able: capability.Yes, when: isCopy, fail: true, source: "text"},
		"the copy cannot be looked at":       {able: capability.Yes, when: isPeek, fail: true, source: "text", target: "text"},
		"the copy is overwritten": {
			able: capability.Yes, when: isPeek, do: func(o *proxy) { o.put("to", []byte("theirs")) },
			source: "text", target: "theirs",
		},
		"the copy is removed": {
			able: capability.Yes, when: isPeek, do: func(o *proxy) { o.storeDo("DELETE", "to", nil, nil) }, source: "text",
		},
		"the source is overwritten before the delete": {
			able: capability.Yes, when: isDelete, do: func(o *proxy) { o.put("from", []byte("theirs")) },
			source: "theirs", target: "text",
		},
		"the source is overwritten before the look": {
			able: capability.Yes, when: isPeek, do: func(o *proxy) { o.put("from", []byte("theirs")) },
			source: "theirs", target: "text",
		},
		"the delete fails": {able: capability.Yes, when: isDelete, fail: true, source: "text", target: "text"},
	} {
		t.Run(name, func(t *testing.T) {
			able := versitygw
			able[capability.DeleteIfMatch] = row.able
			p := newProxy(t, honoring(able))
			p.put("from", []byte("text"))
			other := p.replica(honoring(able))
			var once sync.Once
			p.origin.set(func(r *http.Request) (resp *http.Response, err error) {
				if row.when == nil || !row.when(r) {
					return nil, nil
				}
				if row.do != nil {
					once.Do(func() { row.do(other) })
				}
				if row.fail {
					return fault(r)
				}
				return nil, nil
			}, nil)

			if err := p.rename("from", "to"); err == nil {
				t.Error("it succeeded")
			}
			p.origin.set(nil, nil)
			if got := string(p.mustGet("from")); got != row.source {
				t.Errorf("the source is %q, want %q", got, row.source)
			}
			switch {
			case row.target == "" && p.isStored("to"):
				t.Error("there is something at the destination")
			case row.target != "" && string(p.mustGet("to")) != row.target:
				t.Errorf("the destination is %q, want %q", p.mustGet("to"), row.target)
			}
		})
	}
}

// A store may take two keys for one. Then the source is the copy, and is not
// deleted.
func TestRenameObjectToAnotherNameOfItself(t *testing.T) {
	p := newProxy(t, honoring(versitygw))
	p.put("from", []byte("text"))
	p.origin.condition = func(r *http.Request) {
		if strings.HasSuffix(r.URL.Path, "/FROM") {
			r.URL.Path = strings.Replace(r.URL.Path, "/FROM", "/from", 1)
			r.URL.RawPath = ""
		}
	}
	if err := p.rename("from", "FROM"); code(err) != "OperationAborted" {
		t.Errorf("%v", err)
	}
	if string(p.mustGet("FROM")) != "text" {
		t.Error("the object was lost")
	}
}

// In a bucket with versions, the source gets a delete marker.
func TestRenameObjectWithVersions(t *testing.T) {
	p := newProxy(t, honoring(versitygw))
	p.versioned()
	p.put("from", []byte("older"))
	p.put("from", []byte("text"))
	if err := p.rename("from", "to"); err != nil {
		t.Fatal(err)
	}
	if got := string(p.mustGet("to")); got != "text" {
		t.Errorf("%q", got)
	}
	if _, _, err := p.get("from"); code(err) != "NoSuchKey" {
		t.Errorf("the source: %v", err)
	}
	if texts := p.readVersions("from"); len(texts) != 2 {
		t.Errorf("versions of the source: %q", texts)
	}
}

// A repeated request with the same token succeeds again, and changes nothing.
func TestRenameObjectToken(t *testing.T) {
	p := newProxy(t, honoring(versitygw))
	token := func(text string) func(*s3.RenameObjectInput) {
		return func(in *s3.RenameObjectInput) { in.ClientToken = &text }
	}
	p.put("from", []byte("text"))
	if err := p.rename("from", "to", token("one")); err != nil {
		t.Fatal(err)
	}
	p.put("from", []byte("another"))
	taken := p.record()
	if err := p.rename("from", "to", token("one")); err != nil {
		t.Errorf("again: %v", err)
	}
	if sent := taken(); len(sent) > 0 || string(p.mustGet("from")) != "another" || string(p.mustGet("to")) != "text" {
		t.Errorf("the repeated request sent %v", sent)
	}

	for name, row := range map[string]struct {
		to, token, code string
	}{
		"other parameters": {"elsewhere", "one", "IdempotencyParameterMismatch"},
		"too long":         {"to", strings.Repeat("x", 65), "InvalidArgument"},
		"a space":          {"to", "a b", "InvalidArgument"},
	} {
		t.Run(name, func(t *testing.T) {
			if err := p.rename("from", row.to, token(row.token)); code(err) != row.code {
				t.Errorf("%v, want %s", err, row.code)
			}
		})
	}
	if err := p.rename("from", "to", token("two")); err != nil || string(p.mustGet("to")) != "another" {
		t.Errorf("another token: %v", err)
	}

	p.put("from", []byte("later"))
	p.clock.Add(int64(time.Hour))
	if err := p.rename("from", "to", token("one")); err == nil && string(p.mustGet("to")) != "later" {
		t.Error("a token is remembered for an hour")
	}
}

// Slow operations keep the connection alive, and end with a document that SDKs
// accept.
func TestSlowUpdatesKeepTheConnection(t *testing.T) {
	withSecond, second := withAskedKey(t)
	p := newProxy(t, withSecond, func(_ *proxy, cfg *s3api.Config, _ *keyring.Config) { cfg.KeepAlive = time.Millisecond })
	p.put("from", []byte("text"))
	p.origin.condition = func(r *http.Request) {
		if r.Method == http.MethodPut {
			time.Sleep(50 * time.Millisecond)
		}
	}
	if err := p.updateEncryption("from", second, nil); err != nil {
		t.Errorf("UpdateObjectEncryption: %v", err)
	}
	if err := p.rename("from", "to"); err != nil {
		t.Errorf("RenameObject: %v", err)
	}

	// What fails afterwards cuts the connection, and is never a success.
	p.put("from", []byte("text"))
	p.origin.set(func(r *http.Request) (*http.Response, error) {
		if r.Method != http.MethodDelete {
			return nil, nil
		}
		return pageOf(500, "application/xml", "<Error><Code>InternalError</Code></Error>")(r)
	}, nil)
	if err := p.rename("from", "to"); err == nil {
		t.Error("a rename whose source was not deleted succeeded")
	}
}
