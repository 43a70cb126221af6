package s3api_test

import (
	"bytes"
	"fmt"
	"io"
	"net/http"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/service/s3"
	"github.com/aws/aws-sdk-go-v2/service/s3/types"
)

// keepVersions enables versioning of the bucket, through the proxy.
func (p *proxy) keepVersions(bucket string) {
	p.t.Helper()
	if _, err := p.client.PutBucketVersioning(p.t.Context(), &s3.PutBucketVersioningInput{
		Bucket: &bucket, VersioningConfiguration: &types.VersioningConfiguration{Status: types.BucketVersioningStatusEnabled},
	}); err != nil {
		p.t.Fatal(err)
	}
	out, err := p.client.GetBucketVersioning(p.t.Context(), &s3.GetBucketVersioningInput{Bucket: &bucket})
	if err != nil || out.Status != types.BucketVersioningStatusEnabled {
		p.t.Fatalf("GetBucketVersioning: %+v, %v", out, err)
	}
}

// Old versions can be read, tagged, listed and deleted by their ids, with
// their own sizes.
func TestVersions(t *testing.T) {
	p := newProxy(t)
	p.keepVersions(p.bucket)
	sizes := []int{10, 70_000, 0}

	var ids []string
	for i, n := range sizes {
		out := p.put("dir/k", bytes.Repeat([]byte{byte('a' + i)}, n))
		if aws.ToString(out.VersionId) == "" {
			t.Fatal("no version id")
		}
		ids = append(ids, *out.VersionId)
	}

	of := func(id string) func(*s3.GetObjectInput) { return func(in *s3.GetObjectInput) { in.VersionId = &id } }
	for i, id := range ids {
		text, out, err := p.get("dir/k", of(id))
		if err != nil || !bytes.Equal(text, bytes.Repeat([]byte{byte('a' + i)}, sizes[i])) ||
			aws.ToString(out.VersionId) != id {
			t.Fatalf("version %d: %d bytes, %v", i, len(text), err)
		}

		head, err := p.client.HeadObject(
			t.Context(),
			&s3.HeadObjectInput{Bucket: &p.bucket, Key: aws.String("dir/k"), VersionId: &id},
		)
		if err != nil || *head.ContentLength != int64(sizes[i]) {
			t.Errorf("HEAD of version %d: %+v, %v", i, head, err)
		}

		part, out, err := p.get("dir/k", of(id), func(in *s3.GetObjectInput) { in.Range = aws.String("bytes=2-4") })
		if sizes[i] > 0 &&
			(err != nil || string(part) != strings.Repeat(
				string(rune('a'+i)), 3,
			) || aws.ToString(out.ContentRange) != fmt.Sprintf("bytes 2-4/%d", sizes[i])) {
			t.Errorf("range of version %d: %q, %v", i, part, err)
		}
	}

	if _, _, err := p.get("dir/k", of("01JDNOSUCHVERSION0000000000")); err == nil {
		t.Error("a version that there is not was read")
	}

	p.tagVersions("dir/k", ids)
	deleted, err := p.client.DeleteObject(
		t.Context(),
		&s3.DeleteObjectInput{Bucket: &p.bucket, Key: aws.String("dir/k")},
	)
	if err != nil || !aws.ToBool(deleted.DeleteMarker) || aws.ToString(deleted.VersionId) == "" {
		t.Fatalf("DeleteObject: %+v, %v", deleted, err)
	}

	if a := p.send(request{method: "GET", path: "/" + p.bucket + "/dir/k"}); a.StatusCode != http.StatusNotFound ||
		a.Header.Get("X-Amz-Delete-Marker") != "true" {
		t.Errorf("GET of what was deleted: %d %v", a.StatusCode, a.Header)
	}

	marker := "?versionId=" + *deleted.VersionId
	if a := p.send(request{
		method: "GET", path: "/" + p.bucket + "/dir/k" + marker,
	}); a.StatusCode != http.StatusMethodNotAllowed ||
		a.Header.Get("X-Amz-Delete-Marker") != "true" {
		t.Errorf("GET of a delete marker: %d %s %v", a.StatusCode, a.Code, a.Header)
	}
	if a := p.send(request{
		method: "GET", path: "/" + p.bucket + "/dir/k" + marker + "&attributes",
		header: http.Header{"X-Amz-Object-Attributes": {"ETag"}},
	}); a.StatusCode != http.StatusNotFound || a.Code != "NoSuchKey" || a.Header.Get("X-Amz-Delete-Marker") != "true" {
		t.Errorf("GetObjectAttributes of a delete marker: %d %s %v", a.StatusCode, a.Code, a.Header)
	}

	list, err := p.client.ListObjectVersions(t.Context(), &s3.ListObjectVersionsInput{Bucket: &p.bucket})
	if err != nil || len(list.Versions) != 3 || len(list.DeleteMarkers) != 1 || !*list.DeleteMarkers[0].IsLatest {
		t.Fatalf("%+v, %v", list, err)
	}

	for _, v := range list.Versions {
		i := slices.Index(ids, *v.VersionId)
		if i < 0 || *v.Size != int64(sizes[i]) || !strings.HasSuffix(*v.ETag, `-0"`) {
			t.Errorf("listed: %s, %d bytes, %s", *v.VersionId, *v.Size, *v.ETag)
		}
	}

	if _, err := p.client.DeleteObject(t.Context(), &s3.DeleteObjectInput{
		Bucket: &p.bucket, Key: aws.String("dir/k"), VersionId: deleted.VersionId,
	}); err != nil {
		t.Fatal(err)
	}
	if got := p.mustGet("dir/k"); len(got) != 0 {
		t.Errorf("without its delete marker it has %d bytes", len(got))
	}

	many, err := p.client.DeleteObjects(
		t.Context(),
		&s3.DeleteObjectsInput{Bucket: &p.bucket, Delete: &types.Delete{Objects: []types.ObjectIdentifier{
			{Key: aws.String("dir/k"), VersionId: &ids[0]}, {Key: aws.String("dir/k"), VersionId: &ids[2]},
		}}},
	)
	if err != nil || len(many.Deleted) != 2 || len(many.Errors) != 0 {
		t.Errorf("%+v, %v", many, err)
	}

	if got := p.mustGet("dir/k"); len(got) != sizes[1] {
		t.Errorf("%d bytes are left, want %d", len(got), sizes[1])
	}
}

func (p *proxy) tagVersions(key string, ids []string) {
	p.t.Helper()
	for i, id := range ids[:2] {
		if _, err := p.client.PutObjectTagging(p.t.Context(), &s3.PutObjectTaggingInput{
			Bucket: &p.bucket, Key: &key, VersionId: &id,
			Tagging: &types.Tagging{TagSet: []types.Tag{{Key: aws.String("n"), Value: aws.String(fmt.Sprint("+ ", i))}}},
		}); err != nil {
			p.t.Fatal(err)
		}
	}

	if _, err := p.client.DeleteObjectTagging(p.t.Context(), &s3.DeleteObjectTaggingInput{
		Bucket: &p.bucket, Key: &key, VersionId: &ids[1],
	}); err != nil {
		p.t.Fatal(err)
	}

	for i, want := range []string{"+ 0", "", ""} {
		out, err := p.client.GetObjectTagging(
			p.t.Context(),
			&s3.GetObjectTaggingInput{Bucket: &p.bucket, Key: &key, VersionId: &ids[i]},
		)

		switch {
		case err != nil && code(err) != "NoSuchTagSet":
			p.t.Errorf("tags of version %d: %v", i, err)
		case want == "" && err == nil && len(out.TagSet) != 0,
			want != "" && (err != nil || len(out.TagSet) != 1 || *out.TagSet[0].Value != want):
			p.t.Errorf("tags of version %d: %+v, %v", i, out, err)
		}
	}
}

// The store's answer to the HEAD of an invalid version id does not say what
// is wrong, but its answer to a GET does. The proxy sends the GET only if
// the client's response can have a body.
func TestVersionIDsOfNoForm(t *testing.T) {
	p := newProxy(t)
	p.keepVersions(p.bucket)
	p.put("k", []byte("x"))

	attributes := request{
		method: "GET",
		path:   "/" + p.bucket + "/k?attributes&versionId=invalid",
		header: http.Header{"X-Amz-Object-Attributes": {"ETag"}},
	}
	if a := p.send(attributes); a.StatusCode != http.StatusBadRequest || a.Code != "InvalidArgument" ||
		!bytes.Contains(a.body, []byte("<ArgumentValue>invalid</ArgumentValue>")) {
		t.Errorf("GetObjectAttributes: %d %s", a.StatusCode, a.body)
	}

	if _, err := p.copy("k?versionId=invalid", "copy"); code(err) != "InvalidArgument" {
		t.Errorf("CopyObject: %v", err)
	}

	var asked []string
	refuse := func(r *http.Request) (*http.Response, error) {
		asked = append(asked, r.Method+" "+r.Header.Get("Range"))
		status := http.StatusBadRequest
		if r.Method == http.MethodGet {
			status = http.StatusPartialContent
		}

		return &http.Response{
			StatusCode: status,
			Header:     http.Header{"Etag": {`"e"`}},
			Body:       http.NoBody,
			Request:    r,
		}, nil
	}

	p.origin.set(refuse, nil)
	if a := p.send(attributes); a.StatusCode != http.StatusBadRequest || a.Code != "InvalidRequest" ||
		len(asked) != 2 ||
		asked[1] != "GET bytes=0-0" {
		t.Errorf("a store that takes it after all: %d %s, asked %q", a.StatusCode, a.Code, asked)
	}

	asked = nil
	if a := p.send(request{
		method: "HEAD", path: "/" + p.bucket + "/k?versionId=invalid",
	}); a.StatusCode != http.StatusBadRequest ||
		len(asked) != 2 { // the second could show that the proxy is at fault
		t.Errorf("HeadObject: %d, asked %q", a.StatusCode, asked)
	}
}

// The sizes of plaintext and multipart versions are right, also under keys with
// characters that XML does not allow.
func TestVersionsListing(t *testing.T) {
	p := newProxy(t)
	p.bucket = p.newBucket("plain-")
	p.keepVersions(p.bucket)
	const key = "a b/ü+&<x>"
	want := map[string]int64{}
	p.store("a b/plain", bytes.Repeat([]byte("p"), 1000), nil)
	p.put(key, make([]byte, 500))
	p.put(key, make([]byte, 600))

	for _, n := range []int64{500, 600} {
		want[fmt.Sprint(key, " ", n)] = n
	}
	p.upload("many", []int{6 << 20, 100})
	want[fmt.Sprint("many ", 6<<20+100)] = 6<<20 + 100
	want["a b/plain 1000"] = 1000

	out, err := p.client.ListObjectVersions(t.Context(), &s3.ListObjectVersionsInput{Bucket: &p.bucket})
	if err != nil {
		t.Fatal(err)
	}

	for _, v := range out.Versions {
		name := fmt.Sprint(*v.Key, " ", *v.Size)
		if _, ok := want[name]; !ok {
			t.Errorf("listed: %s", name)
		}
		delete(want, name)
	}

	if len(want) != 0 {
		t.Errorf("not listed: %v", want)
	}
}

// Pages of versions are those of the store, as the client requests them. If
// a version needs a HEAD for its size, the HEAD has its id.
func TestVersionsPages(t *testing.T) {
	p, store := newRecorded(t)
	const entry = `<Version><Key>%s</Key><VersionId>%s</VersionId><IsLatest>%v</IsLatest><ETag>&quot;%s&quot;</ETag><Size>%d</Size><ChecksumAlgorithm>CRC32</ChecksumAlgorithm></Version>`
	const marker = `<DeleteMarker><Key>gone</Key><VersionId>m</VersionId><IsLatest>true</IsLatest></DeleteMarker>`

	store.set(func(w http.ResponseWriter, r *http.Request) {
		if r.Method == http.MethodHead { // a plaintext object
			w.Header().Set("Content-Length", "66")
			w.Header().Set("ETag", `"e"`)
			return
		}

		io.WriteString(
			w,
			"<ListVersionsResult><EncodingType>url</EncodingType><NextKeyMarker>a%26b</NextKeyMarker>"+marker+
				fmt.Sprintf(
					entry+entry,
					"a%26b",
					"v2",
					true,
					"e",
					66,
					"a%26b",
					"null",
					false,
					"e-2",
					20_000,
				)+"</ListVersionsResult>",
		)
	})

	const query = "?encoding-type=url&key-marker=a%26b&max-keys=2&prefix=a&version-id-marker=v3&versions"
	a := p.send(request{method: "GET", path: "/" + p.bucket + query})
	want := "<ListVersionsResult><EncodingType>url</EncodingType><NextKeyMarker>a%26b</NextKeyMarker>" + marker +
		strings.ReplaceAll(
			fmt.Sprintf(entry+entry, "a%26b", "v2", true, "e-0", 10, "a%26b", "null", false, "e-2", 1568),
			"<ChecksumAlgorithm>CRC32</ChecksumAlgorithm>",
			"",
		) + "</ListVersionsResult>"
	if string(a.body) != want {
		t.Errorf("got  %s\nwant %s", a.body, want)
	}

	asked := store.take()
	if len(asked) != 1 || !strings.HasPrefix(asked[0].RequestURI, "/"+p.bucket+query) {
		t.Errorf("the store was asked %+v", asked)
	}

	a = p.send(request{method: "GET", path: "/plain-bucket" + query})
	if !bytes.Contains(a.body, []byte("<Size>66</Size>")) {
		t.Errorf("the size of an object that was never encrypted: %s", a.body)
	}

	var heads []string
	for _, r := range store.take()[1:] {
		heads = append(heads, r.Method+" "+r.RequestURI)
	}
	slices.Sort(heads)

	if !slices.Equal(
		heads,
		[]string{"HEAD /plain-bucket/a%26b?versionId=null", "HEAD /plain-bucket/a%26b?versionId=v2"},
	) {
		t.Errorf("the store was asked %q", heads)
	}
}

// A locked object cannot be deleted, and only an administrator may bypass a
// retention.
func TestObjectLock(t *testing.T) {
	p := newProxy(t)
	bucket := "lock-" + strings.TrimPrefix(p.bucket, "test-")
	if _, err := p.client.CreateBucket(t.Context(), &s3.CreateBucketInput{
		Bucket: &bucket, ObjectLockEnabledForBucket: aws.Bool(true),
	}); err != nil {
		t.Fatal(err)
	}

	p.bucket = bucket
	config, err := p.client.GetObjectLockConfiguration(
		t.Context(),
		&s3.GetObjectLockConfigurationInput{Bucket: &bucket},
	)
	if err != nil || config.ObjectLockConfiguration.ObjectLockEnabled != types.ObjectLockEnabledEnabled {
		t.Fatalf("%+v, %v", config, err)
	}

	until := time.Now().Add(time.Hour).UTC().Truncate(time.Second)
	out := p.put("k", []byte("locked"), func(in *s3.PutObjectInput) {
		in.ObjectLockMode, in.ObjectLockRetainUntilDate, in.ObjectLockLegalHoldStatus = types.ObjectLockModeGovernance, &until, types.ObjectLockLegalHoldStatusOn
	})

	head, err := p.client.HeadObject(t.Context(), &s3.HeadObjectInput{Bucket: &bucket, Key: aws.String("k")})
	if err != nil || head.ObjectLockMode != types.ObjectLockModeGovernance ||
		!head.ObjectLockRetainUntilDate.Equal(until) ||
		head.ObjectLockLegalHoldStatus != types.ObjectLockLegalHoldStatusOn {
		t.Errorf("HEAD: %+v, %v", head, err)
	}

	if hold, err := p.client.GetObjectLegalHold(t.Context(), &s3.GetObjectLegalHoldInput{
		Bucket: &bucket, Key: aws.String("k"),
	}); err != nil ||
		hold.LegalHold.Status != types.ObjectLockLegalHoldStatusOn {
		t.Errorf("GetObjectLegalHold: %+v, %v", hold, err)
	}
	if _, err := p.client.PutObjectLegalHold(t.Context(), &s3.PutObjectLegalHoldInput{
		Bucket: &bucket, Key: aws.String("k"),
		LegalHold: &types.ObjectLockLegalHold{Status: types.ObjectLockLegalHoldStatusOff},
	}); err != nil {
		t.Errorf("PutObjectLegalHold: %v", err)
	}

	longer := until.Add(time.Hour)
	if _, err := p.client.PutObjectRetention(t.Context(), &s3.PutObjectRetentionInput{
		Bucket: &bucket, Key: aws.String("k"),
		Retention: &types.ObjectLockRetention{Mode: types.ObjectLockRetentionModeGovernance, RetainUntilDate: &longer},
	}); err != nil {
		t.Errorf("PutObjectRetention: %v", err)
	}
	if kept, err := p.client.GetObjectRetention(t.Context(), &s3.GetObjectRetentionInput{
		Bucket: &bucket, Key: aws.String("k"), VersionId: out.VersionId,
	}); err != nil ||
		!kept.Retention.RetainUntilDate.Equal(longer) {
		t.Errorf("GetObjectRetention: %+v, %v", kept, err)
	}

	if a := p.send(request{
		method: "PUT", path: "/" + bucket + "/url?X-Amz-Object-Lock-Legal-Hold=ON&X-Amz-Expires=60", presign: true,
		body: []byte("x"),
	}); a.StatusCode != http.StatusOK {
		t.Errorf("a hold in a URL: %d %s", a.StatusCode, a.body)
	}

	if a := p.send(request{method: "GET", path: "/" + bucket + "/url?legal-hold"}); !bytes.Contains(
		a.body,
		[]byte("<Status>ON</Status>"),
	) {
		t.Errorf("a hold in a URL is not kept: %s", a.body)
	}

	path := "/" + bucket + "/k?versionId=" + *out.VersionId
	if a := p.send(request{method: "DELETE", path: path}); a.StatusCode != http.StatusForbidden {
		t.Errorf("DELETE of what is locked: %d %s", a.StatusCode, a.Code)
	}
	if got := p.mustGet("k"); string(got) != "locked" {
		t.Errorf("%q", got)
	}

	if a := p.send(request{
		method: "DELETE", path: path, header: http.Header{"X-Amz-Bypass-Governance-Retention": {"true"}},
	}); a.StatusCode != http.StatusNoContent {
		t.Errorf("DELETE with the bypass: %d %s", a.StatusCode, a.Code)
	}
}
