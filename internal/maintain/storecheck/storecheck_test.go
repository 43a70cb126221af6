package storecheck_test

import (
	"bytes"
	"context"
	"io"
	"net/http"
	"net/url"
	"path"
	"regexp"
	"strconv"
	"strings"
	"testing"

	"github.com/cmekproxy/cmekproxy/internal/capability"
	"github.com/cmekproxy/cmekproxy/internal/maintain/inplace"
	"github.com/cmekproxy/cmekproxy/internal/maintain/storecheck"
	"github.com/cmekproxy/cmekproxy/internal/origin"
	"github.com/cmekproxy/cmekproxy/internal/proxytest"
	"github.com/cmekproxy/cmekproxy/internal/stored"
)

var store *proxytest.Bucket

func TestMain(m *testing.M) {
	proxytest.RunTests(m, "bucket", func(b *proxytest.Bucket) { store = b })
}

// roundTripper is a store that differs from the real one.
type roundTripper func(*http.Request) (*http.Response, error)

func (f roundTripper) RoundTrip(r *http.Request) (*http.Response, error) { return f(r) }

// change is a store that differs from the real one, which is next. trailer is
// set if bodies are sent with a checksum trailer.
type change func(r *http.Request, next http.RoundTripper, trailer bool) (*http.Response, error)

// newConfig returns the configuration of a probe of a store, or of the real
// one if it is nil.
func newConfig(t *testing.T, other change) storecheck.Config {
	t.Helper()
	send := func(u origin.Uploads) inplace.Sender {
		cfg := store.OriginConfig()
		cfg.Uploads = origin.Always(u)
		var transport http.RoundTripper = origin.New(cfg)
		if next := transport; other != nil {
			transport = roundTripper(func(r *http.Request) (*http.Response, error) { return other(r, next, u.Trailer) })
		}
		answer := func(*http.Request, *http.Response) error { return nil }
		refusal := func(*http.Request, int, string, []byte) error { return nil }
		return inplace.NewSender(transport, answer, refusal)
	}
	return storecheck.Config{
		Bucket: "bucket", Send: send(origin.Uploads{}), SendTrailer: send(origin.Uploads{Trailer: true, PartChecksums: true}),
	}
}

// versitygw is what the store of the tests can do.
var versitygw = func() (s capability.Set) {
	for c := range capability.All {
		s[c] = capability.Yes
	}
	for _, c := range []capability.Capability{
		capability.CutBodies, capability.CopyIfMatch,
		capability.LiteralSlashes, capability.LiteralLeadingSlash, capability.LiteralDots,
	} {
		s[c] = capability.No
	}
	return s
}()

// answer returns an answer of the store.
func answer(r *http.Request, status int, body string) (*http.Response, error) {
	if r.Body != nil {
		_, _ = io.Copy(io.Discard, r.Body)
		_ = r.Body.Close()
	}
	return &http.Response{
		StatusCode: status, Header: http.Header{"X-Amz-Request-Id": {"1"}}, Request: r,
		Body: io.NopCloser(strings.NewReader(body)), ContentLength: int64(len(body)),
	}, nil
}

func refusal(code string) string { return "<Error><Code>" + code + "</Code></Error>" }

// edited replaces what matches in the body of an answer.
func edited(resp *http.Response, pattern, with string) *http.Response {
	body, _ := io.ReadAll(resp.Body)
	body = regexp.MustCompile(pattern).ReplaceAll(body, []byte(with))
	resp.Body, resp.ContentLength = io.NopCloser(bytes.NewReader(body)), int64(len(body))
	return resp
}

// Each store differs from versitygw in one way, which the probe finds.
func TestCapabilities(t *testing.T) {
	// without makes a store that ignores a header.
	without := func(method, name string) change {
		return func(r *http.Request, next http.RoundTripper, _ bool) (*http.Response, error) {
			if r.Method == method {
				r.Header.Del(name)
			}
			return next.RoundTrip(r)
		}
	}

	for name, row := range map[string]struct {
		store change
		want  capability.Set // differs from versitygw
	}{
		"versitygw": {},
		"refuses trailers, as Ceph 16": {
			func(r *http.Request, next http.RoundTripper, trailer bool) (*http.Response, error) {
				if trailer && r.ContentLength > 0 {
					return answer(r, http.StatusBadRequest, refusal("XAmzContentSHA256Mismatch"))
				}
				return next.RoundTrip(r)
			},
			capability.Set{capability.Trailer: capability.No, capability.PartChecksums: capability.No},
		},
		"does not implement trailers": {
			func(r *http.Request, next http.RoundTripper, trailer bool) (*http.Response, error) {
				if trailer && r.ContentLength > 0 {
					return answer(r, http.StatusNotImplemented, refusal("NotImplemented"))
				}
				return next.RoundTrip(r)
			},
			capability.Set{capability.Trailer: capability.No, capability.PartChecksums: capability.No},
		},
		"takes the framing for data": {
			func(r *http.Request, next http.RoundTripper, _ bool) (*http.Response, error) {
				resp, err := next.RoundTrip(r)
				if err == nil && r.Method == http.MethodGet && strings.HasSuffix(r.URL.Path, "-trailer") {
					resp = edited(resp, `^`, "47\r\n")
				}
				return resp, err
			},
			capability.Set{capability.Trailer: capability.No, capability.PartChecksums: capability.No},
		},
		"lists no checksums of parts, as SeaweedFS": {
			func(r *http.Request, next http.RoundTripper, _ bool) (*http.Response, error) {
				resp, err := next.RoundTrip(r)
				if err == nil && r.Method == http.MethodGet && r.URL.Query().Has("uploadId") {
					resp = edited(resp, `<ChecksumCRC32>[^<]*</ChecksumCRC32>`, "")
				}
				return resp, err
			},
			capability.Set{capability.PartChecksums: capability.No},
		},
		"ETags without the number of parts": {
			func(r *http.Request, next http.RoundTripper, _ bool) (*http.Response, error) {
				resp, err := next.RoundTrip(r)
				if err == nil && strings.Contains(resp.Header.Get("Etag"), "-") {
					resp.Header.Set("Etag", strings.ReplaceAll(resp.Header.Get("Etag"), "-1", ""))
				}
				return resp, err
			},
			// The real store does not know the ETag that is shown.
			capability.Set{capability.PartCount: capability.No, capability.CompleteIfMatch: capability.No},
		},
		"no ETag of completed uploads, as Ceph": {
			func(r *http.Request, next http.RoundTripper, _ bool) (*http.Response, error) {
				resp, err := next.RoundTrip(r)
				if err == nil && r.Method == http.MethodPost {
					resp = edited(resp, `<ETag>.*</ETag>`, "<ETag></ETag>")
				}
				return resp, err
			},
			capability.Set{capability.CompleteETag: capability.No},
		},
		"drops the metadata of markers": {
			func(r *http.Request, next http.RoundTripper, _ bool) (*http.Response, error) {
				resp, err := next.RoundTrip(r)
				if err == nil && strings.HasSuffix(r.URL.Path, "/") {
					resp.Header.Del("X-Amz-Meta-Cmek-Check")
				}
				return resp, err
			},
			capability.Set{capability.MarkerMetadata: capability.No},
		},
		"ignores If-Match of PutObject": {
			without(http.MethodPut, "If-Match"),
			capability.Set{capability.PutIfMatch: capability.No, capability.PutIfMatchBare: capability.No},
		},
		"refuses every If-Match": {
			func(r *http.Request, next http.RoundTripper, _ bool) (*http.Response, error) {
				if r.Method == http.MethodPut && r.Header.Get("If-Match") != "" {
					return answer(r, http.StatusPreconditionFailed, refusal("PreconditionFailed"))
				}
				return next.RoundTrip(r)
			},
			capability.Set{capability.PutIfMatch: capability.No, capability.PutIfMatchBare: capability.No},
		},
		"refuses every quoted If-Match, as Ceph 16": {
			func(r *http.Request, next http.RoundTripper, _ bool) (*http.Response, error) {
				if r.Method == http.MethodPut && strings.HasPrefix(r.Header.Get("If-Match"), `"`) {
					return answer(r, http.StatusPreconditionFailed, refusal("PreconditionFailed"))
				}
				return next.RoundTrip(r)
			},
			capability.Set{capability.PutIfMatch: capability.No},
		},
		"ignores If-None-Match": {
			without(http.MethodPut, "If-None-Match"), capability.Set{capability.PutIfNoneMatch: capability.No},
		},
		"ignores conditions on the source of a copy": {
			without(http.MethodPut, "X-Amz-Copy-Source-If-Match"),
			capability.Set{capability.CopySourceIfMatch: capability.No},
		},
		"ignores If-Match of DeleteObject": {
			without(http.MethodDelete, "If-Match"), capability.Set{capability.DeleteIfMatch: capability.No},
		},
		"ignores If-Match of CompleteMultipartUpload": {
			without(http.MethodPost, "If-Match"), capability.Set{capability.CompleteIfMatch: capability.No},
		},
		"ignores If-None-Match of CompleteMultipartUpload": {
			without(http.MethodPost, "If-None-Match"), capability.Set{capability.CompleteIfNoneMatch: capability.No},
		},
		"refuses every If-None-Match of CompleteMultipartUpload": {
			func(r *http.Request, next http.RoundTripper, _ bool) (*http.Response, error) {
				if r.Method == http.MethodPost && r.Header.Get("If-None-Match") != "" {
					return answer(r, http.StatusPreconditionFailed, refusal("PreconditionFailed"))
				}
				return next.RoundTrip(r)
			},
			capability.Set{capability.CompleteIfNoneMatch: capability.No},
		},
		"other ETags": {
			func(r *http.Request, next http.RoundTripper, _ bool) (*http.Response, error) {
				resp, err := next.RoundTrip(r)
				if err == nil && r.Method == http.MethodPut && !r.URL.Query().Has("uploadId") &&
					r.Header.Get("X-Amz-Copy-Source") == "" && resp.Header.Get("Etag") != "" &&
					!strings.HasSuffix(r.URL.Path, "-delete") {
					resp.Header.Set("Etag", `"of-another-kind"`)
				}
				return resp, err
			},
			capability.Set{capability.MD5ETags: capability.No},
		},
		"changes backslashes": {
			func(r *http.Request, next http.RoundTripper, _ bool) (*http.Response, error) {
				r.URL.Path = strings.ReplaceAll(r.URL.Path, `\`, "/")
				r.URL.RawPath = ""
				return next.RoundTrip(r)
			},
			capability.Set{capability.LiteralBackslash: capability.No},
		},
		"refuses keys that it would fold": {
			func(r *http.Request, next http.RoundTripper, _ bool) (*http.Response, error) {
				if r.Method == http.MethodPut && path.Clean(r.URL.Path) != strings.TrimSuffix(r.URL.Path, "/") {
					return answer(r, http.StatusBadRequest, refusal("InvalidArgument"))
				}
				return next.RoundTrip(r)
			},
			capability.Set{
				capability.LiteralSlashes: capability.Yes, capability.LiteralDots: capability.Yes,
				capability.LiteralLeadingSlash: capability.Yes,
			},
		},
	} {
		t.Run(name, func(t *testing.T) {
			cfg := newConfig(t, row.store)
			cfg.Prefix = "prefix/"
			probe := storecheck.New(cfg)
			got, err := probe.Capabilities(t.Context())
			if err != nil {
				t.Error(err)
			}

			want := row.want.Over(versitygw)
			for c := range capability.All {
				if got[c] != want[c] {
					t.Errorf("%s: %s, want %s", c, got[c], want[c])
				}
			}
			if err := probe.Clean(t.Context()); err != nil {
				t.Error(err)
			}
			wantEmpty(t)
		})
	}
}

// wantEmpty fails if the bucket has objects, versions or uploads.
func wantEmpty(t *testing.T) {
	t.Helper()
	send := newConfig(t, nil).Send
	for _, query := range []string{"list-type=2", "versions=", "uploads="} {
		r := &http.Request{Method: http.MethodGet, URL: &url.URL{Path: "/bucket", RawQuery: query}, Header: http.Header{}}
		resp, err := send(r.WithContext(t.Context()))
		if err != nil {
			t.Fatal(err)
		}
		body, err := io.ReadAll(resp.Body)
		resp.Body.Close()
		if keys := regexp.MustCompile(`<Key>[^<]*`).FindAllString(string(body), 3); err != nil || len(keys) > 0 {
			t.Fatalf("?%s: %q, %v", query, keys, err)
		}
	}
}

// Whichever request a probe fails at, what it has made can be removed.
func TestAnInterruptedProbeIsCleaned(t *testing.T) {
	for at := 0; ; at++ {
		ctx, cancel := context.WithCancel(t.Context())
		requests := 0
		probe := storecheck.New(newConfig(t, func(r *http.Request, next http.RoundTripper, _ bool) (*http.Response, error) {
			resp, err := next.RoundTrip(r)
			if requests++; requests == at {
				cancel() // the store has done what it was asked for, and nobody hears
				if err == nil {
					resp.Body.Close()
				}
				return nil, context.Canceled
			}
			return resp, err
		}))
		_, err := probe.Capabilities(ctx)
		interrupted := ctx.Err() != nil
		cancel()
		if interrupted && err == nil {
			t.Errorf("interrupted at request %d, without an error", at)
		}

		if err := probe.Clean(ctx); err != nil {
			t.Errorf("interrupted at request %d: %v", at, err)
		}
		if !interrupted && at > 0 {
			break
		}
	}
	wantEmpty(t)
}

// What a killed probe has left is removed by its name, and by nothing else.
func TestSweepAfter(t *testing.T) {
	killed, running := storecheck.New(newConfig(t, nil)), storecheck.New(newConfig(t, nil))
	for _, p := range []*storecheck.Probe{killed, running} {
		if _, err := p.Capabilities(t.Context()); err != nil {
			t.Fatal(err)
		}
	}

	sweeper := storecheck.New(newConfig(t, nil))
	if n, err := sweeper.Sweep(t.Context()); n != 0 || err != nil {
		t.Errorf("%d new objects removed, %v", n, err)
	}
	if n, err := sweeper.SweepAfter(t.Context(), killed.ID()); n == 0 || err != nil {
		t.Errorf("%d objects removed, %v", n, err)
	}
	if n, err := sweeper.SweepAfter(t.Context(), killed.ID()); n != 0 || err != nil {
		t.Errorf("%d objects removed the second time, %v", n, err)
	}
	if err := running.Clean(t.Context()); err != nil {
		t.Error(err)
	}
	wantEmpty(t)
}

// A store that refuses the probe's first object is not probed further.
func TestAProbeThatIsDenied(t *testing.T) {
	requests := 0
	probe := storecheck.New(newConfig(t, func(r *http.Request, _ http.RoundTripper, _ bool) (*http.Response, error) {
		requests++
		return answer(r, http.StatusForbidden, refusal("AccessDenied"))
	}))
	got, err := probe.Capabilities(t.Context())
	if got != (capability.Set{}) || stored.StatusOf(err) != http.StatusForbidden || requests != 1 {
		t.Errorf("%v, %v after %d requests", got, err, requests)
	}
}

// Parts of different lengths, and advice that helps.
func TestParts(t *testing.T) {
	uniform := func(r *http.Request, next http.RoundTripper, _ bool) (*http.Response, error) {
		// As Cloudflare R2: all parts but the last have one length.
		if r.Method == http.MethodPost && r.URL.Query().Has("uploadId") && sizes[0] != sizes[1] {
			return answer(r, http.StatusBadRequest, refusal("InvalidPart"))
		}
		if r.Method == http.MethodPut && r.URL.Query().Has("partNumber") {
			if r.URL.Query().Get("partNumber") == "1" {
				sizes = nil
			}
			sizes = append(sizes, strconv.FormatInt(r.ContentLength, 10))
		}
		return next.RoundTrip(r)
	}
	never := func(r *http.Request, next http.RoundTripper, _ bool) (*http.Response, error) {
		if r.Method == http.MethodPost && r.URL.Query().Has("uploadId") {
			return answer(r, http.StatusBadRequest, refusal("InvalidRequest"))
		}
		return next.RoundTrip(r)
	}

	for name, row := range map[string]struct {
		store        change
		setting      bool
		detail, fail string
		not          string
	}{
		"any lengths":                     {},
		"any lengths, and the setting":    {setting: true, detail: "with origin.uniform_parts: false"},
		"equal lengths":                   {store: uniform, fail: "set origin.uniform_parts to true"},
		"equal lengths, with the setting": {store: uniform, setting: true, detail: "equal lengths"},
		"none":                            {store: never, fail: "InvalidRequest", not: "uniform_parts"},
	} {
		t.Run(name, func(t *testing.T) {
			probe := storecheck.New(newConfig(t, row.store))
			detail, err := probe.Parts(t.Context(), versitygw, row.setting)
			failure := ""
			if err != nil {
				failure = err.Error()
			}
			if !strings.Contains(detail, row.detail) || !strings.Contains(failure, row.fail) ||
				(row.fail == "") != (err == nil) || row.not != "" && strings.Contains(failure, row.not) {
				t.Errorf("%q, %v", detail, err)
			}
			if err := probe.Clean(t.Context()); err != nil {
				t.Error(err)
			}
			wantEmpty(t)
		})
	}
}

var sizes []string // of the parts that TestParts has sent

func TestCompareKeys(t *testing.T) {
	literal := versitygw
	for c := range capability.All {
		literal[c] = capability.Yes
	}
	for name, row := range map[string]struct {
		set        capability.Set
		configured string
		want, fail string
	}{
		"literal":              {literal, "", "with origin.keys: literal", ""},
		"literal, and known":   {literal, "literal", "used unchanged", ""},
		"literal, set to path": {literal, "path", "with origin.keys: literal", ""},
		"path":                 {versitygw, "", "the proxy refuses keys", ""},
		"path, and known":      {versitygw, "path", "FOLDED", ""},
		"path, set to literal": {versitygw, "literal", "", "set origin.keys to path"},
		"unknown":              {capability.Set{}, "", "", "unknown"},
	} {
		t.Run(name, func(t *testing.T) {
			detail, err := storecheck.CompareKeys(row.set, row.configured)
			if row.fail == "" && err != nil || row.fail != "" && (err == nil || !strings.Contains(err.Error(), row.fail)) ||
				!strings.Contains(detail, row.want) {
				t.Errorf("%q, %v", detail, err)
			}
		})
	}
}
