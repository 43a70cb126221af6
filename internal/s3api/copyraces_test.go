package s3api_test

import (
	"bytes"
	"errors"
	"io"
	"net/http"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/service/s3"
	"github.com/aws/aws-sdk-go-v2/service/s3/types"

	"github.com/cmekproxy/cmekproxy/internal/capability"
	"github.com/cmekproxy/cmekproxy/internal/keyring"
	"github.com/cmekproxy/cmekproxy/internal/s3api"
)

// racing makes the store ignore x-amz-copy-source-if-match, as Ceph does. It
// calls before each time before the store copies, and after each time after
// it.
func (p *proxy) racing(before, after func()) {
	if before == nil {
		before = func() {}
	}
	if after == nil {
		after = func() {}
	}
	p.origin.set(nil, nil)

	isCopy := func(r *http.Request) bool {
		return r.Method == http.MethodPut && r.Header.Get("X-Amz-Copy-Source") != ""
	}
	p.origin.condition = func(r *http.Request) {
		if isCopy(r) {
			before()
			r.Header.Del("X-Amz-Copy-Source-If-Match")
		}
	}
	p.origin.set(nil, func(resp *http.Response) {
		if resp.Request != nil && isCopy(resp.Request) {
			after()
		}
	})
}

// versioned makes the bucket keep versions.
func (p *proxy) versioned() {
	p.t.Helper()
	if _, err := p.client.PutBucketVersioning(p.t.Context(), &s3.PutBucketVersioningInput{
		Bucket:                  &p.bucket,
		VersioningConfiguration: &types.VersioningConfiguration{Status: types.BucketVersioningStatusEnabled},
	}); err != nil {
		p.t.Fatal(err)
	}
}

// readVersions reads all versions of a key.
func (p *proxy) readVersions(key string) (texts []string) {
	p.t.Helper()
	list, err := p.client.ListObjectVersions(p.t.Context(), &s3.ListObjectVersionsInput{Bucket: &p.bucket, Prefix: &key})
	if err != nil {
		p.t.Fatal(err)
	}
	for _, v := range list.Versions {
		text, _, err := p.get(key, func(in *s3.GetObjectInput) { in.VersionId = v.VersionId })
		if err != nil {
			p.t.Errorf("version %s of %s: %v", *v.VersionId, key, err)
		}
		texts = append(texts, string(text))
	}
	return texts
}

// leavesConditions leaves conditional copies to the store.
var leavesConditions = honoring(capability.Set{capability.CopyIfMatch: capability.Yes})

// If a store ignores the condition on the source, a source that is
// overwritten meanwhile must not leave a copy that cannot be read.
func TestCopyAtAStoreThatIgnoresTheCondition(t *testing.T) {
	long := strings.Repeat("long", 40_000)
	tagged := func(in *s3.PutObjectInput) { in.Tagging = aws.String("is=new") }
	for name, row := range map[string]struct {
		overwrite func(p *proxy)
		copy      func(*s3.CopyObjectInput)
		want      string // the text of the copy; "" if there is none
		code      string
	}{
		"overwritten":             {overwrite: func(p *proxy) { p.put("source", []byte("new")) }, want: "new"},
		"overwritten by a longer": {overwrite: func(p *proxy) { p.put("source", []byte(long)) }, want: long},
		"overwritten with tags":   {overwrite: func(p *proxy) { p.put("source", []byte("new"), tagged) }, want: "new"},
		"overwritten by a multipart object": {
			overwrite: func(p *proxy) {
				m := p.create("source")
				m.send(1, []byte("new"))
				m.mustComplete()
			},
			want: "new",
		},
		"with a checksum": {
			overwrite: func(p *proxy) { p.put("source", []byte("new")) },
			copy:      func(in *s3.CopyObjectInput) { in.ChecksumAlgorithm = types.ChecksumAlgorithmSha256 },
			want:      "new",
		},
		"only if there is none": {
			overwrite: func(p *proxy) { p.put("source", []byte("new")) },
			copy:      func(in *s3.CopyObjectInput) { in.IfNoneMatch = aws.String("*") },
			want:      "new",
		},
		"overwritten by plaintext": {
			overwrite: func(p *proxy) { p.store("source", []byte("not encrypted"), nil) },
			code:      "PlaintextObject",
		},
		"overwritten, and removed": {
			overwrite: func(p *proxy) { p.put("source", []byte("new")) },
			code:      "NoSuchKey",
		},
		"the client's condition": {
			overwrite: func(p *proxy) { p.put("source", []byte("new")) },
			copy:      func(in *s3.CopyObjectInput) { in.CopySourceIfMatch = aws.String("") },
			code:      "PreconditionFailed",
		},
	} {
		for _, versions := range []bool{false, true} {
			t.Run(name+map[bool]string{true: " in a bucket with versions"}[versions], func(t *testing.T) {
				p := newProxy(t, leavesConditions)
				if versions {
					p.versioned()
				}
				put := p.put("source", []byte("old"))
				var once sync.Once
				other := p.replica()
				p.racing(
					func() { once.Do(func() { row.overwrite(other) }) },
					func() {
						if row.code == "NoSuchKey" {
							other.storeDo(http.MethodDelete, "source", nil, nil)
						}
					},
				)

				_, err := p.copy("source", "copy", func(in *s3.CopyObjectInput) {
					if row.copy != nil {
						row.copy(in)
					}
					if in.CopySourceIfMatch != nil {
						in.CopySourceIfMatch = put.ETag
					}
				})
				p.racing(nil, nil)

				switch {
				case row.code == "" && err != nil:
					t.Fatal(err)
				case row.code != "" && !versions && code(err) != "InternalError":
					t.Errorf("%v: an unreadable copy is left, and no InternalError", err)
				case row.code != "" && versions && (code(err) != row.code || p.isStored("copy")):
					t.Errorf("%v, want %s", err, row.code)
				}
				if row.want == "" {
					if versions && len(p.readVersions("copy")) != 0 {
						t.Error("a version is left")
					}
					return
				}

				if got := string(p.mustGet("copy")); got != row.want {
					t.Errorf("%.20q, want %.20q", got, row.want)
				}
				if all := p.readVersions("copy"); versions && len(all) != 1 {
					t.Errorf("%d versions", len(all))
				}
				if got, want := p.tags("copy"), p.tags("source"); got != want {
					t.Errorf("tags %s, want %s", got, want)
				}
			})
		}
	}
}

// tags returns the tags of an object, as the store has them.
func (p *proxy) tags(key string) string {
	p.t.Helper()
	out, err := p.client.GetObjectTagging(p.t.Context(), &s3.GetObjectTaggingInput{Bucket: &p.bucket, Key: &key})
	if err != nil {
		p.t.Fatal(err)
	}
	var all []string
	for _, tag := range out.TagSet {
		all = append(all, *tag.Key+"="+*tag.Value)
	}
	return strings.Join(all, "&")
}

// What other clients write to the destination after the copy is theirs.
func TestCopyThatIsOverwrittenItself(t *testing.T) {
	for name, row := range map[string]struct {
		overwrite bool // the source, before the copy
		after     func(*proxy)
		want      string
	}{
		"a good copy": {after: func(p *proxy) { p.put("copy", []byte("theirs")) }, want: "theirs"},
		"a mixed one": {overwrite: true, after: func(p *proxy) { p.put("copy", []byte("theirs")) }, want: "theirs"},
		"removed":     {overwrite: true, after: func(p *proxy) { p.storeDo(http.MethodDelete, "copy", nil, nil) }},
	} {
		t.Run(name, func(t *testing.T) {
			p := newProxy(t)
			p.put("source", []byte("old"))
			other := p.replica()
			p.racing(
				func() {
					if row.overwrite {
						other.put("source", []byte("new"))
					}
				},
				func() { row.after(other) },
			)
			if _, err := p.copy("source", "copy"); err != nil {
				t.Error(err)
			}
			if row.want == "" {
				if p.isStored("copy") {
					t.Error("it is there again")
				}
				return
			}
			if got := string(p.mustGet("copy")); got != row.want {
				t.Errorf("%q, want %q", got, row.want)
			}
		})
	}
}

// A slow copy that starts over still answers with one document.
func TestMendedCopyKeepsAlive(t *testing.T) {
	p := newProxy(t, func(_ *proxy, cfg *s3api.Config, _ *keyring.Config) { cfg.KeepAlive = 20 * time.Millisecond })
	p.put("source", []byte("old"))
	other := p.replica()
	var once sync.Once
	p.racing(func() { once.Do(func() { other.put("source", []byte("new")) }) }, nil)
	p.origin.set(func(r *http.Request) (*http.Response, error) {
		if r.Method == http.MethodPut {
			time.Sleep(200 * time.Millisecond) // 10 intervals
		}
		return nil, nil
	}, nil)

	a := p.send(request{
		method: "PUT", path: "/" + p.bucket + "/copy", header: http.Header{"X-Amz-Copy-Source": {p.bucket + "/source"}},
	})
	if a.StatusCode != http.StatusOK || bytes.Count(a.body, []byte("<?xml")) != 1 ||
		bytes.Count(a.body, []byte("<CopyObjectResult")) != 1 {
		t.Errorf("%d %s", a.StatusCode, a.body)
	}
	if got := string(p.mustGet("copy")); got != "new" {
		t.Errorf("%q", got)
	}
}

// A condition on the destination holds for the mended copy too.
func TestMendedCopyWithACondition(t *testing.T) {
	p := newProxy(t, leavesConditions)
	p.put("source", []byte("old"))
	other := p.replica()
	var once sync.Once
	p.racing(func() { once.Do(func() { other.put("source", []byte("new")) }) }, nil)

	// After the mixed copy was seen, another client overwrites it.
	p.origin.set(func(r *http.Request) (*http.Response, error) {
		if r.Method == http.MethodPut && strings.HasSuffix(r.URL.Path, "/copy") && r.Header.Get("X-Amz-Copy-Source") == "" {
			other.put("copy", []byte("theirs"))
		}
		return nil, nil
	}, nil)
	_, err := p.copy("source", "copy", func(in *s3.CopyObjectInput) { in.IfNoneMatch = aws.String("*") })
	if got := string(p.mustGet("copy")); code(err) != "PreconditionFailed" || got != "theirs" {
		t.Errorf("%v, and %q", err, got)
	}
}

// A copy onto itself must not put the old envelope on a body that another
// client has written meanwhile: that body's own envelope would be lost.
func TestCopyOntoItselfOverwrittenMeanwhile(t *testing.T) {
	p := newProxy(t)
	p.put("k", []byte("old"))
	other := p.replica()
	var once sync.Once
	overwrite := func() { once.Do(func() { other.put("k", []byte("new")) }) }
	p.racing(overwrite, nil)
	p.origin.set(func(r *http.Request) (*http.Response, error) {
		if r.Method == http.MethodPut && r.Header.Get("X-Amz-Meta-Mine") != "" {
			overwrite()
		}
		return nil, nil
	}, nil)

	p.mustCopy("k", "k", func(in *s3.CopyObjectInput) {
		in.MetadataDirective, in.Metadata = types.MetadataDirectiveReplace, map[string]string{"mine": "1"}
	})
	got, out, err := p.get("k")
	if err != nil || string(got) != "new" || out.Metadata["mine"] != "1" {
		t.Errorf("%q, %v, %v", got, out, err)
	}
}

// If a store does not implement the condition, a copy onto itself is written
// without it.
func TestCopyOntoItselfWithoutConditions(t *testing.T) {
	p := newProxy(t)
	p.put("k", []byte("text"))
	p.origin.set(func(r *http.Request) (*http.Response, error) {
		if r.Method != http.MethodPut || r.Header.Get("If-Match") == "" {
			return nil, nil
		}
		return errorAnswer(r, http.StatusNotImplemented, "NotImplemented"), nil
	}, nil)
	p.mustCopy("k", "k", func(in *s3.CopyObjectInput) { in.MetadataDirective = types.MetadataDirectiveReplace })
	if got := string(p.mustGet("k")); got != "text" {
		t.Errorf("%q", got)
	}
}

// A source that is overwritten all the time is not copied, and that is said.
func TestCopyOfASourceThatNeverRests(t *testing.T) {
	p := newProxy(t)
	p.put("source", []byte("old"))
	other := p.replica()
	p.origin.set(nil, func(resp *http.Response) {
		if r := resp.Request; r != nil && r.Method == http.MethodHead && strings.HasSuffix(r.URL.Path, "/source") {
			other.put("source", randomText(10))
		}
	})
	if _, err := p.copy("source", "copy"); code(err) != "ServiceUnavailable" || p.isStored("copy") {
		t.Errorf("%v", err)
	}
}

// If a copy cannot be verified, no success is answered.
func TestCopyThatCannotBeVerified(t *testing.T) {
	for name, fault := range map[string]func(*http.Request) (*http.Response, error){
		"no answer": func(*http.Request) (*http.Response, error) { return nil, errors.New("the store is gone") },
		"refused": func(r *http.Request) (*http.Response, error) {
			return errorAnswer(r, http.StatusForbidden, "AccessDenied"), nil
		},
		"overloaded": func(r *http.Request) (*http.Response, error) {
			return errorAnswer(r, http.StatusServiceUnavailable, "SlowDown"), nil
		},
	} {
		t.Run(name, func(t *testing.T) {
			p := newProxy(t)
			p.put("source", []byte("text"))
			p.origin.set(func(r *http.Request) (*http.Response, error) {
				if r.Method == http.MethodGet && strings.HasSuffix(r.URL.Path, "/copy") {
					return fault(r)
				}
				return nil, nil
			}, nil)
			if _, err := p.copy("source", "copy"); err == nil {
				t.Error("it was not verified, and no error")
			}
		})
	}
}

// A store that keeps the source's metadata, or none, has not made a copy that
// can be read.
func TestCopyWithTheWrongMetadata(t *testing.T) {
	for name, alter := range map[string]func(http.Header){
		"the source's": func(h http.Header) { h.Set("X-Amz-Metadata-Directive", "COPY") },
		"none": func(h http.Header) {
			for name := range h {
				if strings.HasPrefix(name, "X-Amz-Meta-") {
					h.Del(name)
				}
			}
		},
		"half": func(h http.Header) { h.Del("X-Amz-Meta-Cmek-Mac") },
	} {
		t.Run(name, func(t *testing.T) {
			p := newProxy(t)
			p.put("source", []byte("text"))
			p.origin.condition = func(r *http.Request) {
				if r.Header.Get("X-Amz-Copy-Source") != "" {
					alter(r.Header)
				}
			}
			p.mustCopy("source", "copy")
			if got := string(p.mustGet("copy")); got != "text" {
				t.Errorf("%q", got)
			}
		})
	}
}

// RGW drops the tags of a copy with new metadata, and the tags that the
// request sends.
func TestTagsOfACopyThatTheStoreDrops(t *testing.T) {
	for name, row := range map[string]struct {
		copy func(*s3.CopyObjectInput)
		want string
	}{
		"the source's": {func(*s3.CopyObjectInput) {}, "a=1&b=2 3"},
		"the client's": {func(in *s3.CopyObjectInput) {
			in.TaggingDirective, in.Tagging = types.TaggingDirectiveReplace, aws.String("c=4")
		}, "c=4"},
		"none": {func(in *s3.CopyObjectInput) { in.TaggingDirective = types.TaggingDirectiveReplace }, ""},
	} {
		for _, versions := range []bool{false, true} {
			t.Run(name+map[bool]string{true: " in a bucket with versions"}[versions], func(t *testing.T) {
				p := newProxy(t)
				if versions {
					p.versioned()
				}
				text := randomText(100_000)
				p.put("source", text, func(in *s3.PutObjectInput) { in.Tagging = aws.String("a=1&b=2%203") })
				p.origin.condition = func(r *http.Request) {
					if r.Header.Get("X-Amz-Copy-Source") != "" {
						r.Header.Set("X-Amz-Tagging-Directive", "REPLACE")
						r.Header.Del("X-Amz-Tagging")
					}
				}
				p.mustCopy("source", "copy", row.copy)
				if got := sortedTags(p.tags("copy")); got != row.want || !bytes.Equal(p.mustGet("copy"), text) {
					t.Errorf("tags %q, want %q", got, row.want)
				}
				if all := p.readVersions("copy"); len(all) != 1 {
					t.Errorf("%d versions", len(all))
				}
			})
		}
	}
}

// If the store does not copy an object, it is read and sealed again. RGW does
// so with objects under a key of its own KMS.
func TestCopyThatTheStoreRefuses(t *testing.T) {
	for name, row := range map[string]struct {
		code   string
		status int
		rgw    bool
		want   string
	}{
		"not implemented":         {code: "NotImplemented", status: http.StatusNotImplemented},
		"by the policy, at RGW":   {code: "AccessDenied", status: http.StatusForbidden, rgw: true},
		"by the policy elsewhere": {code: "AccessDenied", status: http.StatusForbidden, want: "AccessDenied"},
		"overloaded":              {code: "SlowDown", status: http.StatusServiceUnavailable, want: "SlowDown"},
	} {
		t.Run(name, func(t *testing.T) {
			p := newProxy(t)
			p.put("source", []byte("text"))
			copies := 0
			p.origin.set(func(r *http.Request) (*http.Response, error) {
				if r.Header.Get("X-Amz-Copy-Source") == "" {
					return nil, nil
				}
				copies++
				return errorAnswer(r, row.status, row.code), nil
			}, func(resp *http.Response) {
				if row.rgw && resp.Request.Method == http.MethodHead {
					resp.Header.Set("X-Rgw-Object-Type", "Normal")
				}
			})

			_, err := p.copy("source", "copy")
			if row.want != "" && code(err) != row.want || row.want == "" && err != nil || copies != 1 {
				t.Errorf("%v after %d copies, want %q", err, copies, row.want)
			}
			if row.want == "" && string(p.mustGet("copy")) != "text" {
				t.Error("another text")
			}
		})
	}
}

// RGW answers 500 UnknownError if another client is just writing the object
// that a condition names. The copy starts over; elsewhere it is an error.
func TestCopyThatLosesARaceAtRGW(t *testing.T) {
	for name, row := range map[string]struct {
		rgw     bool
		from    string
		breaks  string // method of the request with the error
		tagging bool
		want    string
	}{
		"reading the source":             {rgw: true, from: "source", breaks: http.MethodGet},
		"reading the source elsewhere":   {from: "source", breaks: http.MethodGet, want: "UnknownError"},
		"copying":                        {rgw: true, from: "source", breaks: http.MethodPut},
		"copying onto itself":            {rgw: true, from: "copy", breaks: http.MethodPut},
		"copying onto itself elsewhere":  {from: "copy", breaks: http.MethodPut, want: "UnknownError"},
		"reading a source with its tags": {rgw: true, from: "source", tagging: true, breaks: http.MethodGet},
	} {
		t.Run(name, func(t *testing.T) {
			p := newProxy(t)
			p.put(row.from, []byte("text"), func(in *s3.PutObjectInput) {
				if row.tagging {
					in.Tagging = aws.String("a=1")
				}
			})
			var once sync.Once
			p.origin.set(func(r *http.Request) (resp *http.Response, _ error) {
				if r.Method == row.breaks {
					once.Do(func() { resp = errorAnswer(r, http.StatusInternalServerError, "UnknownError") })
				}
				return resp, nil
			}, func(resp *http.Response) {
				if row.rgw && resp.Request.Method == http.MethodHead {
					resp.Header.Set("X-Rgw-Object-Type", "Normal")
				}
			})
			p.origin.condition = func(r *http.Request) {
				if etag := r.Header.Get("If-Match"); row.rgw && r.Method == http.MethodPut && etag != "" {
					r.Header.Set("If-Match", `"`+etag+`"`)
				}
			}

			_, err := p.copy(row.from, "copy", func(in *s3.CopyObjectInput) {
				in.MetadataDirective = types.MetadataDirectiveReplace
			})
			if row.want != "" && code(err) != row.want || row.want == "" && err != nil {
				t.Errorf("%v, want %q", err, row.want)
			}
			if row.want == "" && string(p.mustGet("copy")) != "text" {
				t.Error("another text")
			}
		})
	}
}

// errorAnswer returns a store's error.
func errorAnswer(r *http.Request, status int, code string) *http.Response {
	return &http.Response{
		StatusCode: status, Header: http.Header{"Content-Type": {"application/xml"}}, Request: r,
		Body: io.NopCloser(strings.NewReader("<Error><Code>" + code + "</Code></Error>")),
	}
}

// RGW honors the condition on the source under another name, and compares
// If-Match with an ETag without quotes. It drops tags, so objects with tags
// are read and sealed again, and so are copies to an archive.
func TestHowTheStoreIsAskedToCopy(t *testing.T) {
	for name, row := range map[string]struct {
		rgw     bool
		tags    string
		from    string
		copy    func(*s3.CopyObjectInput)
		inStore bool
		match   string // "quoted", "bare", or "" for none
	}{
		"any store":       {from: "source", inStore: true},
		"with tags":       {from: "source", tags: "a=1", inStore: true},
		"RGW":             {rgw: true, from: "source", inStore: true},
		"RGW with tags":   {rgw: true, from: "source", tags: "a=1"},
		"onto itself":     {from: "copy", match: "quoted"},
		"RGW onto itself": {rgw: true, from: "copy", match: "bare"},
		"RGW with the client's tags": {rgw: true, from: "source", copy: func(in *s3.CopyObjectInput) {
			in.TaggingDirective, in.Tagging = types.TaggingDirectiveReplace, aws.String("c=4")
		}},
		"archive": {
			from: "source", copy: func(in *s3.CopyObjectInput) { in.StorageClass = types.StorageClassGlacier },
		},
	} {
		t.Run(name, func(t *testing.T) {
			p := newProxy(t)
			put := p.put(row.from, []byte("text"), func(in *s3.PutObjectInput) {
				if row.tags != "" {
					in.Tagging = &row.tags
				}
			})
			p.origin.set(nil, func(resp *http.Response) {
				if row.rgw && resp.Request != nil && resp.Request.Method == http.MethodHead {
					resp.Header.Set("X-Rgw-Object-Type", "Normal")
				}
			})
			var sent http.Header
			p.origin.condition = func(r *http.Request) {
				if r.Method == http.MethodPut && strings.HasSuffix(r.URL.Path, "/copy") {
					sent = r.Header.Clone()
					r.Header.Set("X-Amz-Storage-Class", "STANDARD")
					r.Header.Del("If-Match")
				}
			}
			p.mustCopy(row.from, "copy", func(in *s3.CopyObjectInput) {
				in.MetadataDirective = types.MetadataDirectiveReplace
				if row.copy != nil {
					row.copy(in)
				}
			})

			if inStore := sent.Get("X-Amz-Copy-Source") != ""; inStore != row.inStore {
				t.Errorf("copied in the store: %t", inStore)
			}
			if got := sent.Get("X-Amz-Copy-If-Match") != ""; got != (row.inStore && row.rgw) {
				t.Errorf("x-amz-copy-if-match %q", sent.Get("X-Amz-Copy-If-Match"))
			}
			stored := strings.TrimSuffix(*put.ETag, `-0"`) + `"`
			want := map[string]string{"quoted": stored, "bare": strings.Trim(stored, `"`)}[row.match]
			if got := sent.Get("If-Match"); got != want {
				t.Errorf("If-Match %q, want %q", got, want)
			}
			if got := string(p.mustGet("copy")); got != "text" {
				t.Errorf("%q", got)
			}
		})
	}
}

func sortedTags(tags string) string {
	all := strings.Split(tags, "&")
	if len(all) == 2 && all[0] > all[1] {
		all[0], all[1] = all[1], all[0]
	}
	return strings.Join(all, "&")
}
