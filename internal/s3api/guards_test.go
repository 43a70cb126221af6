package s3api_test

import (
	"maps"
	"net/http"
	"strings"
	"sync"
	"testing"

	"github.com/cmekproxy/cmekproxy/internal/s3api"
)

// guards are the headers that hold for all requests of an operation.
func guards() http.Header {
	return http.Header{"X-Amz-Expected-Bucket-Owner": {storeAccess}, "X-Amz-Request-Payer": {"requester"}}
}

// record notes each request to the store, and returns a function that takes
// what was noted.
func (p *proxy) record() func() []*http.Request {
	var mu sync.Mutex
	var seen []*http.Request
	p.origin.set(func(r *http.Request) (*http.Response, error) {
		mu.Lock()
		defer mu.Unlock()
		seen = append(seen, r)
		return nil, nil
	}, nil)
	return func() []*http.Request {
		mu.Lock()
		defer mu.Unlock()
		out := seen
		seen = nil
		return out
	}
}

// wantGuards checks that each request has the headers.
func wantGuards(t *testing.T, requests []*http.Request) {
	t.Helper()
	for _, r := range requests {
		for name, want := range guards() {
			if got := r.Header.Values(name); len(got) != 1 || got[0] != want[0] {
				t.Errorf("%s %s (%s) has %s %q", r.Method, r.URL, s3api.SentAs(r), name, got)
			}
		}
	}
}

// withGuards adds the headers to a request.
func withGuards(r request) request {
	header := guards()
	maps.Copy(header, r.header)
	r.header = header
	return r
}

// The store must learn who is to own the bucket, and that the client pays,
// from every request that an operation makes.
func TestEveryRequestHasTheGuardsOfItsOperation(t *testing.T) {
	p := newProxy(t)
	taken := p.record()
	operations := 0
	for _, row := range s3api.Rows() {
		if row.Refused || row.Op == "PostObject" || row.Method == http.MethodOptions {
			continue
		}
		t.Run(row.Op, func(t *testing.T) {
			p.send(withGuards(p.trigger(row)))
			requests := taken()
			wantGuards(t, requests)
			if len(requests) > 0 {
				operations++
			}
		})
	}
	if operations < 70 {
		t.Errorf("only %d operations were sent", operations)
	}
}

// The same for operations of several requests, that succeed.
func TestEveryRequestOfALongOperationHasTheGuards(t *testing.T) {
	p := newProxy(t, honoring(versitygw))
	p.put("whole", randomText(100_000))
	p.put("old name", randomText(100_000))
	p.upload("parts", []int{5 << 20, 5 << 20})
	m := p.create("target")
	m.send(1, randomText(5<<20))
	taken := p.record()
	b := "/" + p.bucket

	from := func(key string) http.Header { return http.Header{"X-Amz-Copy-Source": {b + "/" + key}} }
	for _, row := range []struct {
		name  string
		ask   request
		least int // requests to the store
	}{
		{"copy of whole", request{method: "PUT", path: b + "/copy", header: from("whole")}, 4},
		{"copy of parts", request{method: "PUT", path: b + "/copy", header: from("parts")}, 3},
		{"part", request{method: "PUT", path: b + "/target?partNumber=3&uploadId=" + m.id, body: randomText(100)}, 1},
		{"part copy", request{
			method: "PUT", path: b + "/target?partNumber=4&uploadId=" + m.id, header: from("whole"),
		}, 2},
		{"completion", request{method: "POST", path: b + "/target?uploadId=" + m.id, body: m.document()}, 3},
		{"completion again", request{method: "POST", path: b + "/target?uploadId=" + m.id, body: m.document()}, 2},
		{"update of the encryption", request{method: "PUT", path: b + "/whole?encryption", body: []byte(
			"<ObjectEncryption><SSE-KMS><KMSKeyArn>main</KMSKeyArn></SSE-KMS></ObjectEncryption>",
		)}, 4},
		{"rename", request{
			method: "PUT", path: b + "/name?renameObject", header: http.Header{"X-Amz-Rename-Source": {"old%20name"}},
		}, 6},
		{"conditional deletes", request{method: "POST", path: b + "?delete", body: []byte(
			"<Delete><Object><Key>k</Key><ETag>e</ETag></Object></Delete>",
		)}, 1},
		{"range of parts", request{
			method: "GET", path: b + "/parts", header: http.Header{"Range": {"bytes=5242870-5242890"}},
		}, 2},
		{"attributes", request{
			method: "GET", path: b + "/parts?attributes", header: http.Header{"X-Amz-Object-Attributes": {"ObjectParts"}},
		}, 1},
		{"encryption", request{method: "GET", path: b + "?encryption"}, 1},
		{"listing", request{method: "GET", path: b + "?list-type=2"}, 1},
		{"deletion by size", request{
			method: "DELETE", path: b + "/whole", header: http.Header{"X-Amz-If-Match-Size": {"100000"}},
		}, 2},
	} {
		t.Run(row.name, func(t *testing.T) {
			a := p.send(withGuards(row.ask))
			requests := taken()
			if a.StatusCode >= 300 && row.name != "encryption" || len(requests) < row.least {
				t.Errorf("%d requests, %d %s", len(requests), a.StatusCode, a.body)
			}
			wantGuards(t, requests)
		})
	}
}

// The two buckets of a copy may have different owners.
func TestTheSourcesOwnerIsNotTheDestinations(t *testing.T) {
	p := newProxy(t)
	other := p.newBucket("other-")
	p.upload("parts", []int{5 << 20, 100})
	taken := p.record()

	r := request{method: "PUT", path: "/" + other + "/copy", header: http.Header{
		"X-Amz-Copy-Source":                  {"/" + p.bucket + "/parts"},
		"X-Amz-Source-Expected-Bucket-Owner": {storeAccess},
	}}
	if a := p.send(r); a.StatusCode != http.StatusOK {
		t.Fatal(a.StatusCode, string(a.body))
	}

	for _, sent := range taken() {
		want := ""
		if strings.HasPrefix(sent.URL.Path, "/"+p.bucket+"/") {
			want = storeAccess
		}
		if got := sent.Header.Get("X-Amz-Expected-Bucket-Owner"); got != want {
			t.Errorf("%s %s has the owner %q, want %q", sent.Method, sent.URL.Path, got, want)
		}
	}

	r.header.Set("X-Amz-Source-Expected-Bucket-Owner", "somebody")
	if a := p.send(r); a.StatusCode != http.StatusForbidden {
		t.Error("a source of another owner:", a.StatusCode, string(a.body))
	}
}
