package s3api_test

import (
	"bytes"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/service/s3"
	"github.com/aws/aws-sdk-go-v2/service/s3/types"

	"github.com/cmekproxy/cmekproxy/internal/capability"
	"github.com/cmekproxy/cmekproxy/internal/keyring"
	"github.com/cmekproxy/cmekproxy/internal/s3api"
)

// honoring says which conditions the store honors. versitygw ignores those of
// CopyObject on the destination, and those of DeleteObjects.
func honoring(set capability.Set) option {
	return func(_ *proxy, cfg *s3api.Config, _ *keyring.Config) { cfg.Capabilities = capability.Always(set) }
}

var versitygw = capability.Set{
	capability.PartCount: capability.Yes, capability.CopyIfMatch: capability.No,
	capability.PutIfMatch: capability.Yes, capability.PutIfMatchBare: capability.Yes,
	capability.PutIfNoneMatch: capability.Yes, capability.CompleteIfMatch: capability.Yes,
	capability.CompleteIfNoneMatch: capability.Yes, capability.DeleteIfMatch: capability.Yes,
}

const otherETag = `"00000000000000000000000000000000-0"`

// A condition on what a copy overwrites holds, also if the store ignores it
// for CopyObject. ETags are those that the proxy shows.
func TestConditionalCopy(t *testing.T) {
	p := newProxy(t, honoring(versitygw))
	text := randomText(1000)
	p.put("whole", text)
	p.upload("parts", []int{5 << 20})
	parts := p.mustGet("parts")

	for name, row := range map[string]struct {
		from    string
		fresh   bool // there is no object at the destination
		match   func(etag string) string
		none    string
		ok      bool
		unknown bool // it is not known what the store honors
	}{
		"only if there is none, and there is one":     {from: "whole", none: "*"},
		"only if there is none, and there is none":    {from: "whole", none: "*", fresh: true, ok: true},
		"parts, only if there is none, there is one":  {from: "parts", none: "*"},
		"parts, only if there is none, there is none": {from: "parts", none: "*", fresh: true, ok: true},
		"the right ETag": {from: "whole", match: func(e string) string { return e }, ok: true},
		"the right ETag without quotes": {
			from: "whole", match: func(e string) string { return strings.Trim(e, `"`) }, ok: true,
		},
		"the right ETag of the store": {
			from: "whole", match: func(e string) string { return strings.Replace(e, "-0", "", 1) }, ok: true,
		},
		"another ETag":            {from: "whole", match: func(string) string { return otherETag }},
		"parts, the right ETag":   {from: "parts", match: func(e string) string { return e }, ok: true},
		"parts, another ETag":     {from: "parts", match: func(string) string { return otherETag }},
		"an ETag, there is none":  {from: "whole", match: func(string) string { return otherETag }, fresh: true},
		"not known, another ETag": {from: "whole", match: func(string) string { return otherETag }, unknown: true},
	} {
		t.Run(name, func(t *testing.T) {
			p := p
			if row.unknown {
				bucket := p.bucket
				p = newProxy(t)
				p.put("whole", text)
				defer func() { p.bucket = bucket }()
			}
			p.storeDo(http.MethodDelete, "copy", nil, nil)
			etag := otherETag
			if !row.fresh {
				etag = *p.put("copy", []byte("before")).ETag
			}

			_, err := p.copy(row.from, "copy", func(in *s3.CopyObjectInput) {
				if row.match != nil {
					in.IfMatch = aws.String(row.match(etag))
				}
				if row.none != "" {
					in.IfNoneMatch = &row.none
				}
			})
			if (err == nil) != row.ok {
				t.Errorf("%v", err)
			}

			want := []byte("before")
			if row.ok {
				want = map[string][]byte{"whole": text, "parts": parts}[row.from]
			}
			switch {
			case row.fresh && !row.ok:
				if p.isStored("copy") {
					t.Error("the copy was made")
				}
			case !bytes.Equal(p.mustGet("copy"), want):
				t.Error("another object is at the destination")
			}
		})
	}
}

// If the store honors the condition of CopyObject, it makes the copy.
func TestConditionalCopyInTheStore(t *testing.T) {
	able := versitygw
	able[capability.CopyIfMatch] = capability.Yes
	p := newProxy(t, honoring(able))
	text := randomText(1000)
	p.put("whole", text)
	etag := *p.put("copy", []byte("before")).ETag

	taken := p.record()
	p.mustCopy("whole", "copy", func(in *s3.CopyObjectInput) { in.IfMatch = &etag })
	for _, r := range taken() {
		if r.Method == http.MethodPut && (r.Header.Get("X-Amz-Copy-Source") == "" ||
			r.Header.Get("If-Match") != strings.Replace(etag, "-0", "", 1)) {
			t.Errorf("sent with %v", r.Header)
		}
	}
	if !bytes.Equal(p.mustGet("copy"), text) {
		t.Error("the copy is not the source")
	}
}

// A condition that the store ignores is refused, and nothing is written or
// deleted.
func TestIgnoredConditions(t *testing.T) {
	ignoring := versitygw
	for _, what := range []capability.Capability{
		capability.PutIfMatch, capability.PutIfMatchBare, capability.PutIfNoneMatch,
		capability.CompleteIfMatch, capability.CompleteIfNoneMatch, capability.DeleteIfMatch,
	} {
		ignoring[what] = capability.No
	}
	p := newProxy(t, honoring(ignoring))
	etag := *p.put("k", []byte("before")).ETag
	p.put("source", []byte("after"))
	m := p.create("k")
	m.send(1, []byte("after"))

	b := "/" + p.bucket
	source := func(name, value string) http.Header {
		return http.Header{"X-Amz-Copy-Source": {p.bucket + "/source"}, name: {value}}
	}
	for name, r := range map[string]request{
		"put, If-Match":       {method: "PUT", path: b + "/k", header: http.Header{"If-Match": {etag}}, body: []byte("after")},
		"put, If-None-Match":  {method: "PUT", path: b + "/k", header: http.Header{"If-None-Match": {"*"}}, body: []byte("after")},
		"copy, If-Match":      {method: "PUT", path: b + "/k", header: source("If-Match", etag)},
		"copy, If-None-Match": {method: "PUT", path: b + "/k", header: source("If-None-Match", "*")},
		"completion, If-Match": {
			method: "POST", path: b + "/k?uploadId=" + m.id, header: http.Header{"If-Match": {etag}}, body: m.document(),
		},
		"completion, If-None-Match": {
			method: "POST", path: b + "/k?uploadId=" + m.id, header: http.Header{"If-None-Match": {"*"}}, body: m.document(),
		},
		"delete":         {method: "DELETE", path: b + "/k", header: http.Header{"If-Match": {etag}}},
		"delete by size": {method: "DELETE", path: b + "/k", header: http.Header{"X-Amz-If-Match-Size": {"6"}}},
	} {
		t.Run(name, func(t *testing.T) {
			a := p.send(r)
			if a.Code != "NotImplemented" || !strings.Contains(string(a.body), "does not honor If-") {
				t.Errorf("%d %s", a.StatusCode, a.body)
			}
			if string(p.mustGet("k")) != "before" {
				t.Fatal("the object has changed")
			}
		})
	}

	out, err := p.client.DeleteObjects(t.Context(), &s3.DeleteObjectsInput{
		Bucket: &p.bucket, Delete: &types.Delete{Objects: []types.ObjectIdentifier{
			{Key: aws.String("k"), ETag: &etag}, {Key: aws.String("source")},
		}},
	})
	if err != nil || len(out.Errors) != 1 || *out.Errors[0].Code != "NotImplemented" || len(out.Deleted) != 1 {
		t.Errorf("DeleteObjects: %+v, %v", out, err)
	}
	if !p.isStored("k") || p.isStored("source") {
		t.Error("DeleteObjects deleted another object")
	}
}

// Ceph 16 compares If-Match of PutObject with an ETag without quotes.
func TestIfMatchWithoutQuotes(t *testing.T) {
	bare := versitygw
	bare[capability.PutIfMatch] = capability.No
	p := newProxy(t, honoring(bare))
	etag := *p.put("k", []byte("before")).ETag
	taken := p.record()
	a := p.send(request{
		method: "PUT", path: "/" + p.bucket + "/k", header: http.Header{"If-Match": {etag}}, body: []byte("after"),
	})
	if sent := taken()[0].Header.Get("If-Match"); a.StatusCode != 200 || sent != strings.Trim(etag, `"-0`) &&
		sent != strings.TrimSuffix(strings.Trim(etag, `"`), "-0") {
		t.Errorf("%d %s; the store got %s", a.StatusCode, a.body, sent)
	}
	a = p.send(request{
		method: "PUT", path: "/" + p.bucket + "/k", header: http.Header{"If-Match": {otherETag}}, body: []byte("third"),
	})
	if a.StatusCode != 412 || string(p.mustGet("k")) != "after" {
		t.Errorf("another ETag: %d %s", a.StatusCode, a.body)
	}
}

func TestConditionalDelete(t *testing.T) {
	p := newProxy(t, honoring(versitygw))
	for name, row := range map[string]struct {
		header func(etag, modified string) http.Header
		status int
	}{
		"the right ETag": {func(e, _ string) http.Header { return http.Header{"If-Match": {e}} }, 204},
		"the right ETag of the store": {
			func(e, _ string) http.Header { return http.Header{"If-Match": {strings.Replace(e, "-0", "", 1)}} }, 204,
		},
		"another ETag":   {func(_, _ string) http.Header { return http.Header{"If-Match": {otherETag}} }, 412},
		"the right size": {func(_, _ string) http.Header { return http.Header{"X-Amz-If-Match-Size": {"4"}} }, 204},
		"another size":   {func(_, _ string) http.Header { return http.Header{"X-Amz-If-Match-Size": {"5"}} }, 412},
		"the right time": {
			func(_, m string) http.Header { return http.Header{"X-Amz-If-Match-Last-Modified-Time": {m}} }, 204,
		},
		"another time": {
			func(_, _ string) http.Header {
				return http.Header{"X-Amz-If-Match-Last-Modified-Time": {time.Unix(0, 0).UTC().Format(http.TimeFormat)}}
			}, 412,
		},
		"no time": {
			func(_, _ string) http.Header { return http.Header{"X-Amz-If-Match-Last-Modified-Time": {"now"}} }, 400,
		},
		"the right time and another size": {
			func(_, m string) http.Header {
				return http.Header{"X-Amz-If-Match-Last-Modified-Time": {m}, "X-Amz-If-Match-Size": {"5"}}
			}, 412,
		},
		"the right size and another ETag": {
			func(_, _ string) http.Header {
				return http.Header{"If-Match": {otherETag}, "X-Amz-If-Match-Size": {"4"}}
			}, 412,
		},
	} {
		t.Run(name, func(t *testing.T) {
			etag := *p.put("k", []byte("text")).ETag
			head, _ := p.storeDo(http.MethodHead, "k", nil, nil)
			a := p.send(request{
				method: "DELETE", path: "/" + p.bucket + "/k", header: row.header(etag, head.Header.Get("Last-Modified")),
			})
			if a.StatusCode != row.status {
				t.Errorf("%d %s", a.StatusCode, a.body)
			}
			if p.isStored("k") != (row.status != 204) {
				t.Errorf("%d, and the object is there: %v", a.StatusCode, p.isStored("k"))
			}
		})
	}
}

// The store ignores the ETags in the list of DeleteObjects; the proxy does
// not.
func TestConditionalDeleteObjects(t *testing.T) {
	for _, quiet := range []bool{false, true} {
		p := newProxy(t, honoring(versitygw))
		right, p1 := *p.put("right", []byte("1")).ETag, *p.put("parts", []byte("2")).ETag
		p.put("wrong", []byte("3"))
		p.put("without", []byte("4"))
		p.put("stays", []byte("5"))
		bare := strings.Trim(p1, `"`)
		out, err := p.client.DeleteObjects(t.Context(), &s3.DeleteObjectsInput{
			Bucket: &p.bucket, Delete: &types.Delete{Quiet: &quiet, Objects: []types.ObjectIdentifier{
				{Key: aws.String("right"), ETag: &right},
				{Key: aws.String("parts"), ETag: &bare},
				{Key: aws.String("wrong"), ETag: aws.String(otherETag)},
				{Key: aws.String("without")},
			}},
		})
		if err != nil {
			t.Fatal(err)
		}
		for key, there := range map[string]bool{
			"right": false, "parts": false, "wrong": true, "without": false, "stays": true,
		} {
			if p.isStored(key) != there {
				t.Errorf("%s is there: %v", key, !there)
			}
		}
		if len(out.Errors) != 1 || *out.Errors[0].Key != "wrong" || *out.Errors[0].Code != "PreconditionFailed" {
			t.Errorf("errors: %+v", out.Errors)
		}
		// versitygw reports what it deletes in any case.
		if want := map[bool]int{false: 3, true: 1}[quiet]; len(out.Deleted) != want {
			t.Errorf("quiet %v: %d deleted, want %d", quiet, len(out.Deleted), want)
		}
	}
}

// In a bucket with versions, the result of a conditional delete has the
// delete marker.
func TestConditionalDeleteOfVersions(t *testing.T) {
	p := newProxy(t, honoring(versitygw))
	p.versioned()
	etag := *p.put("k", []byte("1")).ETag
	out, err := p.client.DeleteObjects(t.Context(), &s3.DeleteObjectsInput{
		Bucket: &p.bucket, Delete: &types.Delete{Objects: []types.ObjectIdentifier{{Key: aws.String("k"), ETag: &etag}}},
	})
	if err != nil || len(out.Deleted) != 1 || !aws.ToBool(out.Deleted[0].DeleteMarker) ||
		aws.ToString(out.Deleted[0].DeleteMarkerVersionId) == "" {
		t.Errorf("%+v, %v", out, err)
	}
}
