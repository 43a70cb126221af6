package s3api_test

import (
	"bytes"
	"encoding/base64"
	"encoding/xml"
	"maps"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"

	"github.com/aws/aws-sdk-go-v2/service/s3"

	"github.com/cmekproxy/cmekproxy/internal/access"
	"github.com/cmekproxy/cmekproxy/internal/keyname"
	"github.com/cmekproxy/cmekproxy/internal/keyring"
	"github.com/cmekproxy/cmekproxy/internal/s3api"
	"github.com/cmekproxy/cmekproxy/internal/sigv4"
)

// hostileKeys returns keys that, used as paths, lead out of their bucket to
// an object, or to the bucket itself.
func hostileKeys(victim string) []string {
	return []string{
		"../" + victim, "../" + victim + "/k", "a/../../" + victim + "/k", "a/../../" + victim, "./../" + victim + "/k",
		"/../" + victim + "/k", "a//../../" + victim + "/k", "../../outside", "..", ".", "a/..", "./.", "a//..", "/", "//",
		`..\` + victim + `\k`, `a\..\..\` + victim + `\k`, `a\b/..`,
	}
}

// hostileIDs returns ids of uploads and versions that lead out of the folder
// in which a store may keep them.
func hostileIDs(victim string) []string {
	return []string{
		"..", ".", "../../..", "../../../../" + victim, "../../../../" + victim + "/k", "/../../../..", "a/../../x", "./x",
		"a/..",
		`..\..\..`, `a\..\x`,
	}
}

// hostileUploads returns hostileIDs, with and without the mark of the
// proxy's ids.
func hostileUploads(victim string) []string {
	ids, wish := hostileIDs(victim), ".cmek."+base64.RawURLEncoding.EncodeToString([]byte("{}"))
	return append(ids, "../../.."+wish, ".."+wish, "."+wish, wish)
}

// hostileParameters are the query parameters that contain names.
var hostileParameters = map[string]func(string) []string{
	"uploadId": hostileUploads, "upload-id-marker": hostileUploads, "versionId": hostileIDs,
	"version-id-marker": hostileIDs,
	"id":                hostileIDs, "annotationName": hostileIDs,
	"prefix": hostileListed, "marker": hostileListed, "start-after": hostileListed, "key-marker": hostileListed,
	"continuation-token": hostileListed,
}

// harmlessParameters contain numbers or fixed words.
const harmlessParameters = "list-type x-id max-keys max-parts max-uploads max-buckets delimiter encoding-type fetch-owner bucket-region " +
	"part-number-marker partNumber response-cache-control response-content-disposition response-content-encoding " +
	"response-content-language response-content-type response-expires"

func hostileListed(victim string) []string {
	return slices.DeleteFunc(hostileKeys(victim), func(key string) bool { // these may be prefixes of a valid key
		return slices.Contains([]string{".", "a/..", "./.", "a//..", "/", "//", `a\b/..`}, key)
	})
}

// attack is a proxy in front of the store, with another client's bucket and
// a file next to the store's folder.
type attack struct {
	*proxy
	victim, outside string
}

func newAttack(t *testing.T) *attack {
	t.Helper()
	p := newProxy(t)
	a := &attack{proxy: p, victim: p.newBucket("victim-"), outside: filepath.Join(filepath.Dir(store.Dir), "outside")}
	own := p.bucket
	p.bucket = a.victim
	p.put("k", []byte("the victim's"))
	p.bucket = own
	p.newBucket("empty-") // so that an empty folder that was removed is noticed
	if err := os.WriteFile(a.outside, []byte("a file"), 0o600); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.Remove(a.outside) })
	return a
}

// check verifies that nothing was altered.
func (a *attack) check(what string) {
	a.t.Helper()
	if text, err := os.ReadFile(a.outside); err != nil || string(text) != "a file" {
		a.t.Fatalf("%s: the file outside of the store: %q, %v", what, text, err)
	}
	own := a.bucket
	a.bucket = a.victim
	text, _, err := a.get("k")

	a.bucket = own
	if err != nil || string(text) != "the victim's" {
		a.t.Fatalf("%s: the victim's object: %q, %v", what, text, err)
	}
	if _, err := os.Stat(filepath.Join(store.Dir, own)); err != nil {
		a.t.Fatalf("%s: the bucket was removed: %v", what, err)
	}

	a.origin.take()
}

// refused sends a request with a hostile name. The store must not get it.
func (a *attack) refused(what string, r request) {
	a.t.Helper()
	if r.header == nil {
		r.header = http.Header{}
	}
	r.header.Set("Origin", "http://example.com") // the store may be asked about it
	a.origin.take()

	got := a.send(r)
	if got.StatusCode < 400 || got.StatusCode >= 500 && got.Code != "NotImplemented" {
		a.t.Errorf("%s: %s %s: %d %s", what, r.method, r.path, got.StatusCode, got.body)
	}

	for _, asked := range a.origin.take() {
		if !slices.Contains(
			[]string{"OPTIONS /" + a.bucket + " ", "OPTIONS /" + a.bucket + "/k ", "HEAD /" + a.bucket + " "},
			asked,
		) {
			a.t.Errorf("%s: %s %s: the store was asked %s", what, r.method, r.path, asked)
		}
	}

	a.check(what)
}

// requestFor returns a request for a row and a key, with further parameters.
func (a *attack) requestFor(row s3api.Row, key string, parameters url.Values) request {
	path, query, header := "/"+a.bucket, url.Values{}, http.Header{}
	if strings.Contains(row.Path, "key") {
		path += "/" + strings.TrimPrefix(sigv4.EscapePath("/"+key), "/")
	}

	for match := range strings.FieldsSeq(row.Match) {
		name, value, _ := strings.Cut(match, "=")
		if isHeader, ok := strings.CutPrefix(match, "header:"); ok {
			header.Set(isHeader, a.bucket+"/source")
		} else {
			query.Set(name, value)
		}
	}

	if strings.Contains(row.Query, "partNumber") && query.Has("uploadId") {
		query.Set("partNumber", "1")
	}
	maps.Copy(query, parameters)
	if row.Method == http.MethodOptions {
		header.Set("Access-Control-Request-Method", "GET")
	}

	return request{
		method: row.Method,
		path:   path + "?" + strings.ReplaceAll(query.Encode(), "+", "%20"),
		header: header,
	}
}

// No operation accepts a name that leads out of the bucket, in any place.
func TestHostileNamesOnEveryRoute(t *testing.T) {
	a := newAttack(t)
	a.put("source", []byte("x"))
	upload := a.create("k")

	for _, row := range s3api.Rows() {
		if row.Path == "/" || row.Op == "WriteGetObjectResponse" {
			continue
		}

		if strings.Contains(row.Path, "key") {
			for _, key := range hostileKeys(a.victim) {
				a.refused(row.Op+" of the key "+key, a.requestFor(row, key, nil))
			}
		}

		for parameter := range strings.FieldsSeq(row.Match + " " + row.Query) {
			name, _, _ := strings.Cut(parameter, "=")
			names := hostileParameters[name]
			if names == nil {
				continue
			}
			for _, value := range names(a.victim) {
				a.refused(row.Op+" with the "+name+" "+value, a.requestFor(row, "k", url.Values{name: {value}}))
			}
		}

		if !strings.Contains(row.Match, "x-amz-copy-source") {
			continue
		}
		var sources []string
		for _, key := range hostileKeys(a.victim) {
			sources = append(sources, sigv4.EscapePath(a.bucket+"/"+key))
		}

		for _, id := range hostileIDs(a.victim) {
			sources = append(sources, a.bucket+"/source?versionId="+url.QueryEscape(id))
		}

		for _, source := range sources {
			r := a.requestFor(row, "k", nil)
			if strings.Contains(row.Match, "uploadId") {
				r = a.requestFor(row, "k", url.Values{"uploadId": {upload.id}})
			}
			r.header.Set("X-Amz-Copy-Source", source)
			a.refused(row.Op+" from "+source, r)
		}
	}
}

// Each new parameter of a route must be declared here as a name or as
// harmless.
func TestEveryParameterIsJudgedOrHarmless(t *testing.T) {
	for _, row := range s3api.Rows() {
		for parameter := range strings.FieldsSeq(row.Query) {
			if hostileParameters[parameter] == nil && !slices.Contains(strings.Fields(harmlessParameters), parameter) {
				t.Errorf("%s: is the value of %s a name?", row.Op, parameter)
			}
		}
	}
}

// DeleteObjects has keys in its body; each of them is checked.
func TestHostileNamesInDeleteObjects(t *testing.T) {
	a := newAttack(t)
	remove := func(key, version string) {
		t.Helper()
		a.put("good", []byte("x"))
		doc := "<Delete>" + object("good", "") + object(key, version) + "</Delete>"

		got := a.send(
			request{
				method: http.MethodPost,
				path:   "/" + a.bucket + "?delete",
				body:   []byte(doc),
				header: http.Header{"Content-Type": {"application/xml"}},
			},
		)

		var answer struct {
			Deleted []struct{ Key string }
			Error   []struct{ Key, Code string }
		}
		if err := xml.Unmarshal(got.body, &answer); err != nil || got.StatusCode != http.StatusOK {
			t.Fatalf("%q: %d %s", key, got.StatusCode, got.body)
		}

		if len(answer.Deleted) != 1 || answer.Deleted[0].Key != "good" || len(answer.Error) != 1 ||
			answer.Error[0].Code != "InvalidArgument" ||
			answer.Error[0].Key != key {
			t.Errorf("%q, version %q: %s", key, version, got.body)
		}
		a.check("deleting " + key + " of version " + version)
	}

	for _, key := range hostileKeys(a.victim) {
		remove(key, "")
	}
	for _, id := range hostileIDs(a.victim) {
		remove("k", id)
	}
}

func object(key, version string) string {
	var b bytes.Buffer
	b.WriteString("<Object><Key>")
	_ = xml.EscapeText(&b, []byte(key))
	b.WriteString("</Key>")
	if version != "" {
		b.WriteString("<VersionId>")
		_ = xml.EscapeText(&b, []byte(version))
		b.WriteString("</VersionId>")
	}
	return b.String() + "</Object>"
}

// A form has its key in a field, into which the file's name can be inserted.
func TestHostileNamesInForms(t *testing.T) {
	a := newAttack(t)
	post := func(what string, u *upload) {
		t.Helper()
		a.origin.take()
		resp, answer := u.post()
		if resp.StatusCode != http.StatusBadRequest || !strings.Contains(answer, "<Code>InvalidArgument</Code>") {
			t.Errorf("%s: %d %s", what, resp.StatusCode, answer)
		}

		if asked := a.origin.take(); len(asked) > 0 {
			t.Errorf("%s: the store was asked %v", what, asked)
		}
		a.check(what)
	}

	for _, key := range append(hostileKeys(a.victim), "uploads/../secret/x", `uploads/..\x`) {
		post(key, a.form(key, []byte("x")))
	}

	for _, name := range []string{"..", "."} {
		u := a.form("uploads/${filename}", []byte("x"))
		u.filename = name
		post("a file named "+name, u)
	}
	u := a.form("uploads/${filename}", []byte("x"))
	u.change = func(fields map[string]string) { fields["key"] = "uploads/../secret/x" }

	post("a key that the policy's prefix says nothing about", u)
}

// A store ignores an empty upload id, and would take AbortMultipartUpload
// for DeleteObject.
func TestEmptyUploadID(t *testing.T) {
	p := newProxy(
		t,
		withClients(access.Client{Name: "writer", AccessKey: readerAccess, Secret: readerSecret, Allow: []access.Grant{
			{Buckets: []string{"*"}, Actions: []access.Action{access.Write}},
		}}),
	)
	p.put("k", []byte("text"))

	for _, row := range s3api.Rows() {
		if !strings.Contains(row.Match, "uploadId") {
			continue
		}
		a := &attack{proxy: p}
		r := a.requestFor(row, "k", url.Values{"uploadId": {""}})
		p.origin.take()

		if got := p.sendAs(readerAccess, readerSecret, r); got.StatusCode != http.StatusNotFound ||
			got.Code != "NoSuchUpload" {
			t.Errorf("%s: %d %s", row.Op, got.StatusCode, got.body)
		}
		if asked := p.origin.take(); len(asked) > 0 {
			t.Errorf("%s: the store was asked %v", row.Op, asked)
		}
	}

	if !p.isStored("k") {
		t.Error("the object was removed")
	}
}

// Each upload has exactly one id: other encodings are refused.
func TestUploadIDsAreReadStrictly(t *testing.T) {
	a, _, second := twoReplicas(t)
	m := a.create("k", asking(second.KeyID(), ""))
	_, text, ok := strings.Cut(m.id, ".cmek.")
	if !ok || len(text)%4 == 0 {
		t.Fatalf("the id %q has no spare bits", m.id)
	}

	alphabet := "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_"
	last := strings.IndexByte(alphabet, text[len(text)-1])
	for name, id := range map[string]string{
		"spare bits":        m.id[:len(m.id)-1] + alphabet[last+1:last+2],
		"a line feed":       m.id[:len(m.id)-2] + "\n" + m.id[len(m.id)-2:],
		"a line at its end": m.id + "\r\n",
	} {
		t.Run(name, func(t *testing.T) {
			path := "/" + a.bucket + "/k?partNumber=1&uploadId=" + url.QueryEscape(id)
			if got := a.send(request{method: http.MethodPut, path: path, body: []byte("text")}); got.Code != "NoSuchUpload" {
				t.Errorf("%d %s", got.StatusCode, got.Code)
			}
		})
	}

	parts, err := a.client.ListParts(t.Context(), &s3.ListPartsInput{Bucket: &a.bucket, Key: &m.key, UploadId: &m.id})
	if err != nil || len(parts.Parts) != 0 {
		t.Errorf("a part was stored: %+v, %v", parts, err)
	}
}

// withNames makes the proxy treat keys as a store of that kind does.
func withNames(names keyname.Store, rules ...keyring.Rule) option {
	return func(_ *proxy, cfg *s3api.Config, ring *keyring.Config) {
		cfg.KeyNames, ring.LiteralKeys = names, names == keyname.Literal
		if len(rules) > 0 {
			ring.Rules = rules
		}
	}
}

// Whether a key with unusual segments is accepted depends on the kind of
// store, and on whether rules or grants have prefixes.
func TestKeyNames(t *testing.T) {
	prefixed := []keyring.Rule{{Prefixes: []string{"uploads/"}, Key: "main", AllowPlaintext: true}, {Key: "main"}}
	put := func(key string) request { return request{method: "PUT", path: key, body: []byte("x")} }
	get := func(key string) request { return request{method: "GET", path: key} }
	for _, row := range []struct {
		name    string
		names   keyname.Store
		rules   []keyring.Rule
		request request
		refused bool
	}{
		{"unset, no prefix", keyname.Unknown, nil, put("a/../b"), false},
		{"unset, a rule with a prefix", keyname.Unknown, prefixed, put("uploads/../secret/x"), true},
		{"unset, a rule with another prefix", keyname.Unknown, prefixed, put("secret/../uploads/x"), true},
		{"unset, an empty segment", keyname.Unknown, prefixed, put("uploads//x"), false},
		{"path, dots", keyname.Path, nil, put("a/../b"), true},
		{"path, a dot", keyname.Path, nil, put("a/./b"), true},
		{"path, dots that are read", keyname.Path, nil, get("a/../b"), true},
		{"path, an empty segment", keyname.Path, nil, put("a//b"), true},
		{"path, a slash ahead", keyname.Path, nil, put("/a"), true},
		{"path, a folder", keyname.Path, nil, put("a/"), false},
		{"path, an empty segment that is read", keyname.Path, nil, get("a//b"), false},
		{"path, an empty segment that is deleted", keyname.Path, nil, request{method: "DELETE", path: "a//b"}, false},
		{"literal", keyname.Literal, prefixed, put("uploads/../secret/x"), false},
		{"literal, empty segments", keyname.Literal, nil, put("//a//b"), false},
		{"literal, out of the bucket", keyname.Literal, nil, put("uploads/../../x"), true},
	} {
		t.Run(row.name, func(t *testing.T) {
			p := newProxy(t, withNames(row.names, row.rules...))
			row.request.path = "/" + p.bucket + "/" + row.request.path
			got := p.send(row.request)
			if refused := got.Code == "InvalidArgument"; refused != row.refused {
				t.Errorf("%d %s", got.StatusCode, got.body)
			}

			asked := strings.Join(p.origin.take(), "\n")
			if strings.Contains(asked, row.request.path) == row.refused {
				t.Errorf("the store was asked:\n%s", asked)
			}
		})
	}
}

// A key that the store would fold is refused on every route that stores an
// object, with the name to use instead, and the store is not asked.
func TestFoldedKeysAreRefused(t *testing.T) {
	p := newProxy(t, withNames(keyname.Path))
	p.put("source", []byte("text"))
	b := "/" + p.bucket
	copied := http.Header{"X-Amz-Copy-Source": {b + "/source"}}

	for _, row := range []struct{ key, why, instead string }{
		{"a//b", `"//"`, `"a/b"`},
		{"/a", `begins with "/"`, `"a"`},
		{"a/./b", `"." or ".." segment`, `"a/b"`},
		{"a/../b", `"." or ".." segment`, `"b"`},
		{`a\..\b`, `"." or ".." segment`, "a key without such segments"},
	} {
		for name, r := range map[string]request{
			"PutObject":               {method: "PUT", path: b + "/" + row.key, body: []byte("x")},
			"CopyObject":              {method: "PUT", path: b + "/" + row.key, header: copied},
			"CreateMultipartUpload":   {method: "POST", path: b + "/" + row.key + "?uploads"},
			"UploadPart":              {method: "PUT", path: b + "/" + row.key + "?partNumber=1&uploadId=x", body: []byte("x")},
			"UploadPartCopy":          {method: "PUT", path: b + "/" + row.key + "?partNumber=1&uploadId=x", header: copied},
			"CompleteMultipartUpload": {method: "POST", path: b + "/" + row.key + "?uploadId=x", body: []byte("<x/>")},
		} {
			t.Run(name+" "+row.key, func(t *testing.T) {
				p.origin.take()
				got := p.send(r)
				expectFolded(t, got, row.key, row.why, row.instead)
				if asked := p.origin.take(); len(asked) > 0 {
					t.Errorf("the store was asked %q", asked)
				}
			})
		}

		t.Run("PostObject "+row.key, func(t *testing.T) {
			resp, body := p.form(row.key, []byte("x")).post()
			_, code, _ := strings.Cut(body, "<Code>")
			code, _, _ = strings.Cut(code, "</Code>")
			expectFolded(t, answer{resp, []byte(body), code}, row.key, row.why, row.instead)
		})
	}
}

func expectFolded(t *testing.T, got answer, key, why, instead string) {
	t.Helper()
	if got.StatusCode != http.StatusBadRequest || got.Code != "InvalidArgument" {
		t.Errorf("%d %s, want 400 InvalidArgument", got.StatusCode, got.Code)
	}

	var doc struct{ Message, ArgumentName, ArgumentValue string }
	if err := xml.Unmarshal(got.body, &doc); err != nil {
		t.Fatal(err)
	}
	if !strings.Contains(doc.Message, strconv.Quote(key)) || !strings.Contains(doc.Message, why) ||
		!strings.Contains(doc.Message, instead) || !strings.Contains(doc.Message, "keeps objects as files") ||
		doc.ArgumentName != "key" || doc.ArgumentValue != key {
		t.Errorf("%+v, want %q, %q and %q", doc, key, why, instead)
	}
}

// What was stored under a name that the store folds stays readable by that
// name, whatever origin.keys says now. By the name in listings it cannot be
// read, and the error mentions why that may be.
func TestFoldedNamesStayReadable(t *testing.T) {
	before := newProxy(t, withNames(keyname.Unknown))
	before.put("a//b", []byte("text"))
	before.put("c", []byte("text"))

	for _, row := range []struct {
		names    keyname.Store
		mentions bool
	}{{keyname.Unknown, true}, {keyname.Path, true}, {keyname.Literal, false}} {
		t.Run("origin.keys: "+string(row.names), func(t *testing.T) {
			p := newProxy(t, withNames(row.names), func(p *proxy, _ *s3api.Config, ring *keyring.Config) {
				ring.Keys = before.ringKeys
			})
			p.bucket = before.bucket

			if text := p.mustGet("a//b"); string(text) != "text" {
				t.Errorf("a//b reads as %q", text)
			}
			got := p.send(request{method: "GET", path: "/" + p.bucket + "/a/b"})
			if got.StatusCode != http.StatusUnprocessableEntity || got.Code != "ObjectIntegrityError" ||
				strings.Contains(string(got.body), "cmekproxy verify") != row.mentions {
				t.Errorf("a/b: %d %s", got.StatusCode, got.body)
			}
		})
	}
}

// Plaintext that a rule allows below a prefix cannot be read outside it.
func TestPlaintextBelowAPrefixOnly(t *testing.T) {
	rules := []keyring.Rule{{Prefixes: []string{"open/"}, Key: "main", AllowPlaintext: true}, {Key: "main"}}
	p := newProxy(t, withNames(keyname.Unknown, rules...))
	p.store("secret", []byte("planted"), nil)
	if got := p.send(request{method: "GET", path: "/" + p.bucket + "/open/../secret"}); got.StatusCode < 400 ||
		bytes.Contains(got.body, []byte("planted")) {
		t.Errorf("%d %s", got.StatusCode, got.body)
	}
}
