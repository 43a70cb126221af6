package s3api_test

import (
	"io"
	"maps"
	"net/http"
	"strings"
	"testing"
)

const page = "https://page.example"

// browse sends a request as a browser does. What a page may not choose, such
// as the signature, is left to r.
func (p *proxy) browse(r request, origin string) answer {
	p.t.Helper()
	if r.header == nil {
		r.header = http.Header{}
	}
	r.header.Set("Origin", origin)
	return p.send(r)
}

// unsigned sends a request without a signature.
func (p *proxy) unsigned(method, path string, header http.Header) (*http.Response, string) {
	p.t.Helper()
	r, err := http.NewRequestWithContext(p.t.Context(), method, p.url+path, nil)
	if err != nil {
		p.t.Fatal(err)
	}
	maps.Copy(r.Header, header)

	resp, err := p.server.Client().Do(r)
	if err != nil {
		p.t.Fatal(err)
	}
	defer resp.Body.Close()

	body, err := io.ReadAll(resp.Body)
	if err != nil {
		p.t.Fatal(err)
	}
	return resp, string(body)
}

func preflight(origin, method, headers string) http.Header {
	h := http.Header{"Origin": {origin}, "Access-Control-Request-Method": {method}}
	if headers != "" {
		h.Set("Access-Control-Request-Headers", headers)
	}
	return h
}

const corsRules = `<CORSConfiguration><CORSRule><AllowedOrigin>` + page + `</AllowedOrigin><AllowedMethod>GET</AllowedMethod><AllowedMethod>PUT</AllowedMethod>` +
	`<AllowedHeader>*</AllowedHeader><ExposeHeader>ETag</ExposeHeader><MaxAgeSeconds>600</MaxAgeSeconds></CORSRule></CORSConfiguration>`

// The store's CORS configuration is set, read and enforced through the
// proxy.
func TestCORS(t *testing.T) {
	p := newProxy(t)
	p.put("k", []byte("for the page"))
	b := "/" + p.bucket
	if resp, body := p.unsigned("OPTIONS", b+"/k", preflight(page, "GET", "")); resp.StatusCode != http.StatusForbidden ||
		!strings.Contains(body, "AccessForbidden") ||
		resp.Header.Get("Access-Control-Allow-Origin") != "" {
		t.Errorf("without a configuration: %d %s", resp.StatusCode, body)
	}

	if a := p.send(request{method: "PUT", path: b + "?cors", body: []byte(corsRules)}); a.StatusCode != http.StatusOK {
		t.Fatalf("PutBucketCors: %d %s", a.StatusCode, a.body)
	}
	if a := p.send(request{method: "GET", path: b + "?cors"}); a.StatusCode != http.StatusOK ||
		!strings.Contains(string(a.body), page) {
		t.Errorf("GetBucketCors: %d %s", a.StatusCode, a.body)
	}

	resp, body := p.unsigned(
		"OPTIONS",
		b+"/k?X-Amz-Signature=a&X-Amz-Security-Token=b",
		preflight(page, "PUT", "content-type,x-amz-meta-a"),
	)
	if resp.StatusCode != http.StatusOK || body != "" {
		t.Errorf("preflight: %d %q", resp.StatusCode, body)
	}

	for name, want := range map[string]string{
		"Access-Control-Allow-Origin": page, "Access-Control-Allow-Methods": "GET, PUT",
		"Access-Control-Allow-Headers": "content-type, x-amz-meta-a", "Access-Control-Max-Age": "600",
		"Access-Control-Expose-Headers": "ETag",
	} {
		t.Run(name, func(t *testing.T) {
			if got := resp.Header.Get(name); got != want {
				t.Errorf("preflight: %s is %q, want %q", name, got, want)
			}
		})
	}

	if !strings.Contains(resp.Header.Get("Vary"), "Origin") {
		t.Errorf("preflight: Vary is %q", resp.Header.Get("Vary"))
	}

	for name, header := range map[string]http.Header{
		"another origin": preflight("https://other.example", "GET", ""), "another method": preflight(page, "DELETE", ""),
		"no origin": {"Access-Control-Request-Method": {"GET"}}, "no method": {"Origin": {page}},
		"a method that S3 has not": preflight(page, "PATCH", ""),
	} {
		t.Run(name, func(t *testing.T) {
			resp, body := p.unsigned("OPTIONS", b+"/k", header)
			if resp.StatusCode < 400 || resp.Header.Get("Access-Control-Allow-Origin") != "" ||
				!strings.Contains(body, "<Code>") {
				t.Errorf("preflight, %s: %d %v %s", name, resp.StatusCode, resp.Header, body)
			}
		})
	}

	if resp, _ := p.unsigned("OPTIONS", b, preflight(page, "GET", "")); resp.StatusCode != http.StatusOK {
		t.Errorf("preflight of the bucket: %d", resp.StatusCode)
	}
}

// Every response to an allowed page has CORS headers, including the proxy's
// own errors. No response to another page has them.
func TestCORSOfAnswers(t *testing.T) {
	p := newProxy(t)
	p.put("k", []byte("for the page"))
	b := "/" + p.bucket
	if a := p.send(request{method: "PUT", path: b + "?cors", body: []byte(corsRules)}); a.StatusCode != http.StatusOK {
		t.Fatal(a.StatusCode)
	}

	for _, row := range []struct {
		name   string
		r      request
		status int
		asked  int // requests to the store
	}{
		{"GET", request{method: "GET", path: b + "/k"}, 200, 1},
		{"PUT", request{method: "PUT", path: b + "/new", body: []byte("x")}, 200, 1},
		{"listing", request{method: "GET", path: b + "?list-type=2"}, 200, 1},
		{"presigned", request{method: "GET", path: b + "/k?X-Amz-Expires=60", presign: true}, 200, 1},
		{"range", request{method: "GET", path: b + "/k", header: http.Header{"Range": {"bytes=0-2"}}}, 206, 1},
		{"range outside", request{method: "GET", path: b + "/k", header: http.Header{"Range": {"bytes=99-"}}}, 416, 1},
		{"no such key", request{method: "GET", path: b + "/none"}, 404, 1},
		{"bad signature", request{method: "GET", path: b + "/k", secret: "another"}, 403, 1},
		{"refused", request{method: "GET", path: b + "/k?torrent"}, 501, 1},
		{
			"a document of the proxy's own",
			request{method: "GET", path: b + "/k?attributes", header: http.Header{"X-Amz-Object-Attributes": {"ETag"}}},
			200,
			2,
		},
	} {
		t.Run(row.name, func(t *testing.T) {
			p.origin.take()
			a := p.browse(row.r, page)
			if a.StatusCode != row.status || a.Header.Get("Access-Control-Allow-Origin") != page ||
				!strings.Contains(a.Header.Get("Access-Control-Expose-Headers"), "ETag") {
				t.Errorf("%d, %v", a.StatusCode, a.Header)
			}

			if asked := p.origin.take(); row.asked > 0 && len(asked) > row.asked {
				t.Errorf("the store was asked %v", asked)
			}
			row.r.header = row.r.header.Clone()

			if a := p.browse(row.r, "https://other.example"); a.StatusCode != row.status ||
				a.Header.Get("Access-Control-Allow-Origin") != "" {
				t.Errorf("of another page: %d, %v", a.StatusCode, a.Header)
			}
		})
	}

	if a := p.send(request{method: "GET", path: b + "/k"}); a.Header.Get("Access-Control-Allow-Origin") != "" {
		t.Errorf("to no page: %v", a.Header)
	}
}

// From the store's answer to a preflight, only the CORS headers are
// returned.
func TestPreflightLeaksNothing(t *testing.T) {
	p, store := newRecorded(t)
	store.set(func(w http.ResponseWriter, r *http.Request) {
		for name, value := range map[string]string{
			"Access-Control-Allow-Origin": page, "X-Amz-Bucket-Region": "secret-region-1", "X-Amz-Version-Id": "v",
			"Server": "Store", "X-Amz-Meta-Cmek-V": "1", "Set-Cookie": "a=b",
		} {
			w.Header().Set(name, value)
		}

		if r.URL.Path == "/"+p.bucket+"/denied" {
			w.WriteHeader(http.StatusForbidden)
		}
		io.WriteString(w, "<Error><Code>AccessForbidden</Code><Message>no</Message></Error>")
	})

	for path, status := range map[string]int{"/k?versionId=v&X-Amz-Signature=s": 200, "/denied": 403} {
		t.Run(path, func(t *testing.T) {
			header := preflight(page, "GET", "x-amz-date")
			header["Authorization"] = []string{"AWS4-HMAC-SHA256 Credential=nobody"}
			header["Cookie"] = []string{"session=1"}
			resp, body := p.unsigned("OPTIONS", "/"+p.bucket+path, header)
			if resp.StatusCode != status || strings.Contains(body, "secret") {
				t.Errorf("%d %s", resp.StatusCode, body)
			}

			for name := range resp.Header {
				switch name {
				case "Access-Control-Allow-Origin", "Content-Length", "Content-Type", "Date", "X-Amz-Request-Id":
				default:
					t.Errorf("the header %s", name)
				}
			}

			asked := store.take()
			if len(asked) != 1 || asked[0].URL.RawQuery != "" || asked[0].Method != "OPTIONS" ||
				asked[0].Header.Get("Cookie") != "" ||
				asked[0].Header.Get("Access-Control-Request-Headers") != "x-amz-date" {
				t.Errorf("the store was asked %+v", asked)
			}
		})
	}
}
