package s3api_test

import (
	"bytes"
	"crypto/md5"
	"encoding/base64"
	"maps"
	"net"
	"net/http"
	"strconv"
	"strings"
	"testing"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/service/s3"
	"github.com/aws/aws-sdk-go-v2/service/s3/types"

	"github.com/cmekproxy/cmekproxy/internal/keyring"
	"github.com/cmekproxy/cmekproxy/internal/s3api"
)

// customer is a customer key in the form that SDKs take.
type customer struct{ algorithm, key, md5 *string }

func newCustomer(fill byte) customer {
	key := bytes.Repeat([]byte{fill}, 32)
	sum := md5.Sum(key)
	return customer{
		aws.String("AES256"),
		aws.String(base64.StdEncoding.EncodeToString(key)),
		aws.String(base64.StdEncoding.EncodeToString(sum[:])),
	}
}

func (k customer) headers(prefix string) http.Header {
	return http.Header{prefix + "Algorithm": {*k.algorithm}, prefix + "Key": {*k.key}, prefix + "Key-Md5": {*k.md5}}
}

const (
	customerHeader = "X-Amz-Server-Side-Encryption-Customer-"
	sourceHeader   = "X-Amz-Copy-Source-Server-Side-Encryption-Customer-"
)

// put adds the key to the input of PutObject.
func (k customer) put(in *s3.PutObjectInput) {
	in.SSECustomerAlgorithm, in.SSECustomerKey, in.SSECustomerKeyMD5 = k.algorithm, k.key, k.md5
}

func (k customer) get(in *s3.GetObjectInput) {
	in.SSECustomerAlgorithm, in.SSECustomerKey, in.SSECustomerKeyMD5 = k.algorithm, k.key, k.md5
}

func TestCustomerKey(t *testing.T) {
	p := newProxy(t)
	mine, other := newCustomer(1), newCustomer(2)
	text := []byte(strings.Repeat("a secret of the customer's ", 5000))
	out := p.put("k", text, mine.put)
	if *out.SSECustomerAlgorithm != "AES256" || *out.SSECustomerKeyMD5 != *mine.md5 || out.ServerSideEncryption != "" {
		t.Errorf("PUT: %+v", out)
	}

	got, answer, err := p.get("k", mine.get)
	if err != nil || !bytes.Equal(got, text) || *answer.SSECustomerKeyMD5 != *mine.md5 || answer.SSEKMSKeyId != nil {
		t.Fatalf("GET: %d bytes, %+v, %v", len(got), answer, err)
	}
	if got, _, err := p.get(
		"k", mine.get, func(in *s3.GetObjectInput) { in.Range = aws.String("bytes=70000-70009") },
	); err != nil ||
		string(got) != string(text[70000:70010]) {
		t.Errorf("range: %q, %v", got, err)
	}

	body, metadata := p.stored("k")
	raw, err := base64.StdEncoding.DecodeString(*mine.key)
	if err != nil {
		t.Fatal(err)
	}

	if bytes.Contains(body, []byte("secret")) || bytes.Contains(body, raw) ||
		strings.Contains(p.log.String(), *mine.key) ||
		metadata.Get("X-Amz-Meta-Cmek-Key") != "sse-c" {
		t.Errorf("stored: %v", metadata)
	}

	for name, header := range map[string]http.Header{"none": nil, "another": other.headers(customerHeader)} {
		t.Run(name, func(t *testing.T) {
			want := map[string]string{"none": "400 InvalidRequest", "another": "403 AccessDenied"}[name]
			for _, r := range []request{
				{method: "GET"},
				{method: "HEAD"},
				{method: "GET", header: http.Header{"Range": {"bytes=0-0"}}},
				{method: "GET", path: "?attributes", header: http.Header{"X-Amz-Object-Attributes": {"ObjectSize"}}},
			} {
				r.path = "/" + p.bucket + "/k" + r.path
				r.header = merge(r.header, header)
				a := p.send(r)
				code := strings.Fields(want)[1]

				if got := strconv.Itoa(a.StatusCode) + " " + a.Code; r.method == "HEAD" &&
					strings.Fields(want)[0] != strconv.Itoa(a.StatusCode) ||
					r.method != "HEAD" && got != want ||
					bytes.Contains(a.body, []byte("secret of")) {
					t.Errorf("%s %s with key %s: %s, want %s %s", r.method, r.path, name, got, want, code)
				}
			}
		})
	}

	if a := p.send(request{
		method: "HEAD", path: "/" + p.bucket + "/k", header: mine.headers(customerHeader),
	}); a.StatusCode != 200 ||
		a.ContentLength != int64(len(text)) ||
		a.Header.Get(customerHeader+"Key-Md5") != *mine.md5 {
		t.Errorf("HEAD: %d, %v", a.StatusCode, a.Header)
	}

	// A customer key for an object that is not under one is an error.
	p.put("kms", text)
	for _, method := range []string{"GET", "HEAD"} {
		t.Run(method, func(t *testing.T) {
			if a := p.send(request{
				method: method, path: "/" + p.bucket + "/kms", header: mine.headers(customerHeader),
			}); a.StatusCode != 400 {
				t.Errorf("of an object under KMS with a customer's key: %d %s", a.StatusCode, a.Code)
			}
		})
	}

	// Like any envelope, it is bound to the object's name.
	p.store("moved", body, metadata)
	if _, _, err := p.get("moved", mine.get); err == nil {
		t.Error("an object was moved in the store, and read")
	}
}

func merge(a, b http.Header) http.Header {
	out := http.Header{}
	for _, h := range []http.Header{a, b} {
		maps.Copy(out, h)
	}
	return out
}

func TestCustomerKeyRefusals(t *testing.T) {
	p := newProxy(t)
	good := newCustomer(1)
	for name, row := range map[string]struct {
		change http.Header
		code   string
	}{
		"no algorithm":      {http.Header{customerHeader + "Algorithm": nil}, "InvalidArgument"},
		"another algorithm": {http.Header{customerHeader + "Algorithm": {"AES128"}}, "InvalidEncryptionAlgorithmError"},
		"no key":            {http.Header{customerHeader + "Key": nil}, "InvalidArgument"},
		"no MD5":            {http.Header{customerHeader + "Key-Md5": nil}, "InvalidArgument"},
		"another MD5":       {http.Header{customerHeader + "Key-Md5": {*newCustomer(2).md5}}, "InvalidArgument"},
		"no base64":         {http.Header{customerHeader + "Key": {"%%%"}}, "InvalidArgument"},
		"31 bytes": {
			http.Header{customerHeader + "Key": {base64.StdEncoding.EncodeToString(make([]byte, 31))}}, "InvalidArgument",
		},
		"zeros":      newCustomerRow(0),
		"and KMS":    {http.Header{"X-Amz-Server-Side-Encryption": {"aws:kms"}}, "InvalidArgument"},
		"and AES256": {http.Header{"X-Amz-Server-Side-Encryption": {"AES256"}}, "InvalidArgument"},
	} {
		t.Run(name, func(t *testing.T) {
			header := merge(good.headers(customerHeader), row.change)
			for h, values := range header {
				if values == nil {
					delete(header, h)
				}
			}

			if a := p.send(request{
				method: "PUT", path: "/" + p.bucket + "/k", header: header, body: []byte("x"),
			}); a.Code != row.code {
				t.Errorf("%d %s, want %s", a.StatusCode, a.Code, row.code)
			}
			if p.isStored("k") {
				t.Fatalf("stored all the same")
			}
		})
	}

	// A key in a URL would end up in logs.
	query := "?X-Amz-Server-Side-Encryption-Customer-Algorithm=AES256&X-Amz-Expires=60"
	if a := p.send(request{
		method: "PUT", path: "/" + p.bucket + "/k" + query, presign: true, body: []byte("x"), hash: "UNSIGNED-PAYLOAD",
	}); a.StatusCode != 501 {
		t.Errorf("in the query: %d %s", a.StatusCode, a.Code)
	}
}

func newCustomerRow(fill byte) struct {
	change http.Header
	code   string
} {
	return struct {
		change http.Header
		code   string
	}{newCustomer(fill).headers(customerHeader), "InvalidArgument"}
}

// peerConn is a connection whose TCP peer has another address.
type peerConn struct {
	net.Conn
	peer net.Addr
}

func (c *peerConn) RemoteAddr() net.Addr { return c.peer }

// Customer keys are accepted only over TLS or from the same machine. What a
// load balancer says about the client does not count, even if it is trusted.
func TestCustomerKeyInClear(t *testing.T) {
	here, elsewhere := net.IPv4(127, 0, 0, 1), net.IPv4(192, 0, 2, 1)
	for _, row := range []struct {
		name      string
		peer      net.IP
		client    string // from a PROXY protocol header
		forwarded string
		code      string // "" for success
	}{
		{"from this machine", here, "127.0.0.1:1234", "", ""},
		{"from elsewhere", elsewhere, "192.0.2.1:1234", "", "InvalidRequest"},
		{"a TLS terminator on this machine, with a PROXY header", here, "203.0.113.7:1234", "", ""},
		{"a TLS terminator on this machine, with X-Forwarded-For", here, "127.0.0.1:1234", "203.0.113.7", ""},
		{"from elsewhere, with a PROXY header", elsewhere, "127.0.0.1:1234", "", "InvalidRequest"},
		{"from elsewhere, with X-Forwarded-For", elsewhere, "192.0.2.1:1234", "127.0.0.1", "InvalidRequest"},
	} {
		t.Run(row.name, func(t *testing.T) {
			p := newProxy(t, func(_ *proxy, cfg *s3api.Config, _ *keyring.Config) { cfg.TrustedProxies = everyone })
			handler := p.server.Config.Handler
			p.server.Config.Handler = http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
				conn := &peerConn{nil, &net.TCPAddr{IP: row.peer, Port: 1234}}
				r = r.WithContext(s3api.ConnContext(r.Context(), conn))
				r.RemoteAddr = row.client
				handler.ServeHTTP(w, r)
			})

			header := newCustomer(1).headers(customerHeader)
			header.Set("X-Forwarded-Proto", "https")
			if row.forwarded != "" {
				header.Set("X-Forwarded-For", row.forwarded)
			}
			a := p.send(request{method: "PUT", path: "/" + p.bucket + "/k", header: header, body: []byte("x")})
			refused := a.StatusCode == 400 && a.Code == "InvalidRequest" && bytes.Contains(a.body, []byte("secure connection"))
			if refused != (row.code != "") || p.isStored("k") == refused {
				t.Errorf("%d %s", a.StatusCode, a.body)
			}
		})
	}
}

// If customer keys are denied, nothing can be stored under them, but stored
// objects can be read.
func TestCustomerKeysSwitchedOff(t *testing.T) {
	p := newProxy(t)
	mine := newCustomer(1)
	p.put("before", []byte("text"), mine.put)
	if err := p.keys.SetRules([]keyring.Rule{{Key: "main", RefuseCustomerKeys: true}}); err != nil {
		t.Fatal(err)
	}

	if got, _, err := p.get("before", mine.get); err != nil || string(got) != "text" {
		t.Errorf("%q, %v", got, err)
	}

	path := "/" + p.bucket + "/k"
	for _, r := range []request{
		{method: "PUT", path: path, header: mine.headers(customerHeader), body: []byte("x")},
		{method: "POST", path: path + "?uploads", header: mine.headers(customerHeader)},
		{method: "PUT", path: path, header: merge(
			merge(mine.headers(customerHeader), mine.headers(sourceHeader)),
			http.Header{"X-Amz-Copy-Source": {p.bucket + "/before"}},
		)},
	} {
		t.Run(r.method+" "+r.path, func(t *testing.T) {
			if a := p.send(r); a.Code != "AccessDenied" || p.isStored("k") {
				t.Errorf("%s %s: %d %s", r.method, r.path, a.StatusCode, a.Code)
			}
		})
	}
}

func TestCustomerKeyMultipart(t *testing.T) {
	p := newProxy(t)
	r := p.replica() // it only knows the upload from its id
	mine, other := newCustomer(1), newCustomer(2)

	first, last := bytes.Repeat([]byte("0123456789abcdef"), 5<<20/16), bytes.Repeat([]byte("end"), 2<<20)
	for name, whole := range map[string][][]byte{"short end": {first, []byte("end")}, "appended end": {first, last}} {
		t.Run(name, func(t *testing.T) {
			created, err := p.client.CreateMultipartUpload(
				t.Context(),
				&s3.CreateMultipartUploadInput{
					Bucket:               &p.bucket,
					Key:                  &name,
					SSECustomerAlgorithm: mine.algorithm,
					SSECustomerKey:       mine.key,
					SSECustomerKeyMD5:    mine.md5,
				},
			)
			if err != nil || *created.SSECustomerKeyMD5 != *mine.md5 {
				t.Fatalf("create: %+v, %v", created, err)
			}

			path := "/" + p.bucket + "/" + strings.ReplaceAll(
				name,
				" ",
				"%20",
			) + "?partNumber=1&uploadId=" + *created.UploadId

			for key, header := range map[string]http.Header{"no key": nil, "another key": other.headers(customerHeader)} {
				for at, replica := range []*proxy{p, r} {
					if a := replica.send(request{
						method: "PUT", path: path, header: header, body: []byte("x"),
					}); a.Code != "InvalidRequest" {
						t.Errorf("a part with %s, at replica %d: %d %s", key, at, a.StatusCode, a.Code)
					}
				}
			}

			var parts []types.CompletedPart
			for i, text := range whole {
				number := int32(i + 1)
				part, err := []*proxy{r, p}[i%2].client.UploadPart(t.Context(), &s3.UploadPartInput{
					Bucket: &p.bucket, Key: &name, UploadId: created.UploadId, PartNumber: &number, Body: bytes.NewReader(text),
					SSECustomerAlgorithm: mine.algorithm, SSECustomerKey: mine.key, SSECustomerKeyMD5: mine.md5,
				})
				if err != nil || *part.SSECustomerKeyMD5 != *mine.md5 {
					t.Fatalf("part %d: %+v, %v", number, part, err)
				}

				parts = append(parts, types.CompletedPart{ETag: part.ETag, PartNumber: &number})
			}

			if done, err := r.client.CompleteMultipartUpload(t.Context(), &s3.CompleteMultipartUploadInput{
				Bucket: &p.bucket, Key: &name, UploadId: created.UploadId,
				MultipartUpload: &types.CompletedMultipartUpload{Parts: parts},
			}); err != nil ||
				done.SSEKMSKeyId != nil {
				t.Fatalf("%+v, %v", done, err)
			}

			want := bytes.Join(whole, nil)
			if got, out, err := p.get(name, mine.get); err != nil || !bytes.Equal(got, want) ||
				*out.SSECustomerKeyMD5 != *mine.md5 {
				t.Errorf("%d bytes, %v", len(got), err)
			}

			if got, _, err := p.get(
				name, mine.get, func(in *s3.GetObjectInput) { in.Range = aws.String("bytes=-2") },
			); err != nil ||
				string(got) != "nd" {
				t.Errorf("the end: %q, %v", got, err)
			}

			escaped := "/" + p.bucket + "/" + strings.ReplaceAll(name, " ", "%20")
			for _, method := range []string{"GET", "HEAD"} { // after a range has cached part headers
				if a := p.send(request{method: method, path: escaped}); a.StatusCode != 400 {
					t.Errorf("%s of %s without a key: %d", method, name, a.StatusCode)
				}
				if a := p.send(request{method: method, path: escaped, header: other.headers(customerHeader)}); a.StatusCode != 403 {
					t.Errorf("%s of %s with another key: %d %s", method, name, a.StatusCode, a.body)
				}

				if a := p.send(request{method: method, path: escaped, header: mine.headers(customerHeader)}); a.StatusCode != 200 ||
					a.ContentLength != int64(len(want)) {
					t.Errorf("%s of %s: %d, %d bytes", method, name, a.StatusCode, a.ContentLength)
				}
			}
		})
	}
}

// The key is valid for one request. The next request must send it again,
// even if the data key is still cached.
func TestCustomerKeyIsNotRemembered(t *testing.T) {
	p := newProxy(t, func(*proxy, *s3api.Config, *keyring.Config) {})
	mine := newCustomer(1)
	p.put("k", []byte("text"), mine.put)
	if _, _, err := p.get("k", mine.get); err != nil {
		t.Fatal(err)
	}
	if n := p.cache.Stats().Entries; n != 0 {
		t.Errorf("%d data keys are cached", n)
	}
	if _, _, err := p.get("k"); err == nil {
		t.Error("read without the key")
	}
}

// TestCustomerKeysWithoutTLS: loopback alone is not secure. A TLS terminator
// on the same machine could have received the key over an unencrypted
// network.
func TestCustomerKeysWithoutTLS(t *testing.T) {
	p := newProxy(t, func(_ *proxy, cfg *s3api.Config, _ *keyring.Config) { cfg.Settings.LocalTLS = false })
	r := request{
		method: "PUT",
		path:   "/" + p.bucket + "/k",
		header: newCustomer(1).headers(customerHeader),
		body:   []byte("x"),
	}
	if a := p.send(r); a.StatusCode != http.StatusBadRequest || a.Code != "InvalidRequest" ||
		!strings.Contains(string(a.body), "secure connection") {
		t.Errorf("%d %s: %s", a.StatusCode, a.Code, a.body)
	}
}
