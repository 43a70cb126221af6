package s3api_test

import (
	"bytes"
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/credentials"
	"github.com/aws/aws-sdk-go-v2/service/s3"
	"github.com/aws/aws-sdk-go-v2/service/s3/types"

	"github.com/cmekproxy/cmekproxy/internal/access"
	"github.com/cmekproxy/cmekproxy/internal/keyring"
	"github.com/cmekproxy/cmekproxy/internal/s3api"
)

var everything = []access.Action{
	access.Read,
	access.Write,
	access.Delete,
	access.List,
	access.Admin,
	access.Lock,
	access.StoreAdmin,
}

// withClients adds clients to the one that has all grants.
func withClients(clients ...access.Client) option {
	return func(p *proxy, cfg *s3api.Config, _ *keyring.Config) {
		all := append(
			[]access.Client{
				{
					Name:      "app",
					AccessKey: clientAccess,
					Secret:    clientSecret,
					Allow:     []access.Grant{{Buckets: []string{"*"}, Actions: everything}},
				},
			},
			clients...)

		directory, err := access.New(all)
		if err != nil {
			p.t.Fatal(err)
		}
		cfg.Clients = directory
	}
}

// team has all grants below team/, and read below shared/.
func team() access.Client {
	return access.Client{Name: "team", AccessKey: readerAccess, Secret: readerSecret, Allow: []access.Grant{
		{
			Buckets:  []string{"test-*"},
			Prefixes: []string{"team/"},
			Actions:  []access.Action{access.Read, access.Write, access.Delete, access.List},
		},
		{Buckets: []string{"test-*"}, Prefixes: []string{"shared/"}, Actions: []access.Action{access.Read}},
	}}
}

// sendAs is send with the credentials of another client.
func (p *proxy) sendAs(accessKey, secret string, r request) answer {
	p.t.Helper()
	r.accessKey, r.secret = accessKey, secret
	return p.send(r)
}

func TestPrefixes(t *testing.T) {
	p := newProxy(t, withClients(team()))
	for _, key := range []string{"team/a", "shared/a", "secret/a"} {
		p.put(key, []byte("text of "+key))
	}
	b := "/" + p.bucket
	copyOf := func(key string) http.Header { return http.Header{"X-Amz-Copy-Source": {p.bucket + "/" + key}} }

	upload := p.create("team/up")
	for _, row := range []struct {
		name   string
		r      request
		status int
	}{
		{"read", request{method: "GET", path: b + "/team/a"}, 200},
		{"head", request{method: "HEAD", path: b + "/team/a"}, 200},
		{
			"tags",
			request{method: "PUT", path: b + "/team/a?tagging", body: []byte("<Tagging><TagSet></TagSet></Tagging>")},
			200,
		},
		{"write", request{method: "PUT", path: b + "/team/b", body: []byte("x")}, 200},
		{"delete", request{method: "DELETE", path: b + "/team/b"}, 204},
		{"list", request{method: "GET", path: b + "?list-type=2&prefix=team/"}, 200},
		{"list deeper", request{method: "GET", path: b + "?prefix=team/a"}, 200},
		{"list versions", request{method: "GET", path: b + "?versions&prefix=team/"}, 200},
		{"list uploads", request{method: "GET", path: b + "?uploads&prefix=team/"}, 200},
		{"is the bucket there", request{method: "HEAD", path: b}, 200},
		{"where is it", request{method: "GET", path: b + "?location"}, 200},
		{"read what is shared", request{method: "GET", path: b + "/shared/a"}, 200},
		{
			"a part that is copied",
			request{method: "PUT", path: b + "/team/up?partNumber=1&uploadId=" + upload.id, header: copyOf("shared/a")},
			200,
		},
		{"a copy", request{method: "PUT", path: b + "/team/copy", header: copyOf("shared/a")}, 200},

		{"a copy from elsewhere", request{method: "PUT", path: b + "/team/copy", header: copyOf("secret/a")}, 403},
		{"a copy to elsewhere", request{method: "PUT", path: b + "/shared/copy", header: copyOf("team/a")}, 403},
		{
			"a copy from elsewhere by ..",
			request{method: "PUT", path: b + "/team/copy", header: copyOf("team/../secret/a")},
			403,
		},
		{
			"a part that is copied from elsewhere",
			request{method: "PUT", path: b + "/team/up?partNumber=1&uploadId=" + upload.id, header: copyOf("secret/a")},
			403,
		},
		{
			"a part that is copied to elsewhere",
			request{method: "PUT", path: b + "/secret/up?partNumber=1&uploadId=" + upload.id, header: copyOf("shared/a")},
			403,
		},
		{"read outside", request{method: "GET", path: b + "/secret/a"}, 403},
		{"head outside", request{method: "HEAD", path: b + "/secret/a"}, 403},
		{"head of what is not there", request{method: "HEAD", path: b + "/secret/none"}, 403},
		{"read short of the prefix", request{method: "GET", path: b + "/team"}, 403},
		{"read in another case", request{method: "GET", path: b + "/Team/a"}, 403},
		{"read out by ..", request{method: "GET", path: b + "/team/../secret/a"}, 403},
		{"read in another bucket", request{method: "GET", path: "/other-bucket/team/a"}, 403},
		{"write to what is shared", request{method: "PUT", path: b + "/shared/a", body: []byte("x")}, 403},
		{"write outside", request{method: "PUT", path: b + "/secret/b", body: []byte("x")}, 403},
		{"write out by ..", request{method: "PUT", path: b + "/team/../secret/b", body: []byte("x")}, 403},
		{"delete outside", request{method: "DELETE", path: b + "/secret/a"}, 403},
		{"tags outside", request{method: "GET", path: b + "/secret/a?tagging"}, 403},
		{"upload outside", request{method: "POST", path: b + "/secret/up?uploads"}, 403},
		{"list all", request{method: "GET", path: b + "?list-type=2"}, 403},
		{"list all, with an empty prefix", request{method: "GET", path: b + "?list-type=2&prefix="}, 403},
		{"list short of the prefix", request{method: "GET", path: b + "?prefix=team"}, 403},
		{"list what may only be read", request{method: "GET", path: b + "?prefix=shared/"}, 403},
		{"list by two prefixes", request{method: "GET", path: b + "?prefix=secret/&prefix=team/"}, 403},
		{"list out by ..", request{method: "GET", path: b + "?prefix=team/../secret/"}, 403},
		{"list all versions", request{method: "GET", path: b + "?versions"}, 403},
		{"list all uploads", request{method: "GET", path: b + "?uploads"}, 403},
		{"the bucket's versioning", request{method: "GET", path: b + "?versioning"}, 403},
		{"the bucket's policy", request{method: "GET", path: b + "?policy"}, 403},
		{"delete the bucket", request{method: "DELETE", path: b}, 403},
		{
			"a legal hold, which is an administrator's",
			request{method: "PUT", path: b + "/team/a?legal-hold", body: []byte("<LegalHold/>")},
			403,
		},
		{
			"a bypass, which is an administrator's",
			request{method: "DELETE", path: b + "/team/a", header: http.Header{"X-Amz-Bypass-Governance-Retention": {"true"}}},
			403,
		},
		{
			"a bypass in other words",
			request{method: "DELETE", path: b + "/team/a", header: http.Header{"X-Amz-Bypass-Governance-Retention": {"1"}}},
			403,
		},
		{"a bypass in a URL", request{
			method: "DELETE", path: b + "/team/a?X-Amz-Bypass-Governance-Retention=True&X-Amz-Expires=60", presign: true,
		}, 403},
		{"a bypass in a URL, in lower case", request{
			method: "DELETE", path: b + "/team/a?x-amz-bypass-governance-retention=true&X-Amz-Expires=60", presign: true,
		}, 403},
	} {
		t.Run(row.name, func(t *testing.T) {
			a := p.sendAs(readerAccess, readerSecret, row.r)
			if a.StatusCode != row.status || row.status == 403 && row.r.method != "HEAD" && a.Code != "AccessDenied" {
				t.Errorf("%d %s, want %d", a.StatusCode, a.body, row.status)
			}
		})
	}

	for _, key := range []string{"team/a", "shared/a", "secret/a"} {
		if got := p.mustGet(key); string(got) != "text of "+key {
			t.Errorf("%s is %q", key, got)
		}
	}

	if p.isStored("secret/b") {
		t.Error("an object was written outside")
	}
}

// ListBuckets lists the buckets for which a client has a grant, even for a
// single object.
func TestBucketsShown(t *testing.T) {
	p := newProxy(
		t,
		withClients(
			team(),
			access.Client{
				Name:      "other",
				AccessKey: "AKIAOTHER",
				Secret:    "othersecretothersecret",
				Allow:     []access.Grant{{Buckets: []string{"hidden"}, Actions: everything}},
			},
		),
	)

	hidden := p.newBucket("hidden-")
	for _, row := range []struct {
		accessKey, secret   string
		seesTest, seesOther bool
	}{
		{clientAccess, clientSecret, true, true},
		{readerAccess, readerSecret, true, false},
		{"AKIAOTHER", "othersecretothersecret", false, false},
	} {
		t.Run(row.accessKey, func(t *testing.T) {
			out, err := p.as(row.accessKey, row.secret).ListBuckets(t.Context(), &s3.ListBucketsInput{})
			if err != nil {
				t.Fatal(err)
			}

			var test, other bool
			for _, b := range out.Buckets {
				test, other = test || *b.Name == p.bucket, other || *b.Name == hidden
			}
			if test != row.seesTest || other != row.seesOther {
				t.Errorf("sees %d buckets: %v, %v", len(out.Buckets), test, other)
			}
		})
	}
}

// DeleteObjects checks each key, and returns an error for each key that the
// client may not delete.
func TestDeleteObjectsByPrefix(t *testing.T) {
	p := newProxy(t, withClients(team()))
	for _, key := range []string{"team/a", "team/b", "secret/a<&>", "secret/b"} {
		p.put(key, []byte("x"))
	}
	team := p.as(readerAccess, readerSecret)

	remove := func(quiet bool, keys ...string) *s3.DeleteObjectsOutput {
		t.Helper()
		in := &s3.DeleteObjectsInput{Bucket: &p.bucket, Delete: &types.Delete{Quiet: &quiet}}
		for _, key := range keys {
			in.Delete.Objects = append(
				in.Delete.Objects,
				types.ObjectIdentifier{Key: &key, VersionId: aws.String("null")},
			)
		}

		out, err := team.DeleteObjects(t.Context(), in)
		if err != nil {
			t.Fatal(err)
		}
		return out
	}

	want := func(name string, out *s3.DeleteObjectsOutput, deleted int, denied ...string) {
		t.Helper()
		var got []string
		for _, e := range out.Errors {
			if *e.Code != "AccessDenied" || *e.VersionId != "null" {
				t.Errorf("%s: %s, %s", name, *e.Code, *e.VersionId)
			}
			got = append(got, *e.Key)
		}

		if deleted >= 0 && len(out.Deleted) != deleted || strings.Join(got, " ") != strings.Join(denied, " ") {
			t.Errorf("%s: %d deleted, denied %q", name, len(out.Deleted), got)
		}
	}

	want("mixed", remove(false, "team/a", "secret/a<&>", "team/../secret/b"), 1, "secret/a<&>", "team/../secret/b")
	want("mixed and quiet", remove(true, "secret/b", "team/b"), -1, "secret/b") // this store ignores Quiet
	p.origin.take()
	want("none allowed", remove(false, "secret/b"), 0, "secret/b")
	if asked := p.origin.take(); len(asked) != 0 {
		t.Errorf("the store was asked %v", asked)
	}

	for key, there := range map[string]bool{"team/a": false, "team/b": false, "secret/a<&>": true, "secret/b": true} {
		t.Run(key, func(t *testing.T) {
			if p.isStored(key) != there {
				t.Errorf("is there: %v", !there)
			}
		})
	}

	a := p.sendAs(
		readerAccess,
		readerSecret,
		request{
			method: "POST",
			path:   "/other-bucket?delete",
			body:   []byte("<Delete><Object><Key>team/a</Key></Object></Delete>"),
		},
	)
	if a.StatusCode != http.StatusForbidden {
		t.Errorf("in a bucket where nothing may be deleted: %d %s", a.StatusCode, a.body)
	}
}

func TestAnonymous(t *testing.T) {
	p := newProxy(t, withClients(access.Client{Name: "everybody", Anonymous: true, Allow: []access.Grant{
		{
			Buckets:  []string{"test-*"},
			Prefixes: []string{"public/"},
			Actions:  []access.Action{access.Read, access.List},
		},
		{Buckets: []string{"test-*"}, Prefixes: []string{"inbox/"}, Actions: []access.Action{access.Write}},
	}}))

	p.put("public/k", []byte("for all"))
	p.put("secret/k", []byte("not for all"))
	b := "/" + p.bucket
	for _, row := range []struct {
		method, path string
		header       http.Header
		status       int
		code         string
	}{
		{"GET", b + "/public/k", nil, 200, ""},
		{"HEAD", b + "/public/k", nil, 200, ""},
		{"GET", b + "?list-type=2&prefix=public/", nil, 200, ""},
		{"GET", b + "/public/k", http.Header{"Range": {"bytes=0-2"}}, 206, ""},
		{"GET", b + "/secret/k", nil, 403, "AccessDenied"},
		{"GET", b + "?list-type=2", nil, 403, "AccessDenied"},
		{"GET", "/", nil, 403, "AccessDenied"},
		{"GET", b + "/public/%2e%2e/secret/k", nil, 403, "AccessDenied"},
		{"GET", b + "/public%2F..%2Fsecret%2Fk", nil, 403, "AccessDenied"},
		{"GET", b + "?prefix=public/&prefix=secret/", nil, 400, "InvalidArgument"},
		{"GET", b + "?prefix=secret/&prefix=public/", nil, 403, "AccessDenied"},
		{"PUT", b + "/public/k", nil, 403, "AccessDenied"},
		{"DELETE", b + "/inbox/k", nil, 403, "AccessDenied"},
		{"PUT", b + "/inbox/k", nil, 200, ""},
		{"GET", b + "?policy", nil, 403, "AccessDenied"},
		{"GET", b + "/public/k?response-content-type=text/html", nil, 400, "InvalidRequest"},
		{"GET", b + "/public/k", http.Header{"Authorization": {"Basic YTpi"}}, 400, "InvalidArgument"},
		{"GET", b + "/public/k", http.Header{"X-Amz-Security-Token": {"t"}}, 400, "InvalidToken"},
		{"GET", b + "/public/k?X-Amz-Signature=0", nil, 400, "AuthorizationQueryParametersError"},
		{"GET", b + "/public/k?AWSAccessKeyId=a&Signature=b&Expires=1", nil, 400, "InvalidRequest"},
		{
			"PUT", b + "/inbox/k",
			http.Header{"X-Amz-Content-Sha256": {"STREAMING-AWS4-HMAC-SHA256-PAYLOAD"}, "X-Amz-Decoded-Content-Length": {"0"}},
			400, "InvalidRequest",
		},
	} {
		t.Run(row.method+" "+row.path, func(t *testing.T) {
			resp, body := p.unsigned(row.method, row.path, row.header)
			if resp.StatusCode != row.status || row.code != "" && !strings.Contains(body, "<Code>"+row.code+"</Code>") {
				t.Errorf("%s %s %v: %d %s", row.method, row.path, row.header, resp.StatusCode, body)
			}
			if row.method == "GET" && row.path == b+"/public/k" && row.status == 200 && body != "for all" {
				t.Errorf("%q", body)
			}
		})
	}

	if stored, _ := p.stored("inbox/k"); len(stored) < 40 {
		t.Errorf("the object is stored in %d bytes", len(stored))
	}
	if !strings.Contains(p.log.String(), `"client":"everybody"`) {
		t.Error("the log does not name the client")
	}

	closed := newProxy(t)
	if resp, body := closed.unsigned("GET", "/"+closed.bucket, nil); resp.StatusCode != http.StatusForbidden ||
		!strings.Contains(body, "AccessDenied") {
		t.Errorf("without an anonymous client: %d %s", resp.StatusCode, body)
	}
}

// Temporary credentials have the grants of their client, until they expire
// or the client is removed.
func TestSessionCredentials(t *testing.T) {
	file := filepath.Join(t.TempDir(), "sessions.json")
	session := func(accessKey, client string, ends time.Duration) string {
		return fmt.Sprintf(
			`{"access_key":%q,"secret_key":"secret-of-session","session_token":"token/of+%s==","expires":%q,"client":%q}`,
			accessKey,
			accessKey,
			time.Now().Add(ends).Format(time.RFC3339),
			client,
		)
	}

	text := "[" + session(
		"ASIATEAM",
		"team",
		time.Hour,
	) + "," + session(
		"ASIAOLD",
		"team",
		-time.Hour,
	) + "," + session(
		"ASIANOBODY",
		"nobody",
		time.Hour,
	) + "]"
	if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}

	var directory *access.Directory
	p := newProxy(t, withClients(team()), func(p *proxy, cfg *s3api.Config, _ *keyring.Config) {
		sessions, err := access.OpenSessions(file, time.Now, func(error, int) {})
		if err != nil {
			p.t.Fatal(err)
		}
		cfg.Clients.UseSessions(sessions)
		directory = cfg.Clients
	})

	p.put("team/k", []byte("text"))
	p.put("secret/k", []byte("text"))
	by := func(accessKey, token string) *s3.Client {
		return p.as("", "", func(o *s3.Options) {
			o.Credentials = credentials.NewStaticCredentialsProvider(accessKey, "secret-of-session", token)
		})
	}

	get := func(c *s3.Client, key string) string {
		_, err := c.GetObject(t.Context(), &s3.GetObjectInput{Bucket: &p.bucket, Key: &key})
		if err == nil {
			return ""
		}
		return code(err)
	}

	for _, row := range []struct{ name, accessKey, token, key, code string }{
		{"within", "ASIATEAM", "token/of+ASIATEAM==", "team/k", ""},
		{"outside", "ASIATEAM", "token/of+ASIATEAM==", "secret/k", "AccessDenied"},
		{"another's token", "ASIATEAM", "token/of+ASIAOLD==", "team/k", "InvalidToken"},
		{"no token", "ASIATEAM", "", "team/k", "InvalidAccessKeyId"},
		{"expired", "ASIAOLD", "token/of+ASIAOLD==", "team/k", "ExpiredToken"},
		{"a client that there is not", "ASIANOBODY", "token/of+ASIANOBODY==", "team/k", "InvalidAccessKeyId"},
	} {
		t.Run(row.name, func(t *testing.T) {
			if got := get(by(row.accessKey, row.token), row.key); got != row.code {
				t.Errorf("%q, want %q", got, row.code)
			}
		})
	}

	presigned, err := s3.NewPresignClient(
		by("ASIATEAM", "token/of+ASIATEAM=="),
	).PresignGetObject(
		t.Context(),
		&s3.GetObjectInput{Bucket: &p.bucket, Key: aws.String("team/k")},
	)
	if err != nil {
		t.Fatal(err)
	}

	path := strings.TrimPrefix(presigned.URL, p.url)
	if resp, body := p.unsigned("GET", path, nil); resp.StatusCode != 200 || body != "text" {
		t.Errorf("presigned: %d %s", resp.StatusCode, body)
	}
	if resp, _ := p.unsigned(
		"GET", strings.Replace(path, "ASIATEAM%3D%3D", "ASIATEAM%3D", 1), nil,
	); resp.StatusCode == 200 {
		t.Error("presigned, with another token")
	}

	for _, secret := range []string{"secret-of-session", "token/of"} {
		if bytes.Contains([]byte(p.log.String()), []byte(secret)) {
			t.Errorf("%q is in the log", secret)
		}
	}

	if !strings.Contains(p.log.String(), `"session":"ASIATEAM"`) ||
		strings.Contains(p.log.String(), `"session":"`+clientAccess) {
		t.Error("the log does not tell who came with temporary credentials")
	}
	if err := directory.Replace([]access.Client{
		{Name: "app", AccessKey: clientAccess, Secret: clientSecret},
	}); err != nil {
		t.Fatal(err)
	}

	if got := get(by("ASIATEAM", "token/of+ASIATEAM=="), "team/k"); got != "InvalidAccessKeyId" {
		t.Errorf("after its client was removed: %q", got)
	}
	if got := get(p.client, "team/k"); got != "AccessDenied" {
		t.Errorf("a client whose grants are gone: %q", got)
	}
}
